"""Timing several candidates in turns, each in a child process of its own.

What else the machine does, and how warm it is, then concerns all of them alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import attrs
import numpy as np

from edgeinfer.devices.probe.pressure import read_pressure, waited_us
from edgeinfer.devices.probe.tree import Tree
from edgeinfer.tuning.candidate import Candidate
from edgeinfer.tuning.fork_server import ForkServer
from edgeinfer.tuning.processes import Child, ChildError, memory_limit
from edgeinfer.tuning.state import PRESSURE_PERCENT

__all__ = ["Bench", "wait_for_calm"]

_BURSTS = 5  # turns of each
_OPEN_S = 180.0
_LEAST_S = 20.0  # for a burst
_LEAST_BURST_MS, _MOST_BURST = 30.0, 100
_KEPT = 300  # latencies that are kept for the picture
_MOMENT_S = 0.5


@final
@attrs.define(eq=False)
class Bench:
    """Times candidates; their children stay open from one call to the next, as far as they are in both.

    Args:
        folder: Where the models and feeds are.
        target: The target, as text.
        threads: The names of the options that bound threads.
        server: What the children are forked from; None: each one is a new interpreter.
    """

    folder: Path
    target: str
    threads: tuple[str, ...]
    server: ForkServer | None = None
    _open: dict[int, tuple[Child, dict[str, Any]]] = attrs.field(factory=dict)

    def time(self, trials: Sequence[tuple[int, Candidate]], runs: int) -> dict[int, dict[str, Any]]:
        """Return the fields of a `Timing` for each candidate.

        Args:
            trials: Candidates by index.
            runs: How many inferences of each.
        """
        wanted = {index for index, _ in trials}
        for index in [index for index in self._open if index not in wanted]:
            self._close(index)
        found: dict[int, dict[str, Any]] = {}
        for index, candidate in trials:
            if index not in self._open:
                try:
                    self._open[index] = self._opened(index, candidate)
                except ChildError as failure:
                    found[index] = {"outcome": failure.outcome, "reason": failure.reason}
        found |= self._turns([index for index, _ in trials if index in self._open], runs)
        return found

    def close(self) -> None:
        """End all children."""
        for index in list(self._open):
            self._close(index)

    def _opened(self, index: int, candidate: Candidate) -> tuple[Child, dict[str, Any]]:
        child = Child(self.folder / f"time-{index}.log", self.server, max_bytes=memory_limit())
        try:
            request = {
                "task": "open",
                "folder": str(self.folder),
                "model": f"{candidate.model_key}.onnx",
                "target": self.target,
                "options": candidate.run_options,
                "batch": candidate.batch,
                "threads": list(self.threads),
            }
            return child, child.ask(request, _OPEN_S)
        except BaseException:
            child.kill()
            raise

    def _turns(self, indices: Sequence[int], runs: int) -> dict[int, dict[str, Any]]:
        wall: dict[int, list[list[float]]] = {index: [] for index in indices}
        processor: dict[int, list[list[float]]] = {index: [] for index in indices}
        failed: dict[int, dict[str, Any]] = {}
        for turn in range(_BURSTS):
            # Back and forth, so that none always comes behind the same other.
            for index in indices if turn % 2 == 0 else reversed(indices):
                if index in failed:
                    continue
                child, opened = self._open[index]
                known = opened["warm_ms"]
                burst = max(1, runs // _BURSTS, min(_MOST_BURST, int(_LEAST_BURST_MS / max(known, 1e-3))))
                try:
                    answer = child.ask({"task": "time", "runs": burst}, _LEAST_S + burst * known / 50)
                except ChildError as failure:
                    failed[index] = {"outcome": failure.outcome, "reason": failure.reason}
                    self._close(index)
                    continue
                wall[index].append(answer["wall_ms"])
                processor[index].append(answer["cpu_ms"])
        for index in indices:
            if index not in failed:
                failed[index] = _timing(wall[index], processor[index], self._open[index][1])
        return failed

    def _close(self, index: int) -> None:
        self._open.pop(index)[0].kill()


def _timing(
    wall: list[list[float]], processor: list[list[float]], opened: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the figures of bursts.

    The processor time is that of the fastest inference of a burst, the median over the bursts: other work on
    the machine empties caches and can only make an inference slower. It is used under pressure alone.
    """
    every = [each for burst in wall for each in burst]
    found: dict[str, Any] = {
        "outcome": "ok",
        "n": len(every),
        "wall_p50_ms": percentile(every, 50),
        "wall_p99_ms": percentile(every, 99),
        "disk_bytes": opened["disk_bytes"],
        "latencies_ms": thinned(every),
    }
    if opened["one_thread"]:
        used = [each for burst in processor for each in burst]
        found["cpu_p50_ms"] = float(np.median([min(burst) for burst in processor]))
        found["cpu_p99_ms"] = percentile(used, 99)
    return found


def percentile(values: Sequence[float], percent: float) -> float:
    """Return a value that was really seen, so that a tail is never interpolated away."""
    return float(np.percentile(values, percent, method="higher"))


def thinned(values: Sequence[float]) -> list[float]:
    """Return at most so many values as a picture needs, rounded to 0.1 µs."""
    step = -(-len(values) // _KEPT)
    return [round(float(value), 4) for value in values[::step]]


def wait_for_calm(
    tree: Tree,
    *,
    most_s: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[float | None, float]:
    """Wait until the machine is not under pressure, for so many seconds at most.

    The kernel's average over 10 s holds what this run has just computed itself. So where it is high, the
    machine is looked at for moments in which this run does nothing.

    Args:
        tree: The root of the file system.
        most_s: The longest time to wait; a moment is looked at in any case.
        clock: In seconds.
        sleep: Waits.

    Returns:
        The share of time in percent in which some task waited for a processor, None where it is not told;
        and how long it was waited.
    """
    started = clock()
    pressure = read_pressure(tree).cpu
    while pressure is not None and pressure > PRESSURE_PERCENT:
        before, since = waited_us(tree, "cpu"), clock()
        sleep(_MOMENT_S)
        after, now = waited_us(tree, "cpu"), clock()
        if before is not None and after is not None and now > since:
            pressure = min(100.0, 100 * (after - before) / (1e6 * (now - since)))
        else:
            pressure = read_pressure(tree).cpu
        if now - started >= most_s:
            break
    return pressure, clock() - started
