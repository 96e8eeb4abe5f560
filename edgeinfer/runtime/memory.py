"""`memory`: the peak resident memory of a process that loads and runs an artifact.

The artifact is run in a fresh child process, because a peak never goes down again and this process has
memory of its own. The child first imports edgeinfer and the runtime and reports its peak, which is the
baseline; then it loads, runs, and reports its peak again. Parent and child exchange JSON and `.npz` files
without pickles; the child's code is `edgeinfer.runtime.memory_child`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import attrs

from edgeinfer.artifact.artifact import Artifact
from edgeinfer.display import Table
from edgeinfer.errors import InferenceError, OptionsError
from edgeinfer.feeds.choose import choose_feeds
from edgeinfer.feeds.shapes import InputShape, Shapes
from edgeinfer.npz import write_npz
from edgeinfer.runtime.machine import describe_machine
from edgeinfer.values import as_tuple

__all__ = ["MemoryReport", "memory"]


@final
@attrs.frozen(kw_only=True)
class MemoryReport:
    """Peak resident memory of a fresh process.

    Attributes:
        backend: The backend's name.
        device: The device name within it.
        baseline_bytes: Peak after importing edgeinfer and the runtime, before loading.
        loaded_bytes: Peak after loading.
        peak_bytes: Peak after loading and running: what the process needs.
        runs: How many inferences were run.
        machine: Where it was measured.
        inputs: The shapes that were run, and where each size is from.
        notes: What else must be said.
    """

    backend: str
    device: str
    baseline_bytes: int
    loaded_bytes: int
    peak_bytes: int
    runs: int
    machine: str
    inputs: tuple[InputShape, ...] = attrs.field(default=(), converter=as_tuple)
    notes: tuple[str, ...] = attrs.field(default=(), converter=as_tuple)

    @property
    def added_bytes(self) -> int:
        """What loading and running added to the baseline."""
        return self.peak_bytes - self.baseline_bytes

    def to_dict(self) -> dict[str, object]:
        """Return the figures as JSON-compatible values."""
        return {
            **attrs.asdict(self),
            "inputs": [each.to_dict() for each in self.inputs],
            "added_bytes": self.added_bytes,
        }

    def table(self) -> Table:
        """Return one row a figure."""
        rows = [
            ("baseline (imports)", _mb(self.baseline_bytes)),
            ("loading added", _mb(self.loaded_bytes - self.baseline_bytes)),
            ("loading and running added", _mb(self.added_bytes)),
            ("peak of the process", _mb(self.peak_bytes)),
            *(("input", each.describe()) for each in self.inputs),
        ]
        return Table(
            title=f"Memory: {self.backend}:{self.device or 'default'}, {self.runs} runs",
            columns=("", ""),
            rows=rows,
            footer="; ".join((self.machine, *self.notes)),
        )

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table().to_html()


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def memory(
    artifact: Artifact | str | os.PathLike[str],
    feeds: Any = None,
    *,
    runs: int = 5,
    shapes: Shapes | None = None,
    batch: int | None = None,
    device: str | None = None,
    options: Mapping[str, object] | None = None,
    timeout_s: float = 300.0,
) -> MemoryReport:
    """Measure the peak resident memory of loading and running an artifact, in a child process.

    Args:
        artifact: The artifact, or its directory.
        feeds: What to run: the first feed of it, as for `benchmark`. None: made up from the signature.
        runs: How many inferences; the first ones may allocate more.
        shapes: As for `benchmark`.
        batch: As for `benchmark`.
        device: As for `load`.
        options: As for `load`, of values that JSON can hold.
        timeout_s: When to give up.

    Raises:
        ArtifactError: It is damaged or of another machine.
        InputError: The feed does not fit.
        InferenceError: The child failed, was killed (out of memory?) or took too long.
        OptionsError: `runs` is less than 1, or `timeout_s` is no positive number.
    """
    if not (isinstance(runs, int) and runs >= 1):
        raise OptionsError("At least one run is needed.", expected="an integer from 1", found=runs)
    if not 0 < timeout_s < threading.TIMEOUT_MAX:
        raise OptionsError("timeout_s is out of range.", expected="seconds above 0", found=timeout_s)
    opened = artifact if isinstance(artifact, Artifact) else Artifact.open(artifact)
    chosen = choose_feeds(feeds, opened.signature, shapes=shapes, batch=batch)
    with tempfile.TemporaryDirectory(prefix="edgeinfer-memory-") as scratch:
        folder = Path(scratch)
        path = opened.path
        if path is None:
            path = folder / "model.edge"
            opened.save(path)
        # Strings in numpy's own form, which needs no pickle; the child undoes it.
        feed = {
            name: array.astype(str) if array.dtype == object else array
            for name, array in chosen.feeds[0].items()
        }
        write_npz(folder / "feed.npz", feed)
        request = {
            "artifact": str(path.resolve()),
            "feed": str(folder / "feed.npz"),
            "runs": runs,
            "device": device,
            "options": dict(options) if options else None,
        }
        answer = _run_child(request, timeout_s)
    return MemoryReport(
        backend=opened.manifest.backend,
        device=device or opened.manifest.device,
        baseline_bytes=answer["baseline_bytes"],
        loaded_bytes=answer["loaded_bytes"],
        peak_bytes=answer["peak_bytes"],
        runs=runs,
        machine=describe_machine(),
        inputs=chosen.inputs,
        notes=chosen.notes,
    )


def _run_child(request: dict[str, Any], timeout_s: float) -> dict[str, int]:
    try:
        done = subprocess.run(
            [sys.executable, "-m", "edgeinfer.runtime.memory_child"],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise InferenceError(
            "The child process took too long.", expected=f"at most {timeout_s} s", hint="Raise timeout_s."
        ) from error
    lines = done.stdout.strip().splitlines()
    try:
        answer: dict[str, Any] = json.loads(lines[-1])
    except (IndexError, ValueError):
        answer = {"error": done.stderr.strip().splitlines()[-1:] or "no answer"}
    if done.returncode != 0 or "error" in answer:
        killed = done.returncode < 0
        raise InferenceError(
            f"The child process failed: {answer.get('error', 'no answer')}",
            where=request["artifact"],
            found=f"signal {-done.returncode}" if killed else f"exit code {done.returncode}",
            hint="It was killed; perhaps there is not enough memory." if killed else None,
        )
    return answer
