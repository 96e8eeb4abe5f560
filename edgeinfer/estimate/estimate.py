"""`Estimate`: figures that were not measured, each with what it is based on and how far it may be off."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, final

import attrs

from edgeinfer.budget import format_bytes
from edgeinfer.display import Table
from edgeinfer.values import as_tuple

__all__ = ["BASES", "TAIL", "Band", "Estimate", "Figure", "show"]

_UNITS = {"_ms": "ms", "_w": "W", "_mj": "mJ", "_c": "°C", "_db": "dB"}
# The 99th percentile through the median: MLPerf's runs on GPUs have 1.01 to 1.07, free CPU threads 1.5.
TAIL = {"cpu": 1.5, "gpu": 1.07}
# What a figure can be based on, the most trustworthy first.
BASES = ("measured", "scaled", "calibrated", "counted", "catalog")


@final
@attrs.frozen(kw_only=True)
class Band:
    """How far a figure may be off: 80 % of the measured values of the evidence lie in this range.

    Attributes:
        low: The factor from the estimate to the low end, at most 1.
        high: The factor to the high end, at least 1.
    """

    low: float = attrs.field(default=1.0, validator=attrs.validators.le(1.0))
    high: float = attrs.field(default=1.0, validator=attrs.validators.ge(1.0))

    def wider(self, factor: float) -> Band:
        """Return the band with both ends so many times as far away."""
        return Band(low=self.low / factor, high=self.high * factor)


@final
@attrs.frozen(kw_only=True)
class Figure:
    """One figure.

    Attributes:
        value: The estimate.
        band: How far it may be off.
        basis: `measured`; `scaled` from a measured baseline of the same model; `calibrated`: from kernels
            fitted on this machine; `counted` from the model; `catalog`: from published peaks, for ranking
            alone.
    """

    value: float
    basis: str = attrs.field(validator=attrs.validators.in_(BASES))
    band: Band = attrs.field(factory=Band)

    @property
    def low(self) -> float:
        """The low end."""
        return self.value * self.band.low

    @property
    def high(self) -> float:
        """The high end."""
        return self.value * self.band.high

    def times(self, factor: float) -> Figure:
        """Return the figure times a number."""
        return attrs.evolve(self, value=self.value * factor)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-compatible values."""
        return {"value": self.value, "low": self.low, "high": self.high, "basis": self.basis}

    def tail(self, unit: str) -> Figure:
        """Return the 99th percentile that goes with a median latency, as such units have it (`TAIL`)."""
        factor = TAIL.get(unit, TAIL["gpu"])
        return Figure(value=self.value * factor, basis="catalog", band=self.band)


@final
@attrs.frozen(kw_only=True)
class Estimate:
    """What a model will need on a target.

    Attributes:
        model: The model's name.
        target: Where it would run.
        precision: What most of its products would be computed in.
        figures: By the names of a Budget's limits: `latency_p50_ms`, `latency_p99_ms`, `peak_bytes`,
            `disk_bytes`, `power_w`; and `energy_mj` of one inference. What is not known is not there.
        notes: What was assumed, and what could not be counted.
    """

    model: str
    target: str
    precision: str = "float32"
    figures: Mapping[str, Figure] = attrs.field(factory=dict)
    notes: tuple[str, ...] = attrs.field(default=(), converter=as_tuple)

    def __getitem__(self, name: str) -> Figure:
        return self.figures[name]

    def get(self, name: str) -> Figure | None:
        """Return a figure, or None where it is not known."""
        return self.figures.get(name)

    @property
    def latency_ms(self) -> Figure | None:
        """The median latency."""
        return self.get("latency_p50_ms")

    @property
    def peak_bytes(self) -> Figure | None:
        """The peak memory of a process that runs it."""
        return self.get("peak_bytes")

    @property
    def energy_mj(self) -> Figure | None:
        """The energy of one inference in mJ."""
        return self.get("energy_mj")

    @property
    def basis(self) -> str:
        """What the latency is based on; empty where there is none."""
        latency = self.latency_ms
        return latency.basis if latency is not None else ""

    @property
    def values(self) -> dict[str, float]:
        """The estimates by name, as `Budget.check` takes them."""
        return {name: figure.value for name, figure in self.figures.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-compatible values."""
        return {
            "model": self.model,
            "target": self.target,
            "precision": self.precision,
            "figures": {name: figure.to_dict() for name, figure in self.figures.items()},
            "notes": list(self.notes),
        }

    def table(self) -> Table:
        """Return one row a figure."""
        rows = [
            (
                name,
                show(name, figure.value),
                f"{show(name, figure.low)} … {show(name, figure.high)}",
                figure.basis,
            )
            for name, figure in self.figures.items()
        ]
        catalog = any(figure.basis == "catalog" for figure in self.figures.values())
        warning = ("catalog figures rank devices; they are no promise",) if catalog else ()
        return Table(
            title=f"Estimate: {self.model} in {self.precision} on {self.target}",
            columns=("figure", "estimate", "80 % band", "basis"),
            rows=rows,
            footer="; ".join((*warning, *self.notes)),
        )

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table().to_html()


def show(name: str, value: float) -> str:
    """Return a figure for people, with its unit."""
    if name.endswith("_bytes"):
        return format_bytes(value)
    unit = next(
        (u for end, u in (("_ms", "ms"), ("_w", "W"), ("_mj", "mJ"), ("_c", "°C")) if name.endswith(end)), ""
    )
    digits = 3 if not value else max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(digits, 4)}f} {unit}".strip()
