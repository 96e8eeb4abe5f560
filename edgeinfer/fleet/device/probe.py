"""`Probe`: what a device measures of itself while it serves: heat, power, memory, disk, boots, processes."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Protocol, final

import attrs

from edgeinfer.devices.probe.cgroup import read_cgroup
from edgeinfer.devices.probe.pressure import parse_meminfo
from edgeinfer.devices.probe.thermal import read_zones
from edgeinfer.devices.probe.tree import Tree

__all__ = ["Probe", "Sensor", "SystemProbe"]


@final
@attrs.frozen(kw_only=True)
class Sensor:
    """A reading, and what it is of."""

    value: float
    source: str


class Probe(Protocol):
    """What the agent asks of the device. None stands for what it does not tell."""

    def temperature_c(self) -> Sensor | None:
        """Return the highest temperature now."""
        ...

    def power_w(self) -> Sensor | None:
        """Return the power now."""
        ...

    def available_bytes(self) -> int | None:
        """Return the memory that a further process may use."""
        ...

    def free_disk_bytes(self, folder: Path) -> int:
        """Return the space that this user may fill where a folder is."""
        ...

    def boot_id(self) -> str:
        """Return what is another text after each boot."""
        ...

    def process(self, pid: int) -> tuple[int, int] | None:
        """Return (start time in clock ticks since boot, resident bytes) of a process; None of a dead one."""
        ...


@final
class SystemProbe:
    """Reads the files of Linux.

    Args:
        tree: The file system, or a folder with files like those of `/sys` and `/proc`. Sensors of such a
            folder are named by its path, so that no one takes a made-up reading for one of this machine.
    """

    def __init__(self, tree: Tree | None = None) -> None:
        self._tree = tree or Tree()
        self._prefix = "" if self._tree.root == Path("/") else f"{self._tree.root}: "

    def temperature_c(self) -> Sensor | None:
        """See `Probe`."""
        zones = [(z.temperature_c, z.name) for z in read_zones(self._tree) if z.temperature_c is not None]
        if not zones:
            return None
        value, name = max(zones)
        return Sensor(value=value, source=f"{self._prefix}{name}")

    def power_w(self) -> Sensor | None:
        """Return the largest reading of a power monitor (hwmon, in µW): the one of the entire board."""
        base = "/sys/class/hwmon"
        found = [
            (power / 1e6, f"{self._tree.read(f'{base}/{chip}/name') or chip} {name}")
            for chip in self._tree.entries(base)
            for name in self._tree.entries(f"{base}/{chip}")
            if name.startswith("power") and name.endswith("_input")
            and (power := self._tree.number(f"{base}/{chip}/{name}")) is not None
        ]  # fmt: skip
        if not found:
            return None
        value, name = max(found)
        return Sensor(value=value, source=f"{self._prefix}{name}")

    def available_bytes(self) -> int | None:
        """See `Probe`."""
        memory = parse_meminfo(self._tree.read("/proc/meminfo")).get("MemAvailable")
        limit = read_cgroup(self._tree).memory_bytes
        return min((size for size in (memory, limit) if size is not None), default=None)

    def free_disk_bytes(self, folder: Path) -> int:
        """See `Probe`."""
        return shutil.disk_usage(folder).free

    def boot_id(self) -> str:
        """See `Probe`."""
        found = self._tree.read("/proc/sys/kernel/random/boot_id")
        if found:
            return found
        # Some containers hide it. The time of the boot moves when the clock is set, so it comes second.
        match = re.search(r"^btime (\d+)$", self._tree.read("/proc/stat"), re.MULTILINE)
        return match[1] if match is not None else ""

    def process(self, pid: int) -> tuple[int, int] | None:
        """See `Probe`."""
        # The name, in parentheses, may hold anything; what follows the last one is fields (proc(5)).
        fields = self._tree.read(f"/proc/{pid}/stat").rpartition(")")[2].split()
        if len(fields) < 22 or fields[0] in ("Z", "X"):
            return None
        return int(fields[19]), int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
