"""GPUs and NPUs, by the files of their drivers; details of NVIDIA's by its management library."""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from typing import Any, final

import attrs

from edgeinfer.devices.probe.tree import Tree

__all__ = ["Gpu", "Npu", "parse_smi", "read_gpus", "read_npus"]

_SMI_FIELDS = {
    "name": "name",
    "memory_mib": "memory.total",
    "driver": "driver_version",
    "compute_capability": "compute_cap",
    "power_limit_w": "power.limit",
    "temperature_c": "temperature.gpu",
    "persistence": "persistence_mode",
    "max_mhz": "clocks.max.sm",
}
_SMI_TIMEOUT_S = 10
# PCI vendor numbers (pcisig.com).
_VENDORS = {"0x10de": "NVIDIA", "0x8086": "Intel", "0x1002": "AMD"}


@final
@attrs.frozen(kw_only=True)
class Gpu:
    """A GPU. What is not told is None or empty.

    Attributes:
        name: Its name, or its vendor and PCI number.
        vendor: Who made it.
        driver: The version or the name of its kernel driver.
        memory_bytes: Its own memory.
        compute_capability: Of NVIDIA's: such as `8.9`.
        power_limit_w: What it may draw.
        temperature_c: Its temperature now.
        persistence: Of NVIDIA's: whether the driver stays loaded between programs.
        max_mhz: Its highest clock.
        found_by: Which source told.
    """

    name: str
    vendor: str = ""
    driver: str = ""
    memory_bytes: int | None = None
    compute_capability: str = ""
    power_limit_w: float | None = None
    temperature_c: float | None = None
    persistence: bool | None = None
    max_mhz: float | None = None
    found_by: str = ""


@final
@attrs.frozen(kw_only=True)
class Npu:
    """An NPU or the like: a device file below /dev/accel."""

    name: str
    vendor: str = ""
    driver: str = ""
    usable: bool = True


def read_npus(tree: Tree) -> tuple[Npu, ...]:
    """Read what the kernel's accelerator class lists (Documentation/accel/introduction.rst)."""
    found = []
    for name in tree.entries("/dev/accel"):
        folder = f"/sys/class/accel/{name}/device"
        vendor = tree.read(f"{folder}/vendor")
        number = tree.read(f"{folder}/device")
        found.append(
            Npu(
                name=" ".join(filter(None, (name, number))),
                vendor=_VENDORS.get(vendor, vendor),
                driver=tree.link(f"{folder}/driver"),
                usable=_may_open(tree, f"/dev/accel/{name}"),
            )
        )
    return tuple(found)


def _may_open(tree: Tree, path: str) -> bool:
    return os.access(tree.root / path.lstrip("/"), os.R_OK | os.W_OK)


def read_gpus(tree: Tree, *, ask_driver: bool) -> tuple[tuple[Gpu, ...], tuple[str, ...]]:
    """Read all GPUs.

    Args:
        tree: Where the files are.
        ask_driver: Ask NVIDIA's library or tool: of this machine only, not of a recording.

    Returns:
        The GPUs, and notes on what could not be asked.
    """
    cards = [gpu for name in tree.entries("/sys/class/drm") if (gpu := _card(tree, name)) is not None]
    asked: tuple[Gpu, ...] = ()
    notes: tuple[str, ...] = ()
    if ask_driver and (tree.exists("/dev/nvidiactl") or any(gpu.vendor == "NVIDIA" for gpu in cards)):
        asked, notes = _ask()
    if not asked:
        asked = tuple(_from_proc(tree))
    others = [gpu for gpu in cards if gpu.vendor != "NVIDIA" or not asked]
    return (*asked, *others), notes


def _card(tree: Tree, name: str) -> Gpu | None:
    if not re.fullmatch(r"card\d+", name):
        return None
    folder = f"/sys/class/drm/{name}/device"
    vendor, number = tree.read(f"{folder}/vendor"), tree.read(f"{folder}/device")
    if vendor not in _VENDORS:  # display controllers of virtual machines and boards
        return None
    memory = tree.number(f"{folder}/mem_info_vram_total")
    return Gpu(
        name=f"{_VENDORS[vendor]} GPU {number}",
        vendor=_VENDORS[vendor],
        driver=tree.link(f"{folder}/driver"),
        memory_bytes=memory,
        found_by=f"/sys/class/drm/{name}",
    )


