"""The child process of the worker: a task as JSON on stdin, its result as JSON on stdout's last line."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__: list[str] = []


def main() -> int:
    """Run the task."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    task = json.load(sys.stdin)
    from edgeinfer.devices.remote.worker import describe_error

    try:
        answer = _run(task)
    except Exception as error:
        answer = {"error": describe_error(error)}
    answers.write("\n" + json.dumps(answer) + "\n")
    answers.close()
    return 0


def _run(task: Mapping[str, Any]) -> dict[str, Any]:
    import attrs
    import numpy as np

    from edgeinfer.artifact.artifact import Artifact
    from edgeinfer.devices.remote.feeds_file import unpack_feeds
    from edgeinfer.runtime.benchmark import benchmark
    from edgeinfer.runtime.memory import memory
    from edgeinfer.runtime.open import load

    artifact = Artifact.open(task["artifact"])
    packed = Path(task["scratch"]) / "feeds.npz"
    feeds = unpack_feeds(packed.read_bytes(), artifact.signature) if packed.is_file() else None
    where = {"device": task["device"], "options": task["options"]}
    arguments = task["arguments"]
    if task["what"] == "memory":
        report = memory(artifact, feeds[0] if feeds else None, **where, **arguments)
        return {"report": attrs.asdict(report)}
    with load(artifact, **where) as session:
        if task["what"] == "golden":
            session.check_golden()
            return {}
        timing = benchmark(session, feeds, progress=False, **arguments)
    np.save(Path(task["scratch"]) / "latencies.npy", timing.latencies_ms, allow_pickle=False)
    kept = attrs.asdict(timing, filter=lambda field, _: field.name != "latencies_ms")
    return {"report": kept}


if __name__ == "__main__":
    sys.exit(main())
