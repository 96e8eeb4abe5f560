"""Devices: their profiles, what this machine is, how to reach another one, and which of them a model fits.

Names are imported when they are first used: what needs a graph (`estimate`, `calibrate`, `select`) is not
needed on a device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgeinfer.lazy import attribute_of

if TYPE_CHECKING:
    from edgeinfer.devices.catalog import Profiles, profiles, register
    from edgeinfer.devices.device_profile import DeviceProfile
    from edgeinfer.devices.probe.local import LocalDevice, local
    from edgeinfer.devices.profile import Target
    from edgeinfer.devices.remote.device import RemoteDevice, connect
    from edgeinfer.estimate.calibrate import calibrate
    from edgeinfer.estimate.calibration import Calibration
    from edgeinfer.estimate.estimate import Estimate
    from edgeinfer.estimate.estimating import estimate
    from edgeinfer.estimate.scaled import Baseline, Scaled
    from edgeinfer.estimate.selection import Selection, select

_HOME = {
    "Baseline": "edgeinfer.estimate.scaled",
    "Calibration": "edgeinfer.estimate.calibration",
    "DeviceProfile": "edgeinfer.devices.device_profile",
    "Estimate": "edgeinfer.estimate.estimate",
    "LocalDevice": "edgeinfer.devices.probe.local",
    "Profiles": "edgeinfer.devices.catalog",
    "RemoteDevice": "edgeinfer.devices.remote.device",
    "Scaled": "edgeinfer.estimate.scaled",
    "Selection": "edgeinfer.estimate.selection",
    "Target": "edgeinfer.devices.profile",
    "calibrate": "edgeinfer.estimate.calibrate",
    "connect": "edgeinfer.devices.remote.device",
    "estimate": "edgeinfer.estimate.estimating",
    "local": "edgeinfer.devices.probe.local",
    "profiles": "edgeinfer.devices.catalog",
    "register": "edgeinfer.devices.catalog",
    "select": "edgeinfer.estimate.selection",
}

__all__ = [
    "Baseline",
    "Calibration",
    "DeviceProfile",
    "Estimate",
    "LocalDevice",
    "Profiles",
    "RemoteDevice",
    "Scaled",
    "Selection",
    "Target",
    "calibrate",
    "connect",
    "estimate",
    "local",
    "profiles",
    "register",
    "select",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'edgeinfer.devices' has no attribute {name!r}")
    value = attribute_of(_HOME[name], name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
