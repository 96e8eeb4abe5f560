"""Pinning of threads to cores while a session is open."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import final

from edgeinfer.errors import DeviceError

__all__ = ["Pins", "threads_of_process"]

_TASKS = Path("/proc/self/task")


@final
class Pins:
    """Pins threads to cores, and gives each its old affinity back at the end.

    Runtimes create their threads while they load, or later within a call, and a new thread inherits the
    affinity of its creator. So the loading thread and every thread that calls the session are pinned. Some
    runtimes keep their threads in the process after a session is closed (OpenVINO's are shared by all of its
    models): `release` frees those too.

    Args:
        cores: The cores, all of which this process may use.

    Raises:
        DeviceError: A core is not there, or this system cannot pin.
    """

    def __init__(self, cores: tuple[int, ...]) -> None:
        if not hasattr(os, "sched_setaffinity"):
            raise DeviceError(
                "This system cannot pin threads to cores.",
                where="option pin_cores",
                expected="Linux",
                found=sys.platform,
                hint="Leave it out.",
            )
        self._allowed = os.sched_getaffinity(0)
        if not cores or not set(cores) <= self._allowed:
            raise DeviceError(
                "Those cores are not there, or not for this process.",
                where="option pin_cores",
                expected=f"among {sorted(self._allowed)}",
                found=cores,
                hint="Name cores of that list, or leave it out.",
            )
        self._cores = set(cores)
        self._before: dict[int, set[int]] = {}
        self._older = threads_of_process()

    def take_this_thread(self) -> None:
        """Pin the calling thread, unless it is pinned already."""
        thread = threading.get_native_id()
        if thread not in self._before:
            before = os.sched_getaffinity(0)
            # A younger thread that is on our cores already has that from a pinned thread which created it.
            inherited = before == self._cores and thread not in self._older
            self._before[thread] = self._allowed if inherited else before
            os.sched_setaffinity(0, self._cores)

    @contextlib.contextmanager
    def while_loading(self) -> Iterator[None]:
        """Pin the calling thread while the runtime creates its threads."""
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, self._cores)
        try:
            yield
        except BaseException:
            self.release()
            raise
        finally:
            os.sched_setaffinity(0, before)

    def release(self) -> None:
        """Give all threads of this process their affinity back."""
        alive = threads_of_process()  # a number that is no longer ours may be another process's thread by now
        inherited = {
            thread: self._allowed
            for thread in alive - self._older - self._before.keys()
            if _affinity(thread) == self._cores
        }
        for thread, cores in {**inherited, **self._before}.items():
            if thread in alive:
                with contextlib.suppress(OSError):  # it ended meanwhile
                    os.sched_setaffinity(thread, cores)
        self._before.clear()


def threads_of_process() -> set[int]:
    """Return the kernel's numbers of this process's threads; none where /proc is not there."""
    return {int(path.name) for path in _TASKS.iterdir()} if _TASKS.is_dir() else set()


def _affinity(thread: int) -> set[int]:
    try:
        return os.sched_getaffinity(thread)
    except OSError:  # it ended meanwhile
        return set()
