"""The child process of tuning: a line of JSON on stdin is a task, a line on stdout its result.

It ends when its stdin is closed, that is when the process that started it is gone, also in the middle of a
task. What a runtime prints goes to stderr.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeinfer.tuning.stopwatch import Stopwatch

__all__: list[str] = []


def main() -> int:
    """Serve tasks until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    tasks: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_read, args=(tasks,), daemon=True).start()
    with contextlib.ExitStack() as stack:
        server = _Server(stack)
        while (line := tasks.get()) is not None:
            answers.write(json.dumps(_answer(server, json.loads(line))) + "\n")
            answers.flush()
    return 0


def _read(tasks: queue.Queue[str | None]) -> None:
    for line in sys.stdin:
        tasks.put(line)
    # Nobody listens any more: whatever is computed now, and whatever it started, ends here.
    os.killpg(os.getpgid(0), signal.SIGKILL)


def _answer(server: _Server, task: Mapping[str, Any]) -> dict[str, Any]:
    from edgeinfer.errors import BackendError, EdgeInferError, InvalidModelError, PreconditionError

    try:
        return server.run(task)
    except MemoryError as error:
        return {"outcome": "out_of_memory", "reason": str(error) or "no memory left"}
    except (BackendError, PreconditionError, InvalidModelError) as error:
        return {"outcome": "refused", "reason": _brief(error)}
    except EdgeInferError as error:
        return {"outcome": "failed", "reason": _brief(error)}
    except Exception as error:  # a candidate may fail in any way; that is its result
        return {"outcome": "failed", "reason": f"{type(error).__name__}: {error}"}


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]


class _Server:
    """Runs tasks; a session stays open between those that time it."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self._stopwatch: Stopwatch | None = None

    def run(self, task: Mapping[str, Any]) -> dict[str, Any]:
        what = task["task"]
        if what == "time":
            assert self._stopwatch is not None
            return self._stopwatch.time(task["runs"])
        folder = Path(task["folder"])
        if what == "open":
            from edgeinfer.tuning.stopwatch import Stopwatch

            self._stopwatch = self._stack.enter_context(Stopwatch.open(folder, task))
            return self._stopwatch.facts()
        from edgeinfer.devices.profile import Target
        from edgeinfer.tuning import making
        from edgeinfer.tuning.candidate import Candidate

        target = Target.parse(task["target"])
        if what == "prepare":
            shapes = {name: tuple(shape) for name, shape in task["shapes"].items()}
            return making.prepare(folder, target, shapes)
        if what == "sensitivity":
            return making.measure_sensitivity(folder, target)
        candidate = Candidate.from_dict(task["candidate"])
        if what == "layers":
            return making.time_layers(folder, candidate, target)
        return making.make(folder, candidate, target, candidate.run_options, here=task["here"])


if __name__ == "__main__":
    sys.exit(main())
