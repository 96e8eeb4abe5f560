"""Control groups of Linux, made for a test: so much memory, so many cores. As root, or where permitted."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["Group", "NotPermittedError", "limited"]

_ROOT = Path("/sys/fs/cgroup")
_PERIOD_US = 100_000


class NotPermittedError(Exception):
    """This machine does not let us make control groups with these limits."""


class Group(NamedTuple):
    """Groups of processes: one folder for each hierarchy."""

    memory: Path
    cpu: Path

    def enter(self) -> None:
        """Put this process into the group. For `preexec_fn`: what it starts is in it, too."""
        for folder in {self.memory, self.cpu}:
            (folder / "cgroup.procs").write_text(str(os.getpid()))

    @property
    def peak_bytes(self) -> int:
        """The most memory that was in use at once, with the pages of files that it read."""
        for name in ("memory.peak", "memory.max_usage_in_bytes"):
            if (self.memory / name).exists():
                return int((self.memory / name).read_text())
        raise NotPermittedError("this kernel does not tell the peak (v2: since 5.19)")

    @property
    def killed(self) -> int:
        """How many processes the kernel killed for want of memory."""
        for name in ("memory.events", "memory.oom_control"):
            if (self.memory / name).exists():
                fields = dict(line.split() for line in (self.memory / name).read_text().splitlines())
                return int(fields.get("oom_kill", 0))
        return 0

    def child(self, name: str) -> Group:
        """Return a group within this one; the limits are those of both together."""
        found = Group(*(folder / name for folder in self))
        for folder in dict.fromkeys(found):
            folder.mkdir()
        return found


@contextlib.contextmanager
def limited(memory_bytes: int, cores: float = 1.0) -> Iterator[Group]:
    """Make a group with limits, and remove it; all processes in it have ended by then.

    Raises:
        NotPermittedError: This machine does not let us.
    """
    name = f"edgeinfer-test-{secrets.token_hex(4)}"
    made: list[Path] = []
    try:
        try:
            yield _made(name, memory_bytes, cores, made)
        except OSError as error:
            if error.filename is not None and str(error.filename).startswith(str(_ROOT)):
                raise NotPermittedError(f"{error.filename}: {error.strerror}") from error
            raise
    finally:
        for folder in made:
            for inner in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
                _remove(inner)
            _remove(folder)


def _made(name: str, memory_bytes: int, cores: float, made: list[Path]) -> Group:
    quota = int(cores * _PERIOD_US)
    if (_ROOT / "cgroup.controllers").exists():  # version 2
        enabled = (_ROOT / "cgroup.subtree_control").read_text().split()
        if not {"memory", "cpu"} <= set(enabled):
            raise NotPermittedError(f"{_ROOT}/cgroup.subtree_control has {enabled}, not memory and cpu")
        group = Group(_ROOT / name, _ROOT / name)
        group.memory.mkdir()
        made.append(group.memory)
        limits = {"memory.max": memory_bytes, "memory.swap.max": 0, "cpu.max": f"{quota} {_PERIOD_US}"}
        for file, value in limits.items():
            if file != "memory.swap.max" or (group.memory / file).exists():
                (group.memory / file).write_text(str(value))
        (group.memory / "cgroup.subtree_control").write_text("+memory +cpu")
        return group
    if not (_ROOT / "memory").is_dir() or not (_ROOT / "cpu").is_dir():
        raise NotPermittedError("no control groups are mounted at /sys/fs/cgroup")
    group = Group(_ROOT / "memory" / name, _ROOT / "cpu" / name)
    for folder in group:
        folder.mkdir()
        made.append(folder)
    with contextlib.suppress(OSError):  # where it cannot be changed, it is so already
        (group.memory / "memory.use_hierarchy").write_text("1")
    (group.memory / "memory.limit_in_bytes").write_text(str(memory_bytes))
    (group.cpu / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
    (group.cpu / "cpu.cfs_quota_us").write_text(str(quota))
    return group


def _remove(folder: Path) -> None:
    for _ in range(200):  # the last process may be leaving it
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.01)
        else:
            return
