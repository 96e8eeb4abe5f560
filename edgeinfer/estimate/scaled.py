"""`Scaled`: estimates for variants of a model, from measured baselines of the same model.

    latency = measured latency of the baseline · priced(variant) / priced(baseline)

What the prices are off by is about the same for both and cancels out. So this is the best estimate there is
short of measuring, for pruned variants and for variants of the same precision above all. `tune` prices pruned
candidates in this way.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, final

import attrs

from edgeinfer.devices.profile import Target
from edgeinfer.errors import OptionsError
from edgeinfer.estimate.calibration import Calibration
from edgeinfer.estimate.estimate import Band, Estimate, Figure
from edgeinfer.estimate.reference import local_reference
from edgeinfer.estimate.workload import Workload, workload
from edgeinfer.feeds.shapes import Shapes
from edgeinfer.model.model import Model, ModelSource

__all__ = ["Baseline", "Scaled"]

# How far 80 % of the measured variants were off (benchmarks/estimates.py): at no change, and for each
# factor of e in the latency.
_BAND_AT_ONCE, _BAND_BY_CHANGE = 0.10, 0.30
# Between precisions the prices do not cancel out.
_BAND_OTHER_PRECISION = 1.25


@final
@attrs.frozen(kw_only=True)
class Baseline:
    """A measured variant of a model.

    Attributes:
        work: What it asks for.
        latency_p50_ms: Its measured median latency.
        latency_p99_ms: Its 99th percentile; None where not measured.
        peak_bytes: Peak memory of a process that runs it; None where not measured.
        power_w: Power while it runs; None where not measured.
    """

    work: Workload
    latency_p50_ms: float = attrs.field(validator=attrs.validators.gt(0))
    latency_p99_ms: float | None = None
    peak_bytes: float | None = None
    power_w: float | None = None

    @classmethod
    def of(
        cls, model: ModelSource, measured: object, *, target: Target | str, shapes: Shapes | None = None
    ) -> Baseline:
        """Make one of a model and what was measured of it.

        Args:
            model: The model that was measured.
            measured: A mapping, or a value with attributes such as an artifact's `Cost`: `latency_p50_ms`,
                and where they are known `latency_p99_ms`, `peak_bytes`, `power_w`.
            target: Where it was measured.
            shapes: The sizes that it was measured with.

        Raises:
            OptionsError: There is no latency above 0.
        """
        found = {name: _read(measured, name) for name in _MEASURED}
        if found["latency_p50_ms"] is None or found["latency_p50_ms"] <= 0:
            raise OptionsError("A baseline needs a measured latency.", where="latency_p50_ms")
        return cls(work=workload(model, shapes=shapes, target=target), **found)  # type: ignore[arg-type]


_MEASURED = ("latency_p50_ms", "latency_p99_ms", "peak_bytes", "power_w")


def _read(measured: object, name: str) -> float | None:
    value: Any = measured.get(name) if isinstance(measured, Mapping) else getattr(measured, name, None)
    return None if value is None else float(value)


@final
class Scaled:
    """Estimates variants of one model from measured baselines of it.

    Args:
        baselines: At least one; best one for each precision.
        target: Where they were measured, which is also where the variants will run.
        calibration: How the target's kernels compare; None for the one of its runtime that comes with
            edgeinfer, for a CPU with AVX-512 where this machine has it.
        shapes: The sizes that the baselines were measured with.

    Raises:
        OptionsError: There is no baseline.
    """

    def __init__(
        self,
        baselines: Iterable[Baseline],
        *,
        target: Target | str,
        calibration: Calibration | None = None,
        shapes: Shapes | None = None,
    ) -> None:
        self.target = Target.parse(target)
        self._baselines = tuple(baselines)
        if not self._baselines:
            raise OptionsError("Scaling needs a measured baseline.", expected="at least one")
        self._calibration = calibration or local_reference(self.target.backend)
        self._shapes = shapes
        self._priced = {id(b): self._calibration.latency_us(b.work) for b in self._baselines}

    def work(self, model: ModelSource) -> Workload:
        """Return what a variant asks for on the target."""
        return workload(model, shapes=self._shapes, target=self.target)

    def estimate(self, variant: Model | Workload) -> Estimate:
        """Estimate a variant: a model, or a workload such as `work.pruned(0.7)` or `work.assume("int8")`."""
        work = variant if isinstance(variant, Workload) else self.work(variant)
        base = self._nearest(work)
        ratio = self._calibration.latency_us(work) / max(self._priced[id(base)], 1e-9)
        band = _band(ratio, same=base.work.precision == work.precision)
        latency = Figure(value=base.latency_p50_ms * ratio, basis="scaled", band=band)
        figures = {"latency_p50_ms": latency}
        notes = list(work.notes)
        if base.latency_p99_ms is not None:
            figures["latency_p99_ms"] = latency.times(base.latency_p99_ms / base.latency_p50_ms)
        if base.peak_bytes is not None:
            figures["peak_bytes"] = self._peak(work, base)
        figures["disk_bytes"] = Figure(value=work.file_bytes, basis="counted")
        if base.power_w is not None:
            figures["power_w"] = Figure(value=base.power_w, basis="scaled", band=Band(low=0.8, high=1.1))
            figures["energy_mj"] = latency.times(base.power_w)
        if base.work.precision != work.precision:
            notes.append(f"scaled from a baseline in {base.work.precision}; measure one in {work.precision}")
        if work.recurrent:
            notes.append("it has recurrent layers, whose time is measured and not estimated")
        return Estimate(
            model=work.name,
            target=str(self.target),
            precision=work.precision,
            figures=figures,
            notes=tuple(dict.fromkeys(notes)),
        )

    def _nearest(self, work: Workload) -> Baseline:
        """Return the baseline of the same precision, if there is one, that is nearest in latency."""
        same = [b for b in self._baselines if b.work.precision == work.precision] or list(self._baselines)
        priced = self._calibration.latency_us(work)
        return min(same, key=lambda b: abs(math.log(max(priced, 1e-9) / max(self._priced[id(b)], 1e-9))))

    def _peak(self, work: Workload, base: Baseline) -> Figure:
        """Return the baseline's peak and what the variant adds to it, by the calibration's memory prices."""
        memory = self._calibration.memory or local_reference(self.target.backend).memory
        own = memory.get(work.precision) or next(iter(memory.values()))
        theirs = memory.get(base.work.precision) or own
        assert base.peak_bytes is not None
        change = own.added_bytes(work) - theirs.added_bytes(base.work)
        value = max(base.peak_bytes + change, 0.1 * base.peak_bytes)
        off = 0.01 + 0.3 * abs(change) / value
        return Figure(value=value, basis="scaled", band=Band(low=max(0.0, 1 - off), high=1 + off))


def _band(ratio: float, *, same: bool) -> Band:
    off = math.exp(_BAND_AT_ONCE + _BAND_BY_CHANGE * abs(math.log(max(ratio, 1e-9))))
    band = Band(low=1 / off, high=off)
    return band if same else band.wider(_BAND_OTHER_PRECISION)
