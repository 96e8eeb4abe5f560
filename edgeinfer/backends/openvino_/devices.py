"""Device names of OpenVINO: what is here, and what became of those that it no longer has."""

from __future__ import annotations

from edgeinfer.backends.protocol import Capabilities
from edgeinfer.errors import DeviceError

__all__ = ["check_device"]

# Virtual devices choose among the devices that are named behind the colon, or among all.
_VIRTUAL = ("AUTO", "MULTI", "HETERO", "BATCH")

_NPU = "Intel's continuing low-power path is the NPU of Core Ultra processors (device 'NPU')."
_STAY = " To keep the old device, stay on OpenVINO 2022.3 LTS, whose wheels exist for CPython 3.7 to 3.10."

# Devices that OpenVINO no longer has: what became of them, and where to go.
_GONE = {
    "MYRIAD": ("support for the Neural Compute Stick (MYRIAD) ended with OpenVINO 2022.3 LTS", _NPU + _STAY),
    "HDDL": ("support for Movidius accelerator cards (HDDL) ended with OpenVINO 2022.3 LTS", _NPU + _STAY),
    "GNA": ("support for the Gaussian & Neural Accelerator (GNA) ended with OpenVINO 2023.3 LTS", _NPU),
    "VPUX": ("VPUX was the NPU's name up to OpenVINO 2023.0", "Use device 'NPU'."),
}


def check_device(device: str, here: Capabilities) -> str:
    """Return the device as OpenVINO spells it: `GPU.1`, `AUTO:GPU,CPU`.

    Args:
        device: What was asked for.
        here: What OpenVINO has on this machine.

    Raises:
        DeviceError: It, or one that a virtual device names, is not here, or OpenVINO no longer supports it.
    """
    name = device.upper()
    kind, _, named = name.partition(":")
    # In `AUTO:-CPU` the minus excludes a device; in `BATCH:CPU(16)` the brackets hold the batch size.
    wanted = (
        [part.split("(")[0].removeprefix("-") for part in named.split(",") if part]
        if kind in _VIRTUAL
        else [name]
    )
    for part in wanted:
        _check_one(part, here)
    return name


def _check_one(name: str, here: Capabilities) -> None:
    present = tuple(info.name for info in here.devices)
    if name in present or any(
        known.startswith(f"{name}.") for known in present
    ):  # GPU is the first of GPU.0, …
        return
    base = name.split(".")[0]
    facts = {"device": name, "installed": here.version, "present": present}
    if base in _GONE:
        what, hint = _GONE[base]
        raise DeviceError(
            f"OpenVINO {here.version} has no device {name!r}: {what}.",
            where=f"device {name!r}",
            expected=f"one of {', '.join([*present, 'AUTO'])}",
            found=f"OpenVINO {here.version}",
            hint=hint,
            facts=facts,
        )
    raise DeviceError(
        f"OpenVINO {here.version} sees no device {name!r} on this machine.",
        where=f"device {name!r}",
        expected=f"one of {', '.join([*present, 'AUTO'])}",
        found=name,
        hint=f"If the machine has one, install Intel's {base} driver and let this user open its device file."
        if base in ("GPU", "NPU")
        else "Choose a device that is there.",
        facts=facts,
    )
