"""Whether more went down than this device is used to: reboots that no one asked for, and crashes.

The device's own baseline is a number of events in a time. With the prior of a device that was never watched,
one event an hour, the events of a soak of length t are negative binomial, and the chance of at least k of
them is what k is judged by. A device that loses its power every evening is not the model's fault; six resets
one after the other, on a device that is not known for it, are.
"""

from __future__ import annotations

import math

__all__ = ["LIMIT", "UNSAVED_S", "chance_of", "chance_of_slow"]

_PRIOR_S = 3_600.0
# Time is saved once a minute, so a device that went down was up for a minute more than it remembers, at most.
UNSAVED_S = 60.0
# A soak is judged every second, and a fleet has many: one false alarm in a million soaks.
LIMIT = 1e-6


def chance_of(
    events: int, seconds: float, *, baseline: int, baseline_seconds: float, unsaved_s: float = UNSAVED_S
) -> float:
    """Return the chance that a device like this has at least `events` in `seconds`.

    Args:
        events: What was seen.
        seconds: In what time.
        baseline: What was seen before.
        baseline_seconds: In what time.
        unsaved_s: How much longer each lasted than is known.
    """
    if events <= 0:
        return 1.0
    # Gamma(1 + baseline, 1 hour + baseline_seconds) for the rate; the count is then negative binomial.
    shape = 1.0 + baseline
    before = _PRIOR_S + max(baseline_seconds, baseline * unsaved_s)
    p = before / (before + max(seconds, events * unsaved_s))
    log_p, log_q = math.log(p), math.log1p(-p)
    terms = (
        math.exp(math.lgamma(shape + k) - math.lgamma(shape) - math.lgamma(k + 1) + shape * log_p + k * log_q)
        for k in range(events)
    )
    below = math.fsum(terms)
    if below < 1.0 - 1e-9:
        return 1.0 - below
    # The upper tail itself, where the difference has no digits left.
    total = 0.0
    for k in range(events, events + 10_000):
        term = math.exp(
            math.lgamma(shape + k) - math.lgamma(shape) - math.lgamma(k + 1) + shape * log_p + k * log_q
        )
        total += term
        if term < total * 1e-12:
            break
    return total


def chance_of_slow(slow: int, requests: int, *, share: float = 0.01) -> float:
    """Return the chance that at least `slow` of so many requests are slow, when a `share` of all is.

    An upper bound by Chernoff and Hoeffding: exp(-n KL(slow / n, share)).
    """
    if requests == 0 or slow <= share * requests:
        return 1.0
    seen = slow / requests
    divergence = seen * math.log(seen / share)
    if seen < 1:
        divergence += (1 - seen) * math.log((1 - seen) / (1 - share))
    return math.exp(-requests * divergence)
