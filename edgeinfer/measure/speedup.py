"""Which of two models is faster, measured in turns in the same process of the same machine.

On one thread of a CPU the clock is the process's processor time, which other work on the machine hardly
touches; elsewhere it is the time on the wall.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, TypeAlias, final

import attrs
import numpy as np

from edgeinfer.backends.registry import get_backend, reference_backend
from edgeinfer.devices.profile import Target
from edgeinfer.errors import EdgeInferError
from edgeinfer.feeds.choose import choose_feeds
from edgeinfer.graph.build import compile_model
from edgeinfer.measure.layer_times import LayerLatencies, measure_layers
from edgeinfer.measure.timing import timing_clock, timing_options
from edgeinfer.model.model import Model
from edgeinfer.runtime.open import load
from edgeinfer.runtime.session import Session

__all__ = ["NotMeasured", "Speedup", "Stopwatch", "TargetStopwatch", "feeds_to_time", "measure_speedup"]

Feed: TypeAlias = "Mapping[str, np.ndarray]"

# Runs of one model in a row before it is the other's turn; the fastest of them counts, because a shared
# machine can only make a run slower. Of slow models fewer make a turn, for the sake of time.
_MOST_RUNS = 5
_TURN_S = 0.03
_MOST_SHAPES = 3
_MOST_SESSIONS = 3
_LEAST_TURNS, _SURE_TURNS = 5, 9
# It is enough when the ratio is known to a quarter of its distance from 1, or to half a percent.
_SURE_SHARE, _SURE = 0.25, 0.005


@final
@attrs.frozen(kw_only=True)
class Speedup:
    """How much faster a candidate is than its reference.

    Attributes:
        ratio: The reference's latency through the candidate's, the median over the turns; above 1 the
            candidate is faster.
        reference_ms: The reference's median latency, the mean over the shapes.
        candidate_ms: The candidate's median latency, in the same unit.
        where: The backend and device of the measurement.
        shapes: How many feeds of unlike shapes were run.
    """

    ratio: float
    reference_ms: float
    candidate_ms: float
    where: str
    shapes: int = 1

    def to_dict(self) -> dict[str, object]:
        """Return the figures as JSON-compatible values."""
        return attrs.asdict(self)

    def describe(self) -> str:
        """Return one line for people."""
        over = f", {self.shapes} shapes" if self.shapes > 1 else ""
        return (
            f"{self.ratio:.2f}x on {self.where} ({self.reference_ms:.3f} -> {self.candidate_ms:.3f} ms{over})"
        )


@final
@attrs.frozen(kw_only=True)
class NotMeasured:
    """That something could not be measured.

    Attributes:
        reason: Why, as a sentence without its stop.
    """

    reason: str


class Stopwatch(Protocol):
    """Measures models where they will run: on this machine, or on one that it reaches."""

    def compare(
        self, reference: Model, candidate: Model, feeds: Sequence[Feed], *, seconds: float
    ) -> Speedup | NotMeasured:
        """Time two models on the same feeds, for about so many seconds."""
        ...

    def layers(self, model: Model, feed: Feed) -> LayerLatencies | NotMeasured:
        """Time the layers of a model."""
        ...


@final
class TargetStopwatch:
    """Measures on a target of this machine; a context manager that keeps the last sessions loaded.

    Args:
        target: The target; None for the reference backend.
        threads: Threads within an operator, for backends with such an option.
    """

    def __init__(self, target: Target | str | None = None, *, threads: int = 1) -> None:
        self._target = Target.parse(target if target is not None else reference_backend().name)
        self._options = timing_options(self._target.backend, threads=threads)
        self._threads = threads
        self._sessions: OrderedDict[str, Session] = OrderedDict()

    def compare(
        self, reference: Model, candidate: Model, feeds: Sequence[Feed], *, seconds: float = 1.0
    ) -> Speedup | NotMeasured:
        """Time two models in turns; see `Stopwatch`."""
        found = get_backend(self._target.backend).capabilities()
        if not found.available:
            return NotMeasured(reason=f"{self._target} is not here: {found.reason}")
        chosen = feeds_to_time(feeds)
        try:
            sessions = self._session(reference), self._session(candidate)
            clock = timing_clock(sessions, self._options)
            before, after = _turns_ms(sessions, chosen, seconds, clock)
        except EdgeInferError as error:  # the device is not here, or it takes one of the two only
            return NotMeasured(reason=f"{self._target} does not run both: {_first_line(error)}")
        return Speedup(
            ratio=float(np.median(before / after)),
            reference_ms=float(np.median(before)) / len(chosen),
            candidate_ms=float(np.median(after)) / len(chosen),
            where=f"{sessions[0].backend}:{sessions[0].device}",
            shapes=len(chosen),
        )

    def layers(self, model: Model, feed: Feed) -> LayerLatencies | NotMeasured:
        """Time the layers of a model by the profiler of its runtime; see `Stopwatch`."""
        found = get_backend(self._target.backend).capabilities()
        if not found.available:
            return NotMeasured(reason=f"{self._target} is not here: {found.reason}")
        try:
            times = measure_layers(model, feed, target=self._target, threads=self._threads)
        except EdgeInferError as error:
            return NotMeasured(reason=f"{self._target} does not run it: {_first_line(error)}")
        return times if times.layers else NotMeasured(reason="; ".join(times.notes))

    def close(self) -> None:
        """Close the sessions."""
        for session in self._sessions.values():
            session.close()
        self._sessions.clear()

    def __enter__(self) -> TargetStopwatch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _session(self, model: Model) -> Session:
        """Return a session of the model, which is compared with several others, one after another."""
        key = model.digest
        if key not in self._sessions:
            target = self._target
            artifact = compile_model(
                model, target.backend, device=target.device or None, options=self._options, trial=False
            )
            self._sessions[key] = load(artifact)
        self._sessions.move_to_end(key)
        while len(self._sessions) > _MOST_SESSIONS:
            self._sessions.popitem(last=False)[1].close()
        return self._sessions[key]


def measure_speedup(
    reference: Model,
    candidate: Model,
    feeds: Any,
    *,
    target: Target | str | None = None,
    threads: int = 1,
    seconds: float = 1.0,
) -> Speedup | NotMeasured:
    """Time two models in turns on a target's backend.

    Args:
        reference: The model to compare with.
        candidate: The model that should be faster.
        feeds: What to run in both, as for `benchmark`; of feeds with unlike shapes up to three are run.
        target: The target; None for the reference backend.
        threads: Threads within an operator, for backends with such an option.
        seconds: How long to measure, about; less when the answer is clear.

    Returns:
        The speed-up; or why there is none, when the target cannot be measured on this machine.

    Raises:
        InputError: The feeds do not fit.
    """
    chosen = choose_feeds(feeds, reference.signature).feeds
    with TargetStopwatch(target, threads=threads) as stopwatch:
        return stopwatch.compare(reference, candidate, chosen, seconds=seconds)


def feeds_to_time(feeds: Iterable[Feed]) -> list[Feed]:
    """Return up to three feeds of unlike shapes: the smallest, one from the middle and the largest."""
    shapes: dict[tuple[tuple[str, tuple[int, ...]], ...], Feed] = {}
    for feed in feeds:
        shapes.setdefault(tuple(sorted((name, array.shape) for name, array in feed.items())), feed)
    ordered = sorted(shapes.values(), key=lambda feed: sum(array.size for array in feed.values()))
    if len(ordered) <= _MOST_SHAPES:
        return ordered
    return [ordered[0], ordered[len(ordered) // 2], ordered[-1]]


def _first_line(error: EdgeInferError) -> str:
    return error.what.splitlines()[0].rstrip(".")


def _turns_ms(
    sessions: Sequence[Session], feeds: Sequence[Feed], seconds: float, clock: Callable[[], float]
) -> list[np.ndarray]:
    """Return the times of each session for all feeds together, turn by turn."""
    given = [dict(feed) for feed in feeds]
    warm_up = [_fastest_s(session, given, 2, clock) for session in sessions]
    burst = min(max(int(_TURN_S / max(*warm_up, 1e-9)), 1), _MOST_RUNS)
    times: list[list[float]] = [[] for _ in sessions]
    end = time.perf_counter() + seconds
    while len(times[0]) < _LEAST_TURNS or (time.perf_counter() < end and not _is_clear(*times)):
        for session, taken in zip(sessions, times, strict=True):
            taken.append(_fastest_s(session, given, burst, clock))
    return [1e3 * np.array(taken) for taken in times]


def _is_clear(before: Sequence[float], after: Sequence[float]) -> bool:
    """Whether more turns would hardly change what the ratio says."""
    if len(before) < _SURE_TURNS:
        return False
    ratios = np.array(before) / np.array(after)
    middle = float(np.median(ratios))
    # Three standard errors of a median, from the median deviation (1.4826 and 1.2533 for normal noise).
    spread = 3 * 1.2533 * 1.4826 * float(np.median(np.abs(ratios - middle))) / math.sqrt(len(ratios))
    return spread < max(_SURE_SHARE * abs(middle - 1.0), _SURE)


def _fastest_s(session: Session, feeds: Sequence[Feed], runs: int, clock: Callable[[], float]) -> float:
    total = 0.0
    for feed in feeds:
        taken = []
        for _ in range(runs):
            started = clock()
            session.infer(feed)
            taken.append(clock() - started)
        total += min(taken)
    return total
