"""The fleet: signed releases, the agent that installs them, and the operator's side that rolls them out.

Names are imported when they are first used: a device imports nothing of the operator's side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgeinfer.lazy import attribute_of, module_of

if TYPE_CHECKING:
    from edgeinfer.fleet import errors
    from edgeinfer.fleet.device.agent import Agent
    from edgeinfer.fleet.device.application import Application, connect
    from edgeinfer.fleet.device.capture import Capture
    from edgeinfer.fleet.device.histogram import Histogram
    from edgeinfer.fleet.device.model_handle import ModelHandle, PinnedModel
    from edgeinfer.fleet.device.options import AgentOptions
    from edgeinfer.fleet.device.phases import Phase
    from edgeinfer.fleet.device.release import DeviceFacts, Predicate, Release, Variant
    from edgeinfer.fleet.device.reports import Report
    from edgeinfer.fleet.device.status import AgentStatus
    from edgeinfer.fleet.operator.fleet import Fleet
    from edgeinfer.fleet.operator.gates import Constraint, FailureRate, Rejected
    from edgeinfer.fleet.operator.opening import open_fleet as open
    from edgeinfer.fleet.operator.regression import Regression
    from edgeinfer.fleet.operator.rollout import Rollout
    from edgeinfer.fleet.operator.sites import MaintenanceWindow, Site
    from edgeinfer.fleet.operator.stages import Stage
    from edgeinfer.fleet.operator.variants import Tolerance

# Where each name is, and what it is called there.
_ATTRIBUTES = {
    "Agent": ("edgeinfer.fleet.device.agent", "Agent"),
    "AgentOptions": ("edgeinfer.fleet.device.options", "AgentOptions"),
    "AgentStatus": ("edgeinfer.fleet.device.status", "AgentStatus"),
    "Application": ("edgeinfer.fleet.device.application", "Application"),
    "Capture": ("edgeinfer.fleet.device.capture", "Capture"),
    "Constraint": ("edgeinfer.fleet.operator.gates", "Constraint"),
    "DeviceFacts": ("edgeinfer.fleet.device.release", "DeviceFacts"),
    "FailureRate": ("edgeinfer.fleet.operator.gates", "FailureRate"),
    "Fleet": ("edgeinfer.fleet.operator.fleet", "Fleet"),
    "Histogram": ("edgeinfer.fleet.device.histogram", "Histogram"),
    "MaintenanceWindow": ("edgeinfer.fleet.operator.sites", "MaintenanceWindow"),
    "ModelHandle": ("edgeinfer.fleet.device.model_handle", "ModelHandle"),
    "Phase": ("edgeinfer.fleet.device.phases", "Phase"),
    "PinnedModel": ("edgeinfer.fleet.device.model_handle", "PinnedModel"),
    "Predicate": ("edgeinfer.fleet.device.release", "Predicate"),
    "Regression": ("edgeinfer.fleet.operator.regression", "Regression"),
    "Rejected": ("edgeinfer.fleet.operator.gates", "Rejected"),
    "Release": ("edgeinfer.fleet.device.release", "Release"),
    "Report": ("edgeinfer.fleet.device.reports", "Report"),
    "Rollout": ("edgeinfer.fleet.operator.rollout", "Rollout"),
    "Site": ("edgeinfer.fleet.operator.sites", "Site"),
    "Stage": ("edgeinfer.fleet.operator.stages", "Stage"),
    "Tolerance": ("edgeinfer.fleet.operator.variants", "Tolerance"),
    "Variant": ("edgeinfer.fleet.device.release", "Variant"),
    "connect": ("edgeinfer.fleet.device.application", "connect"),
    "open": ("edgeinfer.fleet.operator.opening", "open_fleet"),
}

__all__ = [
    "Agent",
    "AgentOptions",
    "AgentStatus",
    "Application",
    "Capture",
    "Constraint",
    "DeviceFacts",
    "FailureRate",
    "Fleet",
    "Histogram",
    "MaintenanceWindow",
    "ModelHandle",
    "Phase",
    "PinnedModel",
    "Predicate",
    "Regression",
    "Rejected",
    "Release",
    "Report",
    "Rollout",
    "Site",
    "Stage",
    "Tolerance",
    "Variant",
    "connect",
    "errors",
    "open",
]


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
