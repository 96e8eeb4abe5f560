"""The fleet: signed releases, the agent that installs them, and the operator's side that rolls them out.

Names are imported when they are first used: a device imports nothing of the operator's side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgeinfer.lazy import attribute_of

if TYPE_CHECKING:
    from edgeinfer.fleet.device.release import DeviceFacts, Predicate, Release, Variant

_ATTRIBUTES = {
    "DeviceFacts": "edgeinfer.fleet.device.release",
    "Predicate": "edgeinfer.fleet.device.release",
    "Release": "edgeinfer.fleet.device.release",
    "Variant": "edgeinfer.fleet.device.release",
}

__all__ = ["DeviceFacts", "Predicate", "Release", "Variant"]


def __getattr__(name: str) -> Any:
    if name not in _ATTRIBUTES:
        raise AttributeError(f"module 'edgeinfer.fleet' has no attribute {name!r}")
    value = attribute_of(_ATTRIBUTES[name], name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
