"""Which of two models is faster, measured in turns on the same session of the same machine.

On one thread of a CPU the clock is the process's processor time, which other work on the machine hardly
touches; elsewhere it is the time on the wall.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, final

import attrs
import numpy as np

from edgeinfer.backends.registry import get_backend
from edgeinfer.devices.profile import Target
from edgeinfer.errors import EdgeInferError
from edgeinfer.feeds.choose import choose_feeds
from edgeinfer.graph.build import compile_model
from edgeinfer.measure.timing import timing_clock, timing_options
from edgeinfer.model.model import Model
from edgeinfer.runtime.open import load
from edgeinfer.runtime.session import Session

__all__ = ["Speedup", "measure_speedup"]

# Runs of one model in a row before it is the other's turn; the fastest of them counts, because a shared
# machine can only make a run slower. Slow models take turns after each run, for the sake of time.
_BURST = 5
_SLOW_S = 0.05


@final
@attrs.frozen(kw_only=True)
class Speedup:
    """How much faster a candidate is than its reference.

    Attributes:
        ratio: The reference's latency through the candidate's, the median over the turns; above 1 the
            candidate is faster.
        reference_ms: The reference's median latency.
        candidate_ms: The candidate's median latency.
        where: The backend and device of the measurement.
    """

    ratio: float
    reference_ms: float
    candidate_ms: float
    where: str

    def to_dict(self) -> dict[str, object]:
        """Return the figures as JSON-compatible values."""
        return attrs.asdict(self)

    def describe(self) -> str:
        """Return one line for people."""
        return f"{self.ratio:.2f}x on {self.where} ({self.reference_ms:.3f} -> {self.candidate_ms:.3f} ms)"


def measure_speedup(
    reference: Model,
    candidate: Model,
    feeds: Any,
    *,
    target: Target | str | None = None,
    threads: int = 1,
    seconds: float = 1.0,
) -> Speedup | None:
    """Time two models in turns on a target's backend.

    Args:
        reference: The model to compare with.
        candidate: The model that should be faster.
        feeds: What to run in both: the first feed of it, as for `benchmark`.
        target: The target; None for ONNX Runtime.
        threads: Threads within an operator, for backends with such an option.
        seconds: How long to measure, about.

    Returns:
        The speed-up, or None when the target cannot be measured on this machine.

    Raises:
        InputError: The feeds do not fit.
    """
    feed = choose_feeds(feeds, reference.signature).feeds[0]
    parsed = Target.parse(target or "onnxruntime")
    if not get_backend(parsed.backend).capabilities().available:
        return None
    try:
        with _session(reference, parsed, threads) as slow, _session(candidate, parsed, threads) as fast:
            clock = timing_clock((slow, fast), timing_options(parsed.backend, threads=threads))
            before, after = _turns_ms((slow, fast), feed, seconds, clock)
            where = f"{slow.backend}:{slow.device}"
    except EdgeInferError:
        return None  # the device is not here, or it takes one of the two only: there is nothing to compare
    return Speedup(
        ratio=float(np.median(before / after)),
        reference_ms=float(np.median(before)),
        candidate_ms=float(np.median(after)),
        where=where,
    )


def _session(model: Model, target: Target, threads: int) -> Session:
    options = timing_options(target.backend, threads=threads)
    return load(compile_model(model, target.backend, device=target.device or None, options=options))


def _turns_ms(
    sessions: tuple[Session, ...],
    feed: Mapping[str, np.ndarray],
    seconds: float,
    clock: Callable[[], float],
) -> list[np.ndarray]:
    """Return the times of each session, turn by turn."""
    feeds = dict(feed)
    warm_up = [_fastest_s(session, feeds, 2, clock) for session in sessions]
    burst = _BURST if max(warm_up) < _SLOW_S else 1
    times: list[list[float]] = [[] for _ in sessions]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 5:
        for session, taken in zip(sessions, times, strict=True):
            taken.append(_fastest_s(session, feeds, burst, clock))
    return [1e3 * np.array(taken) for taken in times]


def _fastest_s(
    session: Session, feeds: Mapping[str, np.ndarray], runs: int, clock: Callable[[], float]
) -> float:
    taken = []
    for _ in range(runs):
        started = clock()
        session.infer(feeds)
        taken.append(clock() - started)
    return min(taken)
