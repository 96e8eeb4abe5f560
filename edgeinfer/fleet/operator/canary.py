"""Is the new release slower? Canaries against concurrent controls, device by device.

The unit is the device, never the request: requests of one device are alike, and pooling them raises false
alarms to 46 % where 1 % was asked for. Of each device the *change* counts (after minus before), which takes
out that devices differ; the controls' change over the same time is subtracted, which takes out what happened
to all of them.

One looks again and again, so a fixed-sample interval would fail sooner or later. The interval here is
always valid: Robbins' normal mixture. For an estimate with variance V of a mean, and mixing variance τ²,

    radius² = V · (V + τ²)/τ² · log((V + τ²) / (V · alpha²))

covers the truth at *all* looks with probability at least 1 - alpha (Robbins 1970; Johari, Pekelis, Walsh
2015). V is estimated from few devices, so the radius is widened as Student's t widens the normal quantile
(Abramowitz and Stegun 26.7.5), with Welch's degrees of freedom.

Ten canaries alone know their variance badly, and the widening then costs the power to see 20 %. Controls are
devices of the same fleet, so the canaries' variance is pulled towards theirs, as if up to 20 more canaries
had it (Smyth 2004 does so for genes). It is never taken for less than the canaries' own: a release that makes
devices more unlike each other must not look certain (benchmarks/fleet/canary.py has both figures).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import final

import attrs

__all__ = ["MIN_DEVICES", "Comparison", "Interval", "Sums", "compare_alone", "compare_arms"]

MIN_DEVICES = 10  # below it, the estimate of the variance is too rough: false alarms exceed alpha
_BORROWED = 20  # degrees of freedom that the canaries' variance takes from the controls, at most
_TAU = 0.1  # the effects that the interval is narrowest for: about 10 %


@final
@attrs.frozen
class Sums:
    """Count, sum and sum of squares of the devices' changes: it is kept up with each report.

    Attributes:
        count: Devices with a change.
        total: Sum of the changes.
        squares: Sum of their squares.
    """

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    @classmethod
    def of(cls, changes: Iterable[float]) -> Sums:
        """Return the sums of these changes."""
        values = list(changes)
        return cls(len(values), math.fsum(values), math.fsum(value * value for value in values))

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.count + other.count, self.total + other.total, self.squares + other.squares)

    @property
    def mean(self) -> float:
        """The mean change; NaN of no devices."""
        return self.total / self.count if self.count else math.nan

    @property
    def variance(self) -> float:
        """The sample variance (n - 1); NaN of fewer than two devices."""
        if self.count < 2:
            return math.nan
        return max(0.0, (self.squares - self.count * self.mean**2) / (self.count - 1))


@final
@attrs.frozen(kw_only=True)
class Interval:
    """An always-valid confidence interval of an effect."""

    estimate: float
    low: float
    high: float


@final
@attrs.frozen(kw_only=True)
class Comparison:
    """What canaries and controls say together.

    Attributes:
        canaries: Canaries with a change.
        controls: Controls with a change.
        interval: Of the canaries' mean change less the controls'; None where there are too few of either.
    """

    canaries: int
    controls: int
    interval: Interval | None


def compare_arms(canary: Sums, control: Sums, alpha: float) -> Comparison:
    """Compare the changes of canaries with those of concurrent controls.

    Args:
        canary: Changes of the devices with the new release.
        control: Changes of devices without it over the same time.
        alpha: The probability that the interval misses the truth at any look.
    """
    interval = None
    if min(canary.count, control.count) >= MIN_DEVICES and all(
        math.isfinite(value) for arm in (canary, control) for value in (arm.total, arm.squares)
    ):
        interval = _interval(canary, control, alpha)
    return Comparison(canaries=canary.count, controls=control.count, interval=interval)


def compare_alone(canary: Sums, alpha: float) -> Comparison:
    """Compare the changes of canaries with none at all, where that is what controls would have.

    Args:
        canary: Changes of the devices with the new release.
        alpha: The probability that the interval misses the truth at any look.
    """
    interval = None
    if canary.count >= MIN_DEVICES and math.isfinite(canary.total) and math.isfinite(canary.squares):
        part, freedom = canary.variance / canary.count, float(canary.count - 1)
        interval = _mixture(canary.mean, max(part, 1e-12), freedom if part > 0 else math.inf, alpha)
    return Comparison(canaries=canary.count, controls=0, interval=interval)


def _interval(canary: Sums, control: Sums, alpha: float) -> Interval:
    borrowed = min(control.count - 1, _BORROWED)
    freedoms = (canary.count - 1 + borrowed, control.count - 1)
    pulled = ((canary.count - 1) * canary.variance + borrowed * control.variance) / freedoms[0]
    parts = (max(canary.variance, pulled) / canary.count, control.variance / control.count)
    # Devices that all report the very same change (a counter at zero) leave nothing to estimate.
    variance = max(sum(parts), 1e-12)
    squares = sum(part**2 / freedom for part, freedom in zip(parts, freedoms, strict=True))
    freedom = variance**2 / squares if squares > 0 else math.inf
    return _mixture(canary.mean - control.mean, variance, freedom, alpha)


def _mixture(estimate: float, variance: float, freedom: float, alpha: float) -> Interval:
    """Return the interval of an estimate whose variance was estimated with so many degrees of freedom."""
    mixing = _TAU**2
    deviations = math.sqrt(
        (variance + mixing) / mixing * math.log((variance + mixing) / (variance * alpha**2))
    )
    radius = _widened(deviations, freedom) * math.sqrt(variance)
    return Interval(estimate=estimate, low=estimate - radius, high=estimate + radius)


def _widened(z: float, freedom: float) -> float:
    """Return the quantile of Student's t that has the probability of the normal quantile z."""
    if math.isinf(freedom):
        return z
    g1 = (z**3 + z) / 4
    g2 = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    g3 = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + g1 / freedom + g2 / freedom**2 + g3 / freedom**3
