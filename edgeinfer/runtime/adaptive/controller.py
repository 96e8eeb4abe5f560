"""When to run which variant: a pure decision from the latencies that were seen.

A busy machine slows all variants down by about the same factor, so one factor is kept for all of them: the
latency that was seen through the one that the variant has on an idle machine. From it follows what a variant
that does not run would take now, without trying it.

- Down, after 3 misses among the last 20 requests, to the best variant that would have kept the deadline.
- Up, when the 99th percentile predicted for the next better variant is at most 0.85 of the deadline and a
  dwell has passed. A rise that had to be taken back within two dwells doubles the dwell, one that lasts
  halves it again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import final

import attrs
import numpy as np

from edgeinfer.errors import OptionsError

__all__ = ["Controller", "Policy", "Switch"]

# A request that takes less than this part of a variant's idle latency is no noise.
_FASTER = 0.9


@final
@attrs.frozen(kw_only=True)
class Policy:
    """The numbers of the rules.

    Attributes:
        misses: So many misses
        window: among so many requests lead down.
        margin: The part of the deadline that the predicted 99th percentile of a better variant may take.
        dwell: How many requests pass before the first rise after a switch.
        longest_dwell: What the dwell doubles up to.
        remembered: How many requests the slow-down factor is taken from.
    """

    misses: int = attrs.field(default=3, validator=attrs.validators.ge(1))
    window: int = attrs.field(default=20, validator=attrs.validators.ge(1))
    margin: float = attrs.field(default=0.85, validator=[attrs.validators.gt(0), attrs.validators.le(1)])
    dwell: int = attrs.field(default=200, validator=attrs.validators.ge(1))
    longest_dwell: int = attrs.field(default=12_800, validator=attrs.validators.ge(1))
    remembered: int = attrs.field(default=200, validator=attrs.validators.ge(20))


@final
@attrs.frozen(kw_only=True)
class Switch:
    """A change of the variant.

    Attributes:
        request: After how many requests.
        before: The index of the variant that ran.
        after: The index of the one that runs from now on.
        reason: Why.
    """

    request: int
    before: int
    after: int
    reason: str


@final
class Controller:
    """Decides which variant runs. It has no clock and touches nothing.

    Args:
        idle_ms: What each variant takes on an idle machine (its median latency in ms), best variant first.
        deadline_ms: How long a request may take.
        policy: The numbers of the rules.

    Raises:
        OptionsError: There is no variant, or a latency is not above 0.
    """

    def __init__(self, idle_ms: Sequence[float], deadline_ms: float, policy: Policy | None = None) -> None:
        number = isinstance(deadline_ms, (int, float)) and deadline_ms > 0
        if not idle_ms or min(idle_ms) <= 0 or not number:
            raise OptionsError(
                "The variants cannot be chosen among.",
                expected="at least one, each with a latency above 0, and a deadline above 0",
                found=f"{list(idle_ms)}, {deadline_ms}",
            )
        self.policy = policy or Policy()
        self.deadline_ms = deadline_ms
        self.level = 0
        self.requests = self.misses = 0
        self.dwell = self.policy.dwell
        self.usable = [True] * len(idle_ms)
        self._idle = np.asarray(idle_ms, np.float64)
        self._factors: deque[float] = deque(maxlen=self.policy.remembered)
        self._missed: deque[bool] = deque(maxlen=self.policy.window)
        self._since_switch = 0
        self._rising = False

    def slow_down(self, percent: float = 99.0) -> float:
        """Return how many times as long as on an idle machine requests take now; 1 before the first."""
        if not self._factors:
            return 1.0
        return float(np.percentile(np.array(self._factors), percent, method="higher"))

    def predicted_p99_ms(self, level: int) -> float:
        """Return the 99th percentile that a variant would have now."""
        return self.idle_ms(level) * self.slow_down()

    def idle_ms(self, level: int) -> float:
        """Return what a variant takes on an idle machine, as far as is known: the least that was seen."""
        return float(self._idle[level])

    def observe(self, level: int, latency_ms: float, *, may_rise: bool = True) -> Switch | None:
        """Take in one request, and decide.

        Args:
            level: The variant that ran it: it may be another than the present one when threads overlap.
            latency_ms: How long it took.
            may_rise: Whether nothing else speaks against a better variant.

        Returns:
            The switch, or None.
        """
        self.requests += 1
        if latency_ms < _FASTER * self._idle[level]:
            # It was not idle when the idle latency was measured; what followed from that is wrong, too.
            self._idle[level] = latency_ms
            self._factors.clear()
        self._factors.append(latency_ms / float(self._idle[level]))
        missed = latency_ms > self.deadline_ms
        self.misses += missed
        if level != self.level:
            return None
        self._missed.append(missed)
        self._since_switch += 1
        if sum(self._missed) >= self.policy.misses:
            return self._down()
        if self._rising and self._since_switch >= 2 * self.dwell:  # the rise has lasted
            self._rising = False
            self.dwell = max(self.policy.dwell, self.dwell // 2)
        if may_rise and self._since_switch >= self.dwell:
            return self._up()
        return None

    def step_down(self, reason: str) -> Switch | None:
        """Go to the next cheaper variant, for another reason than latency; None where there is none."""
        below = self._below()
        return self._switch(below[0], reason) if below else None

    def exclude(self, level: int, reason: str) -> Switch | None:
        """Never run a variant again, which failed.

        Returns:
            The switch to another one, or None where it was not running or no other is left.
        """
        self.usable[level] = False
        if level != self.level:
            return None
        others = self._below() or [i for i in reversed(range(level)) if self.usable[i]]
        return self._switch(others[0], reason) if others else None

    def _below(self) -> list[int]:
        return [level for level in range(self.level + 1, len(self._idle)) if self.usable[level]]

    def _down(self) -> Switch | None:
        below = self._below()
        if not below:
            return None
        if self._rising:
            self.dwell = min(self.policy.longest_dwell, 2 * self.dwell)
        # By the requests that led here alone: older ones are of another time.
        recent = max(list(self._factors)[-self.policy.window :])
        keeps = [level for level in below if self._idle[level] * recent <= self.deadline_ms]
        misses = sum(self._missed)
        reason = f"{misses} of the last {len(self._missed)} requests missed {self.deadline_ms:g} ms"
        return self._switch(keeps[0] if keeps else below[-1], reason)

    def _up(self) -> Switch | None:
        above = [level for level in range(self.level) if self.usable[level]]
        if not above or len(self._factors) < self.policy.window:
            return None
        predicted = self.predicted_p99_ms(above[-1])
        if predicted > self.policy.margin * self.deadline_ms:
            return None
        switch = self._switch(above[-1], f"a p99 of {predicted:.3g} ms is predicted")
        self._rising = True
        return switch

    def _switch(self, level: int, reason: str) -> Switch:
        switch = Switch(request=self.requests, before=self.level, after=level, reason=reason)
        self.level = level
        self._missed.clear()
        self._since_switch = 0
        self._rising = False
        return switch
