"""The files by which the agent and the applications of a device talk. No server, no socket.

    run/apps/TOKEN.json     what an application tells: what it serves, how fast, how well; the agent reads it
    run/apps/TOKEN.lock     locked (flock) while the application lives, however it ends
    run/shadow.json         what the agent asks for: live inputs of a model
    run/shadow/MODEL/*.npz  live inputs and answers

`run` may be a link to a folder in memory (`/run/edgeinfer`): nothing in it must outlive a boot.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import attrs

from edgeinfer.artifact.decode import DecodeError, Hooks, decode, encode
from edgeinfer.fleet.device.documents import canonical_json
from edgeinfer.fleet.device.histogram import Histogram
from edgeinfer.fleet.device.local_files import read_json, replace_file
from edgeinfer.fleet.errors import FleetError

__all__ = ["AppFiles", "AppStatus", "ModelStatus", "ShadowOrder", "read_apps", "read_order", "write_order"]

_MAX_BYTES = 4 << 20


@final
@attrs.frozen(kw_only=True, eq=False)
class ModelStatus:
    """What an application tells of one model, since it serves this generation.

    Attributes:
        accepts: The interface that the application accepts; empty for any.
        release: The digest of the release that is loaded.
        requests: How many inferences were answered.
        errors: In how many the runtime failed.
        answered_by_previous: How many of those the previous generation answered.
        hangs: How many of those had not ended when the previous generation answered.
        waits_since: Since when the inference runs that has run longest, on the system's monotonic clock in
            seconds; 0 where none runs.
        deadline_misses: How many took longer than the application's deadline.
        latency_ms: Of the inferences.
        confidence: What `observe` was given.
        labels: The same, counted.
    """

    accepts: str = ""
    release: str = ""
    requests: int = 0
    errors: int = 0
    answered_by_previous: int = 0
    hangs: int = 0
    waits_since: float = 0.0
    deadline_misses: int = 0
    latency_ms: Histogram = attrs.field(factory=Histogram)
    confidence: Histogram = attrs.field(factory=Histogram)
    labels: Mapping[str, int] = attrs.field(factory=dict)


@final
@attrs.frozen(kw_only=True, eq=False)
class AppStatus:
    """What an application tells of itself.

    Attributes:
        boot_id: Of the boot in which it tells this.
        told_at: When, on the system's monotonic clock in seconds; 0 of an older application.
        closed: It ended in order.
        generation: The generation that it serves; 0 for none.
        seconds: How long it has served it.
        loads_generation: The generation that it is loading beside it; 0 for none.
        loads_since: Since when, as `told_at`.
        failed_generation: The last generation that it could not load; 0 for none.
        failure: Why.
        rss_bytes: Its resident memory.
        grown_bytes: How much of that came since it serves this generation, the first requests aside.
        healthy: The application's own signal.
        health_reason: Why not.
        defer_until: Until when it asks not to be switched, on the system's monotonic clock in seconds.
        models: By name.
    """

    boot_id: str = ""
    told_at: float = 0.0
    closed: bool = False
    generation: int = 0
    seconds: float = 0.0
    loads_generation: int = 0
    loads_since: float = 0.0
    failed_generation: int = 0
    failure: str = ""
    rss_bytes: int = 0
    grown_bytes: int = 0
    healthy: bool = True
    health_reason: str = ""
    defer_until: float = 0.0
    models: Mapping[str, ModelStatus] = attrs.field(factory=dict)


@final
@attrs.frozen(kw_only=True)
class ShadowOrder:
    """What the agent asks applications for.

    Attributes:
        model: Of which model.
        generation: While they serve this generation.
        requests: How many live inputs it wants at once in the folder.
    """

    model: str
    generation: int
    requests: int = 32


_ENCODE: Hooks = {Histogram: Histogram.to_dict}
_DECODE: Hooks = {Histogram: Histogram.from_dict}


@final
class AppFiles:
    """An application's files. Its lock is held until the process ends, or `close`.

    Raises:
        OSError: The folder cannot be written.
    """

    def __init__(self, run: Path) -> None:
        folder = run / "apps"
        folder.mkdir(parents=True, exist_ok=True)
        token = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._status = folder / f"{token}.json"
        self._lock = folder / f"{token}.lock"
        self._descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def tell(self, status: AppStatus) -> None:
        """Replace what is told. Raises OSError."""
        replace_file(self._status, canonical_json(encode(status, _ENCODE)), durable=False)

    def close(self) -> None:
        """Let go of the lock."""
        os.close(self._descriptor)


def read_apps(run: Path, *, remove_dead: bool = False) -> tuple[tuple[AppStatus, ...], tuple[AppStatus, ...]]:
    """Return what the applications that live tell, and what those that ended without closing told last.

    Args:
        run: The folder of the exchange.
        remove_dead: Remove the files of those that ended, so that each is seen once.
    """
    living, dead = [], []
    with contextlib.suppress(FileNotFoundError):
        for lock in sorted((run / "apps").glob("*.lock")):
            path = lock.with_suffix(".json")
            alive = _is_locked(lock)
            status = _read(path)
            if alive:
                living += [status] if status is not None else []
                continue
            if status is not None and not status.closed:
                dead.append(status)
            if remove_dead:
                path.unlink(missing_ok=True)
                lock.unlink(missing_ok=True)
    return tuple(living), tuple(dead)


def _read(path: Path) -> AppStatus | None:
    """Return what an application told; None of one that told nothing yet, or nonsense."""
    try:
        return decode(AppStatus, read_json(path, _MAX_BYTES), _DECODE, skip_unknown=True)
    except (OSError, ValueError, DecodeError, FleetError):
        return None


def _is_locked(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return True  # not for us to judge
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def write_order(run: Path, order: ShadowOrder | None) -> None:
    """Ask for live inputs, or for none. Raises OSError."""
    path = run / "shadow.json"
    if order is None:
        path.unlink(missing_ok=True)
        return
    run.mkdir(exist_ok=True)
    replace_file(path, canonical_json(encode(order)), durable=False)


def read_order(run: Path) -> ShadowOrder | None:
    """Return what the agent asks for."""
    try:
        found: Any = read_json(run / "shadow.json", 64 << 10)
        return decode(ShadowOrder, found, skip_unknown=True)
    except (OSError, ValueError, DecodeError):
        return None
