"""The lock of a device's folder: one agent at a time."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from edgeinfer.fleet.errors import AgentBusyError

__all__ = ["lock_folder"]


def lock_folder(folder: Path) -> int:
    """Return a descriptor that holds the folder's lock, which the system frees however this process ends."""
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise AgentBusyError(
            "Another agent works in this folder.",
            where=str(folder),
            hint="Stop it first, or look at it: edgeinfer agent status.",
        ) from error
    return descriptor
