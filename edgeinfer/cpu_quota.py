"""How many CPUs this process may use: its affinity, and the CPU time that its container is allowed.

A container with a quota (`docker --cpus=0.5`, a Kubernetes limit) sees all cores of the machine. A runtime
that starts a thread for each of them is stopped for most of each period when they have used the quota up.
The quota is in files of the control groups, of version 1 (cpu.cfs_quota_us, cpu.cfs_period_us) or version 2
(cpu.max), of the process's own group and of all groups above it; see
https://docs.kernel.org/admin-guide/cgroup-v2.html and https://docs.kernel.org/scheduler/sched-bwc.html.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

__all__ = ["cpu_quota", "usable_cpus"]


def usable_cpus(root: Path = Path("/")) -> int:
    """Return how many CPUs the calling thread may keep busy, at least 1.

    Args:
        root: Where `/proc` and `/sys` are.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota(root)
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Return the CPU time a second that the process's control groups allow, or None without a limit.

    Args:
        root: Where `/proc` and `/sys` are.
    """
    limits = [limit for folder in _folders(root) if (limit := _limit_of(folder)) is not None]
    return min(limits, default=None)


def _folders(root: Path) -> Iterator[Path]:
    """Yield the folders of the process's groups, from where a hierarchy is mounted down to its own."""
    groups = dict(_groups(_read(root / "proc/self/cgroup")))
    for controllers, mounted, top in _mounts(_read(root / "proc/self/mountinfo")):
        group = next((groups[name] for name in controllers if name in groups), None)
        if group is None:
            continue
        # What is mounted may itself be a group, as in a container. One outside of it is not to be seen.
        inside = PurePosixPath(group).relative_to(top) if _is_within(group, top) else PurePosixPath()
        folder = root / mounted.lstrip("/")
        yield folder
        for part in inside.parts:
            folder = folder / part
            yield folder


def _groups(text: str) -> Iterator[tuple[str, str]]:
    """Yield controllers and the path of the process's group; version 2 has the controller ''."""
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        controllers, colon, path = rest.partition(":")
        if colon and (controllers or number == "0"):
            for name in controllers.split(","):
                yield name, path


def _mounts(text: str) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """Yield the controllers of each hierarchy with a CPU controller, where it is, and its topmost group."""
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if len(fields) < 5 or len(kind) < 3:
            continue
        top, mounted = _unescape(fields[3]), _unescape(fields[4])
        if kind[0] == "cgroup2":
            yield ("",), mounted, top
        elif kind[0] == "cgroup" and "cpu" in kind[2].split(","):
            yield ("cpu",), mounted, top


def _unescape(text: str) -> str:
    """Undo the octal escapes of mountinfo, in which 040 behind a backslash is a space."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _is_within(path: str, top: str) -> bool:
    return PurePosixPath(path).is_relative_to(top) and ".." not in PurePosixPath(path).parts


def _limit_of(folder: Path) -> float | None:
    names = ("cpu.max",) if (folder / "cpu.max").exists() else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
    values = " ".join(_read(folder / name) for name in names).split()
    try:
        quota, period = map(int, values)
    except ValueError:  # "max", or no such file
        return None
    return quota / period if quota > 0 and period > 0 else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
