"""Quantization under control: close to float, within a tolerance, and never slower than float."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, final

import attrs

from edgeinfer.calibration.calibration import as_calibration
from edgeinfer.devices.profile import Target
from edgeinfer.errors import CalibrationError, TransformError
from edgeinfer.measure.speedup import measure_speedup
from edgeinfer.model.model import Model
from edgeinfer.quantization.placement.dialects import dialect_of
from edgeinfer.quantization.qdq.marks import quantized_for
from edgeinfer.quantization.search.fit_placement import Fit, fit_placement
from edgeinfer.quantization.search.float_fallback import Trades
from edgeinfer.quantization.search.int8_recipe import Attempt, best_recipe
from edgeinfer.quantization.search.layer_gains import LayerGains, integer_nodes
from edgeinfer.quantization.search.output_score import Score, Scorer, run_outputs
from edgeinfer.transforms.contract import ReportBuilder, Skipped, TransformReport, TransformResult
from edgeinfer.values import as_tuple

__all__ = ["QuantizeInt8"]

_DIFFERS_DB = 3.0  # rounding alone makes much less of a difference between runtimes
_GOOD_DB = 20.0  # where the target computes something else than the graph says, this is to be reached
_BROKEN_DB = 10.0  # noise a tenth of the signal: no task survives that unasked


@final
@attrs.frozen
class QuantizeInt8:
    """Make a float model int8 with everything that helps, under a tolerance, and only if it gains time.

    A Transform. It quantizes statically; equalizes, smooths, re-rounds weights and corrects biases where that
    brings the outputs closer to float; and when a tolerance is given and not met, gives those layers back to
    float that buy the most accuracy for the least time. At the end it measures: a model that is not faster
    than float on the target's backend stays float, and the report says so.

    Args:
        calibration: Representative feeds; see `edgeinfer.calibration.calibration`.
        target: Where the model will run; None for ONNX Runtime.
        evaluate: From a Model to a metric of which more is better.
        max_drop: How much of that metric may be lost.
        min_sqnr_db: The SQNR in dB that the model's worst output must keep on the judged feeds. Without
            any tolerance it is 10.
        keep_float: Names of nodes that stay in float in any case.
        method: How ranges are found; see `QuantizeStatic`. None tries the usual ones.
        spend: What a decibel is worth, as a share of the model's time. At most so much is spent on layers
            that go back to float unasked; and outputs of the model come from integer kernels where a decibel
            that it costs saves more. 0 for neither.
        samples: How many feeds, spread over the calibration, the outputs are judged on; if that is at most a
            quarter of all, nothing is fitted on them.
        measure: Measure the speed: of each layer, to place quantizers and to weigh layers by, and of the
            result. Where the target's backend is not on this machine it is not measured, and the report says
            so; multiply-accumulates then stand for time.
    """

    calibration: Any = attrs.field(default=None, eq=False)
    target: Target | str | None = attrs.field(default=None, kw_only=True)
    evaluate: Callable[[Model], float] | None = attrs.field(default=None, kw_only=True, eq=False)
    max_drop: float | None = attrs.field(default=None, kw_only=True)
    min_sqnr_db: float | None = attrs.field(default=None, kw_only=True)
    keep_float: tuple[str, ...] = attrs.field(default=(), kw_only=True, converter=as_tuple)
    method: str | None = attrs.field(default=None, kw_only=True)
    spend: float = attrs.field(default=0.03, kw_only=True, validator=attrs.validators.ge(0))
    samples: int = attrs.field(default=24, kw_only=True, validator=attrs.validators.ge(1))
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
        started = time.perf_counter()
        if quantized_for(model.ir) is not None:
            reason = "the model is quantized already; RetargetQDQ rewrites it for another runtime"
            return self._report(model, model, started, skipped=[Skipped("", reason)])
        if self.calibration is None:
            raise CalibrationError(
                "QuantizeInt8 needs calibration data.",
                expected="representative feeds: mappings from input name to array, the batch axis included",
                found="calibration=None",
                hint="Pass QuantizeInt8(calibration=[{...}, ...]), or optimize(..., calibration=...).",
            )
        return _Run(self, model, started).result()

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

    def _report(
        self,
        before: Model,
        after: Model,
        started: float,
        *,
        steps: tuple[TransformReport, ...] = (),
        skipped: list[Skipped] | None = None,
        notes: list[str] | None = None,
        data: dict[str, Any] | None = None,
    ) -> TransformResult:
        report = ReportBuilder()
        for step in steps:
            report.include(step, applied=after.digest != before.digest)
        # One reason a node: ours says why, then QuantizeStatic's; the steps behind it only follow suit.
        report.skipped = list(
            {entry.node: entry for entry in (*report.skipped[::-1], *(skipped or ()))}.values()
        )
        report.notes.extend(notes or ())
        report.data.update(data or {})
        name = type(self).__name__
        return TransformResult(after, report.finish(name, before, after, started, config=self.config()))


class _Run:
    """One application, with what it found on the way."""

    def __init__(self, options: QuantizeInt8, model: Model, started: float) -> None:
        self.options = options
        self.model = model
        self.started = started
        self.feeds, self.judged = as_calibration(options.calibration, model.signature).hold_out(
            options.samples
        )
        self.data: dict[str, Any] = {}
        self.judged_on: Target | str | None = None  # ONNX Runtime, until the target turns out to differ
        self.least_db = _BROKEN_DB  # what the outputs must keep when nothing is said about it
        self.gains: LayerGains | None = None
        self._scorer: Scorer | None = None
        self._float_metric: float | None = None

    def result(self) -> TransformResult:
        """Return the model to give back and what there is to say of it."""
        options, model = self.options, self.model
        fit = self.fit()
        recipe, best = best_recipe(
            model,
            self.feeds,
            fit.dialect,
            self.score,
            keep_float={*options.keep_float, *(slow.node for slow in fit.slower)},
            method=options.method,
        )
        skipped = list(fit.slower)
        if quantized_for(best.model.ir) is None:
            notes = ["nothing in the model gains from int8; it stays in float"]
            return options._report(model, model, self.started, steps=best.steps, skipped=skipped, notes=notes)
        notes = []
        on_target = self.scorer().score(run_outputs(best.model, self.judged, options.target))
        if on_target.sqnr_db < best.score.sqnr_db - _DIFFERS_DB:
            notes.append(
                f"{options.target} gives {on_target.sqnr_db:.1f} dB where ONNX Runtime gives "
                f"{best.score.sqnr_db:.1f}: layers are judged on it"
            )
            self.judged_on = options.target
            self.least_db = min(best.score.sqnr_db - _DIFFERS_DB, _GOOD_DB)
            best = attrs.evolve(best, score=on_target)
        trades = Trades(
            model=model,
            calibration=self.feeds,
            judged=self.judged,
            target=options.target,
            on_target=self.judged_on is not None,
            measure=options.measure,
            spend=options.spend,
            gains=self.gains,
            judge=self.score,
            meets=self.meets,
        )
        given_back: tuple[str, ...] = ()
        why = "given back to float to meet the tolerance"
        if not self.meets(best):
            best, given_back = trades.search(recipe, best)
        elif options.spend:
            best, given_back = trades.bargain(recipe, best)
            why = "given back to float: it buys more accuracy than its time is worth"
        if trades.table is not None:
            self.data["sensitivity"] = trades.table
        skipped += [Skipped(name, why) for name in given_back]
        if quantized_for(best.model.ir) is None:
            notes.append("the tolerance leaves no layer in int8; the model stays in float")
            return options._report(model, model, self.started, steps=best.steps, skipped=skipped, notes=notes)
        inner = integer_nodes(best.model.ir)
        best = trades.with_outputs(recipe, best, given_back)
        last = sorted(integer_nodes(best.model.ir) - inner)
        if last:
            notes.append(
                f"outputs made by {', '.join(map(repr, last))} are 8-bit values, for the time that it saves; "
                "keep_float=... keeps them fine"
            )
        self.data["sqnr_db"] = best.score.sqnr_db
        notes.append(f"output SQNR {best.score.sqnr_db:.1f} dB on {len(self.judged)} feeds")
        after = best.model
        if options.measure:
            speed = measure_speedup(model, after, self.judged[0], target=options.target)
            if speed is None:
                reason = "the target's backend or device is not here, or refuses the model"
                notes.append(f"the speed was not measured: {reason}")
            elif speed.ratio > 1.0:
                self.data["speedup"] = speed.ratio
                notes.append(f"faster than float: {speed.describe()}")
            else:
                self.data["speedup"] = speed.ratio
                skipped.append(Skipped("", f"int8 is not faster than float here: {speed.describe()}"))
                after = model
        return options._report(
            model, after, self.started, steps=best.steps, skipped=skipped, notes=notes, data=self.data
        )

    def fit(self) -> Fit:
        """Return where the quantizers go, fitted to this machine if measuring is allowed."""
        options = self.options
        if not options.measure:
            return Fit(dialect=dialect_of(options.target))
        fit = fit_placement(self.model, self.judged, options.target, keep_float=options.keep_float)
        if fit.gains is not None:
            self.data["gains"] = self.gains = fit.gains
        return fit

    def meets(self, attempt: Attempt) -> bool:
        """Whether an attempt keeps every tolerance that was given."""
        options = self.options
        least_db = options.min_sqnr_db
        if least_db is None and options.evaluate is None:
            least_db = self.least_db
        if least_db is not None and attempt.score.sqnr_db < least_db:
            return False
        if options.evaluate is None or options.max_drop is None:
            return True
        if self._float_metric is None:
            self._float_metric = options.evaluate(self.model)
            self.data["metric_float"] = self._float_metric
        self.data["metric"] = options.evaluate(attempt.model)
        return bool(self.data["metric"] >= self._float_metric - options.max_drop)

    def score(self, candidate: Model) -> Score:
        """Return how close a candidate's outputs on the judged feeds are to float."""
        return self.scorer().score(run_outputs(candidate, self.judged, self.judged_on))

    def scorer(self) -> Scorer:
        """Return what scores outputs on the judged feeds."""
        if self._scorer is None:
            self._scorer = Scorer(self.model, run_outputs(self.model, self.judged))
        return self._scorer
