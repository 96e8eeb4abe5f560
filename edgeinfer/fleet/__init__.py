"""The fleet: signed releases, the agent that installs them, and the operator's side that rolls them out.

Names are imported when they are first used: a device imports nothing of the operator's side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgeinfer.lazy import attribute_of

if TYPE_CHECKING:
    from edgeinfer.fleet.device.agent import Agent
    from edgeinfer.fleet.device.application import Application, connect
    from edgeinfer.fleet.device.capture import Capture
    from edgeinfer.fleet.device.histogram import Histogram
    from edgeinfer.fleet.device.options import AgentOptions
    from edgeinfer.fleet.device.phases import Phase
    from edgeinfer.fleet.device.release import DeviceFacts, Predicate, Release, Variant
    from edgeinfer.fleet.device.reports import Report
    from edgeinfer.fleet.device.status import AgentStatus

_ATTRIBUTES = {
    "Agent": "edgeinfer.fleet.device.agent",
    "AgentOptions": "edgeinfer.fleet.device.options",
    "AgentStatus": "edgeinfer.fleet.device.status",
    "Application": "edgeinfer.fleet.device.application",
    "Capture": "edgeinfer.fleet.device.capture",
    "Histogram": "edgeinfer.fleet.device.histogram",
    "Phase": "edgeinfer.fleet.device.phases",
    "Report": "edgeinfer.fleet.device.reports",
    "connect": "edgeinfer.fleet.device.application",
    "DeviceFacts": "edgeinfer.fleet.device.release",
    "Predicate": "edgeinfer.fleet.device.release",
    "Release": "edgeinfer.fleet.device.release",
    "Variant": "edgeinfer.fleet.device.release",
}

__all__ = [
    "Agent",
    "AgentOptions",
    "AgentStatus",
    "Application",
    "Capture",
    "DeviceFacts",
    "Histogram",
    "Phase",
    "Predicate",
    "Release",
    "Report",
    "Variant",
    "connect",
]


def __getattr__(name: str) -> Any:
    if name not in _ATTRIBUTES:
        raise AttributeError(f"module 'edgeinfer.fleet' has no attribute {name!r}")
    value = attribute_of(_ATTRIBUTES[name], name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
