"""What would make latency steadier on a machine, and how to do it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import final

import attrs

from edgeinfer.devices.probe.accelerators import Gpu
from edgeinfer.devices.probe.cgroup import CgroupLimits
from edgeinfer.devices.probe.cpu import Cpu
from edgeinfer.devices.probe.jetson import Jetson
from edgeinfer.devices.probe.pressure import Pressure
from edgeinfer.devices.probe.thermal import ThermalZone

__all__ = ["Advice", "advise"]

_WAITING = 10.0  # percent of the time
_NEAR_C = 5.0
# A runtime with its model wants this much locked; the usual default is 8 MiB or less.
_LOCKED_BYTES = 256 << 20


@final
@attrs.frozen(kw_only=True)
class Advice:
    """One thing to do.

    Attributes:
        topic: What it is about.
        found: What was found.
        todo: What to do; commands are for root.
    """

    topic: str
    found: str
    todo: str


def advise(
    cpu: Cpu,
    cgroup: CgroupLimits,
    gpus: Sequence[Gpu],
    jetson: Jetson | None,
    pressure: Pressure,
    limits: Mapping[str, int | None],
    zones: Sequence[ThermalZone],
) -> tuple[Advice, ...]:
    """Return what to do, most useful first."""
    return (
        *_pressure(pressure),
        *_heat(zones),
        *(_jetson(jetson) if jetson is not None else ()),
        *_processor(cpu, cgroup),
        *(item for gpu in gpus if jetson is None for item in _gpu(gpu)),
        *_permissions(limits),
    )


def _pressure(pressure: Pressure) -> Iterator[Advice]:
    if pressure.cpu is not None and pressure.cpu >= _WAITING:
        yield Advice(
            topic="pressure",
            found=f"tasks wait for the processor {pressure.cpu:.0f} % of the time",
            todo="stop other work while measuring; in use, give the process real-time priority or own cores",
        )
    if pressure.memory is not None and pressure.memory >= _WAITING:
        yield Advice(
            topic="pressure",
            found=f"tasks wait for memory {pressure.memory:.0f} % of the time",
            todo="free memory, or choose a smaller variant",
        )


def _heat(zones: Sequence[ThermalZone]) -> Iterator[Advice]:
    for zone in zones:
        now, limit = zone.temperature_c, zone.throttles_c
        if now is not None and limit is not None and now >= limit - _NEAR_C:
            yield Advice(
                topic="temperature",
                found=f"{zone.name} is at {now:.0f} of {limit:.0f} °C",
                todo="cool it, or choose a lower power mode: from there on the clocks drop",
            )


def _jetson(jetson: Jetson) -> Iterator[Advice]:
    best = next((mode for mode in jetson.power_modes if mode.startswith("MAXN")), None)
    if best is not None and jetson.power_mode and jetson.power_mode != best:
        number = jetson.power_modes.index(best)
        yield Advice(
            topic="power mode",
            found=f"the power mode is {jetson.power_mode}",
            todo=f"nvpmodel -m {number} for {best}, where power and cooling allow",
        )
    if jetson.clocks_locked is False:
        yield Advice(
            topic="clocks",
            found="the GPU's clock changes with its load",
            todo="jetson_clocks; jetson_clocks --restore undoes it",
        )


def _processor(cpu: Cpu, cgroup: CgroupLimits) -> Iterator[Advice]:
    slow = [name for name in cpu.governors if name != "performance"]
    if slow:
        yield Advice(
            topic="governor",
            found=f"the clock governor is {', '.join(slow)}",
            todo="cpupower frequency-set -g performance, or write it to cpu*/cpufreq/scaling_governor",
        )
    if cgroup.cpu_quota is not None:
        yield Advice(
            topic="quota",
            found=f"the CPU quota is {cgroup.cpu_quota:g} cores; who uses it up stops until the next period",
            todo="use at most that many threads, or give whole cores (cpuset) instead of a quota",
        )
    if len(cpu.cores) > 1 and not cpu.isolated:
        last = cpu.cores[-1]
        yield Advice(
            topic="cores",
            found="no core is kept free of other work",
            todo=f"boot with isolcpus={last} nohz_full={last}, and load with pin_cores={last}",
        )


def _gpu(gpu: Gpu) -> Iterator[Advice]:
    if gpu.persistence is False:
        yield Advice(
            topic="persistence",
            found=f"the driver of {gpu.name} unloads between programs",
            todo="nvidia-smi -pm 1",
        )
    if gpu.max_mhz and gpu.vendor == "NVIDIA":
        yield Advice(
            topic="GPU clocks",
            found=f"{gpu.name} changes its clock with its load (up to {gpu.max_mhz:.0f} MHz)",
            todo=f"to measure: nvidia-smi --lock-gpu-clocks={gpu.max_mhz:.0f}; --reset-gpu-clocks undoes it",
        )


def _permissions(limits: Mapping[str, int | None]) -> Iterator[Advice]:
    if limits.get("rtprio", None) == 0:
        yield Advice(
            topic="real time",
            found="this user may not have real-time priority (rtprio 0)",
            todo="'@edge - rtprio 80' in /etc/security/limits.d/, or LimitRTPRIO=80 in the systemd unit",
        )
    locked = limits.get("memlock_bytes")
    if locked is not None and locked < _LOCKED_BYTES:
        yield Advice(
            topic="locked memory",
            found=f"this user may lock {locked / 2**20:.0f} MiB of memory",
            todo="'@edge - memlock unlimited' in /etc/security/limits.d/, or LimitMEMLOCK=infinity",
        )
