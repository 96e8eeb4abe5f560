"""Jetson modules: model, software, power mode; from files alone."""

from __future__ import annotations

import re
from typing import final

import attrs

from edgeinfer.devices.probe.tree import Tree
from edgeinfer.values import as_tuple

__all__ = ["Jetson", "parse_l4t", "parse_power_modes", "read_jetson"]

# Board numbers of modules (jetson_stats, jetson_variables.py).
_MODULES = ("2888", "3310", "3448", "3489", "3636", "3668", "3701", "3767", "3834")
# The JetPack series of each release of the board support package (L4T); minor versions do not map one to one.
_SERIES = {32: "4", 34: "5", 35: "5", 36: "6", 38: "7", 39: "7"}


@final
@attrs.frozen(kw_only=True)
class Jetson:
    """A Jetson.

    Attributes:
        model: As the board calls itself.
        part: The module's part number, such as `p3767-0005`; empty where it is not told.
        l4t: The release of the board support package, such as `36.4.3`.
        jetpack: The version of JetPack: exact where the package `nvidia-jetpack` is installed, else the
            series (`6.x`).
        power_mode: The power mode it is in, such as `MAXN_SUPER`; empty where it is not told.
        power_modes: The modes that it has.
        clocks_locked: Whether the GPU's clock is fixed, as `jetson_clocks` does; None where it is not told.
    """

    model: str
    part: str = ""
    l4t: str = ""
    jetpack: str = ""
    power_mode: str = ""
    power_modes: tuple[str, ...] = attrs.field(default=(), converter=as_tuple)
    clocks_locked: bool | None = None


def read_jetson(tree: Tree) -> Jetson | None:
    """Read a Jetson's description; None on any other machine."""
    model = tree.read("/proc/device-tree/model") or tree.read("/sys/firmware/devicetree/base/model")
    compatible = tree.read("/proc/device-tree/compatible")
    if "jetson" not in model.lower() and "nvidia,tegra" not in compatible:
        return None
    l4t = parse_l4t(tree.read("/etc/nv_tegra_release"))
    modes, default = parse_power_modes(tree.read("/etc/nvpmodel.conf"))
    status = re.search(r"pmode:(\d+)", tree.read("/var/lib/nvpmodel/status"))
    chosen = int(status[1]) if status is not None else default
    return Jetson(
        model=model,
        part=_part(compatible),
        l4t=l4t,
        jetpack=_jetpack(tree.read("/var/lib/dpkg/status"), l4t),
        power_mode=modes.get(chosen, "") if chosen is not None else "",
        power_modes=modes.values(),
        clocks_locked=_locked(tree),
    )


def parse_l4t(text: str) -> str:
    """Read /etc/nv_tegra_release: `# R36 (release), REVISION: 4.3, …` gives `36.4.3`."""
    match = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", text)
    return f"{match[1]}.{match[2]}" if match is not None else ""


def parse_power_modes(text: str) -> tuple[dict[int, str], int | None]:
    """Read /etc/nvpmodel.conf: the modes by number, and the one that it starts in."""
    found = re.findall(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+?)\s*>", text)
    default = re.search(r"<\s*PM_CONFIG\s+DEFAULT=(\d+)\s*>", text)
    return {int(number): name for number, name in found}, int(default[1]) if default is not None else None


def _part(compatible: str) -> str:
    """Return the module's part number; the board that it sits on has one of the same form."""
    parts = re.findall(r"p(\d{4})-\d{4}", compatible)
    module = next((board for board in parts if board in _MODULES), None)
    match = re.search(rf"p{module}-\d{{4}}", compatible) if module is not None else None
    return match[0] if match is not None else ""


def _jetpack(packages: str, l4t: str) -> str:
    match = re.search(r"^Package: nvidia-jetpack$(.*?)(?:^$|\Z)", packages, re.MULTILINE | re.DOTALL)
    version = re.search(r"^Version: ([\d.]+)", match[1], re.MULTILINE) if match is not None else None
    if version is not None:
        return version[1]
    series = _SERIES.get(int(l4t.split(".", maxsplit=1)[0])) if l4t else None
    return f"{series}.x" if series is not None else ""


def _locked(tree: Tree) -> bool | None:
    for name in tree.entries("/sys/class/devfreq"):
        if "gpu" in name or "gv11b" in name or "ga10b" in name or "gp10b" in name or "gm20b" in name:
            folder = f"/sys/class/devfreq/{name}"
            lowest, highest = tree.number(f"{folder}/min_freq"), tree.number(f"{folder}/max_freq")
            return None if lowest is None or highest is None else lowest == highest
    return None
