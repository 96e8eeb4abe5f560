"""Deadlines: counting the inferences that took too long, and telling the application of each."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import final

import attrs

__all__ = ["Deadline", "Miss"]


@final
@attrs.frozen(kw_only=True)
class Miss:
    """An inference that took longer than its deadline.

    Attributes:
        latency_ms: How long it took.
        deadline_ms: How long it might have.
        misses: How many there were since the session was loaded, this one included.
    """

    latency_ms: float
    deadline_ms: float
    misses: int


@final
class Deadline:
    """Counts misses.

    Args:
        deadline_ms: How long one inference may take.
        on_miss: Called for each miss, in the thread that ran the inference, when its outputs are there. What
            it raises goes to `sys.unraisablehook` (which prints it), so that the outputs are not lost.
    """

    def __init__(self, deadline_ms: float, on_miss: Callable[[Miss], object] | None = None) -> None:
        self.deadline_ms = deadline_ms
        self.misses = 0
        self._limit_ns = deadline_ms * 1e6
        self._on_miss = on_miss
        self._counting = threading.Lock()

    def check(self, took_ns: int) -> None:
        """Count an inference that took so long, if it missed."""
        if took_ns <= self._limit_ns:
            return
        with self._counting:
            self.misses += 1
            misses = self.misses
        if self._on_miss is None:
            return
        try:
            self._on_miss(Miss(latency_ms=took_ns / 1e6, deadline_ms=self.deadline_ms, misses=misses))
        except Exception as error:
            report_unraisable(error, "on_miss of a session", self._on_miss)


@final
@attrs.frozen(kw_only=True)
class _Unraisable:
    """What `sys.unraisablehook` takes."""

    exc_type: type[BaseException]
    exc_value: BaseException
    exc_traceback: object
    err_msg: str
    object: object


def report_unraisable(error: Exception, where: str, function: object) -> None:
    """Hand an error of a callback to `sys.unraisablehook`, so that the result that is there is not lost."""
    sys.unraisablehook(
        _Unraisable(  # type: ignore[arg-type]
            exc_type=type(error),
            exc_value=error,
            exc_traceback=error.__traceback__,
            err_msg=f"Exception ignored in {where}",
            object=function,
        )
    )
