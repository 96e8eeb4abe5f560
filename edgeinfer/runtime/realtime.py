"""Real-time priority of threads while a session is open."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import final

from edgeinfer.runtime.affinity import threads_of_process

__all__ = ["PRIORITY", "Realtime", "realtime_refusal"]

# Above all normal threads, and below the kernel's interrupt threads, which have 50 (kernel/irq/manage.c).
PRIORITY = 10
# The real-time sessions of this process, and the threads that were there before the first of them.
_open: set[int] = set()
_older: set[int] = set()
_counting = threading.Lock()


def realtime_refusal() -> str:
    """Return why this thread may not have real-time priority, or an empty text."""
    if not hasattr(os, "sched_setscheduler"):
        return "this system has no SCHED_FIFO"
    before, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
        os.sched_setscheduler(0, before, parameters)
    except PermissionError:
        return "this user may not have real-time priority: set rtprio (`edgeinfer doctor` says how)"
    except OSError as error:  # a kernel or container without real-time scheduling for this group
        return f"the kernel refuses SCHED_FIFO: {error.strerror}"
    return ""


@final
class Realtime:
    """Runs threads under SCHED_FIFO, and gives each its old policy back at the end.

    A new thread inherits the policy of its creator (pthread_attr_setinheritsched), so what a runtime creates
    while it loads is real-time, too. Some runtimes keep these threads for later models: they get the normal
    policy when the last real-time session of the process is released. What a thread that calls the session
    starts, threads and processes, stays normal (SCHED_RESET_ON_FORK). See sched(7).
    """

    def __init__(self) -> None:
        self._before: dict[int, tuple[int, int]] = {}
        with _counting:
            if not _open:
                _older.clear()
                _older.update(threads_of_process())
            _open.add(id(self))

    def take_this_thread(self) -> None:
        """Give the calling thread real-time priority, unless it has it."""
        thread = threading.get_native_id()
        if thread not in self._before:
            self._before[thread] = (os.sched_getscheduler(0), os.sched_getparam(0).sched_priority)
            # Processes that this thread starts must not inherit it: a busy one would stop the machine.
            os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(PRIORITY))

    @contextlib.contextmanager
    def while_loading(self) -> Iterator[None]:
        """Give the calling thread real-time priority while the runtime creates its threads."""
        before, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
        try:
            yield
        except BaseException:
            self.release()
            raise
        finally:
            os.sched_setscheduler(0, before, parameters)

    def release(self) -> None:
        """Give all threads that called the session their policy back, and in the end the runtime's."""
        for thread, (policy, priority) in self._before.items():
            with contextlib.suppress(OSError):  # it ended meanwhile
                os.sched_setscheduler(thread, policy, os.sched_param(priority))
        self._before.clear()
        with _counting:
            _open.discard(id(self))
            if _open:
                return
            for thread in threads_of_process() - _older:
                with contextlib.suppress(OSError):
                    if os.sched_getscheduler(thread) & ~os.SCHED_RESET_ON_FORK == os.SCHED_FIFO:
                        os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))
