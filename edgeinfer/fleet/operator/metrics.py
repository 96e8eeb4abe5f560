"""The figures that reports carry, and what it means that one of them got worse."""

from __future__ import annotations

import math
from typing import final

import attrs

from edgeinfer.errors import OptionsError

__all__ = ["METRICS", "Metric", "metric"]

_SMALLEST = 1e-12


@final
@attrs.frozen(kw_only=True)
class Metric:
    """A figure of a device.

    Attributes:
        name: As in `Regression(name)`.
        relative: Its change is a ratio (a margin of 0.05 is 5 %); else a difference in the figure's own unit.
        lower_is_worse: Whether a fall is the regression.
        limit: The limit of a `Budget` that holds for it.
        reference: What it is without the release, where that is the same everywhere: a model agrees with
            itself. None: each device's own figure from before, and what changed for all at the same time.
    """

    name: str
    relative: bool
    lower_is_worse: bool = False
    limit: str | None = None
    reference: float | None = None

    def change(self, before: float, after: float) -> float | None:
        """Return by how much it got worse, as a logarithm of a ratio or a difference; None if unknown."""
        if not (math.isfinite(before) and math.isfinite(after)):
            return None
        if self.relative:
            if before <= _SMALLEST or after <= _SMALLEST:
                return None
            change = math.log(after / before)
        else:
            change = after - before
        return -change if self.lower_is_worse else change

    def threshold(self, margin: float) -> float:
        """Return a margin on the scale of `change`."""
        return math.log1p(margin) if self.relative else margin

    def shown(self, change: float) -> str:
        """Return a change for people."""
        return f"{math.expm1(change):+.1%}" if self.relative else f"{change:+.3g}"


METRICS = {
    item.name: item
    for item in (
        Metric(name="latency_p50", relative=True, limit="latency_p50_ms"),
        Metric(name="latency_p99", relative=True, limit="latency_p99_ms"),
        Metric(name="peak_bytes", relative=True, limit="peak_bytes"),
        Metric(name="power_w", relative=True, limit="power_w"),
        Metric(name="temperature_c", relative=False, limit="temperature_c"),
        Metric(name="errors", relative=False),
        Metric(name="deadline_misses", relative=False),
        Metric(name="confidence", relative=False, lower_is_worse=True),
        Metric(name="agreement", relative=False, lower_is_worse=True, reference=1.0),
    )
}


def metric(name: str) -> Metric:
    """Return a metric by its name.

    Raises:
        OptionsError: There is none of that name.
    """
    if name not in METRICS:
        raise OptionsError("There is no such metric.", expected=", ".join(METRICS), found=repr(name))
    return METRICS[name]
