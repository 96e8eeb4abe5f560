"""How many devices it takes to see a fault: the arithmetic of sample sizes and of binomial tails."""

from __future__ import annotations

import math

__all__ = ["binomial_tail", "chance_to_see", "devices_needed"]


def devices_needed(rate: float, confidence: float = 0.95) -> int:
    """Return how many devices see a fault of this rate at least once with this confidence.

    The least n with 1 - (1 - rate)^n ≥ confidence: 59 for 5 % at 95 %.

    Args:
        rate: The share of devices with the fault, in (0, 1).
        confidence: The probability to see it, in (0, 1).
    """
    if rate >= 1:
        return 1
    # The quotient is exact for rate = confidence = 0.5 and the like; do not let rounding add a device.
    return max(1, math.ceil(math.log1p(-confidence) / math.log1p(-rate) - 1e-9))


def chance_to_see(rate: float, devices: int) -> float:
    """Return the probability that a fault of this rate shows on at least one of `devices`."""
    return 1.0 - (1.0 - rate) ** devices


def binomial_tail(successes: int, trials: int, rate: float) -> float:
    """Return P(X ≥ successes) for X ~ Binomial(trials, rate), summed exactly in logarithms."""
    if successes <= 0:
        return 1.0
    if successes > trials or rate <= 0:
        return 0.0
    if rate >= 1:
        return 1.0
    log_p, log_q = math.log(rate), math.log1p(-rate)
    choose = math.lgamma(trials + 1)
    return min(
        1.0,
        math.fsum(
            math.exp(
                choose - math.lgamma(k + 1) - math.lgamma(trials - k + 1) + k * log_p + (trials - k) * log_q
            )
            for k in range(successes, trials + 1)
        ),
    )
