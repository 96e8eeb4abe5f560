"""What a variant needs of a device, what a device is, and whether they fit.

A predicate is a conjunction: every field that is set must hold. The more it asks, the more specific it is.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, final

import attrs

from edgeinfer.budget import format_bytes
from edgeinfer.values import as_tuple

if TYPE_CHECKING:
    from edgeinfer.devices.probe.local import LocalDevice

__all__ = ["DeviceFacts", "Predicate", "check_specifier", "satisfies"]

_CLAUSE = re.compile(r"\s*(>=|<=|==|!=|<|>)\s*(\d{1,9}(?:\.\d{1,9})*)\s*\Z")
_RELEASE = re.compile(r"\d+(?:\.\d+)*")


@final
@attrs.frozen(kw_only=True)
class DeviceFacts:
    """What a device is, as far as the choice of a variant is concerned.

    Attributes:
        arch: The architecture as `platform.machine()` names it, such as `x86_64` or `aarch64`.
        accelerators: What computes besides the CPU, such as `gpu` and `npu`.
        backends: The version of each runtime that is installed and works, by the backend's name.
        memory_bytes: The memory that a process may use; None where it is not known.
        device_class: The class that the operator gave the device, or its profile's name; empty for none.
    """

    arch: str = ""
    accelerators: tuple[str, ...] = attrs.field(default=(), converter=as_tuple)
    backends: Mapping[str, str] = attrs.field(factory=dict)
    memory_bytes: int | None = None
    device_class: str = ""

    @classmethod
    def of(
        cls, local: LocalDevice, *, backends: Mapping[str, str] | None = None, device_class: str | None = None
    ) -> DeviceFacts:
        """Return the facts of this machine.

        Args:
            local: What `edgeinfer.devices.local()` found.
            backends: Versions by backend. None: every registered backend is imported and asked, which loads
                the runtimes into this process.
            device_class: None: the name of the profile that describes this machine, if one does.
        """
        profile = local.profile if device_class is None else None
        return cls(
            arch=local.cpu.architecture,
            accelerators=tuple(name for name, found in (("gpu", local.gpus), ("npu", local.npus)) if found),
            backends=_installed() if backends is None else dict(backends),
            memory_bytes=local.usable_bytes,
            device_class=device_class if device_class is not None else profile.name if profile else "",
        )


def _specifier(_: object, __: object, value: str | None) -> None:
    if value is not None:
        check_specifier(value)


@final
@attrs.frozen(kw_only=True)
class Predicate:
    """What a variant needs. What is empty or None is not asked for.

    Attributes:
        arch: The architectures that it runs on, any one of them.
        accelerator: The accelerators that it runs on, any one of them.
        backend: The backend that it was compiled for.
        runtime: The versions of that backend's runtime, such as `>=1.23,<2`.
        memory_bytes: The memory that the device has at least.
        device_class: The classes that it is for, any one of them.
    """

    arch: tuple[str, ...] = attrs.field(default=(), converter=as_tuple)
    accelerator: tuple[str, ...] = attrs.field(default=(), converter=as_tuple)
    backend: str | None = None
    runtime: str | None = attrs.field(default=None, validator=_specifier)
    memory_bytes: int | None = attrs.field(
        default=None,
        validator=attrs.validators.optional([attrs.validators.ge(0), attrs.validators.le(1 << 63)]),
    )
    device_class: tuple[str, ...] = attrs.field(default=(), converter=as_tuple)

    def __attrs_post_init__(self) -> None:
        if self.runtime is not None and self.backend is None:
            raise ValueError("`runtime` is about the versions of a backend, and none is named")

    def refusal(self, facts: DeviceFacts) -> str:
        """Return why a device does not fit, in words; empty where it does."""
        version = facts.backends.get(self.backend or "")
        memory = facts.memory_bytes
        reasons = (
            _not_among("architecture", facts.arch, self.arch),
            ""
            if not self.accelerator or set(self.accelerator) & set(facts.accelerators)
            else f"no {' or '.join(self.accelerator)}",
            "" if self.backend is None or version is not None else f"no {self.backend} runtime",
            ""
            if self.runtime is None or version is None or satisfies(version, self.runtime)
            else f"{self.backend} {version}, not {self.runtime}",
            ""
            if self.memory_bytes is None or (memory is not None and memory >= self.memory_bytes)
            else f"{'unknown' if memory is None else format_bytes(memory)} memory, "
            f"less than {format_bytes(self.memory_bytes)}",
            _not_among("class", facts.device_class, self.device_class),
        )
        return "; ".join(filter(None, reasons))

    @property
    def specificity(self) -> tuple[int, ...]:
        """How much is asked: first how many fields, then how much memory, then how few alternatives."""
        choices = (self.arch, self.accelerator, self.device_class)
        single = (self.backend, self.runtime, self.memory_bytes)
        count = sum(map(bool, choices)) + sum(value is not None for value in single)
        return (count, self.memory_bytes or 0, *(-len(choice) for choice in choices))

    def overlaps(self, other: Predicate) -> bool:
        """Whether one device could fit both."""
        if _disjoint(self.arch, other.arch) or _disjoint(self.device_class, other.device_class):
            return False
        if self.backend != other.backend or self.runtime is None or other.runtime is None:
            return True  # one device may have several runtimes and accelerators
        return any(satisfies(v, self.runtime) and satisfies(v, other.runtime) for v in self._versions(other))

    def _versions(self, other: Predicate) -> list[str]:
        """Return versions of which one satisfies both specifiers if any version does: bounds and next to."""
        bounds = [_numbers(text) for text in _RELEASE.findall(f"{self.runtime},{other.runtime}")]
        near = itertools.chain.from_iterable(((*b, 0, 1), b, _below(b)) for b in bounds)
        return [".".join(map(str, numbers)) for numbers in near]


def check_specifier(text: str) -> None:
    """Refuse what is no specifier of versions.

    Raises:
        ValueError: It is not clauses such as `>=1.23`, with commas between them.
    """
    for clause in text.split(","):
        if _CLAUSE.match(clause) is None:
            raise ValueError(f"{clause!r} is no clause such as >=1.23 (>=, <=, ==, !=, < or > and numbers)")


def satisfies(version: str, specifier: str) -> bool:
    """Whether a version satisfies all clauses. Only its first numbers count: `rt 1.23.0rc1` is 1.23.0."""
    match = _RELEASE.search(version)
    if match is None:
        return False
    found = _numbers(match[0])
    for clause in specifier.split(","):
        parsed = _CLAUSE.match(clause)
        assert parsed is not None, clause  # checked when the predicate was made
        wanted = _numbers(parsed[2])
        length = max(len(found), len(wanted))
        left, right = _padded(found, length), _padded(wanted, length)
        holds = {
            ">=": left >= right,
            "<=": left <= right,
            "==": left == right,
            "!=": left != right,
            "<": left < right,
            ">": left > right,
        }
        if not holds[parsed[1]]:
            return False
    return True


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def _padded(numbers: tuple[int, ...], length: int) -> tuple[int, ...]:
    return numbers + (0,) * (length - len(numbers))


def _below(numbers: tuple[int, ...]) -> tuple[int, ...]:
    """Return a version just below: 1.23 gives 1.22.999999."""
    for index in reversed(range(len(numbers))):
        if numbers[index] > 0:
            return (*numbers[:index], numbers[index] - 1, 999_999, 999_999)
    return numbers


def _disjoint(a: tuple[str, ...], b: tuple[str, ...]) -> bool:
    return bool(a) and bool(b) and not set(a) & set(b)


def _not_among(name: str, value: str, allowed: tuple[str, ...]) -> str:
    return (
        "" if not allowed or value in allowed else f"{name} {value or 'unknown'}, not {' or '.join(allowed)}"
    )


def _installed() -> dict[str, str]:
    from edgeinfer.backends.registry import backends

    found = {name: entry.capabilities() for name, entry in backends().items()}
    return {name: capabilities.version for name, capabilities in found.items() if capabilities.available}
