"""`Patience`: calls that may hang, in threads of their own, so that who waits for one can stop waiting.

No thread can be ended from outside. One that hangs is left alone; it ends with the process.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar, final

__all__ = ["Patience"]

T = TypeVar("T")


@final
class _Call(Generic[T]):
    """One call, and what became of it."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._ended = threading.Event()
        self._result: T
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._result = self._function()
        except BaseException as error:  # raised again for who waits
            self._error = error
        self._ended.set()

    def wait(self, seconds: float) -> T:
        if not self._ended.wait(seconds):
            raise TimeoutError
        if self._error is not None:
            raise self._error
        return self._result


@final
class Patience:
    """Runs calls and waits for each, but not without end. Several threads may use it.

    A thread that has ended its call takes the next one; a further one is started where all are busy.

    Args:
        seconds: How long each call may take.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._idle: list[queue.SimpleQueue[_Call[Any] | None]] = []
        self._closed = False

    def call(self, function: Callable[[], T]) -> T:
        """Return what the function returns, or raise what it raises.

        Raises:
            TimeoutError: It had not ended. It goes on, and nobody waits for it.
        """
        call = _Call(function)
        try:
            calls = self._idle.pop()
        except IndexError:
            calls = queue.SimpleQueue()
            threading.Thread(target=self._serve, args=(calls,), name="edgeinfer-call", daemon=True).start()
        calls.put(call)
        return call.wait(self.seconds)

    def close(self) -> None:
        """End the threads that are idle, and the others when they are."""
        self._closed = True
        while self._idle:
            self._idle.pop().put(None)

    def _serve(self, calls: queue.SimpleQueue[_Call[Any] | None]) -> None:
        while (call := calls.get()) is not None:
            call.run()
            del call  # with what it returned
            if self._closed:
                return
            self._idle.append(calls)
