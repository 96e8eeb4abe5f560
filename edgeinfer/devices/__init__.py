"""Devices: their profiles, what this machine is, how to reach another one, and which of them a model fits.

Names are imported when they are first used: what needs a graph (`estimate`, `calibrate`, `select`) is not
needed on a device.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeinfer.devices.catalog import Profiles, profiles, register
    from edgeinfer.devices.device_profile import DeviceProfile
    from edgeinfer.devices.probe.local import LocalDevice, local
    from edgeinfer.devices.profile import Target
    from edgeinfer.devices.remote.device import RemoteDevice, connect

_HOME = {
    "DeviceProfile": "edgeinfer.devices.device_profile",
    "LocalDevice": "edgeinfer.devices.probe.local",
    "Profiles": "edgeinfer.devices.catalog",
    "RemoteDevice": "edgeinfer.devices.remote.device",
    "Target": "edgeinfer.devices.profile",
    "connect": "edgeinfer.devices.remote.device",
    "local": "edgeinfer.devices.probe.local",
    "profiles": "edgeinfer.devices.catalog",
    "register": "edgeinfer.devices.catalog",
}

__all__ = [
    "DeviceProfile",
    "LocalDevice",
    "Profiles",
    "RemoteDevice",
    "Target",
    "connect",
    "local",
    "profiles",
    "register",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'edgeinfer.devices' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
