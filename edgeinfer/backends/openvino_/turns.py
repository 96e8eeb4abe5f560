"""Whose turn it is to run a dynamic graph, so that no run gives what another one left behind when it failed.

A dynamic graph on a CPU remembers the shapes of its last run, those of a failed one, too, and then gives the
output of an earlier run (OpenVINO 2026.4). So after a failure it is given up (`Engine.give_up`), before any
run that came after it is believed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, final

__all__ = ["OneAtATime", "Overlapping", "Turns"]

T = TypeVar("T")


class Turns(Protocol):
    """How the runs of one graph follow one another."""

    def run(self, call: Callable[[], T], request: Any, give_up: Callable[[], None]) -> T:
        """Run once.

        When it returns, `give_up` was called for each run that failed before this one began.

        Args:
            call: Runs the request.
            request: The extension's request.
            give_up: Called if the run fails, before others are believed.
        """
        ...


@final
class OneAtATime:
    """For a graph that all threads share: its runs follow one another anyway."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def run(self, call: Callable[[], T], _: Any, give_up: Callable[[], None]) -> T:
        """Run once, see `Turns`."""
        with self._lock:
            try:
                return call()
            except Exception:
                give_up()
                raise


@final
class Overlapping:
    """For a graph with several streams, of which each has a graph of its own that remembers.

    A run waits, when it is done, for those that OpenVINO has done with and whose thread has not looked at the
    outcome yet: one of them may have failed on the same stream before. Requests must be started and waited
    for (`start_async`), else OpenVINO cannot say whether it has done with them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[int, tuple[Any, threading.Event]] = {}

    def run(self, call: Callable[[], T], request: Any, give_up: Callable[[], None]) -> T:
        """Run once, see `Turns`."""
        seen = threading.Event()
        with self._lock:
            self._running[id(seen)] = request, seen
        try:
            found = call()
        except Exception:
            give_up()
            raise
        finally:
            with self._lock:
                del self._running[id(seen)]
                others = [*self._running.values()]
            seen.set()
        for other, its in others:
            if _done(other):
                its.wait()
        return found


def _done(request: Any) -> bool:
    try:
        return bool(request.wait_for(0))
    except Exception:  # how a run that failed says that it is done; its own thread raises it
        return True
