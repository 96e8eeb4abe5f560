"""What a container or a slice may use: its CPU quota, its cores, its memory.

Both versions of the kernel's control groups are read. Every group limits those below it, so the tightest
limit on the way to the root counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import final

import attrs

from edgeinfer.devices.probe.tree import Tree, cores_of

__all__ = ["CgroupLimits", "cpu_quota", "read_cgroup"]

# Version 1 writes "no limit" as the largest multiple of the page size that fits.
_UNLIMITED = 1 << 60


@final
@attrs.frozen(kw_only=True)
class CgroupLimits:
    """The limits of this process's control groups; None where there is none.

    Attributes:
        cpu_quota: How many cores' worth of time may be used, such as 1.5.
        cores: The cores that may be used.
        memory_bytes: The memory that may be used.
    """

    cpu_quota: float | None = None
    cores: tuple[int, ...] | None = None
    memory_bytes: int | None = None


def cpu_quota(tree: Tree | None = None) -> float | None:
    """Return how many cores' worth of time this process may use, or None where that is not limited."""
    return read_cgroup(tree or Tree()).cpu_quota


def read_cgroup(tree: Tree) -> CgroupLimits:
    """Read the limits of this process's control groups."""
    quotas: list[float] = []
    memory: list[int] = []
    cores: tuple[int, ...] | None = None
    for folder in _folders(tree, "cpu"):
        quotas += _quota(tree, folder)
    for folder in _folders(tree, "memory"):
        for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):
            limit = tree.number(f"{folder}/{name}")
            memory += [limit] if limit is not None and 0 <= limit < _UNLIMITED else []
    for folder in _folders(tree, "cpuset"):
        for name in ("cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus"):
            cores = cores or cores_of(tree.read(f"{folder}/{name}")) or None
    return CgroupLimits(
        cpu_quota=min(quotas, default=None), cores=cores, memory_bytes=min(memory, default=None)
    )


def _quota(tree: Tree, folder: str) -> list[float]:
    match = re.fullmatch(r"(\d+) (\d+)", tree.read(f"{folder}/cpu.max"))
    if match is not None and int(match[2]):
        return [int(match[1]) / int(match[2])]
    quota = tree.number(f"{folder}/cpu.cfs_quota_us")
    period = tree.number(f"{folder}/cpu.cfs_period_us")
    return [quota / period] if quota is not None and quota > 0 and period else []


def _folders(tree: Tree, controller: str) -> Iterator[str]:
    """Go through the folders of this process's group and those above it, innermost first."""
    mounts = list(_mounts(tree.read("/proc/self/mountinfo"), controller))
    for path in _paths(tree.read("/proc/self/cgroup"), controller):
        for point, root in mounts:
            # In a namespace of its own, or behind a bind mount, a group's path begins at the mount's root.
            inner = path.removeprefix(root) if root != "/" and path.startswith(root) else path
            parts = [part for part in inner.split("/") if part and part != ".."]
            for depth in range(len(parts), -1, -1):
                folder = "/".join([point, *parts[:depth]])
                if tree.exists(folder):
                    yield folder


def _mounts(text: str, controller: str) -> Iterator[tuple[str, str]]:
    """Go through the mount points of a controller, with the group that is at each; see proc(5)."""
    for line in text.splitlines():
        left, dash, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if not dash or len(fields) < 5 or len(kind) < 3:
            continue
        if kind[0] == "cgroup2" or (kind[0] == "cgroup" and controller in kind[2].split(",")):
            yield fields[4], fields[3]


def _paths(text: str, controller: str) -> Iterator[str]:
    for line in text.splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3 and (parts[1] == "" or controller in parts[1].split(",")):
            yield parts[2]
