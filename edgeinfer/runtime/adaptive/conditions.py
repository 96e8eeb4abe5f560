"""What else than latency speaks for a smaller variant: memory that runs out, heat that slows it down."""

from __future__ import annotations

from pathlib import Path
from typing import final

import attrs

from edgeinfer.devices.probe.pressure import parse_meminfo, read_pressure
from edgeinfer.devices.probe.thermal import read_zones
from edgeinfer.devices.probe.tree import Tree

__all__ = ["Conditions", "read_conditions", "trouble"]

# Some task waited for memory in more than this part of the last 10 seconds (PSI, in percent).
_MEMORY_WAITS = 10.0
# Less than this part of the memory can be had.
_MEMORY_LEFT = 0.04
_NEAR_C = 2.0


@final
@attrs.frozen(kw_only=True)
class Conditions:
    """The state of the machine; None where it is not told.

    Attributes:
        memory_waits: The share of time in percent in which some task waited for memory.
        memory_left: The part of the memory that can still be had.
        margin_c: How far the sensor that is nearest to where the kernel slows the machine down is from that.
        sensor: Its name.
    """

    memory_waits: float | None = None
    memory_left: float | None = None
    margin_c: float | None = None
    sensor: str = ""


def read_conditions(root: Path | str = "/") -> Conditions:
    """Read the conditions of this machine, or of a recording of its files."""
    tree = Tree(root)
    memory = parse_meminfo(tree.read("/proc/meminfo"))
    total, available = memory.get("MemTotal"), memory.get("MemAvailable")
    margins = [
        (zone.throttles_c - zone.temperature_c, zone.name)
        for zone in read_zones(tree)
        if zone.throttles_c is not None and zone.temperature_c is not None
    ]
    margin, sensor = min(margins, default=(None, ""))
    return Conditions(
        memory_waits=read_pressure(tree).memory,
        memory_left=available / total if total and available is not None else None,
        margin_c=margin,
        sensor=sensor,
    )


def trouble(conditions: Conditions) -> tuple[str, str]:
    """Return what is wrong, `memory` or `heat`, and the finding; two empty texts where nothing is."""
    waits, left, margin = conditions.memory_waits, conditions.memory_left, conditions.margin_c
    if waits is not None and waits >= _MEMORY_WAITS:
        return "memory", f"tasks wait for memory {waits:.0f} % of the time"
    if left is not None and left < _MEMORY_LEFT:
        return "memory", f"{left:.1%} of the memory is left"
    if margin is not None and margin <= _NEAR_C:
        return "heat", f"{conditions.sensor} is {margin:.0f} °C below where the machine slows down"
    return "", ""
