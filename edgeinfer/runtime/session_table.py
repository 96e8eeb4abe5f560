"""The overview of a session."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeinfer.artifact.manifest import Manifest
from edgeinfer.display import Table
from edgeinfer.runtime.deadlines import Deadline
from edgeinfer.runtime.steady import Measure

__all__ = ["session_table"]


def session_table(
    manifest: Manifest,
    *,
    device: str,
    closed: bool,
    steady: Sequence[Measure],
    deadline: Deadline | None,
    latencies_ms: np.ndarray,
) -> Table:
    """Return what a session runs, and how it ran so far.

    Args:
        manifest: Of the artifact that is loaded.
        device: The device name within its backend; empty for the default.
        closed: Whether the session is closed.
        steady: The measures for a steady latency that were asked for.
        deadline: The deadline of each inference; None for none.
        latencies_ms: The last latencies in ms, shape (N,).
    """
    signature = manifest.signature
    rows: list[tuple[object, ...]] = [
        ("backend", f"{manifest.backend}, device {device or 'default'}"),
        *(("input", f"{spec.name} {spec.describe()}") for spec in signature.inputs),
        *(("optional input", f"{spec.name} {spec.describe()}") for spec in signature.optional),
        *(("output", f"{spec.name} {spec.describe()}") for spec in signature.outputs),
        ("state", "closed" if closed else "open"),
        *((m.name.replace("_", " "), m.detail if m.applied else f"no: {m.detail}") for m in steady),
    ]
    if deadline is not None:
        rows.append(("deadline", f"{deadline.deadline_ms} ms, missed {deadline.misses} times"))
    if len(latencies_ms):
        p50, p99 = np.percentile(latencies_ms, (50, 99))
        rows.append(("latency", f"p50 {p50:.3f} ms, p99 {p99:.3f} ms of the last {len(latencies_ms)}"))
    return Table(title="Session", columns=("", ""), rows=rows)
