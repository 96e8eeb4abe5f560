"""Child processes for what may crash, hang or eat all memory: each outcome is a result.

A child has a process group of its own, a deadline, and a watchdog on the memory of the group. It is told what
to do by lines of JSON and answers so, too. It ends itself when this process is gone, however that ended.
Where there is a fork server, it is forked from that one and need not import anything.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, final

import attrs

from edgeinfer.devices.probe.pressure import parse_meminfo
from edgeinfer.devices.probe.tree import Tree
from edgeinfer.tuning.fork_server import ForkServer, Process, python_path

__all__ = ["Child", "ChildError", "memory_limit", "run_task"]

_CHILD = "edgeinfer.tuning.child"
_WAIT_S = 0.1
_LOOK_S = 0.3  # how often memory is looked at, which takes some milliseconds
_MEMORY_PART = 0.8  # of what is available
_TAIL_BYTES = 2000


class ChildError(Exception):
    """A child did not answer. `outcome` is `crashed`, `hung`, `out_of_memory`, `failed` or `refused`."""

    def __init__(self, outcome: str, reason: str) -> None:
        self.outcome = outcome
        self.reason = reason
        super().__init__(f"{outcome}: {reason}")


def memory_limit(tree: Tree | None = None) -> int | None:
    """Return how many bytes a child may take: a part of what is available; None where that is not told."""
    available = parse_meminfo((tree or Tree()).read("/proc/meminfo")).get("MemAvailable")
    return None if available is None else int(available * _MEMORY_PART)


@final
@attrs.define(eq=False)
class Child:
    """A child process; a context manager that kills it and all that it started.

    Args:
        log: The file that takes what it prints.
        server: What it is forked from; None: it is started as a new interpreter.
        max_bytes: Memory of its process group above which it is killed; None: not watched.
        module: What it runs.

    Raises:
        ChildError: It cannot be forked.
    """

    log: Path
    server: ForkServer | None = None
    max_bytes: int | None = None
    module: str = _CHILD
    _process: Process = attrs.field(init=False)
    _buffer: bytes = attrs.field(init=False, default=b"")

    def __attrs_post_init__(self) -> None:
        if self.server is not None:
            try:
                self._process = self.server.start(self.module, self.log)
            except OSError as error:
                raise ChildError("crashed", f"it could not be forked: {error}") from error
            return
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 (this interpreter, and a module of ours)
                [sys.executable, "-m", self.module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=python_path(),
                start_new_session=True,  # a group of its own, which is killed as one
            )

    @property
    def pid(self) -> int:
        """Its number, and that of its process group."""
        return self._process.pid

    def ask(self, request: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """Send a request, and return the answer.

        Raises:
            ChildError: It failed, refused, crashed, hung or took too much memory. Unless the child said so
                itself, it is killed.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._gone() from None
        answer: dict[str, Any] = json.loads(self._line(time.monotonic() + timeout_s, timeout_s))
        if "outcome" in answer and answer["outcome"] != "ok":
            raise ChildError(answer["outcome"], answer.get("reason", ""))
        return answer

    def kill(self) -> None:
        """Kill the process group, and wait for it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(OSError):  # the server is gone, and with it who could tell
            self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def _line(self, end: float, timeout_s: float) -> bytes:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        looked = time.monotonic()
        while b"\n" not in self._buffer:
            left = end - time.monotonic()
            if left <= 0:
                self.kill()
                raise ChildError("hung", f"no answer within {timeout_s:.0f} s")
            if self.max_bytes is not None and time.monotonic() - looked > _LOOK_S:
                self._watch(self.max_bytes)
                looked = time.monotonic()
            if select.select([descriptor], [], [], min(left, _WAIT_S))[0]:
                data = os.read(descriptor, 1 << 16)
                if not data:
                    raise self._gone()
                self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _watch(self, most: int) -> None:
        used = _group_bytes(self._process.pid)
        if used > most:
            self.kill()
            raise ChildError(
                "out_of_memory", f"it took {used / 1e6:.0f} MB, where {most / 1e6:.0f} MB may be taken"
            )

    def _gone(self) -> ChildError:
        """Return why the child is gone."""
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            code = 0
        except OSError as error:
            self.kill()
            return ChildError("crashed", f"how it ended is not known: {error}")
        self.kill()
        text = self.log.read_bytes()[-_TAIL_BYTES:].decode("utf-8", "replace").strip()
        last = text.splitlines()[-1] if text else ""
        if code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
            hint = "; perhaps the system ran out of memory" if -code == signal.SIGKILL else ""
            return ChildError("crashed", f"killed by {name}{hint}. {last}".strip())
        return ChildError("crashed", f"exit code {code}. {last}".strip())


def run_task(
    request: Mapping[str, Any],
    *,
    log: Path,
    timeout_s: float,
    max_bytes: int | None,
    server: ForkServer | None = None,
) -> dict[str, Any]:
    """Run one task in a child of its own.

    Raises:
        ChildError: It gave no result.
    """
    with Child(log, server, max_bytes=max_bytes) as child:
        return child.ask(request, timeout_s)


def _group_bytes(group: int) -> int:
    """Return the resident memory of all processes of a group, in bytes (proc(5): stat, statm)."""
    total = 0
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError, ValueError, IndexError):
            stat = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
            if int(stat[2]) == group:
                total += int(stat[21]) * os.sysconf("SC_PAGE_SIZE")
    return total
