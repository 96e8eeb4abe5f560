"""`Calibration`: what kernels and memory cost on one machine and runtime, and estimates from it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import attrs

from edgeinfer.atomic import write_file
from edgeinfer.display import Table
from edgeinfer.errors import OptionsError
from edgeinfer.estimate.estimate import Band, Estimate, Figure
from edgeinfer.estimate.features import BLOCKS, add_up
from edgeinfer.estimate.fit import priced
from edgeinfer.estimate.workload import Workload
from edgeinfer.plain_json import parse_json

__all__ = ["Calibration", "MemoryPrices"]

_FORMAT = "edgeinfer.calibration/1"
_WORTH_FIXING = 1.05
_RECURRENT = "it has recurrent layers, whose time is measured and not estimated"


@final
@attrs.frozen(kw_only=True)
class MemoryPrices:
    """Peak memory of a process: process + runtime + kernel · kernels + file · file_bytes + plan · plan_bytes.

    Attributes:
        process_bytes: The process with edgeinfer and the runtime imported, before anything is loaded.
        runtime_bytes: What the runtime adds for any model.
        kernel_bytes: What it adds for each kernel: code, descriptions of tensors.
        file: Bytes a byte of the file.
        plan: Bytes a byte of the activation plan.
        band: How far what is added may be off.
    """

    process_bytes: float
    runtime_bytes: float
    kernel_bytes: float
    file: float
    plan: float
    band: Band = attrs.field(factory=Band)

    def describe(self) -> str:
        """Return the formula of what is added."""
        fixed = f"{self.runtime_bytes / 1e6:.1f} MB + {self.kernel_bytes / 1e6:.2f} MB · kernels"
        return f"{fixed} + {self.file:.2f} · file + {self.plan:.2f} · plan"

    def added_bytes(self, work: Workload) -> float:
        """Return what loading and running adds to the process."""
        fixed = self.runtime_bytes + self.kernel_bytes * len(work.kernels)
        return fixed + self.file * work.file_bytes + self.plan * work.plan_bytes

    def peak(self, work: Workload, basis: str = "calibrated") -> Figure:
        """Return the peak of the process."""
        added = self.added_bytes(work)
        peak = self.process_bytes + added
        low = (self.process_bytes + added * self.band.low) / peak
        return Figure(
            value=peak,
            basis=basis,
            band=Band(low=low, high=(self.process_bytes + added * self.band.high) / peak),
        )


@final
@attrs.frozen(kw_only=True)
class Calibration:
    """What was fitted to nets that were measured on one target.

    Attributes:
        target: The backend and device that were measured.
        machine: On which machine.
        version: The runtime's version.
        threads: Threads within an operator.
        nets: How many nets were measured.
        prices_us: By feature (`edgeinfer.estimate.features`), what one unit of it takes in µs.
        bands: By precision, how far held-out nets were off.
        memory: By precision, what memory costs; empty where it was not measured.
        clock: `process` for processor time, `wall` for time on the wall.
        block: Channels that the machine's kernels compute together (`edgeinfer.estimate.features.BLOCKS`).
        integer_block: The same for output channels in int8; None: as many as in float.
    """

    target: str
    machine: str
    version: str
    threads: int
    nets: int
    prices_us: Mapping[str, float] = attrs.field(repr=False)
    bands: Mapping[str, Band] = attrs.field(repr=False)
    memory: Mapping[str, MemoryPrices] = attrs.field(factory=dict, repr=False)
    clock: str = "process"
    block: int = BLOCKS[0]
    integer_block: int | None = None

    def latency_us(self, work: Workload) -> float:
        """Return the estimated latency in µs."""
        row = add_up(
            work.kernels,
            block=self.block,
            integer_block=self.integer_block,
            open_shapes=work.open_shapes,
        )
        return priced(row, self.prices_us)

    def estimate(self, work: Workload) -> Estimate:
        """Estimate latency and memory of a workload on the machine that was calibrated.

        Recurrent layers are not priced: of a model with them the latency is left out, and that is noted.
        """
        figures: dict[str, Figure] = {}
        notes = list(work.notes)
        if work.recurrent:
            notes.append(_RECURRENT)
        else:
            band = self.bands.get(work.precision) or Band(low=0.5, high=2.0)
            figures["latency_p50_ms"] = Figure(
                value=self.latency_us(work) / 1e3, basis="calibrated", band=band
            )
            notes += self._open_note(work)
            if work.precision not in self.bands:
                notes.append(f"no net in {work.precision} was measured")
        memory = self.memory.get(work.precision) or next(iter(self.memory.values()), None)
        if memory is not None:
            figures["peak_bytes"] = memory.peak(work)
        figures["disk_bytes"] = Figure(value=work.file_bytes, basis="counted")
        notes.append(f"calibrated on {self.threads} thread(s) of {self.machine}")
        return Estimate(
            model=work.name, target=self.target, precision=work.precision, figures=figures, notes=notes
        )

    def _open_note(self, work: Workload) -> list[str]:
        """Say what open shapes cost, where they do."""
        fixed = self.latency_us(attrs.evolve(work, open_shapes=False))
        if self.latency_us(work) < _WORTH_FIXING * fixed:
            return []
        return [f"its shapes are left open; fixed (FixShapes) it would take about {fixed / 1e3:.3g} ms"]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-compatible values."""
        return {"format": _FORMAT, **attrs.asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """Read what `to_dict` wrote.

        Raises:
            OptionsError: It is no calibration of this format.
        """
        if values.get("format") != _FORMAT:
            raise OptionsError("That is no calibration.", expected=_FORMAT, found=values.get("format"))
        fields = {name: value for name, value in values.items() if name != "format"}
        try:
            fields["bands"] = {name: Band(**band) for name, band in fields["bands"].items()}
            fields["memory"] = {
                name: MemoryPrices(**{**prices, "band": Band(**prices["band"])})
                for name, prices in fields["memory"].items()
            }
            return cls(**fields)
        except (TypeError, KeyError, AttributeError) as error:
            raise OptionsError(f"The calibration cannot be read: {error}", expected=_FORMAT) from error

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it as JSON."""
        resolved = Path(path)
        text = json.dumps(self.to_dict(), indent=1, sort_keys=True) + "\n"
        write_file(resolved, text.encode())
        return resolved

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Calibration:
        """Read a file that `save` wrote.

        Raises:
            OptionsError: It cannot be read, or is no calibration.
        """
        try:
            values = parse_json(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise OptionsError(f"The calibration cannot be read: {error}", where=os.fspath(path)) from error
        if not isinstance(values, Mapping):
            raise OptionsError("That is no calibration.", where=os.fspath(path), expected=_FORMAT)
        return cls.from_dict(values)

    def table(self) -> Table:
        """Return one row a feature."""
        rows = [(name, f"{price:.4g} µs") for name, price in sorted(self.prices_us.items())]
        rows += [
            (f"band in {name}", f"{band.low:.2f} … {band.high:.2f}") for name, band in self.bands.items()
        ]
        rows += [
            (
                f"memory in {name}",
                f"{m.runtime_bytes / 1e6:.1f} MB + {m.file:.2f} · file + {m.plan:.2f} · plan",
            )
            for name, m in self.memory.items()
        ]
        return Table(
            title=f"Calibration of {self.target} {self.version}: {self.nets} nets, {self.threads} thread(s)",
            columns=("", ""),
            rows=rows,
            footer=self.machine,
        )

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table().to_html()
