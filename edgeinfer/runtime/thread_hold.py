"""`ThreadHold`: what is done to each thread that works for a session, until the session closes."""

from __future__ import annotations

import contextlib
from typing import Protocol

__all__ = ["ThreadHold"]


class ThreadHold(Protocol):
    """Pinning to cores (`Pins`), or real-time priority (`Realtime`)."""

    def take_this_thread(self) -> None:
        """Take the calling thread, unless it is taken already."""
        ...

    def while_loading(self) -> contextlib.AbstractContextManager[None]:
        """Take the calling thread while the runtime creates its own threads, which inherit what was done."""
        ...

    def release(self) -> None:
        """Give all threads back what they had."""
        ...
