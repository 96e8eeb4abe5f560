"""How a device's estimate stands to a budget: which limits it keeps, breaks, or may break."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, final

import attrs

from edgeinfer.budget import Budget
from edgeinfer.estimate.estimate import Estimate, Figure, show
from edgeinfer.values import as_tuple

__all__ = ["LimitCheck", "Verdict", "judge"]

# Part of a device's memory that a process may take: the rest is the system's.
_USABLE_MEMORY = 0.8
_NOT_ESTIMATED = ("max_drop", "min_sqnr_db", "temperature_c")


@final
@attrs.frozen(kw_only=True)
class LimitCheck:
    """One limit, and what is estimated for it.

    Attributes:
        limit: The limit's name, as in a Budget; `device memory` for the device's own.
        allowed: The limit.
        figure: The estimate.
    """

    limit: str
    allowed: float
    figure: Figure

    @property
    def ratio(self) -> float:
        """The limit through the estimate: above 1 it is kept."""
        return self.allowed / self.figure.value if self.figure.value > 0 else math.inf

    @property
    def ratio_low(self) -> float:
        """The same at the estimate's high end."""
        return self.allowed / self.figure.high if self.figure.high > 0 else math.inf

    @property
    def ratio_high(self) -> float:
        """The same at the estimate's low end."""
        return self.allowed / self.figure.low if self.figure.low > 0 else math.inf

    def describe(self) -> str:
        """Return one line for people: the estimate, its band, the limit, and by how much it is exceeded."""
        name = "peak_bytes" if self.limit == "device memory" else self.limit
        shown, low, high, allowed = (
            show(name, value)
            for value in (self.figure.value, self.figure.low, self.figure.high, self.allowed)
        )
        times = f", {1 / self.ratio:.2f}x" if self.ratio < 1 else ""
        return f"{self.limit}: {shown} ({low} … {high}, {self.figure.basis}), limit {allowed}{times}"

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-compatible values."""
        return {
            "limit": self.limit,
            "allowed": self.allowed,
            "estimate": self.figure.to_dict(),
            "ratio": self.ratio,
        }


@final
@attrs.frozen(kw_only=True)
class Verdict:
    """How an estimate stands to a budget.

    Attributes:
        checks: Every limit that there is an estimate for, the worst first.
        unknown: The limits that there is none for.
    """

    checks: tuple[LimitCheck, ...] = attrs.field(converter=as_tuple)
    unknown: tuple[str, ...] = attrs.field(default=(), converter=as_tuple)

    @property
    def worst(self) -> LimitCheck | None:
        """The limit that is kept worst, or None where nothing is known."""
        return self.checks[0] if self.checks else None

    @property
    def ratio(self) -> float:
        """The worst limit through its estimate; 0 where nothing is known."""
        return self.checks[0].ratio if self.checks else 0.0

    @property
    def broken(self) -> tuple[LimitCheck, ...]:
        """The limits that are not kept by estimate."""
        return tuple(check for check in self.checks if check.ratio < 1)

    @property
    def rank(self) -> int:
        """0: every limit is kept. 1: some are not estimated. 2: one is broken. 3: nothing is known."""
        if not self.checks:
            return 3
        return 2 if self.broken else 1 if self.unknown else 0

    @property
    def word(self) -> str:
        """`fits`, `may fit` (its band reaches beyond a limit), `may not fit`, `does not fit`, `unknown`."""
        if not self.checks:
            return "unknown"
        if min(check.ratio_high for check in self.checks) < 1:
            return "does not fit"
        if self.broken:
            return "may not fit"
        if self.unknown or min(check.ratio_low for check in self.checks) < 1:
            return "may fit"
        return "fits"


def judge(estimate: Estimate, budget: Budget, memory_bytes: float | None = None) -> Verdict:
    """Compare an estimate with a budget, and with the device's memory.

    Limits of accuracy and temperature are not estimated; they are left to a measurement, and not `unknown`.
    """
    limits: Mapping[str, float] = budget.limits
    checks = [
        LimitCheck(limit=name, allowed=allowed, figure=estimate[name])
        for name, allowed in limits.items()
        if name in estimate.figures
    ]
    if memory_bytes is not None and estimate.peak_bytes is not None:
        checks.append(
            LimitCheck(
                limit="device memory", allowed=_USABLE_MEMORY * memory_bytes, figure=estimate.peak_bytes
            )
        )
    unknown = [name for name in limits if name not in estimate.figures and name not in _NOT_ESTIMATED]
    return Verdict(checks=sorted(checks, key=lambda check: check.ratio), unknown=unknown)
