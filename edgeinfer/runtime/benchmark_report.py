"""`BenchmarkReport`: the latencies of single inferences, and the figures of them."""

from __future__ import annotations

from typing import final

import attrs
import numpy as np

from edgeinfer.artifact.manifest import Cost
from edgeinfer.charts import Line, histogram
from edgeinfer.display import Table
from edgeinfer.feeds.shapes import InputShape
from edgeinfer.runtime.loadgen import SingleStream
from edgeinfer.values import as_tuple

__all__ = ["BenchmarkReport"]


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
        inputs: The shapes that were run, and where each size is from.
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
    inputs: tuple[InputShape, ...] = attrs.field(default=(), converter=as_tuple)
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
            "inputs": [each.to_dict() for each in self.inputs],
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
            *(("input", each.describe()) for each in self.inputs),
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

    def picture(self) -> str:
        """Return the histogram of the latencies as inline SVG."""
        lines = [Line(label="p50", x=self.p50_ms), Line(label="p99", x=self.p99_ms)]
        title = f"Latency of {self.n} inferences on {self.backend}:{self.device or 'default'}"
        return histogram(self.latencies_ms.tolist(), title=title, x="ms", lines=lines)

    def _repr_html_(self) -> str:
        return self.table().to_html() + self.picture()
