"""How sessions are timed: on how many threads and by which clock, by what the backend can do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

from edgeinfer.backends.registry import get_backend
from edgeinfer.runtime.session import Session

__all__ = ["timing_clock", "timing_options"]

_RESOLUTION_S = 1e-6  # on some systems processor time is counted in ticks of a clock


def timing_options(backend: str, *, threads: int) -> dict[str, object] | None:
    """Return the options that bound a backend's threads; None where it has no such option.

    Args:
        backend: The backend's name.
        threads: Threads within an operator.
    """
    return get_backend(backend).capabilities().threads(threads)


def timing_clock(sessions: Iterable[Session], options: Mapping[str, object] | None) -> Callable[[], float]:
    """Return the clock to time sessions with, in seconds.

    On one thread of a CPU it is the processor time of the process, which other work on the machine hardly
    touches; elsewhere the time on the wall.

    Args:
        sessions: The sessions.
        options: Those of `timing_options` that they were loaded with.
    """
    one_thread = options is not None and set(options.values()) == {1}
    on_cpu = all(session.device.upper() == "CPU" for session in sessions)
    fine = time.get_clock_info("process_time").resolution < _RESOLUTION_S
    return time.process_time if one_thread and on_cpu and fine else time.perf_counter
