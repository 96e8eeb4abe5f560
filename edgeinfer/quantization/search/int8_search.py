"""One search for the int8 version of one model: its stages, and what there is to say of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, final

import attrs

from edgeinfer.calibration.calibration import as_calibration
from edgeinfer.calibration.kept_feeds import KeptFeeds
from edgeinfer.calibration.statistics import Statistics
from edgeinfer.devices.profile import Target
from edgeinfer.display import Steps
from edgeinfer.graph.layer_like import layer_like
from edgeinfer.measure.speedup import NotMeasured, Speedup, Stopwatch, TargetStopwatch, feeds_to_time
from edgeinfer.model.model import Model
from edgeinfer.model.report_table import group_entries
from edgeinfer.quantization.placement.dialects import dialect_of
from edgeinfer.quantization.placement.pointwise import pointwise_as_gemm
from edgeinfer.quantization.placement.prepare import prepare
from edgeinfer.quantization.search.effort import Effort
from edgeinfer.quantization.search.float_fallback import FloatFallback
from edgeinfer.quantization.search.int8_recipe import best_recipe
from edgeinfer.quantization.search.judge import Judge
from edgeinfer.quantization.search.layer_gains import integer_nodes
from edgeinfer.quantization.search.output_score import Score
from edgeinfer.quantization.search.price import Price
from edgeinfer.quantization.search.target_check import DIFFERS_DB, NotRun
from edgeinfer.quantization.search.workbench import Attempt, Workbench
from edgeinfer.transforms.contract import ReportBuilder

__all__ = ["Int8Search", "SearchOptions"]

# How many reasons for layers in float are shown before everything else.
_REASONS = 3


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
    rival: Model | None
    stopwatch: Stopwatch | None
    max_bytes: int


@final
class Int8Search:
    """One search.

    Args:
        options: What was asked for.
        model: The float model.
        given: The model that the first of all transforms was given, to tell the speed against.
        report: Told of everything.
        step: Told of what begins.
    """

    def __init__(
        self, options: SearchOptions, model: Model, given: Model, report: ReportBuilder, step: Steps
    ) -> None:
        self.options, self.model, self.given, self.report = options, model, given, report
        self.step = step
        step("reading feeds")
        source = as_calibration(options.calibration, model.signature)
        self.kept = KeptFeeds(source, max_bytes=options.max_bytes)
        self.judge = Judge(
            model,
            self.kept,
            samples=options.samples,
            target=options.target,
            tolerance=options,
            feedback=options.feedback,
        )
        self.statistics = Statistics(self.kept.every, self.kept.count, shared=True)
        self.to_time = feeds_to_time(self.kept.kept.values())
        self.stopwatch: Stopwatch | None = None
        if options.measure:
            self.stopwatch = options.stopwatch or TargetStopwatch(options.target)

    def result(self) -> Model | None:
        """Return the int8 model, or None where the float one is better kept."""
        try:
            return self._search()
        finally:
            self.report.data.update(source_passes=self.kept.passes, **self.judge.metrics)
            if isinstance(self.stopwatch, TargetStopwatch):
                self.stopwatch.close()

    def _search(self) -> Model | None:
        options, effort = self.options, self.options.effort
        bench, fallback = self._bench()
        self._note(*filter(None, [self.kept.describe()]), *self.judge.describe())
        self.step("placing quantizers")
        fallback.place(fit=effort.places)
        if fallback.gains is not None:
            self.report.data["gains"] = fallback.gains
        slow = fallback.hopeless(self.given) if effort.places else None
        if slow is not None:
            self._told_slower(slow)
            return None
        behind = fallback.behind(options.rival) if effort.places and options.rival is not None else None
        if behind is not None:
            self.report.data["speedup_over_rival"] = behind.ratio
            self.report.result(f"stays in float, int8 is not faster than its rival: {behind.describe()}")
            return None
        best = best_recipe(bench, effort, method=options.method, step=self.step, pays=fallback.pays)
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
        traded: Attempt | None = best
        if not self.judge.meets(best):
            traded = fallback.meet(best)
        elif effort.places:
            traded = fallback.bargain(best)
        inner = integer_nodes(traded.model.ir) if traded is not None else frozenset()
        if traded is not None and effort.places and traded.is_int8:
            traded = fallback.outputs(traded)
        ran: Attempt | str | None = traded
        if traded is not None and traded.is_int8:
            ran = self._as_it_runs(fallback, traded, checked)
        if isinstance(ran, str) or ran is None or not ran.is_int8:
            why = ran if isinstance(ran, str) else "the tolerance leaves no layer in int8; it stays in float"
            self._stays_float(traded or best, fallback, why)
            return None
        best = ran
        self.report.data["sqnr_db"] = best.score.sqnr_db
        self.report.data["sqnr_db_at_least"] = best.score.lower_db
        self._include(best, fallback)
        self.step("timing the result")
        if not self._pays(best.model):
            return None
        self._say(best, fallback, sorted(integer_nodes(best.model.ir) - inner))
        return best.model

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
            self.judge.score,
            keep_float=options.keep_float,
        )
        self.report.data["ledger"] = bench.ledger
        fallback = FloatFallback(
            bench,
            dialect,
            self.to_time,
            Price(options.spend),
            self.stopwatch,
            noise_of=self.judge.noise_of(
                bench, statistics, options.effort.layers, options.effort.layer_feeds
            ),
            meets=self.judge.meets,
            least_db=self.judge.least_db,
            fewest=options.effort.fewest,
            seconds=options.effort.seconds,
            shapes=shapes,
        )
        return bench, fallback

    # ---- the target ----

    def _checked(self, bench: Workbench, fallback: FloatFallback, best: Attempt) -> Attempt | str:
        """Run the best on the target; return what it takes and computes rightly, or why nothing is."""
        score = self.judge.check.score(best.model)
        if isinstance(score, Score):
            return self._compared(best, score)
        if not score.refused:
            self.report.note(f"closeness is what the graph says, not the target's own: {score.reason}")
            return best
        if self.judge.check.refuses_float(self.model):
            self.report.note(f"the target does not take the float model either: {score.reason}")
            return best
        every = integer_nodes(best.model.ir)
        some = sorted(every)[: self.options.effort.layers]
        singles = self.judge.check.singles(bench, best, some, every) if len(some) == len(every) else {}
        refused = [node for node, single in singles.items() if isinstance(single, NotRun)]
        if not refused or len(refused) == len(every):
            return f"int8 is not for {self.judge.check.target}: {score.reason}"
        why = f"{self.judge.check.target} refuses the model with it in int8"
        attempt = fallback.without(best, refused, why)
        again = self.judge.check.score(attempt.model)
        if isinstance(again, NotRun):
            return f"int8 is not for {self.judge.check.target}: {again.reason}"
        which = "a layer is" if len(refused) == 1 else f"{len(refused)} layers are"
        self.report.note(f"{which} in float that {self.judge.check.target} refuses in int8")
        return self._compared(attempt, again)

    def _compared(self, best: Attempt, on_target: Score) -> Attempt:
        """Judge on the target from now on if it computes something else than the graph says."""
        short = self.judge.close_enough(best.score) and not self.judge.close_enough(on_target)
        if on_target.sqnr_db >= best.score.sqnr_db - DIFFERS_DB and not short:
            return best
        self.report.note(
            f"{self.judge.check.target} gives {on_target.sqnr_db:.1f} dB where the graph says "
            f"{best.score.sqnr_db:.1f}: layers are judged on it"
        )
        self.judge.on_target = True
        return attrs.evolve(best, score=on_target)

    def _as_it_runs(self, fallback: FloatFallback, best: Attempt, checked: Attempt) -> Attempt | str | None:
        """Return what the search ended with, with its score on the target, or why it does not run there.

        None is returned where nothing meets the tolerance there.

        Args:
            fallback: Gives layers back where the target is below the tolerance and the graph is not.
            best: What the search ended with.
            checked: What ran on the target before layers were traded.
        """
        score = self.judge.check.score(best.model)
        if isinstance(score, NotRun):
            if not score.refused or self.judge.check.refuses_float(self.model):
                return best
            if best is checked or not self.judge.meets(checked):
                return f"int8 is not for {self.judge.check.target}: {score.reason}"
            self.report.note(f"layers are as they were before trading: {score.reason}")
            return self._as_it_runs(fallback, checked, checked)
        ran = attrs.evolve(best, score=score)
        short = self.judge.close_enough(best.score) and not self.judge.close_enough(score)
        self.judge.on_target = True
        return fallback.meet(ran) if short else ran

    # ---- what there is to say ----

    def _note(self, *sentences: str) -> None:
        for sentence in sentences:
            self.report.note(sentence)

    def _say(self, best: Attempt, fallback: FloatFallback, outputs: Sequence[str]) -> None:
        """Tell what was done, how close it is and what was not looked at."""
        if outputs:
            self.report.note(
                f"outputs made by {', '.join(map(repr, outputs))} are 8-bit values, for the time that it "
                "saves; keep_float=... keeps them fine"
            )
        if fallback.unmeasured and self.options.effort.places and self.options.measure:
            reason = fallback.unmeasured
            self.report.note(f"no layer was timed, multiply-accumulates stand for time: {reason}")
        self._note(*filter(None, [fallback.cut_short]))
        for sentence in (*self.judge.describe_score(best.score), *self._split(best.model)):
            self.report.result(sentence)

    def _split(self, model: Model) -> list[str]:
        """Say how many layers are in integers, and why the others are in float."""
        integer = integer_nodes(model.ir)
        floats = {place.node for place in layer_like(model.ir)} - integer
        skipped = [(entry.node, entry.reason) for entry in self.report.skipped if entry.node in floats]
        said = [f"{len(integer)} layers in integers, {len(floats)} in float"]
        for group in group_entries(skipped)[:_REASONS]:
            said.append(f"in float, {group.number}: {group.text}: {group.where()}")
        return said

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
        self.report.result(why)

    def _pays(self, after: Model) -> bool:
        """Time the int8 model against the one that was given; tell, and return whether to keep it."""
        report, seconds = self.report, self.options.effort.final_seconds
        if self.stopwatch is None:
            report.result("the speed was not measured: measuring is off")
            return True
        speed = self.stopwatch.compare(self.given, after, self.to_time, seconds=seconds)
        if isinstance(speed, NotMeasured) and self.given is not self.model:
            # The target may not take what transforms before this one have rewritten.
            against_ours = self.stopwatch.compare(self.model, after, self.to_time, seconds=seconds)
            if not isinstance(against_ours, NotMeasured):
                report.note(f"timed against the rewritten float model, not the given one: {speed.reason}")
                speed = against_ours
        if isinstance(speed, NotMeasured):
            report.result(f"the speed was not measured: {speed.reason}")
            return True
        if speed.ratio > 1.0:
            report.data["speedup"] = speed.ratio
            report.result(f"faster than the model that was given: {speed.describe()}")
            return True
        report.applied.clear()
        self._told_slower(speed)
        return False

    def _told_slower(self, speed: Speedup) -> None:
        self.report.data["speedup"] = speed.ratio
        self.report.skip("", f"int8 is not faster than the model that was given: {speed.describe()}")
        self.report.result(f"stays in float, int8 is not faster: {speed.describe()}")
