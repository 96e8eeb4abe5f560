"""Device profiles, and what is known about this machine."""

from __future__ import annotations

from edgeinfer.devices.profile import DeviceProfile, Target, profiles

__all__ = ["DeviceProfile", "Target", "profiles"]
