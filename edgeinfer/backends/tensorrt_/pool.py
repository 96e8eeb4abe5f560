"""The slots of one session: made up to a limit, handed out, waited for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import final

from edgeinfer.backends.tensorrt_.slot import Slot
from edgeinfer.errors import InferenceError, SessionClosedError

__all__ = ["SlotPool"]


@final
class SlotPool:
    """Hands out slots, makes them up to a limit, and lets further requests wait.

    Attributes:
        slots: Those that were made, handed out or not.
    """

    def __init__(self, make: Callable[[], Slot], limit: int) -> None:
        self._make, self._limit = make, limit
        self._free: list[Slot] = []
        self._making = 0
        self._closed = False
        self._changed = threading.Condition()
        self.slots: list[Slot] = []

    def take(self) -> Slot:
        """Return a slot that nobody else has, until `give`.

        Raises:
            SessionClosedError: The pool is closed.
            InferenceError: All slots were withdrawn.
        """
        with self._changed:
            while self._limit > 0 and self._full():
                self._changed.wait()
            if self._closed:
                raise SessionClosedError("The session is closed.", hint="Load the artifact again.")
            if self._limit < 1:
                raise InferenceError(
                    "The engine runs one request at a time, and a binding has taken its place.",
                    where="bind",
                    hint="Close the binding first, or load the artifact again for a session beside it.",
                )
            if self._free:
                return self._free.pop()  # the one used last: its memory is warm and its graph is there
            self._making += 1
        slot = None
        try:
            slot = self._make()
        finally:
            with self._changed:
                self._making -= 1
                if slot is not None:
                    self.slots.append(slot)
                self._changed.notify()
        return slot

    def _full(self) -> bool:
        return not self._closed and not self._free and len(self.slots) + self._making >= self._limit

    def withdraw(self) -> Slot:
        """Take a slot out, and make one fewer until `restore`."""
        slot = self.take()
        with self._changed:
            self.slots.remove(slot)
            self._limit -= 1
            self._changed.notify_all()  # whoever waits for it learns that there is none
        return slot

    def restore(self) -> None:
        """Make one more again."""
        with self._changed:
            self._limit += 1

    def give(self, slot: Slot) -> None:
        """Take a slot back."""
        with self._changed:
            self._free.append(slot)
            self._changed.notify_all()

    def close(self) -> list[Slot]:
        """Wait until all slots are given back, and return them."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            while len(self._free) < len(self.slots) or self._making:
                self._changed.wait()
            slots, self.slots, self._free = self.slots, [], []
            return slots
