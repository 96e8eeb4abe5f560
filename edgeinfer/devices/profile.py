"""Device profiles and targets."""

from __future__ import annotations

import sys
from functools import cache
from importlib.resources import files
from typing import Any, final

import attrs

from edgeinfer.backends.registry import backends
from edgeinfer.errors import TargetError
from edgeinfer.values import as_frozenset

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["DeviceProfile", "Target", "profiles"]


@final
@attrs.frozen(kw_only=True)
class DeviceProfile:
    """What is known about a kind of device.

    Attributes:
        name: The name that `target=` takes, such as `jetson-orin-nano`.
        description: The full name.
        backend: The backend that suits it best.
        device: The device name within that backend.
        precisions: The precisions that it executes faster than or as fast as float32.
        memory_bytes: Memory that a model can use, or None.
        channel_multiple: The multiple that channel counts should keep to run at full speed.
        source: Where this is from.
    """

    name: str
    description: str
    backend: str
    device: str = ""
    precisions: frozenset[str] = attrs.field(default=frozenset({"float32"}), converter=as_frozenset)
    memory_bytes: float | None = None
    channel_multiple: int = 8
    source: str = ""


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
        """Read `"jetson-orin-nano"`, `"openvino"` or `"openvino:NPU"`.

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
        raise TargetError(
            f"There is no target {value!r}.",
            expected=f"a device profile ({', '.join(catalog)}) or a backend ({', '.join(backends())}), "
            "with or without :DEVICE",
            found=value,
        )

    def __str__(self) -> str:
        if self.profile is not None:
            return self.profile.name
        return f"{self.backend}:{self.device}" if self.device else self.backend


@cache
def profiles() -> dict[str, DeviceProfile]:
    """Return the catalog of device profiles by name."""
    text = files("edgeinfer.devices").joinpath("catalog.toml").read_text(encoding="utf-8")
    tables: dict[str, dict[str, Any]] = tomllib.loads(text)
    return {name: DeviceProfile(name=name, **fields) for name, fields in tables.items()}
