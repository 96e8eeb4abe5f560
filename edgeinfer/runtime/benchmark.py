"""`benchmark`: how fast the answers come, and how steadily."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from time import perf_counter, perf_counter_ns
from typing import Any, TypeAlias

import numpy as np

from edgeinfer.display import track
from edgeinfer.errors import OptionsError
from edgeinfer.feeds.choose import ChosenFeeds, choose_feeds
from edgeinfer.feeds.feeds import Feed
from edgeinfer.feeds.shapes import Shapes
from edgeinfer.runtime.benchmark_report import BenchmarkReport
from edgeinfer.runtime.loadgen import SingleStream, run_single_stream
from edgeinfer.runtime.machine import describe_machine
from edgeinfer.runtime.session import Session

__all__ = [
    "BenchmarkReport",
    "Call",
    "benchmark",
    "calls_for",
    "check_numbers",
    "chosen_for",
    "timed_in_turns",
]

Call: TypeAlias = "Callable[[], object]"
# With neither runs nor seconds: so long, and at least so many runs.
_SECONDS = 2.0
_LEAST_RUNS = 100


def benchmark(
    session: Session,
    feeds: Any = None,
    *,
    warmup: int = 10,
    runs: int | None = None,
    seconds: float | None = None,
    bound: bool = False,
    loadgen: bool = False,
    shapes: Shapes | None = None,
    batch: int | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> BenchmarkReport:
    """Measure the latency of single inferences, one after the other.

    Args:
        session: An open session.
        feeds: What to run, gone through in turn: one feed, many, or a source of them as for `Feeds.of`. None:
            made up from the signature.
        warmup: Runs beforehand that are not counted.
        runs: How many runs to measure. With `seconds`, whichever ends first.
        seconds: How long to measure. With neither, 2 seconds and at least 100 runs.
        bound: Measure the bound mode, without checks and allocation, on the first feed.
        loadgen: Let MLPerf's load generator issue the queries (SingleStream with early stopping). It
            takes `runs` as its minimum query count and `seconds` as its minimum duration.
        shapes: Sizes of symbolic dimensions (`{"N": 8}`) or entire shapes (`{"input": (8, 3, 224, 224)}`).
        batch: The size of the batch: the rows of the feeds are put into batches of it. None: that of the
            feeds; for made-up ones 1.
        seed: For made-up feeds.
        progress: Show a progress bar. None: in a terminal or a notebook only.

    Raises:
        OptionsError: A number is out of range.
        BackendUnavailableError: `loadgen=True` and the load generator is not installed.
        InputError: The feeds do not fit, or a size is missing that is not that of the batch.
    """
    check_numbers(warmup, runs, seconds)
    chosen = chosen_for(session, feeds, shapes=shapes, batch=batch, count=int(bound), seed=seed)
    with contextlib.ExitStack() as stack:
        calls = calls_for(session, chosen, bound, stack)
        mode = "bound" if bound else "infer"
        return _measure(session, calls, mode, chosen, warmup, runs, seconds, loadgen, progress)


def chosen_for(session: Session, feeds: Any, **options: Any) -> ChosenFeeds:
    """Return the feeds for a session; arrays in device memory stay there if its runner takes them."""
    on_device = bool(getattr(session._runner, "takes_device_arrays", False))
    return choose_feeds(feeds, session.signature, keep_device_arrays=on_device, **options)


def calls_for(
    session: Session, chosen: ChosenFeeds, bound: bool, stack: contextlib.ExitStack
) -> Sequence[Call]:
    """Return what to time: `infer` on each feed, or a bound mode on the first, which `stack` closes."""
    if not bound:
        return [_call(session, feed) for feed in chosen.feeds]
    feed = chosen.feeds[0]
    binding = stack.enter_context(session.bind({name: array.shape for name, array in feed.items()}))
    for name, array in feed.items():
        binding.inputs[name][...] = array
    return [binding.run]


def _call(session: Session, feed: Feed) -> Call:
    infer = session.infer
    return lambda: infer(feed)


def check_numbers(warmup: int, runs: int | None, seconds: float | None) -> None:
    """Refuse numbers out of range.

    Raises:
        OptionsError: One is.
    """
    for name, value, least in (("warmup", warmup, 0), ("runs", runs, 1)):
        if value is not None and not (isinstance(value, (int, np.integer)) and value >= least):
            raise OptionsError(f"{name} is out of range.", expected=f"an integer from {least}", found=value)
    if seconds is not None and not (
        isinstance(seconds, (int, float)) and math.isfinite(seconds) and seconds >= 0.001
    ):
        raise OptionsError("seconds is out of range.", expected="a number from 0.001", found=seconds)


def _measure(
    session: Session,
    calls: Sequence[Call],
    mode: str,
    chosen: ChosenFeeds,
    warmup: int,
    runs: int | None,
    seconds: float | None,
    loadgen: bool,
    progress: bool | None,
) -> BenchmarkReport:
    for call in itertools.islice(itertools.cycle(calls), warmup):
        call()
    result: SingleStream | None = None
    if loadgen:
        latencies, elapsed, result = run_single_stream(
            calls,
            min_queries=runs or _LEAST_RUNS,
            min_seconds=seconds if seconds is not None else _SECONDS,
        )
    else:
        started = perf_counter()
        latencies = timed_in_turns({"": calls}, runs, seconds, progress)[""]
        elapsed = perf_counter() - started
    return BenchmarkReport(
        backend=session.backend,
        device=session.device,
        mode=mode,
        latencies_ms=np.array(latencies, np.float64) / 1e6,
        seconds=elapsed,
        warmup=warmup,
        machine=describe_machine(),
        inputs=chosen.inputs,
        single_stream=result,
        notes=chosen.notes,
    )


def timed_in_turns(
    calls: Mapping[str, Sequence[Call]], runs: int | None, seconds: float | None, progress: bool | None
) -> dict[str, list[int]]:
    """Return every latency in nanoseconds, by name. All have one turn before any has the next.

    Args:
        calls: What to run, by name; each goes through its own in order.
        runs: How many turns.
        seconds: How long, in all. With both, whichever ends first.
        progress: Show it.
    """
    least = 1
    if runs is None and seconds is None:
        seconds, least = _SECONDS * len(calls), _LEAST_RUNS
    latencies: dict[str, list[int]] = {name: [] for name in calls}
    cycles = [(itertools.cycle(own), latencies[name]) for name, own in calls.items()]

    def turns() -> Iterator[int]:
        end = perf_counter() + seconds if seconds is not None else math.inf
        turn = 0
        while (runs is None or turn < runs) and (perf_counter() < end or turn < least):
            # Back and forth, so that none always comes behind the same other.
            for own, found in cycles if turn % 2 == 0 else reversed(cycles):
                call = next(own)
                started = perf_counter_ns()
                call()
                found.append(perf_counter_ns() - started)
            turn += 1
            yield turn

    for _ in track(turns(), "Measuring", total=runs, progress=progress):
        pass
    return latencies
