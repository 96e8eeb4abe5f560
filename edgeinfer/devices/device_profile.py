"""Device profiles: what is known about a kind of device, and from where."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias, final

import attrs

from edgeinfer.display import Table
from edgeinfer.errors import TargetError
from edgeinfer.values import as_frozenset

__all__ = ["DeviceProfile", "Fact", "PowerMode", "Unit"]


@final
@attrs.frozen(kw_only=True)
class Fact:
    """One figure of a device.

    Attributes:
        value: In SI units: bytes, Hz, operations a second (a multiply-add is two), W, °C; or text.
        source: Where it is from.
        how: `seen` in the source, `derived` from it by a rule that it names, `measured`, or `stated` by a
            catalog of the user's that says no more.
    """

    value: float | str | bool
    source: str
    how: str = attrs.field(
        default="stated", validator=attrs.validators.in_(("seen", "derived", "measured", "stated"))
    )


Facts: TypeAlias = "Mapping[str, Fact]"


def _number(facts: Facts, name: str) -> float | None:
    fact = facts.get(name)
    return float(fact.value) if fact is not None and isinstance(fact.value, (int, float)) else None


@final
@attrs.frozen(kw_only=True)
class Unit:
    """What computes in a device: its CPU, GPU, NPU or DLA.

    Attributes:
        name: `cpu`, `gpu`, `npu`, `dla`, ….
        backend: The backend that suits it best.
        device: Its name within that backend.
        precisions: The precisions that it executes faster than or as fast as float32.
        channel_multiple: The multiple that channel counts should keep to run at full speed.
        facts: `float32_flops`, `float16_flops`, `int8_ops` (all dense), `int8_sparse_ops`, `kernel_floor_us`
            (what a kernel takes at least), `clock_hz`, `isa`, …. What is not known is not there.
    """

    name: str
    backend: str
    device: str = ""
    precisions: frozenset[str] = attrs.field(default=frozenset({"float32"}), converter=as_frozenset)
    channel_multiple: int = 8
    facts: Facts = attrs.field(factory=dict)

    def number(self, name: str) -> float | None:
        """Return a figure, or None where it is not known or no number."""
        return _number(self.facts, name)

    def operations_s(self, precision: str) -> float | None:
        """Return the dense peak of a precision in operations a second (a multiply-add is two), or None."""
        names = {"int8": "int8_ops"}
        return self.number(names.get(precision, f"{precision}_flops"))


@final
@attrs.frozen(kw_only=True)
class PowerMode:
    """A power mode of a device: what is otherwise in it.

    Attributes:
        name: The vendor's name.
        facts: Figures of the device in this mode, such as `power_w`.
        units: Figures of its units in this mode, by unit. Of a mode with none, the peaks are not known.
    """

    name: str
    facts: Facts = attrs.field(factory=dict)
    units: Mapping[str, Facts] = attrs.field(factory=dict)


# Figures that hold for one power mode only.
_OF_THE_MODE = ("_ops", "_flops", "clock_hz", "kernel_floor_us")


@final
@attrs.frozen(kw_only=True)
class DeviceProfile:
    """What is known about a kind of device, and the unit of it that a target means.

    Attributes:
        name: The name that `target=` takes, such as `jetson-orin-nano`.
        description: The full name.
        backend: The backend that suits the unit best.
        device: The unit's name within that backend.
        precisions: The precisions that the unit executes faster than or as fast as float32.
        memory_bytes: The device's memory, or None.
        channel_multiple: The multiple that channel counts should keep to run at full speed.
        source: Where this is from.
        module: The catalog's own name of the device; `name` may be another name of it.
        unit: The unit's name in `units`.
        mode: The power mode that the figures hold for; empty where there are none.
        units: All units of the device.
        modes: Its power modes.
        facts: `bandwidth_bytes_s`, `power_w`, `unified_memory`, `thermal_limit_c`, ….
        runtimes: Which versions of which software it has.
        legacy: Why it is not for new designs; empty where it is.
        successor: The profile to look at instead.
        note: What else must be known.
    """

    name: str
    description: str
    backend: str
    device: str = ""
    precisions: frozenset[str] = attrs.field(default=frozenset({"float32"}), converter=as_frozenset)
    memory_bytes: float | None = None
    channel_multiple: int = 8
    source: str = ""
    module: str = ""
    unit: str = ""
    mode: str = ""
    units: Mapping[str, Unit] = attrs.field(factory=dict, repr=False)
    modes: Mapping[str, PowerMode] = attrs.field(factory=dict, repr=False)
    facts: Facts = attrs.field(factory=dict, repr=False)
    runtimes: Facts = attrs.field(factory=dict, repr=False)
    legacy: str = ""
    successor: str = ""
    note: str = ""

    def number(self, name: str) -> float | None:
        """Return a figure of the device, or None where it is not known or no number."""
        return _number(self.facts, name)

    @property
    def main(self) -> Unit:
        """The unit that this profile means."""
        if self.unit in self.units:
            return self.units[self.unit]
        return Unit(
            name=self.unit or "main",
            backend=self.backend,
            device=self.device,
            precisions=self.precisions,
            channel_multiple=self.channel_multiple,
        )

    def on(self, unit: str) -> DeviceProfile:
        """Return the profile of another unit of the same device.

        Raises:
            TargetError: The device has no such unit.
        """
        chosen = self.units.get(unit.lower())
        if chosen is None:
            raise TargetError(
                f"{self.description} has no unit {unit!r}.", expected=", ".join(self.units), found=unit
            )
        return attrs.evolve(
            self,
            unit=chosen.name,
            backend=chosen.backend,
            device=chosen.device,
            precisions=chosen.precisions,
            channel_multiple=chosen.channel_multiple,
        )

    def in_mode(self, mode: str) -> DeviceProfile:
        """Return the profile in another power mode. Peaks that the catalog does not know there are left out.

        Raises:
            TargetError: The device has no such mode.
        """
        chosen = self.modes.get(mode)
        if chosen is None:
            raise TargetError(
                f"{self.description} has no power mode {mode!r}.",
                expected=", ".join(self.modes) or "no mode",
                found=mode,
            )
        if mode == self.mode:
            return attrs.evolve(self, facts={**self.facts, **chosen.facts})
        units = {
            name: attrs.evolve(unit, facts={**_kept(unit.facts), **chosen.units.get(name, {})})
            for name, unit in self.units.items()
        }
        return attrs.evolve(self, mode=mode, units=units, facts={**self.facts, **chosen.facts})

    def every_fact(self) -> Iterator[tuple[str, Fact]]:
        """Go through all figures: of the device, its units, modes and runtimes."""
        tables = [("", self.facts), ("runtimes.", self.runtimes)]
        tables += [(f"{unit.name}.", unit.facts) for unit in self.units.values()]
        for mode in self.modes.values():
            tables.append((f"{mode.name}.", mode.facts))
            tables += [(f"{mode.name}.{unit}.", facts) for unit, facts in mode.units.items()]
        yield from ((f"{prefix}{name}", fact) for prefix, facts in tables for name, fact in facts.items())

    def to_dict(self) -> dict[str, Any]:
        """Return all that is known as JSON-compatible values."""

        def plain(_: object, __: object, value: Any) -> Any:
            return sorted(value) if isinstance(value, frozenset) else value

        return attrs.asdict(self, value_serializer=plain)

    def table(self) -> Table:
        """Return one row a figure, with where it is from."""
        rows = [(name, _shown(fact.value), fact.how, fact.source) for name, fact in self.every_fact()]
        what = f"{self.backend}:{self.device or 'default'}, {', '.join(sorted(self.precisions))}"
        legacy = self.legacy and f"legacy: {self.legacy}"
        successor = self.successor and f"its successor is {self.successor}"
        footer = "; ".join(filter(None, (what, legacy, successor, self.note)))
        return Table(
            title=f"{self.name}: {self.description}",
            columns=("figure", "value", "how", "source"),
            rows=rows,
            footer=footer,
        )

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table().to_html()


def _kept(facts: Facts) -> dict[str, Fact]:
    return {name: fact for name, fact in facts.items() if not name.endswith(_OF_THE_MODE)}


def _shown(value: float | str | bool) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
