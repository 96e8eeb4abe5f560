"""`benchmark`: how fast the answers come, and how steadily."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from time import perf_counter, perf_counter_ns
from typing import Any, final

import attrs
import numpy as np

from edgeinfer.artifact.manifest import Cost
from edgeinfer.display import Table, track
from edgeinfer.errors import OptionsError
from edgeinfer.feeds.generate import Feed, Feeds, Shapes, as_feeds, feed_nbytes, generate_feeds
from edgeinfer.runtime.loadgen import SingleStream, run_single_stream
from edgeinfer.runtime.machine import describe_machine
from edgeinfer.runtime.session import Session
from edgeinfer.values import as_tuple

__all__ = ["BenchmarkReport", "benchmark"]

PERCENTILES = (50.0, 90.0, 99.0, 99.9)
# Feeds are held in memory, so that reading them is not measured.
_MAX_FEED_BYTES = 256 << 20


@final
@attrs.frozen(kw_only=True)
class BenchmarkReport:
    """Latencies of single inferences, one after the other.

    Attributes:
        backend: The backend's name.
        device: The device name within it.
        mode: `infer` (checks and fresh outputs included) or `bound`.
        latencies_ms: Every latency in milliseconds, in order.
        seconds: Wall time of the measured runs.
        warmup: How many runs came before and are not counted.
        machine: Where it was measured.
        single_stream: What MLPerf's load generator says, when it was used.
        notes: What else must be said.
    """

    backend: str
    device: str
    mode: str
    latencies_ms: np.ndarray = attrs.field(repr=False, eq=attrs.cmp_using(eq=np.array_equal))
    seconds: float
    warmup: int
    machine: str
    single_stream: SingleStream | None = None
    notes: tuple[str, ...] = attrs.field(default=(), converter=as_tuple)

    @property
    def n(self) -> int:
        """How many inferences were measured."""
        return int(self.latencies_ms.size)

    def percentile_ms(self, percent: float) -> float:
        """Return the latency in milliseconds that `percent` of the inferences stay at or below."""
        # 'higher' returns a latency that was really seen, so that a tail is never interpolated away.
        return float(np.percentile(self.latencies_ms, percent, method="higher"))

    @property
    def p50_ms(self) -> float:
        """Median latency."""
        return self.percentile_ms(50)

    @property
    def p90_ms(self) -> float:
        """90th percentile."""
        return self.percentile_ms(90)

    @property
    def p99_ms(self) -> float:
        """99th percentile."""
        return self.percentile_ms(99)

    @property
    def p999_ms(self) -> float:
        """99.9th percentile; the maximum when there are fewer than 1000 inferences."""
        return self.percentile_ms(99.9)

    @property
    def mean_ms(self) -> float:
        """Mean latency."""
        return float(self.latencies_ms.mean())

    @property
    def min_ms(self) -> float:
        """The shortest latency."""
        return float(self.latencies_ms.min())

    @property
    def max_ms(self) -> float:
        """The longest latency."""
        return float(self.latencies_ms.max())

    @property
    def std_ms(self) -> float:
        """Standard deviation of the latency."""
        return float(self.latencies_ms.std())

    @property
    def jitter(self) -> float:
        """p99 / p50: 1 is perfectly steady."""
        return self.p99_ms / self.p50_ms

    @property
    def throughput(self) -> float:
        """Inferences a second, one after the other."""
        return self.n / self.seconds

    def cost(self, *, peak_bytes: int | None = None, disk_bytes: int | None = None) -> Cost:
        """Return the measured cost for `Artifact.with_cost`."""
        return Cost(
            latency_p50_ms=self.p50_ms,
            latency_p99_ms=self.p99_ms,
            peak_bytes=peak_bytes,
            disk_bytes=disk_bytes,
            measured_on=f"{self.machine}; {self.backend}:{self.device}",
        )

    def to_dict(self) -> dict[str, object]:
        """Return the figures as JSON-compatible values, without the single latencies."""
        names = ("p50_ms", "p90_ms", "p99_ms", "p999_ms", "mean_ms", "min_ms", "max_ms", "std_ms")
        return {
            "backend": self.backend,
            "device": self.device,
            "mode": self.mode,
            "n": self.n,
            "warmup": self.warmup,
            **{name: getattr(self, name) for name in names},
            "jitter": self.jitter,
            "throughput": self.throughput,
            "machine": self.machine,
            "single_stream": attrs.asdict(self.single_stream) if self.single_stream else None,
            "notes": list(self.notes),
        }

    def table(self) -> Table:
        """Return one row a figure."""
        rows: list[tuple[object, ...]] = [
            ("p50", f"{self.p50_ms:.3f} ms"),
            ("p90", f"{self.p90_ms:.3f} ms"),
            ("p99", f"{self.p99_ms:.3f} ms"),
            ("p99.9", f"{self.p999_ms:.3f} ms"),
            ("mean ± std", f"{self.mean_ms:.3f} ± {self.std_ms:.3f} ms"),
            ("min … max", f"{self.min_ms:.3f} … {self.max_ms:.3f} ms"),
            ("jitter (p99/p50)", f"{self.jitter:.2f}"),
            ("throughput", f"{self.throughput:.1f} inferences/s"),
            ("measured", f"{self.n} inferences after {self.warmup} to warm up"),
        ]
        if self.single_stream is not None:
            rows.append(("MLPerf SingleStream", self.single_stream.describe()))
        return Table(
            title=f"Latency: {self.backend}:{self.device or 'default'}, {self.mode}",
            columns=("", ""),
            rows=rows,
            footer="; ".join((self.machine, *self.notes)),
        )

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table().to_html()


def benchmark(
    session: Session,
    feeds: Feeds | None = None,
    *,
    warmup: int = 10,
    runs: int | None = None,
    seconds: float | None = None,
    bound: bool = False,
    loadgen: bool = False,
    shapes: Shapes | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> BenchmarkReport:
    """Measure the latency of single inferences, one after the other.

    Args:
        session: An open session.
        feeds: One feed or many, gone through in turn. None: made up from the signature, see `shapes`.
        warmup: Runs beforehand that are not counted.
        runs: How many runs to measure. With `seconds`, whichever ends first.
        seconds: How long to measure. With neither, 2 seconds and at least 100 runs.
        bound: Measure the bound mode, without checks and allocation, on the first feed.
        loadgen: Let MLPerf's load generator issue the queries (SingleStream with early stopping). It
            takes `runs` as its minimum query count and `seconds` as its minimum duration.
        shapes: For made-up feeds: sizes of symbolic dimensions (`{"N": 8}`) or whole shapes
            (`{"input": (8, 3, 224, 224)}`); 1 where not given.
        seed: For made-up feeds.
        progress: Show a progress bar. None: in a terminal or a notebook only.

    Raises:
        OptionsError: A number is out of range.
        BackendUnavailableError: `loadgen=True` and the load generator is not installed.
        InputError: The feeds do not fit.
    """
    _check(warmup, runs, seconds)
    kept, notes = _kept(feeds, session, shapes, seed)
    if bound:
        with session.bind({name: array.shape for name, array in kept[0].items()}) as binding:
            for name, array in kept[0].items():
                binding.inputs[name][...] = array
            return _measure(session, [binding.run], "bound", warmup, runs, seconds, loadgen, progress, notes)
    calls = [_call(session, feed) for feed in kept]
    return _measure(session, calls, "infer", warmup, runs, seconds, loadgen, progress, notes)


def _call(session: Session, feed: Feed) -> Callable[[], object]:
    infer = session.infer
    return lambda: infer(feed)


def _check(warmup: int, runs: int | None, seconds: float | None) -> None:
    for name, value, least in (("warmup", warmup, 0), ("runs", runs, 1), ("seconds", seconds, 0.001)):
        if value is not None and value < least:
            raise OptionsError(f"{name} is out of range.", expected=f"at least {least}", found=value)


def _kept(
    feeds: Any, session: Session, shapes: Shapes | None, seed: int
) -> tuple[list[Feed], tuple[str, ...]]:
    if feeds is None:
        made: list[Feed] = list(generate_feeds(session.signature, shapes=shapes, seed=seed))
        return made, ("made-up inputs",)
    kept: list[Feed] = []
    size = 0
    for feed in as_feeds(feeds, session.signature):
        size += feed_nbytes(feed)
        if kept and size > _MAX_FEED_BYTES:
            return kept, (f"the first {len(kept)} feeds only",)
        kept.append(feed)
    return kept, ()


def _measure(
    session: Session,
    calls: list[Callable[[], object]],
    mode: str,
    warmup: int,
    runs: int | None,
    seconds: float | None,
    loadgen: bool,
    progress: bool | None,
    notes: tuple[str, ...],
) -> BenchmarkReport:
    for call in itertools.islice(itertools.cycle(calls), warmup):
        call()
    result: SingleStream | None = None
    if loadgen:
        latencies, elapsed, result = run_single_stream(
            calls, min_queries=runs or 100, min_seconds=seconds if seconds is not None else 2.0
        )
    else:
        latencies, elapsed = _timed(calls, runs, seconds, progress)
    return BenchmarkReport(
        backend=session.backend,
        device=session.device,
        mode=mode,
        latencies_ms=np.array(latencies, np.float64) / 1e6,
        seconds=elapsed,
        warmup=warmup,
        machine=describe_machine(),
        single_stream=result,
        notes=notes,
    )


def _timed(
    calls: list[Callable[[], object]], runs: int | None, seconds: float | None, progress: bool | None
) -> tuple[list[int], float]:
    """Return every latency in nanoseconds, and the wall time in seconds."""
    least = 1
    if runs is None and seconds is None:
        seconds, least = 2.0, 100
    latencies: list[int] = []

    def ticks() -> Iterator[int]:
        # One tick a run when runs are counted, else one about every tenth of a second.
        end = perf_counter() + seconds if seconds is not None else float("inf")
        turn = itertools.cycle(calls)
        while (runs is None or len(latencies) < runs) and (perf_counter() < end or len(latencies) < least):
            call = next(turn)
            started = perf_counter_ns()
            call()
            latencies.append(perf_counter_ns() - started)
            yield 1

    started = perf_counter()
    for _ in track(ticks(), "Measuring", total=runs, progress=progress):
        pass
    return latencies, perf_counter() - started
