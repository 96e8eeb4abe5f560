"""Rows that are kept at once, and the measures that all parts share."""

from __future__ import annotations

import json
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Results", "difference", "latency"]


class Results:
    """Rows, each written when it is there.

    Args:
        out: The folder of the results, which holds nothing else.
        minutes: After that time no step is begun.
        scratch: Where engines go; None for a temporary folder.
    """

    def __init__(self, out: Path, minutes: float, scratch: Path | None = None) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.scratch = scratch or Path(tempfile.mkdtemp(prefix="edgeinfer-gpu-"))
        self.out, self.end = out, time.monotonic() + 60 * minutes
        self.rows: list[dict[str, Any]] = []

    @property
    def left_s(self) -> float:
        return self.end - time.monotonic()

    def add(self, **row: Any) -> None:
        self.rows.append(row)
        line = json.dumps(row, default=str)
        print(line, flush=True)
        with (self.out / "results.jsonl").open("a") as file:
            file.write(line + "\n")

    def step(self, run: Callable[[], Mapping[str, Any] | None], **names: Any) -> None:
        if self.left_s < 0:
            self.add(**names, error="out of time")
            return
        started = time.monotonic()
        try:
            found = run() or {}
            self.add(**names, **found, seconds=round(time.monotonic() - started, 2))
        except BaseException as error:
            traceback.print_exc()
            self.add(**names, error=f"{type(error).__name__}: {error}"[:1500])
            if isinstance(error, KeyboardInterrupt):
                raise


def latency(
    run: Callable[[], object],
    seconds: float = 1.0,
    runs: int | None = None,
    before: Callable[[], object] = lambda: None,
) -> dict[str, float]:
    """Return p50 and p99 in ms of as many runs as a time holds, or of a number of runs within that time.

    What is called `before` each run is not timed.
    """
    for _ in range(20):
        before()
        run()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 50 or (time.perf_counter() < end and len(times) != runs):
        before()
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e3)
    return {"p50_ms": float(np.median(times)), "p99_ms": float(np.percentile(times, 99)), "runs": len(times)}


def difference(found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> dict[str, float]:
    pairs = [
        (found[key].astype(np.float64).ravel(), wanted[key].astype(np.float64).ravel()) for key in wanted
    ]
    a, b = np.concatenate([x for x, _ in pairs]), np.concatenate([y for _, y in pairs])
    cosine = float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-30))
    return {
        "max_abs": float(np.abs(a - b).max()),
        "rel_l2": float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30)),
        "cosine": cosine,
    }
