"""`local`: what this machine is."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import attrs

from edgeinfer.budget import format_bytes
from edgeinfer.devices.catalog import profiles
from edgeinfer.devices.device_profile import DeviceProfile
from edgeinfer.devices.probe.accelerators import Gpu, Npu, read_gpus, read_npus
from edgeinfer.devices.probe.advice import Advice, advise
from edgeinfer.devices.probe.cgroup import CgroupLimits, read_cgroup
from edgeinfer.devices.probe.cpu import Cpu, read_cpu
from edgeinfer.devices.probe.jetson import Jetson, read_jetson
from edgeinfer.devices.probe.match import matching_profile
from edgeinfer.devices.probe.pressure import Pressure, parse_meminfo, read_pressure
from edgeinfer.devices.probe.thermal import ThermalZone, read_zones
from edgeinfer.devices.probe.tree import Tree
from edgeinfer.display import Table
from edgeinfer.values import as_tuple

__all__ = ["LocalDevice", "examine", "local", "parse_limits"]

_CAP_IPC_LOCK, _CAP_SYS_NICE = 14, 23  # linux/capability.h


@final
@attrs.frozen(kw_only=True)
class LocalDevice:
    """A machine as it was found. What is absent is None or empty.

    Attributes:
        board: What the board or the computer calls itself.
        cpu: The processor.
        memory_bytes: Its memory.
        available_bytes: What of it can be used now.
        cgroup: The limits of the container or slice that this process is in.
        gpus: GPUs.
        npus: NPUs.
        jetson: More about a Jetson.
        zones: Temperature sensors.
        pressure: How long tasks wait for processor, memory and disk.
        limits: Limits of this process: `rtprio` and `memlock_bytes`; None stands for unlimited.
        power_profile: The platform's power profile, such as `balanced`.
        notes: What could not be read, and why.
    """

    board: str = ""
    cpu: Cpu = attrs.field(factory=Cpu)
    memory_bytes: int | None = None
    available_bytes: int | None = None
    cgroup: CgroupLimits = attrs.field(factory=CgroupLimits)
    gpus: tuple[Gpu, ...] = attrs.field(default=(), converter=as_tuple)
    npus: tuple[Npu, ...] = attrs.field(default=(), converter=as_tuple)
    jetson: Jetson | None = None
    zones: tuple[ThermalZone, ...] = attrs.field(default=(), converter=as_tuple)
    pressure: Pressure = attrs.field(factory=Pressure)
    limits: Mapping[str, int | None] = attrs.field(factory=dict)
    power_profile: str = ""
    notes: tuple[str, ...] = attrs.field(default=(), converter=as_tuple)

    @property
    def usable_cores(self) -> float:
        """How many cores' worth of time a process may use here: cores, less what its groups allow."""
        count = float(len(self.cgroup.cores or self.cpu.cores) or 1)
        quota = self.cgroup.cpu_quota
        return count if quota is None else min(count, quota)

    @property
    def usable_bytes(self) -> int | None:
        """The memory that a process may use here, or None."""
        known = [size for size in (self.memory_bytes, self.cgroup.memory_bytes) if size is not None]
        return min(known, default=None)

    @property
    def profile(self) -> DeviceProfile | None:
        """The profile of the catalog that describes this machine, if one does."""
        return matching_profile(
            profiles(),
            board=self.board,
            part=self.jetson.part if self.jetson is not None else "",
            power_mode=self.jetson.power_mode if self.jetson is not None else "",
            memory_bytes=self.memory_bytes,
            gpus=[gpu.name for gpu in self.gpus],
            cpu=self.cpu.model,
            features=self.cpu.features,
            level=self.cpu.level,
        )

    def advice(self) -> tuple[Advice, ...]:
        """Return what would make latency steadier here, and how to do it."""
        return advise(self.cpu, self.cgroup, self.gpus, self.jetson, self.pressure, self.limits, self.zones)

    def to_dict(self) -> dict[str, Any]:
        """Return what was found as JSON-compatible values."""

        def plain(_: object, __: object, value: Any) -> Any:
            return sorted(value) if isinstance(value, frozenset) else value

        found = attrs.asdict(self, value_serializer=plain)
        profile = self.profile
        return found | {
            "usable_cores": self.usable_cores,
            "usable_bytes": self.usable_bytes,
            "profile": profile.name if profile is not None else None,
            "advice": [attrs.asdict(item) for item in self.advice()],
        }

    def table(self) -> Table:
        """Return one row a finding."""
        cpu, cgroup = self.cpu, self.cgroup
        rows: list[tuple[str, str]] = [("board", self.board), ("processor", cpu.model or cpu.architecture)]
        level = f"x86-64-v{cpu.level}: " if cpu.level is not None else ""
        rows.append(("features", level + (", ".join(sorted(cpu.features)) or "none of note")))
        rows.append(("cores", _cores(cpu, cgroup, self.usable_cores)))
        rows.append(("memory", _memory(self)))
        rows += [("GPU", _gpu(gpu)) for gpu in self.gpus]
        rows += [("NPU", f"{npu.name} ({npu.vendor} {npu.driver})".strip()) for npu in self.npus]
        if self.jetson is not None:
            jetson = self.jetson
            rows.append(
                ("Jetson", f"JetPack {jetson.jetpack or '?'}, L4T {jetson.l4t or '?'}, {jetson.part}")
            )
            rows.append(
                ("power mode", f"{jetson.power_mode or '?'} of {', '.join(jetson.power_modes) or '?'}")
            )
        if self.power_profile:
            rows.append(("power profile", self.power_profile))
        hot = [zone for zone in self.zones if zone.temperature_c is not None]
        if hot:
            rows.append(("temperatures", ", ".join(f"{z.name} {z.temperature_c:.0f} °C" for z in hot)))
        waiting = {k: v for k, v in attrs.asdict(self.pressure).items() if v is not None}
        if waiting:
            rows.append(
                ("pressure (10 s)", ", ".join(f"{name} {share:.0f} %" for name, share in waiting.items()))
            )
        profile = self.profile
        rows.append(
            ("profile", f"{profile.name} ({profile.description})" if profile else "none in the catalog")
        )
        return Table(
            title="This machine",
            columns=("", ""),
            rows=[row for row in rows if row[1]],
            footer="; ".join(self.notes),
        )

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table().to_html()


