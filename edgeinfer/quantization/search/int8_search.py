"""One search for the int8 version of one model: its stages, and what there is to say of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, final

import attrs

from edgeinfer.calibration.calibration import as_calibration
from edgeinfer.calibration.kept_feeds import KeptFeeds
from edgeinfer.calibration.statistics import Statistics
from edgeinfer.devices.profile import Target
from edgeinfer.display import Steps
from edgeinfer.measure.speedup import NotMeasured, Stopwatch, TargetStopwatch, feeds_to_time
from edgeinfer.model.model import Model
from edgeinfer.quantization.placement.dialects import dialect_of
from edgeinfer.quantization.placement.pointwise import pointwise_as_gemm
from edgeinfer.quantization.placement.prepare import prepare
from edgeinfer.quantization.search.closed_loop import find_feedback
from edgeinfer.quantization.search.effort import Effort
from edgeinfer.quantization.search.float_fallback import FloatFallback
from edgeinfer.quantization.search.int8_recipe import best_recipe
from edgeinfer.quantization.search.layer_gains import integer_nodes
from edgeinfer.quantization.search.layer_noise import SwitchedModel
from edgeinfer.quantization.search.local_noise import noisiest_layers
from edgeinfer.quantization.search.model_runs import Loop, run_outputs
from edgeinfer.quantization.search.output_score import BROKEN, Score, Scorer
from edgeinfer.quantization.search.price import Price
from edgeinfer.quantization.search.scored_tensors import scored_tensors
from edgeinfer.quantization.search.target_check import DIFFERS_DB, NotRun, TargetCheck
from edgeinfer.quantization.search.workbench import Attempt, Workbench
from edgeinfer.transforms.contract import ReportBuilder

__all__ = ["FLOOR_DB", "Int8Search", "SearchOptions"]

FLOOR_DB = 20.0
_NOISE_FEEDS = 4  # enough to rank layers by
_IN_A_ROW = 12  # feeds of a loop; what a state forgets meanwhile does not count
_STEPS = 14  # at most
_FINAL_SECONDS = 1.0


@final
@attrs.frozen(kw_only=True)
class SearchOptions:
    """What `QuantizeInt8` was asked for; see there."""

    calibration: Any
    target: Target | str | None
    evaluate: Callable[[Model], float] | None
    max_drop: float | None
    min_sqnr_db: float | None
    keep_float: Collection[str]
    method: str | None
    spend: float
    samples: int
    measure: bool
    effort: Effort
    feedback: Mapping[str, str] | None
    stopwatch: Stopwatch | None
    max_bytes: int
    progress: bool | None


@final
class Int8Search:
    """One search.

    Args:
        options: What was asked for.
        model: The float model.
        given: The model that the first of all transforms was given, to tell the speed against.
        report: Told of everything.
    """

    def __init__(self, options: SearchOptions, model: Model, given: Model, report: ReportBuilder) -> None:
        self.options, self.model, self.given, self.report = options, model, given, report
        self.step = Steps("QuantizeInt8", _STEPS, progress=options.progress)
        self.step("reading feeds")
        source = as_calibration(options.calibration, model.signature)
        self.kept = KeptFeeds(source, max_bytes=options.max_bytes)
        first = list(self.kept.kept.values())
        self.feedback = find_feedback(model, first, options.feedback)
        in_a_row = _IN_A_ROW if self.feedback.back and self.feedback.in_order else 1
        self.judged, starts = self.kept.hold_out(options.samples, in_a_row=in_a_row)
        starts = starts if self.feedback.in_order else frozenset({0})
        self.loop = Loop(back=self.feedback.back, starts=starts) if self.feedback.back else None
        self.statistics = Statistics(self.kept.every, self.kept.count, shared=True)
        self.scored = scored_tensors(model)
        self.tensors = None if self.scored.are_outputs else self.scored.names
        reference = run_outputs(model, self.judged, tensors=self.tensors, loop=self.loop)
        self.scorer = Scorer(model, reference, self.tensors)
        self.check = TargetCheck(
            options.target, self.judged, self.scorer, tensors=self.tensors, loop=self.loop
        )
        self.judged_on_target = False
        self.least_db = FLOOR_DB
        self.to_time = feeds_to_time(first)
        self._float_metric: float | None = None
        self.stopwatch: Stopwatch | None = None
        if options.measure:
            self.stopwatch = options.stopwatch or TargetStopwatch(options.target)

    def result(self) -> Model | None:
        """Return the int8 model, or None where the float one is better kept."""
        try:
            return self._search()
        finally:
            self.report.data["source_passes"] = self.kept.passes
            self.step.close()
            if isinstance(self.stopwatch, TargetStopwatch):
                self.stopwatch.close()

    def _search(self) -> Model | None:
        options, effort = self.options, self.options.effort
        bench, fallback = self._bench()
        self._notes_on_judging()
        self.step("placing quantizers")
        fallback.place(fit=effort.places)
        if fallback.gains is not None:
            self.report.data["gains"] = fallback.gains
        best = best_recipe(bench, effort, method=options.method, step=self.step)
        if not best.is_int8:
            self._stays_float(best, fallback, "nothing in the model gains from int8; it stays in float")
            return None
        self.step("running on the target")
        checked = self._checked(bench, fallback, best)
        if isinstance(checked, str):
            self._stays_float(best, fallback, checked)
            return None
        best = checked
        self.step("layers in float")
        if not self.meets(best):
            best = fallback.meet(best)
        elif effort.places:
            best = fallback.bargain(best)
        if not best.is_int8:
            why = "the tolerance leaves no layer in int8; the model stays in float"
            self._stays_float(best, fallback, why)
            return None
        inner = integer_nodes(best.model.ir)
        if effort.places:
            best = fallback.outputs(best)
        last = sorted(integer_nodes(best.model.ir) - inner)
        if last:
            self.report.note(
                f"outputs made by {', '.join(map(repr, last))} are 8-bit values, for the time that it saves; "
                "keep_float=... keeps them fine"
            )
        self._say_closeness(best)
        self._include(best, fallback)
        self.step("timing the result")
        return self._timed(best.model)

    def _bench(self) -> tuple[Workbench, FloatFallback]:
        options = self.options
        dialect = dialect_of(options.target)
        graph = self.model.copy_ir()
        prepare(graph)
        shapes = {name: tuple(array.shape) for name, array in self.to_time[0].items()}
        pointwise_as_gemm(graph, attrs.evolve(dialect, costs=None), keep_float=options.keep_float)
        few = options.effort.few
        statistics = self.statistics
        bench = Workbench(
            Model(graph, self.model.path),
            attrs.evolve(dialect, costs=None),
            statistics,
            statistics if few >= statistics.count else statistics.subset(few),
            self.judge,
            keep_float=options.keep_float,
        )
        self.report.data["ledger"] = bench.ledger
        fallback = FloatFallback(
            bench,
            dialect,
            self.to_time,
            Price(options.spend),
            self.stopwatch,
            noise_of=self._noise_of(bench),
            meets=self.meets,
            seconds=options.effort.seconds,
            shapes=shapes,
        )
        return bench, fallback

    # ---- judging ----

    def judge(self, candidate: Model) -> Score:
        """Return how close a candidate's outputs on the judged feeds are to float."""
        if self.judged_on_target:
            score = self.check.score(candidate)
            return BROKEN if isinstance(score, NotRun) else score
        outputs = run_outputs(candidate, self.judged, tensors=self.tensors, loop=self.loop)
        return self.scorer.score(outputs)

    def meets(self, attempt: Attempt) -> bool:
        """Whether an attempt keeps every tolerance that was given."""
        options = self.options
        least_db = options.min_sqnr_db
        if least_db is None and options.evaluate is None:
            least_db = self.least_db
        if least_db is not None and attempt.score.lower_db < least_db:
            return False
        if options.evaluate is None or options.max_drop is None:
            return True
        if self._float_metric is None:
            self._float_metric = options.evaluate(self.model)
            self.report.data["metric_float"] = self._float_metric
        self.report.data["metric"] = options.evaluate(attempt.model)
        return bool(self.report.data["metric"] >= self._float_metric - options.max_drop)

    def _noise_of(self, bench: Workbench) -> Callable[[Attempt, Collection[str]], dict[str, float]]:
        def noise_of(whole: Attempt, names: Collection[str]) -> dict[str, float]:
            quantized, _ = bench.quantized(whole.recipe, whole.keep_float)
            prepared, _ = bench.prepared(whole.recipe.before)
            most = self.options.effort.layers
            worth = list(names)
            if len(worth) > most:
                worth = noisiest_layers(prepared, quantized, bench.dialect, self.statistics, worth, most)
            if self.judged_on_target:
                every = integer_nodes(quantized.ir)
                singles = self.check.singles(bench, whole, worth, every)
                scores = {node: BROKEN if isinstance(s, NotRun) else s for node, s in singles.items()}
            else:
                switched = SwitchedModel.of(quantized, bench.dialect)
                worth = [name for name in worth if name in switched.of_layer]
                feeds = self.judged[:_NOISE_FEEDS]
                found = switched.scores(
                    [[name] for name in worth],
                    feeds,
                    self.scorer.first(_NOISE_FEEDS),
                    tensors=self.tensors,
                    loop=self.loop,
                )
                scores = dict(zip(worth, found, strict=True))
            return {name: float(10.0 ** (-score.mean_db / 10)) for name, score in scores.items()}

        return noise_of

    # ---- the target ----

    def _checked(self, bench: Workbench, fallback: FloatFallback, best: Attempt) -> Attempt | str:
        """Run the best on the target; return what it takes and computes rightly, or why nothing is."""
        score = self.check.score(best.model)
        if isinstance(score, Score):
            return self._compared(best, score)
        if not score.refused:
            self.report.note(f"closeness is what the graph says, not the target's own: {score.reason}")
            return best
        if self.check.refuses_float(self.model):
            self.report.note(f"the target does not take the float model either: {score.reason}")
            return best
        every = integer_nodes(best.model.ir)
        some = sorted(every)[: self.options.effort.layers]
        singles = self.check.singles(bench, best, some, every) if len(some) == len(every) else {}
        refused = [node for node, single in singles.items() if isinstance(single, NotRun)]
        if not refused or len(refused) == len(every):
            return f"int8 is not for {self.check.target}: {score.reason}"
        why = f"{self.check.target} refuses the model with it in int8"
        attempt = fallback.without(best, refused, why)
        again = self.check.score(attempt.model)
        if isinstance(again, NotRun):
            return f"int8 is not for {self.check.target}: {again.reason}"
        self.report.note(f"{len(refused)} layers are in float that {self.check.target} refuses in int8")
        return self._compared(attempt, again)

    def _compared(self, best: Attempt, on_target: Score) -> Attempt:
        """Judge on the target from now on if it computes something else than the graph says."""
        if on_target.sqnr_db >= best.score.sqnr_db - DIFFERS_DB:
            return best
        self.report.note(
            f"{self.check.target} gives {on_target.sqnr_db:.1f} dB where the graph says "
            f"{best.score.sqnr_db:.1f}: layers are judged on it"
        )
        self.judged_on_target = True
        self.least_db = max(self.least_db, min(best.score.lower_db - DIFFERS_DB, FLOOR_DB))
        return attrs.evolve(best, score=on_target)

    # ---- what there is to say ----

    def _notes_on_judging(self) -> None:
        for text in (self.kept.describe(), *self.scored.replaced):
            if text:
                self.report.note(text)
        for name, source in self.feedback.back.items():
            how = "as recorded" if self.feedback.in_order else "by their names"
            self.report.note(
                f"output {source!r} comes back as input {name!r} ({how}): judged in closed loop; "
                "feedback={} if it does not"
            )

    def _say_closeness(self, best: Attempt) -> None:
        score, report = best.score, self.report
        report.data["sqnr_db"], report.data["sqnr_db_at_least"] = score.sqnr_db, score.lower_db
        report.note(
            f"output SQNR {score.sqnr_db:.1f} dB on {len(self.judged)} feeds, "
            f"with 95 % at least {score.lower_db:.1f} dB on others of the kind"
        )
        if self.options.evaluate is None:
            report.note(
                "the task's own metric was not checked: optimize(..., evaluate=..., max_drop=...) holds the "
                "model to it"
            )

    def _include(self, best: Attempt, fallback: FloatFallback, *, applied: bool = True) -> None:
        """Tell what the steps of an attempt did, with one reason a node: ours before theirs."""
        report = self.report
        for step in best.steps:
            report.include(step, applied=applied)
        integer = integer_nodes(best.model.ir)
        kept = {name: why for name, why in fallback.reasons.items() if name not in integer}
        others = [entry for entry in report.skipped if entry.node not in kept]
        report.skipped = list({entry.node: entry for entry in reversed(others)}.values())
        for name, why in kept.items():
            report.skip(name, why)
        report.notes = list(dict.fromkeys(report.notes))

    def _stays_float(self, best: Attempt, fallback: FloatFallback, why: str) -> None:
        self._include(best, fallback, applied=False)
        self.report.note(why)

    def _timed(self, after: Model) -> Model | None:
        """Return the int8 model unless it was measured not to be faster than the one that was given."""
        report = self.report
        if self.stopwatch is None:
            report.note("the speed was not measured: measuring is off")
            return after
        speed = self.stopwatch.compare(self.given, after, self.to_time, seconds=_FINAL_SECONDS)
        if isinstance(speed, NotMeasured) and self.given is not self.model:
            speed = self.stopwatch.compare(self.model, after, self.to_time, seconds=_FINAL_SECONDS)
        if isinstance(speed, NotMeasured):
            report.note(f"the speed was not measured: {speed.reason}")
            return after
        report.data["speedup"] = speed.ratio
        if speed.ratio > 1.0:
            report.note(f"faster than the model that was given: {speed.describe()}")
            return after
        report.applied.clear()
        report.skip("", f"int8 is not faster than the model that was given: {speed.describe()}")
        return None