def _from_proc(tree: Tree) -> Iterable[Gpu]:
    driver = tree.read("/proc/driver/nvidia/version")
    version = re.search(r"Kernel Module\s+(?:for \S+\s+)?([\d.]+)", driver)
    for entry in tree.entries("/proc/driver/nvidia/gpus"):
        text = tree.read(f"/proc/driver/nvidia/gpus/{entry}/information")
        model = re.search(r"^Model:\s*(.+)$", text, re.MULTILINE)
        version = re.search(
            r"Kernel Module\s+(?:for \S+\s+)?([\d.]+)", tree.read("/proc/driver/nvidia/version")
        )
        yield Gpu(
            name=model[1].strip() if model is not None else "NVIDIA GPU",
            vendor="NVIDIA",
            driver=version[1] if version is not None else "",
            found_by="/proc/driver/nvidia",
        )


def _ask() -> tuple[tuple[Gpu, ...], tuple[str, ...]]:
    """Ask the management library; where it is not installed, the tool that comes with the driver."""
    try:
        import pynvml
    except ImportError:
        return _ask_smi()
    try:
        pynvml.nvmlInit()
    except Exception as error:  # the library has errors of its own, one class for each code
        return (), (f"NVML does not work here: {error}",)
    try:
        count = pynvml.nvmlDeviceGetCount()
        return tuple(_nvml(pynvml, pynvml.nvmlDeviceGetHandleByIndex(index)) for index in range(count)), ()
    except Exception as error:
        return (), (f"NVML does not tell the GPUs: {error}",)
    finally:
        pynvml.nvmlShutdown()


def _nvml(nvml: Any, handle: Any) -> Gpu:
    def get(name: str, *arguments: Any) -> Any:
        try:
            return getattr(nvml, name)(*arguments)
        except Exception:  # a figure that this GPU does not have (NVML_ERROR_NOT_SUPPORTED) is left out
            return None

    memory = get("nvmlDeviceGetMemoryInfo", handle)
    capability = get("nvmlDeviceGetCudaComputeCapability", handle)
    limit = get("nvmlDeviceGetEnforcedPowerLimit", handle)
    persistence = get("nvmlDeviceGetPersistenceMode", handle)
    return Gpu(
        name=_text(get("nvmlDeviceGetName", handle)) or "NVIDIA GPU",
        vendor="NVIDIA",
        driver=_text(get("nvmlSystemGetDriverVersion")),
        memory_bytes=int(memory.total) if memory is not None else None,
        compute_capability=".".join(map(str, capability)) if capability is not None else "",
        power_limit_w=limit / 1e3 if limit is not None else None,
        temperature_c=_float(get("nvmlDeviceGetTemperature", handle, 0)),
        persistence=bool(persistence) if persistence is not None else None,
        max_mhz=_float(get("nvmlDeviceGetMaxClockInfo", handle, 1)),
        found_by="NVML",
    )


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value or "")


def _float(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):  # `[N/A]`, `[Not Supported]`
        return None


def _ask_smi() -> tuple[tuple[Gpu, ...], tuple[str, ...]]:
    tool = shutil.which("nvidia-smi")
    advice = "install nvidia-ml-py to be told about NVIDIA GPUs"
    if tool is None:
        return (), (advice,)
    query = f"--query-gpu={','.join(_SMI_FIELDS.values())}"
    try:
        done = subprocess.run(  # noqa: S603 (a fixed tool with fixed arguments)
            [tool, query, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=_SMI_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return (), (f"nvidia-smi does not answer ({type(error).__name__}); {advice}",)
    return parse_smi(done.stdout), ()


def parse_smi(text: str) -> tuple[Gpu, ...]:
    """Read what `nvidia-smi --query-gpu` prints as CSV without units."""
    found = []
    for row in csv.reader(text.splitlines(), skipinitialspace=True):
        if len(row) != len(_SMI_FIELDS):
            continue
        cells = dict(zip(_SMI_FIELDS, (cell.strip() for cell in row), strict=True))
        memory, capability = _float(cells["memory_mib"]), cells["compute_capability"]
        persistence = {"Enabled": True, "Disabled": False}
        found.append(
            Gpu(
                name=cells["name"],
                vendor="NVIDIA",
                driver=cells["driver"],
                memory_bytes=int(memory * 2**20) if memory is not None else None,
                compute_capability=capability if capability[:1].isdigit() else "",
                power_limit_w=_float(cells["power_limit_w"]),
                temperature_c=_float(cells["temperature_c"]),
                persistence=persistence.get(cells["persistence"]),
                max_mhz=_float(cells["max_mhz"]),
                found_by="nvidia-smi",
            )
        )
    return tuple(found)
