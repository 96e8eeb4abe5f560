"""Temperatures, and from where on a machine slows down (Documentation/driver-api/thermal/sysfs-api.rst)."""

from __future__ import annotations

from typing import final

import attrs

from edgeinfer.devices.probe.tree import Tree

__all__ = ["ThermalZone", "read_zones"]

_BASE = "/sys/class/thermal"


@final
@attrs.frozen(kw_only=True)
class ThermalZone:
    """A temperature sensor.

    Attributes:
        name: What it measures, such as `cpu-thermal`.
        temperature_c: The temperature now, or None where it does not tell.
        throttles_c: From where on the kernel slows the machine down, or None where it is not told.
    """

    name: str
    temperature_c: float | None = None
    throttles_c: float | None = None


def read_zones(tree: Tree) -> tuple[ThermalZone, ...]:
    """Read all sensors."""
    zones = []
    for entry in tree.entries(_BASE):
        if not entry.startswith("thermal_zone"):
            continue
        folder = f"{_BASE}/{entry}"
        temperature = tree.number(f"{folder}/temp")
        trips = [
            tree.number(f"{folder}/{name.removesuffix('type')}temp")
            for name in tree.entries(folder)
            if name.startswith("trip_point_") and name.endswith("_type")
            and tree.read(f"{folder}/{name}") == "passive"
        ]  # fmt: skip
        limits = [trip / 1e3 for trip in trips if trip is not None and trip > 0]
        zones.append(
            ThermalZone(
                name=tree.read(f"{folder}/type") or entry,
                temperature_c=temperature / 1e3 if temperature is not None else None,
                throttles_c=min(limits, default=None),
            )
        )
    return tuple(zones)
