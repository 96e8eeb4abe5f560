"""`DeviceClock`: what time it is on a device whose clock may be in 1970, far ahead, or absent.

The floor is a time that has certainly passed: a signed document was issued then, or this device has run so
long since. It never goes back and is kept in the journal. A wall clock below the floor is wrong. One that is
further above it than a device may have been switched off is not trusted either: time then goes on from the
floor, by the monotonic clock, until a signed document brings a later one.

A wall clock that is wrong by less is believed, but not kept: it moves no floor, so when it is set right
nothing stays refused.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import final

__all__ = ["DeviceClock"]

DAY_S = 86_400


@final
class DeviceClock:
    """A clock with a floor.

    Args:
        floor: The floor of the journal, in seconds since 1970; 0 where nothing is known.
        wall: The device's clock, in seconds since 1970.
        monotonic: A clock that never goes back, in seconds.
        max_jump_s: How far the wall clock may be above the floor.
    """

    def __init__(
        self,
        floor: int = 0,
        *,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        max_jump_s: float = 3 * 365 * DAY_S,
    ) -> None:
        self._monotonic = monotonic
        self._wall = wall
        self._max_jump_s = max_jump_s
        self._floor = float(floor)
        self._since = self._monotonic()

    @property
    def floor(self) -> int:
        """What has certainly passed."""
        self._advance()
        return int(self._floor)

    @property
    def trusted(self) -> bool:
        """Whether the wall clock is believed."""
        self._advance()
        wall = self._wall()
        return self._floor <= wall and (self._floor == 0 or wall <= self._floor + self._max_jump_s)

    def now(self) -> int:
        """Return the time, in seconds since 1970."""
        return int(self._wall()) if self.trusted else int(self._floor)

    def raise_floor(self, signed_at: int) -> None:
        """Take note of a time that a verified document tells."""
        self._advance()
        self._floor = max(self._floor, float(signed_at))

    def _advance(self) -> None:
        now = self._monotonic()
        if self._floor > 0:
            self._floor += max(0.0, now - self._since)
        self._since = now
