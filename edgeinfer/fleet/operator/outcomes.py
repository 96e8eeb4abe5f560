"""What becomes of a device in a rollout, and the failure rate over many.

Two facts a device, because they change independently:

- `Outcome`: how far the new release came on it. OFFLINE until the device accepts its document; ACCEPTED while
  it works on it; then SUCCESS, FAILED, ROLLED_BACK, REJECTED, TIMED_OUT or WITHDRAWN. Late reports change it:
  a success that breaks later is a failure, a device that was TIMED_OUT may answer after all.
- `Motion`: what it is being asked to do. A device that moves is *in flight*, and takes a place in the
  disruption budget of its site until it is known to stand still.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from typing import final

import attrs

__all__ = ["Counts", "Motion", "Outcome", "devices_text", "is_eligible"]


class Outcome(str, enum.Enum):
    """How far a rollout came on one device."""

    WAITING = "WAITING"  # no document yet: not exposed
    OFFLINE = "OFFLINE"  # a document is out, and was never accepted, or let go again when it was called back
    ACCEPTED = "ACCEPTED"
    SUCCESS = "SUCCESS"
    FAILED = "FAILED"
    ROLLED_BACK = "ROLLED_BACK"
    REJECTED = "REJECTED"
    TIMED_OUT = "TIMED_OUT"  # accepted, then silent
    WITHDRAWN = "WITHDRAWN"  # deleted before it was decided; it stays in the denominator

    @property
    def decided(self) -> bool:
        """Whether nothing more is expected, though late reports are still counted."""
        return self not in (Outcome.WAITING, Outcome.OFFLINE, Outcome.ACCEPTED)

    @property
    def failed(self) -> bool:
        """Whether it counts as a failure in the failure rate."""
        return self in (Outcome.FAILED, Outcome.ROLLED_BACK, Outcome.TIMED_OUT)


class Motion(str, enum.Enum):
    """What a device is being asked to do."""

    STILL = "STILL"
    FORWARD = "FORWARD"  # towards the new release
    BACK = "BACK"  # away from it: held, aborted or rolled back
    REVERTED = "REVERTED"  # it was asked back, and is
    AGAIN = "AGAIN"  # to be tried once more: a retryable failure, or facts that changed after a rejection
    STUCK = "STUCK"  # it failed late and has the release all the same (DEGRADED); a rollback takes it back
    KEPT = "KEPT"  # it was asked back and could not: it has the release

    @property
    def in_flight(self) -> bool:
        """Whether the device may be changing its model now."""
        return self in (Motion.FORWARD, Motion.BACK)


@final
@attrs.frozen
class Counts:
    """How many devices have which outcome and motion.

    Attributes:
        by_state: (outcome, motion) -> devices.
    """

    by_state: Mapping[tuple[Outcome, Motion], int] = attrs.field(factory=dict)

    @classmethod
    def sum(cls, parts: Iterable[Counts]) -> Counts:
        """Return the counts of several groups of devices together."""
        total: dict[tuple[Outcome, Motion], int] = {}
        for part in parts:
            for state, count in part.by_state.items():
                total[state] = total.get(state, 0) + count
        return cls(total)

    def of(self, *outcomes: Outcome) -> int:
        """Return how many have one of these outcomes."""
        return sum(count for (outcome, _), count in self.by_state.items() if outcome in outcomes)

    def moving(self, *motions: Motion) -> int:
        """Return how many have one of these motions."""
        return sum(count for (_, motion), count in self.by_state.items() if motion in motions)

    @property
    def members(self) -> int:
        """All devices, whatever became of them."""
        return sum(self.by_state.values())

    @property
    def exposed(self) -> int:
        """Devices that a document was issued for."""
        return self.members - self.of(Outcome.WAITING)

    @property
    def in_flight(self) -> int:
        """Devices that may be changing their model now."""
        return self.moving(Motion.FORWARD, Motion.BACK)

    @property
    def decided(self) -> int:
        """Devices that nothing more is expected of."""
        return sum(count for (outcome, _), count in self.by_state.items() if outcome.decided)

    @property
    def settled(self) -> bool:
        """Whether every device is decided and none is on its way: nothing changes any more by itself.

        A device that is TIMED_OUT is silent, and nobody knows for how long.
        """
        silent = sum(
            n for (o, motion), n in self.by_state.items() if o is Outcome.TIMED_OUT and motion.in_flight
        )
        return self.decided == self.members and self.in_flight == silent and not self.eligible

    @property
    def reached(self) -> int:
        """Devices that are decided because they were heard of, or accepted and then were not."""
        return self.decided - self.of(Outcome.WITHDRAWN)

    @property
    def failures(self) -> int:
        """FAILED + ROLLED_BACK + TIMED_OUT."""
        return self.of(Outcome.FAILED, Outcome.ROLLED_BACK, Outcome.TIMED_OUT)

    @property
    def failure_rate(self) -> float | None:
        """(FAILED + ROLLED_BACK + TIMED_OUT) / (decided - REJECTED); None of no devices."""
        denominator = self.decided - self.of(Outcome.REJECTED)
        return self.failures / denominator if denominator else None

    @property
    def eligible(self) -> int:
        """Devices that may be given a document: see `is_eligible`."""
        return sum(count for state, count in self.by_state.items() if is_eligible(*state))


def devices_text(count: int) -> str:
    """Return a number of devices for people."""
    return "1 device" if count == 1 else f"{count} devices"


def is_eligible(outcome: Outcome, motion: Motion) -> bool:
    """Whether a device may be given a document of the new release.

    It waits; or its document ran out before it was accepted; or it was held and is back; or it is to be tried
    again.
    """
    if motion is Motion.AGAIN:
        return True
    if motion is Motion.REVERTED:
        return outcome in (Outcome.WAITING, Outcome.OFFLINE, Outcome.ACCEPTED, Outcome.SUCCESS)
    return motion is Motion.STILL and outcome in (Outcome.WAITING, Outcome.OFFLINE)
