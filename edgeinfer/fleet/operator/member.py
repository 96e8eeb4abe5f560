"""`Member`: what is known of one device's part in a rollout."""

from __future__ import annotations

from typing import TypeAlias, final

import attrs

from edgeinfer.fleet.operator.outcomes import Motion, Outcome

__all__ = ["GRACE_S", "Generation", "Member"]

Generation: TypeAlias = "tuple[int, int]"
# A device that began in time may still be switching when its lease ends.
GRACE_S = 1800


@final
@attrs.frozen(kw_only=True)
class Member:
    """A device in a rollout; see the table `members`."""

    rollout: int
    device: str
    stage: int
    rank: int
    device_class: str = ""
    site: str = ""
    outcome: Outcome = attrs.field(default=Outcome.WAITING, converter=Outcome)
    motion: Motion = attrs.field(default=Motion.STILL, converter=Motion)
    epoch: int = 0
    number: int = 0
    back_epoch: int = 0
    back_number: int = 0
    target: str = ""
    origin: str = ""
    start_before: int = 0
    exposures: int = 0
    attempts: int = 0
    heard_at: int = 0
    code: str = ""

    @property
    def forward(self) -> Generation:
        """Of its last document of the new release; (0, 0) before the first."""
        return (self.epoch, self.number)

    @property
    def back(self) -> Generation:
        """Of its last document that asked it back; (0, 0) if there was none."""
        return (self.back_epoch, self.back_number)

    @property
    def cell(self) -> tuple[int, int, str, str, str, str]:
        """The key of the cell that counts it."""
        return (
            self.rollout,
            self.stage,
            self.device_class,
            self.site,
            self.outcome.value,
            self.motion.value,
        )
