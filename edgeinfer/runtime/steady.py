"""`Steady`: what makes latency steadier, where this machine permits it, and what of that was permitted.

Under load, real-time priority is what helps most: with both cores busy the 99th percentile of a small model
fell from 40 ms to 0.5 ms. Memory that is locked is never paged out; a frozen heap is not searched by the
collector of cyclic garbage in the middle of an inference; threads that do not spin leave their core to
others.
"""

from __future__ import annotations

import ctypes
import gc
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import attrs

from edgeinfer.backends.protocol import Capabilities
from edgeinfer.budget import format_bytes
from edgeinfer.errors import OptionsError
from edgeinfer.runtime.realtime import realtime_refusal

__all__ = ["Measure", "ProcessHold", "Steady", "steady_of", "with_spinning"]

_MCL_CURRENT, _MCL_FUTURE = 1, 2  # <sys/mman.h>
_CAP_IPC_LOCK = 14  # linux/capability.h


@final
@attrs.frozen(kw_only=True)
class Steady:
    """What to do for a steady latency. Each is done where it is permitted; `Session.steady` says which were.

    Attributes:
        realtime: Run the runtime's threads, and every thread that calls the session, under SCHED_FIFO until
            the session closes. They take the processor from everything else, so idle threads do not spin then
            unless `spin` says so.
        lock_memory: Lock the process's memory (mlockall): no page of it is written to disk.
        freeze_gc: Take all objects that exist after loading out of Python's search for cyclic garbage.
        spin: Whether idle threads of the runtime wait by spinning: quicker, at the price of a core. None
            leaves it to the runtime, or to `realtime`.
    """

    realtime: bool = True
    lock_memory: bool = True
    freeze_gc: bool = True
    spin: bool | None = None

    @property
    def spins(self) -> bool | None:
        """What the runtime is told about spinning; None: nothing."""
        return False if self.spin is None and self.realtime else self.spin


def steady_of(value: object) -> Steady | None:
    """Read the argument `steady=` of `load`.

    Raises:
        OptionsError: It is none of a `Steady`, a mapping of its fields, a bool and None.
    """
    if value is None or value is False:
        return None
    if value is True:
        return Steady()
    if isinstance(value, Steady):
        return value
    fields = {field.name for field in attrs.fields(Steady)}
    if isinstance(value, Mapping) and set(value) <= fields:
        return Steady(**value)
    raise OptionsError(
        "That is no steadiness.",
        where="steady",
        expected=f"True, a Steady, or a mapping of {', '.join(sorted(fields))}",
        found=repr(value),
    )


@final
@attrs.frozen(kw_only=True)
class Measure:
    """One thing that was to make latency steadier.

    Attributes:
        name: `realtime`, `lock_memory`, `freeze_gc` or `spin`.
        applied: Whether it holds now.
        detail: What was done, or why not.
    """

    name: str
    applied: bool
    detail: str


def with_spinning(options: Any, spins: bool | None, capabilities: Capabilities) -> tuple[Any, Measure | None]:
    """Return a backend's load options with its own option for spinning, and what was done.

    Args:
        options: The options that were given: the backend's frozen value, a mapping or None. One for spinning
            among them is kept.
        spins: What to tell the runtime; None: nothing.
        capabilities: They name the option.
    """
    if spins is None:
        return options, None
    name = capabilities.spin_option
    word = "idle threads spin" if spins else "idle threads do not spin"
    if name is None:
        return options, Measure(name="spin", applied=False, detail="this runtime has no such option")
    if isinstance(options, Mapping) or options is None:
        given = dict(options or {})
        if given.get(name, spins) != spins:
            return options, Measure(name="spin", applied=False, detail=f"options say {name}={given[name]}")
        return {**given, name: spins}, Measure(name="spin", applied=True, detail=word)
    if not (attrs.has(type(options)) and hasattr(options, name)):
        return options, Measure(name="spin", applied=False, detail="these options have no such field")
    if getattr(options, name) is None:
        options = attrs.evolve(options, **{name: spins})
    applied = getattr(options, name) == spins
    detail = word if applied else f"options say {name}={getattr(options, name)}"
    return options, Measure(name="spin", applied=applied, detail=detail)


@final
class ProcessHold:
    """What holds for the entire process while a steady session is open: locked memory, a frozen heap."""

    _counting = threading.Lock()
    _locking = 0
    _freezing = 0

    def __init__(self, steady: Steady) -> None:
        self._locked = self._frozen = False
        self.measures: tuple[Measure, ...] = (
            *([self._lock_memory()] if steady.lock_memory else []),
            *([self._freeze()] if steady.freeze_gc else []),
        )

    def _lock_memory(self) -> Measure:
        refusal = _lock_refusal()
        with ProcessHold._counting:
            if not refusal and ctypes.CDLL(None, use_errno=True).mlockall(_MCL_CURRENT | _MCL_FUTURE):
                refusal = f"mlockall: {os.strerror(ctypes.get_errno())}"
            if not refusal:
                ProcessHold._locking += 1
        self._locked = not refusal
        detail = refusal or "the process's memory is locked"
        return Measure(name="lock_memory", applied=self._locked, detail=detail)

    def _freeze(self) -> Measure:
        with ProcessHold._counting:
            ProcessHold._freezing += 1
            gc.collect()
            gc.freeze()
        self._frozen = True
        detail = f"{gc.get_freeze_count()} objects are out of the collector's way"
        return Measure(name="freeze_gc", applied=True, detail=detail)

    def release(self) -> None:
        """Undo what no other session needs."""
        with ProcessHold._counting:
            if self._locked:
                ProcessHold._locking -= 1
                if not ProcessHold._locking:
                    ctypes.CDLL(None).munlockall()
            if self._frozen:
                ProcessHold._freezing -= 1
                if not ProcessHold._freezing:
                    gc.unfreeze()
            self._locked = self._frozen = False


def _lock_refusal() -> str:
    """Return why memory cannot be locked, or an empty text.

    With a limit that later allocations would reach, MCL_FUTURE makes these fail: so a limit is a refusal.
    """
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except (ImportError, OSError):
        return "this system has no mlockall"
    have = next((int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:")), 0)
    if limit == resource.RLIM_INFINITY or have >> _CAP_IPC_LOCK & 1:
        return ""
    allowed = format_bytes(limit)
    return f"this user may lock {allowed} of memory: set memlock to unlimited (`edgeinfer doctor` says how)"


def realtime_measure() -> Measure:
    """Return whether threads may run under SCHED_FIFO."""
    refusal = realtime_refusal()
    return Measure(name="realtime", applied=not refusal, detail=refusal or "threads run under SCHED_FIFO")