def local() -> LocalDevice:
    """Find out what this machine is. What is absent or hidden is left out; nothing is raised for it."""
    return examine(Tree(), platform.machine(), ask_driver=True)


def examine(tree: Tree | Path, architecture: str, *, ask_driver: bool = False) -> LocalDevice:
    """Read a machine's description from its files, or from a recording of them.

    Args:
        tree: The file system, or a folder with a copy of the files.
        architecture: Such as `x86_64`.
        ask_driver: Also ask the GPU's driver: of this machine only.
    """
    tree = tree if isinstance(tree, Tree) else Tree(tree)
    memory = parse_meminfo(tree.read("/proc/meminfo"))
    gpus, notes = read_gpus(tree, ask_driver=ask_driver)
    return LocalDevice(
        board=_board(tree),
        cpu=read_cpu(tree, architecture),
        memory_bytes=memory.get("MemTotal"),
        available_bytes=memory.get("MemAvailable"),
        cgroup=read_cgroup(tree),
        gpus=gpus,
        npus=read_npus(tree),
        jetson=read_jetson(tree),
        zones=read_zones(tree),
        pressure=read_pressure(tree),
        limits={
            **parse_limits(tree.read("/proc/self/limits")),
            **_unlimited(tree.read("/proc/self/status")),
        },
        power_profile=tree.read("/sys/firmware/acpi/platform_profile"),
        notes=notes,
    )


def parse_limits(text: str) -> dict[str, int | None]:
    """Read /proc/self/limits: the soft limits that steady latency needs; None stands for unlimited."""
    names = {"Max realtime priority": "rtprio", "Max locked memory": "memlock_bytes"}
    found: dict[str, int | None] = {}
    for line in text.splitlines():
        match = re.match(r"(.+?)\s{2,}(\d+|unlimited)\s", line)
        if match is not None and match[1] in names:
            found[names[match[1]]] = None if match[2] == "unlimited" else int(match[2])
    return found


def _unlimited(status: str) -> dict[str, None]:
    """Return the limits that do not hold for a process with capabilities; see capabilities(7)."""
    match = re.search(r"^CapEff:\s*([0-9a-f]+)", status, re.MULTILINE)
    have = int(match[1], 16) if match is not None else 0
    bits = {"rtprio": _CAP_SYS_NICE, "memlock_bytes": _CAP_IPC_LOCK}
    return dict.fromkeys(name for name, bit in bits.items() if have >> bit & 1)


def _board(tree: Tree) -> str:
    model = tree.read("/proc/device-tree/model") or tree.read("/sys/firmware/devicetree/base/model")
    if model:
        return model
    names = (tree.read(f"/sys/class/dmi/id/{part}") for part in ("sys_vendor", "product_name"))
    return " ".join(filter(None, names))


def _cores(cpu: Cpu, cgroup: CgroupLimits, usable: float) -> str:
    parts = [f"{len(cpu.cores)}"]
    if cgroup.cores is not None and len(cgroup.cores) < len(cpu.cores):
        parts.append(f"{len(cgroup.cores)} of them for this group")
    if cgroup.cpu_quota is not None:
        parts.append(f"quota {cgroup.cpu_quota:g}")
    if usable < len(cpu.cores):
        parts.append(f"usable {usable:g}")
    if cpu.max_mhz:
        parts.append(f"up to {cpu.max_mhz:.0f} MHz")
    if cpu.governors:
        parts.append(f"governor {', '.join(cpu.governors)}")
    if cpu.isolated:
        parts.append(f"isolated {', '.join(map(str, cpu.isolated))}")
    return ", ".join(parts)


def _memory(device: LocalDevice) -> str:
    if device.memory_bytes is None:
        return ""
    parts = [format_bytes(device.memory_bytes)]
    if device.available_bytes is not None:
        parts.append(f"{format_bytes(device.available_bytes)} available")
    if device.cgroup.memory_bytes is not None:
        parts.append(f"limited to {format_bytes(device.cgroup.memory_bytes)}")
    return ", ".join(parts)


def _gpu(gpu: Gpu) -> str:
    parts = [gpu.name]
    if gpu.memory_bytes:
        parts.append(format_bytes(gpu.memory_bytes))
    if gpu.compute_capability:
        parts.append(f"compute capability {gpu.compute_capability}")
    if gpu.driver:
        parts.append(f"driver {gpu.driver}")
    return ", ".join(parts)
