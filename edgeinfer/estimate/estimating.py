"""`estimate`: what a model will need on a target, by the best evidence that there is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import attrs

from edgeinfer.budget import format_bytes
from edgeinfer.devices.device_profile import DeviceProfile
from edgeinfer.devices.profile import Target
from edgeinfer.errors import TargetError
from edgeinfer.estimate.calibration import Calibration
from edgeinfer.estimate.estimate import Band, Estimate, Figure
from edgeinfer.estimate.reference import reference
from edgeinfer.estimate.roofline import CATALOG_BAND, roofline_ms
from edgeinfer.estimate.scaled import Baseline, Scaled
from edgeinfer.estimate.workload import Workload, workload
from edgeinfer.feeds.shapes import Shapes
from edgeinfer.model.model import ModelSource

__all__ = ["Source", "catalog_estimate", "estimate", "estimate_work"]

# What an estimate can come from; see `estimate_work`.
Source: TypeAlias = "Scaled | Calibration | DeviceProfile"

_CATALOG = Band(low=1 / CATALOG_BAND, high=CATALOG_BAND)
# A device may draw less than its mode allows: published figures for small models are a third of it and more.
_POWER = Band(low=0.3, high=1.0)


def estimate(
    model: ModelSource,
    target: Target | DeviceProfile | str,
    *,
    baselines: Baseline | Iterable[Baseline] = (),
    calibration: Calibration | None = None,
    precision: str | None = None,
    shapes: Shapes | None = None,
    batch: int | None = None,
) -> Estimate:
    """Estimate latency, peak memory, power and energy of a model on a target.

    Args:
        model: A path, bytes, `onnx.ModelProto`, `onnx_ir.Model` or Model.
        target: A device profile, or a backend with or without a device.
        baselines: What was measured of this model, or of variants of it, on the target: the figures are
            scaled from it. The best evidence.
        calibration: What `calibrate` measured on the target; the next best.
        precision: As if the model were in this precision: `float32`, `float16`, `int8`. None: as it is.
        shapes: Sizes of symbolic dimensions (`{"N": 8}`) or entire shapes (`{"input": (8, 3, 224, 224)}`).
        batch: The size of the batch where the model leaves it open; None: 1.

    Returns:
        The figures, each with its basis and its band. With neither baseline nor calibration they are from the
        catalog: good for ranking devices, no promise.

    Raises:
        TargetError: There is nothing to go by: no profile, baseline or calibration.
        ModelError: The model cannot be read.
        InputError: A shape does not fit.
    """
    profile = target if isinstance(target, DeviceProfile) else None
    parsed = Target.parse(profile.name if profile is not None else target)  # type: ignore[arg-type]
    work = workload(model, shapes=shapes, batch=batch, target=parsed)
    if precision is not None and precision != work.precision:
        work = work.assume(precision)
    measured = (baselines,) if isinstance(baselines, Baseline) else tuple(baselines)
    if measured:
        return estimate_work(work, Scaled(measured, target=parsed, calibration=calibration))
    if calibration is not None:
        return estimate_work(work, calibration)
    profile = profile or parsed.profile
    if profile is None:
        raise TargetError(
            f"There is nothing to estimate {parsed} by.",
            expected="a device profile, baselines=, or calibration=",
            found=str(parsed),
            hint="Name a profile of edgeinfer.devices.profiles(), or calibrate this machine: "
            f"edgeinfer.devices.calibrate({str(parsed)!r}).",
        )
    return estimate_work(work, profile)


def estimate_work(work: Workload, source: Source) -> Estimate:
    """Estimate a workload from a measured baseline, a calibration, or a profile of the catalog."""
    if isinstance(source, (Scaled, Calibration)):
        return source.estimate(work)
    return catalog_estimate(work, source)


def catalog_estimate(work: Workload, profile: DeviceProfile) -> Estimate:
    """Estimate from catalog figures alone. What the catalog does not know is left out, and noted."""
    notes = list(work.notes)
    figures: dict[str, Figure] = {}
    line = roofline_ms(work, profile)
    if line is None:
        notes.append(f"the catalog knows no peak of its {profile.unit or 'unit'} in {work.precision}")
    elif work.recurrent:
        notes.append("it has recurrent layers, whose time is measured and not estimated")
    else:
        notes += line.notes
        latency = Figure(value=line.latency_ms, basis="catalog", band=_CATALOG)
        tail = latency.tail(profile.unit)
        notes.append(f"the 99th percentile is taken for {tail.value / latency.value:g} times the median")
        figures["latency_p50_ms"], figures["latency_p99_ms"] = latency, tail
    figures.update(_memory(work, profile, notes))
    figures["disk_bytes"] = Figure(value=work.file_bytes, basis="counted")
    power = profile.number("power_w")
    if power is None:
        notes.append("its power is not known")
    else:
        figures["power_w"] = Figure(value=power, basis="catalog", band=_POWER)
        if "latency_p50_ms" in figures:
            band = Band(low=_CATALOG.low * _POWER.low, high=_CATALOG.high)
            energy = figures["latency_p50_ms"].times(power)
            figures["energy_mj"] = attrs.evolve(energy, band=band)
            notes.append("power and energy are those of its power mode's limit")
    return Estimate(
        model=work.name,
        target=profile.name,
        precision=work.precision,
        figures=figures,
        notes=tuple(dict.fromkeys(notes)),
    )


def _memory(work: Workload, profile: DeviceProfile, notes: list[str]) -> dict[str, Figure]:
    """Return the peak memory by the reference of the runtime, where there is one for the unit."""
    if profile.unit not in ("cpu", "main"):
        notes.append(f"memory of {profile.backend} on its {profile.unit} is not estimated")
        return {}
    prices = reference(profile.backend).memory
    own = prices.get(work.precision) or prices["float32"]
    peak = own.peak(work, basis="catalog")
    if profile.memory_bytes is not None and peak.value > profile.memory_bytes:
        notes.append(f"it has {format_bytes(profile.memory_bytes)} of memory")
    return {"peak_bytes": attrs.evolve(peak, band=peak.band.wider(1.2))}
