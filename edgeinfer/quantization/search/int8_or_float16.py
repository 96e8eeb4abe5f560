"""Int8 where it gains, float16 where it does not: for devices that execute both."""

from __future__ import annotations

import time
from typing import final

import attrs

from edgeinfer.backends.dialect import TimedModel
from edgeinfer.backends.registry import get_backend, reference_backend
from edgeinfer.calibration.calibration import as_calibration
from edgeinfer.devices.profile import Target
from edgeinfer.measure.speedup import NotMeasured, Speedup, measure_speedup
from edgeinfer.model.model import Model
from edgeinfer.quantization.search.by_table import nearest
from edgeinfer.quantization.search.price import SAME
from edgeinfer.quantization.search.quantize_int8 import QuantizeInt8
from edgeinfer.transforms.contract import ReportBuilder, TransformReport, TransformResult
from edgeinfer.transforms.to_float16 import ToFloat16

__all__ = ["Int8OrFloat16"]

_SECONDS = 1.0  # of timing the two against each other


@final
@attrs.frozen
class Int8OrFloat16:
    """Quantize for a device that has float16, too, and convert to float16 what does not gain from int8.

    A Transform. Where the target is here, int8 and float16 are timed against each other, and the faster is
    kept. Elsewhere int8 is kept when it is known to pay on the target, and the report says that this was not
    measured, and what the model that is most like this one gained where it was timed (the table of the
    target's dialect). Where that model has attention, as this one, and gained nothing, float16 is taken: what
    others gain depends on the device, where layers are small for a large one and large for a small one.
    The report has the name of what was done.

    Args:
        quantize: Makes the model int8; its target is the device.
        known_to_pay: Int8 is known to pay on the target, so that it need not be measured.
    """

    quantize: QuantizeInt8
    known_to_pay: bool = attrs.field(default=False, kw_only=True)

    def apply(self, model: Model, /) -> TransformResult:
        """Apply one of the two; see the class."""
        started = time.perf_counter()
        notes = ReportBuilder()
        half = ToFloat16().apply(model)
        row = None if self._can_be_timed() else self._like(half.model)
        if row is not None and row.attention and row.ratio <= 1.0 + SAME:
            notes.skip("", f"int8 was not timed on {self.quantize.target}, and not tried: {_said(row)}")
            return _float16(model, half, notes, started)
        if self.known_to_pay or _is_here(self.quantize.target):
            result = attrs.evolve(self.quantize, rival=half.model).apply(model)
            measured = "speedup" in result.report.data
            if result.report.modified and (measured or self.known_to_pay):
                return self._the_faster(model, half, result, started)
            notes.include(_of_int8(result.report), applied=False)
            if result.report.modified:
                notes.skip("", f"the gain of int8 on {self.quantize.target} could not be measured")
        else:
            notes.skip("", f"{self.quantize.target} is not here, so that int8 cannot be measured on it")
        return _float16(model, half, notes, started)

    def _the_faster(
        self, model: Model, half: TransformResult, int8: TransformResult, started: float
    ) -> TransformResult:
        """Return the faster of int8 and float16, by a measurement on the target; int8 where there is none."""
        speed = self._speed(half.model, int8.model)
        if isinstance(speed, NotMeasured):
            note = f"int8 was not timed against float16: {speed.reason}; it is known to pay there"
            row = self._like(half.model)
            note += "" if row is None else f"; {_said(row)}"
            report = attrs.evolve(int8.report, notes=(*int8.report.notes, note))
            return TransformResult(int8.model, report)
        figures = f"of int8 against float16: {speed.describe()}"
        if speed.ratio > 1.0 + SAME:
            data = {**int8.report.data, "speedup_over_float16": speed.ratio}
            report = attrs.evolve(int8.report, notes=(*int8.report.notes, f"speed {figures}"), data=data)
            return TransformResult(int8.model, report)
        notes = ReportBuilder()
        notes.include(_of_int8(int8.report), applied=False)
        notes.skip("", f"float16 is as fast or faster; speed {figures}")
        return _float16(model, half, notes, started)

    def _can_be_timed(self) -> bool:
        quantize = self.quantize
        return quantize.measure and (quantize.stopwatch is not None or _is_here(quantize.target))

    def _like(self, half: Model) -> TimedModel | None:
        """Return what was timed of the models that are like this one, on a device of the kind."""
        target = Target.parse(self.quantize.target or reference_backend().name)
        dialect = get_backend(target.backend).capabilities().dialect
        feed = next(iter(as_calibration(self.quantize.calibration, half.signature)))
        shapes = {name: array.shape for name, array in feed.items()}
        return nearest(dialect.timed if dialect is not None else (), half, shapes)

    def _speed(self, half: Model, int8: Model) -> Speedup | NotMeasured:
        quantize = self.quantize
        if not quantize.measure:
            return NotMeasured(reason="nothing was to be measured")
        feed = next(iter(as_calibration(quantize.calibration, half.signature)))
        if quantize.stopwatch is not None:
            return quantize.stopwatch.compare(half, int8, [feed], seconds=_SECONDS)
        return measure_speedup(half, int8, feed, target=quantize.target, seconds=_SECONDS)


def _said(row: TimedModel) -> str:
    return (
        f"of those that were, {row.model} is most like this model, and int8 has {row.ratio:.2f}x the speed "
        f"of float16 there ({row.float16_ms} and {row.int8_ms} ms, {row.source})"
    )


def _of_int8(report: TransformReport) -> TransformReport:
    """Return a report whose notes say that they are of the int8 model, if there is one: it is not kept."""
    if not report.modified:
        return report
    return attrs.evolve(report, notes=[f"int8, not kept: {note}" for note in report.notes])


def _float16(model: Model, half: TransformResult, notes: ReportBuilder, started: float) -> TransformResult:
    notes.include(half.report)
    notes.note("float16 in place of int8")
    report = notes.finish(half.report.name, model, half.model, started, config=half.report.config)
    return TransformResult(half.model, report)


def _is_here(target: Target | str | None) -> bool:
    parsed = Target.parse(target or reference_backend().name)
    found = get_backend(parsed.backend).capabilities()
    names = [device.name for device in found.devices]
    return found.available and (
        not parsed.device or any(name.split(".")[0] == parsed.device.split(".")[0] for name in names)
    )
