"""Targets: where a model will run, by the name of a device profile or of a backend."""

from __future__ import annotations

from typing import final

import attrs

from edgeinfer.backends.registry import backends
from edgeinfer.devices.catalog import profiles
from edgeinfer.devices.device_profile import DeviceProfile
from edgeinfer.errors import TargetError

__all__ = ["DeviceProfile", "Target", "profiles"]


@final
@attrs.frozen(kw_only=True)
class Target:
    """Where a model will run.

    Attributes:
        backend: The backend's name.
        device: The device name within it; empty for its default.
        profile: The device profile, if one was named.
    """

    backend: str
    device: str = ""
    profile: DeviceProfile | None = None

    @classmethod
    def parse(cls, value: Target | str) -> Target:
        """Read a target.

        Args:
            value: A device profile (`"jetson-orin-nano"`), one of its units (`"intel-core-ultra-1:npu"`), one
                of its power modes (`"jetson-orin-nano@MAXN_SUPER"`), or a backend with or without a device
                (`"openvino"`, `"openvino:NPU"`).

        Raises:
            TargetError: It is neither a device profile nor a registered backend.
        """
        if isinstance(value, Target):
            return value
        if not isinstance(value, str):
            raise TargetError("That is not a target.", expected="a Target or a name", found=repr(value))
        catalog = profiles()
        if value in catalog:
            profile = catalog[value]
            return cls(backend=profile.backend, device=profile.device, profile=profile)
        backend, _, device = value.partition(":")
        if backend in backends():
            return cls(backend=backend, device=device)
        import difflib  # for an error alone: a device need not load it

        near = difflib.get_close_matches(value.lower(), [*backends(), *catalog], n=3)
        hints = [*catalog.problems, *([f"Is {' or '.join(near)} meant?"] if near else [])]
        raise TargetError(
            f"There is no target {value!r}.",
            expected=f"a backend ({', '.join(backends())}), with or without :DEVICE, "
            f"or a device profile ({', '.join(catalog)})",
            found=value,
            hint="; ".join(hints) or None,
        )

    def __str__(self) -> str:
        if self.profile is not None:
            return self.profile.name
        return f"{self.backend}:{self.device}" if self.device else self.backend
