"""`Phase`: where an update of a device stands.

    IDLE → ACCEPTED → PRECHECK → DOWNLOADING → VERIFIED → STAGING → STAGED → [SHADOW] → READY
         → ACTIVATING → (the rename of `current`) → SOAKING → COMMITTED

and from there ROLLING_BACK → ROLLED_BACK, or REJECTED, FAILED, SUPERSEDED, DEGRADED.
"""

from __future__ import annotations

import enum
from typing import final

__all__ = ["Phase"]


@final
class Phase(enum.Enum):
    """A phase of an update.

    Attributes:
        durable: It is on disk before anything of it is done, so a power loss cannot hide it. The others are
            done again from the last durable phase.
        final: The update is over, and the next may begin.
    """

    IDLE = "idle"
    ACCEPTED = "accepted"
    PRECHECK = "precheck"
    DOWNLOADING = "downloading"
    VERIFIED = "verified"
    STAGING = "staging"
    STAGED = "staged"
    SHADOW = "shadow"
    READY = "ready"
    ACTIVATING = "activating"
    SOAKING = "soaking"
    COMMITTED = "committed"
    ROLLING_BACK = "rolling_back"
    ROLLED_BACK = "rolled_back"
    REJECTED = "rejected"
    FAILED = "failed"
    SUPERSEDED = "superseded"
    DEGRADED = "degraded"

    @property
    def durable(self) -> bool:
        """Whether it is on disk before anything of it is done."""
        return self not in _VOLATILE

    @property
    def final(self) -> bool:
        """Whether the update is over."""
        return self in _FINAL

    @property
    def activated(self) -> bool:
        """Whether applications may have seen the new models."""
        return self in _ACTIVATED


_VOLATILE = frozenset({Phase.PRECHECK, Phase.DOWNLOADING, Phase.READY})
_FINAL = frozenset(
    {
        Phase.IDLE,
        Phase.COMMITTED,
        Phase.ROLLED_BACK,
        Phase.REJECTED,
        Phase.FAILED,
        Phase.SUPERSEDED,
        Phase.DEGRADED,
    }
)
_ACTIVATED = frozenset({Phase.ACTIVATING, Phase.SOAKING, Phase.COMMITTED, Phase.ROLLING_BACK, Phase.DEGRADED})
