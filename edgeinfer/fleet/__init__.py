"""The fleet: signed releases, the agent that installs them, and the operator's side that rolls them out.

Names are imported when they are first used: a device imports nothing of the operator's side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgeinfer.lazy import attribute_of, module_of

if TYPE_CHECKING:
    from edgeinfer.fleet import errors
    from edgeinfer.fleet.device.release import DeviceFacts, Predicate, Release, Variant
    from edgeinfer.fleet.operator.fleet import Fleet
    from edgeinfer.fleet.operator.fleet import open_fleet as open
    from edgeinfer.fleet.operator.variants import Tolerance

# Where each name is, and what it is called there.
_ATTRIBUTES = {
    "DeviceFacts": ("edgeinfer.fleet.device.release", "DeviceFacts"),
    "Fleet": ("edgeinfer.fleet.operator.fleet", "Fleet"),
    "Predicate": ("edgeinfer.fleet.device.release", "Predicate"),
    "Release": ("edgeinfer.fleet.device.release", "Release"),
    "Tolerance": ("edgeinfer.fleet.operator.variants", "Tolerance"),
    "Variant": ("edgeinfer.fleet.device.release", "Variant"),
    "open": ("edgeinfer.fleet.operator.fleet", "open_fleet"),
}

__all__ = ["DeviceFacts", "Fleet", "Predicate", "Release", "Tolerance", "Variant", "errors", "open"]


def __getattr__(name: str) -> Any:
    if name == "errors":
        value: Any = module_of("edgeinfer.fleet.errors")
    elif name in _ATTRIBUTES:
        value = attribute_of(*_ATTRIBUTES[name])
    else:
        raise AttributeError(f"module 'edgeinfer.fleet' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
