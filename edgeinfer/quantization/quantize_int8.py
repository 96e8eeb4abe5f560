"""Quantization under control: few layers back in float for a tolerance, and never slower than float.

The search. Let N be the noise power at the output (signal power over SQNR). Quantization noise of different
layers nearly adds up, so giving the layers of a set S back to float leaves about N - sum of N_i over S, with
N_i from the sensitivity table. The time that giving layer i back costs is about what it takes in float, as
measured or, where the runtime does not tell, in proportion to its multiply-accumulates. Greedy by noise per
time gives one order of the layers; bisection on real, measured candidates finds the shortest prefix of it
that meets the tolerance.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, final

import attrs

from edgeinfer.devices.profile import Target
from edgeinfer.errors import CalibrationError, TransformError
from edgeinfer.measure.speedup import measure_speedup
from edgeinfer.model import Model
from edgeinfer.quantization.calibration import Calibration, as_calibration
from edgeinfer.quantization.int8_recipe import preparation, quantizers
from edgeinfer.quantization.sensitivity import (
    LayerSensitivity,
    Outputs,
    output_sqnr_db,
    run_outputs,
    sensitivity,
)
from edgeinfer.quantization.state import quantized_for, ranges_of
from edgeinfer.transforms.base import Pipeline, Skipped, TransformReport, TransformResult

__all__ = ["QuantizeInt8"]


@final
@attrs.frozen
class QuantizeInt8:
    """Make a float model int8 with everything that helps, under a tolerance, and only if it gains time.

    A Transform. It equalizes and smooths where that is exact, quantizes statically, re-rounds weights and
    corrects biases. Then, when a tolerance is given and not met, it gives the layers back to float that buy
    the most accuracy for the least time. At the end it measures: a model that is not faster than float on
    the target's backend stays float, and the report says so.

    Args:
        calibration: Representative feeds; see `edgeinfer.quantization.calibration`.
        target: Where the model will run; None for ONNX Runtime.
        evaluate: From a Model to a metric of which more is better.
        max_drop: How much of that metric may be lost.
        min_sqnr_db: The SQNR in dB that the model's worst output must keep, on `samples` of the feeds.
        keep_float: Names of nodes that stay in float in any case.
        method: How ranges are found; see `QuantizeStatic`.
        samples: How many feeds outputs are compared on.
        measure: Measure the speed; where the target's backend is not on this machine it is not measured, and
            the report says so.
    """

    calibration: Any = attrs.field(default=None, eq=False)
    target: Target | str | None = attrs.field(default=None, kw_only=True)
    evaluate: Callable[[Model], float] | None = attrs.field(default=None, kw_only=True, eq=False)
    max_drop: float | None = attrs.field(default=None, kw_only=True)
    min_sqnr_db: float | None = attrs.field(default=None, kw_only=True)
    keep_float: tuple[str, ...] = attrs.field(default=(), kw_only=True, converter=tuple)
    method: str = attrs.field(default="mse", kw_only=True)
    samples: int = attrs.field(default=16, kw_only=True, validator=attrs.validators.ge(1))
    measure: bool = attrs.field(default=True, kw_only=True)

    def __attrs_post_init__(self) -> None:
        if (self.max_drop is None) != (self.evaluate is None):
            raise TransformError(
                "A tolerance on a metric needs both the metric and the drop.",
                expected="evaluate=... and max_drop=..., or neither",
                found=f"evaluate={self.evaluate}, max_drop={self.max_drop}",
            )

    def apply(self, model: Model, /) -> TransformResult:
        """Quantize; see the class.

        Raises:
            CalibrationError: There is no calibration, or it does not fit.
            PreconditionError: The model is quantized already by somebody else.
        """
        if self.calibration is None:
            raise CalibrationError(
                "QuantizeInt8 needs calibration data.",
                expected="representative feeds: mappings from input name to array, the batch axis included",
                found="calibration=None",
                hint="Pass QuantizeInt8(calibration=[{...}, ...]), or optimize(..., calibration=...).",
            )
        started = time.perf_counter()
        feeds = as_calibration(self.calibration, model.signature)
        run = _Run(self, model, feeds)
        result, notes, skipped = run.result()
        steps = [*run.steps]
        report = TransformReport(
            name=type(self).__name__,
            config=self.config(),
            applied=[entry for step in steps for entry in step.applied] if result is not model else (),
            skipped=[*(entry for step in steps for entry in step.skipped), *skipped],
            notes=[*(note for step in steps for note in step.notes), *notes],
            data=run.data,
            modified=result.digest != model.digest,
            digest_before=model.digest,
            digest_after=result.digest,
            seconds=time.perf_counter() - started,
        )
        return TransformResult(result, report)

    def config(self) -> dict[str, object]:
        """Return what is not at its default, as JSON-compatible values."""
        plain = {
            "method": self.method,
            "max_drop": self.max_drop,
            "min_sqnr_db": self.min_sqnr_db,
            "keep_float": list(self.keep_float),
            "target": str(self.target) if self.target is not None else None,
        }
        return {name: value for name, value in plain.items() if value}


class _Run:
    """One application, with what it found on the way."""

    def __init__(self, options: QuantizeInt8, model: Model, feeds: Calibration) -> None:
        self.options = options
        self.original = model
        self.feeds = feeds
        self.judged = list(feeds.take(options.samples))
        self.steps: tuple[TransformReport, ...] = ()
        self.data: dict[str, Any] = {}
        self._reference: Outputs | None = None
        self._float_metric: float | None = None

    def result(self) -> tuple[Model, list[str], list[Skipped]]:
        """Return the model to give back, notes, and what was left in float beyond what the steps say."""
        options = self.options
        ready = Pipeline(preparation(self.feeds)).apply(self.original)
        whole = self.quantize(ready.model, options.keep_float)
        if quantized_for(whole.model.ir) is None:
            self.steps = whole.report.steps
            return self.original, ["nothing in the model gains from int8; it stays in float"], []
        chosen, given_back = whole, ()
        if not self.meets(whole.model):
            chosen, given_back = self.search(ready.model, whole)
        self.steps = (*ready.report.steps, *chosen.report.steps)
        skipped = [Skipped(name, "given back to float to meet the tolerance") for name in given_back]
        if quantized_for(chosen.model.ir) is None:
            return self.original, ["the tolerance leaves no layer in int8; the model stays in float"], skipped
        self.data["sqnr_db"] = self.sqnr_db(chosen.model)
        notes = [f"output SQNR {self.data['sqnr_db']:.1f} dB on {len(self.judged)} samples"]
        if not options.measure:
            return chosen.model, notes, skipped
        speed = measure_speedup(self.original, chosen.model, self.judged[0], target=options.target)
        if speed is None:
            notes.append("the speed was not measured: the target's backend or device is not on this machine")
            return chosen.model, notes, skipped
        self.data["speedup"] = speed.ratio
        if speed.ratio <= 1.0:
            reason = f"int8 is not faster than float here: {speed.describe()}"
            return self.original, [reason], [*skipped, Skipped("", reason)]
        return chosen.model, [*notes, f"faster than float: {speed.describe()}"], skipped

    def quantize(
        self, model: Model, keep_float: tuple[str, ...], ranges: dict[str, tuple[float, float]] | None = None
    ) -> TransformResult:
        """Quantize all but some layers."""
        options = self.options
        steps = quantizers(
            self.feeds, options.target, method=options.method, keep_float=keep_float, ranges=ranges
        )
        return Pipeline(steps).apply(model)

    def search(self, model: Model, whole: TransformResult) -> tuple[TransformResult, tuple[str, ...]]:
        """Return the candidate with the fewest layers in float, in greedy order, that meets the tolerance."""
        table = sensitivity(
            model, self.feeds, target=self.options.target, samples=self.options.samples, progress=None
        )
        self.data["sensitivity"] = table
        order = [layer.node for layer in sorted(table.layers, key=_noise_per_time, reverse=True)]
        ranges = ranges_of(whole.model.ir)
        tried: dict[int, TransformResult] = {}
        low, high = 0, len(order)  # all of the first `high` in float meets it; the first `low` does not
        while high - low > 1:
            middle = (low + high) // 2 if high < len(order) else min(high - 1, max(1, 2 * low))
            keep = (*self.options.keep_float, *order[:middle])
            tried[middle] = self.quantize(model, keep, ranges)
            if self.meets(tried[middle].model):
                high = middle
            else:
                low = middle
        if high not in tried:
            tried[high] = self.quantize(model, (*self.options.keep_float, *order[:high]), ranges)
        return tried[high], tuple(order[:high])

    def meets(self, candidate: Model) -> bool:
        """Whether a candidate keeps every tolerance that was given."""
        options = self.options
        if options.min_sqnr_db is not None and self.sqnr_db(candidate) < options.min_sqnr_db:
            return False
        if options.evaluate is None or options.max_drop is None:
            return True
        if self._float_metric is None:
            self._float_metric = options.evaluate(self.original)
            self.data["metric_float"] = self._float_metric
        self.data["metric"] = options.evaluate(candidate)
        return bool(self.data["metric"] >= self._float_metric - options.max_drop)

    def sqnr_db(self, candidate: Model) -> float:
        """Return the SQNR in dB of a candidate's worst output."""
        if self._reference is None:
            self._reference = run_outputs(self.original, self.judged)
        return output_sqnr_db(self._reference, run_outputs(candidate, self.judged))


def _noise_per_time(layer: LayerSensitivity) -> float:
    noise = 10.0 ** (-layer.sqnr_db / 10)  # relative to the signal
    return float(noise / max(layer.macs or 1, 1))
