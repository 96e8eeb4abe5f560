"""Memory, and how long tasks wait for processor, memory and disk (PSI: Documentation/accounting/psi.rst)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import final

import attrs

from edgeinfer.devices.probe.tree import Tree, pairs

__all__ = ["Pressure", "parse_meminfo", "parse_pressure", "read_pressure", "waited_us"]


@final
@attrs.frozen(kw_only=True)
class Pressure:
    """The share of the last 10 seconds, in percent, in which some task waited; None where it is not told."""

    cpu: float | None = None
    memory: float | None = None
    io: float | None = None


def parse_pressure(text: str) -> float | None:
    """Read a file of /proc/pressure; None where it is none."""
    match = re.search(r"^some avg10=([\d.]+)", text, re.MULTILINE)
    return float(match[1]) if match is not None else None


def waited_us(tree: Tree, name: str) -> int | None:
    """Return for how long some task has waited since the start of the system, in microseconds.

    Args:
        tree: The root of the file system.
        name: `cpu`, `memory` or `io`.
    """
    match = re.search(r"^some .*total=(\d+)", tree.read(f"/proc/pressure/{name}"), re.MULTILINE)
    return int(match[1]) if match is not None else None


def read_pressure(tree: Tree) -> Pressure:
    """Read the pressure."""
    return Pressure(
        **{name: parse_pressure(tree.read(f"/proc/pressure/{name}")) for name in ("cpu", "memory", "io")}
    )


def parse_meminfo(text: str) -> Mapping[str, int]:
    """Read /proc/meminfo: bytes by name, such as `MemTotal`."""
    found = {}
    for key, value in pairs(text):
        match = re.fullmatch(r"(\d+)(?: kB)?", value)
        if match is not None:
            found[key] = int(match[1]) * (1024 if value.endswith("kB") else 1)
    return found
