"""From what a journal says to the result: who keeps the limits, who is best, why the others lost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import final

import attrs

from edgeinfer.budget import Budget, Violation
from edgeinfer.model.model import Model
from edgeinfer.tuning.actions import Problem
from edgeinfer.tuning.advice import Advice, Nearest, advise
from edgeinfer.tuning.candidate import Candidate
from edgeinfer.tuning.estimate import Estimator
from edgeinfer.tuning.halving import entrants, same_model, survivors
from edgeinfer.tuning.planner import MAKING_PART, dropped, space_of
from edgeinfer.tuning.recipe import Recipe
from edgeinfer.tuning.result import TuningResult
from edgeinfer.tuning.space import FLOAT
from edgeinfer.tuning.state import PRESSURE_PERCENT, Made, State
from edgeinfer.tuning.trial import Trial

__all__ = ["Facts", "result_of"]

_PERFORMANCE = ("latency_p50_ms", "latency_p99_ms", "peak_bytes", "disk_bytes", "power_w", "temperature_c")


@final
@attrs.frozen(kw_only=True)
class Facts:
    """What the result says beside what the journal says.

    Attributes:
        target: The target, as text.
        where: The machine or device.
        devices: From the candidate that came nearest to what is expected of other devices.
        shapes: The shapes of one feed.
        open_sides: Whether the model takes images of other sizes.
        load: From a candidate to its model and recipe.
        notes: What must be said.
    """

    target: str
    where: str
    devices: Callable[[Candidate], Sequence[Advice]]
    shapes: Mapping[str, Sequence[int]]
    open_sides: bool
    load: Callable[[Candidate], tuple[Model, Recipe]]
    notes: tuple[str, ...] = ()


def result_of(state: State, problem: Problem, facts: Facts) -> TuningResult:
    """Return the result of a journal."""
    made = entrants(state, problem)
    final_ones = set(survivors(state))
    final_ones |= {index for index in state.metrics if index in made}
    estimator = Estimator(state, problem.space.baselines())
    shown = {
        index: each
        for index, each in made.items()
        if index in state.timings or each.outcome != "ok" or each.trial == index
    }
    trials = {
        index: _trial(index, each, state, problem, estimator, index in final_ones, facts)
        for index, each in sorted(shown.items())
    }
    fitting = [trial for trial in trials.values() if trial.index in final_ones and not trial.violations]
    chosen = _best(fitting, problem.budget)
    trials = {
        index: attrs.evolve(trial, lost=_why_lost(trial, chosen, state, index in final_ones))
        for index, trial in trials.items()
    }
    advice = () if chosen is not None else _advice(list(trials.values()), final_ones, facts)
    space = space_of(state, problem)
    candidates = space.candidates(problem.seed)
    gone = dropped(state, problem) if state.latency_ms(FLOAT) is not None else {}
    sqnr = dict(state.sensitivity or ())
    return TuningResult(
        budget=problem.budget,
        target=facts.target,
        where=facts.where,
        trials=tuple(trials.values()),
        pareto=_pareto([trials[index] for index in sorted(final_ones) if index in trials]),
        chosen=chosen.index if chosen is not None else None,
        advice=advice,
        candidates=len(candidates),
        dropped=len(gone),
        clock=state.clock,
        seconds=state.seconds,
        layers=tuple(
            (layer.node, layer.op_type, layer.macs, sqnr.get(layer.node)) for layer in state.layers or ()
        ),
        layer_us=state.layer_us.get(chosen.index if chosen is not None else FLOAT, {}),
        notes=(*facts.notes, *_notes(state, problem, all_dropped=len(gone) >= len(candidates))),
    )


def _trial(
    index: int,
    made: Made,
    state: State,
    problem: Problem,
    estimator: Estimator,
    final_one: bool,
    facts: Facts,
) -> Trial:
    timing = state.timings.get(index)
    estimate = estimator.estimate(made.candidate) if same_model(index) == index else None
    metric = state.metrics.get(same_model(index))
    float_metric = state.metrics.get(FLOAT)
    outcome, lost = made.outcome, made.reason
    if timing is not None and timing.outcome != "ok":
        outcome, lost = timing.outcome, f"while it was timed: {timing.reason}"
    trial = Trial(
        index=index,
        candidate=made.candidate,
        outcome=outcome,
        stage=_stage(index, state, final_one),
        lost=lost,
        latency_p50_ms=state.latency_ms(index),
        latency_p99_ms=state.latency_ms(index, 99),
        estimate_ms=estimate.latency_ms if estimate is not None else None,
        metric=metric,
        drop=None if metric is None or float_metric is None else float_metric - metric,
        sqnr_db=made.sqnr_db,
        peak_bytes=state.peaks.get(index),
        disk_bytes=timing.disk_bytes if timing is not None else None,
        macs=made.macs,
        weight_bytes=made.weight_bytes,
        float_layers=made.float_layers,
        latencies_ms=timing.latencies_ms if timing is not None else (),
        notes=made.notes,
        load=(lambda: facts.load(made.candidate)) if made.outcome == "ok" else None,
    )
    return attrs.evolve(trial, violations=problem.budget.check(trial))


def _stage(index: int, state: State, final_one: bool) -> str:
    if same_model(index) in state.metrics:
        return "evaluated"
    if final_one:
        return "halving"
    return "timed" if index in state.timings else "made"


def _best(fitting: Sequence[Trial], budget: Budget) -> Trial | None:
    """Return the most accurate one; with no limit but on accuracy, the fastest.

    Of those that are as accurate it is the one with the most rows in a second.
    """
    limited = any(getattr(budget, name) is not None for name in _PERFORMANCE)
    row_ms = {trial.index: trial.row_ms or math.inf for trial in fitting}
    if not limited:
        return min(fitting, key=lambda trial: (row_ms[trial.index], trial.index), default=None)
    return min(
        fitting,
        key=lambda trial: (-(trial.accuracy or -math.inf), row_ms[trial.index], trial.index),
        default=None,
    )


def _pareto(trials: Sequence[Trial]) -> tuple[int, ...]:
    """Return those that no other one beats in accuracy, latency, rows in a second and memory at once.

    The fastest comes first.
    """
    able = [t for t in trials if t.latency_p50_ms is not None and t.accuracy is not None]
    judged = [trial for trial in able if trial.metric is not None]
    able = judged or able  # a metric and an SQNR cannot be compared
    found = [trial for trial in able if not any(_beats(other, trial) for other in able)]
    return tuple(trial.index for trial in sorted(found, key=lambda trial: trial.latency_p50_ms or 0.0))


def _beats(a: Trial, b: Trial) -> bool:
    pairs = [
        (-(a.accuracy or 0.0), -(b.accuracy or 0.0)),
        (a.latency_p50_ms or math.inf, b.latency_p50_ms or math.inf),
        (a.row_ms or math.inf, b.row_ms or math.inf),
        (a.peak_bytes or 0, b.peak_bytes or 0),
    ]
    return all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)


def _why_lost(trial: Trial, chosen: Trial | None, state: State, final_one: bool) -> str:
    if chosen is not None and trial.index == chosen.index:
        return ""
    if trial.outcome != "ok":
        return f"{trial.outcome}: {trial.lost}"
    if same_model(trial.index) in state.failures:
        return f"evaluation {state.failures[same_model(trial.index)]}"
    measured = [violation.describe() for violation in trial.violations if not violation.not_measured]
    if measured:
        return "; ".join(measured)
    if not final_one:
        return (
            "others were closer to float, or faster, when it was timed"
            if trial.stage == "timed"
            else ("it was not timed: the time was over")
        )
    if trial.violations:
        return "; ".join(violation.describe() for violation in trial.violations)
    return "keeps the budget; the best one is more accurate, or as accurate and faster"


def _advice(trials: Sequence[Trial], final_ones: set[int], facts: Facts) -> tuple[Advice, ...]:
    """Return what is to be said about the survivor whose worst limit is broken by the least."""
    able = [t for t in trials if t.index in final_ones and t.outcome == "ok"]
    if not able:
        return ()

    def excess(trial: Trial) -> tuple[float, float]:
        ratios = [_ratio(violation) for violation in trial.violations]
        return max(ratios, default=0.0), sum(ratios)

    trial = min(able, key=excess)
    nearest = Nearest(
        described=f"candidate {trial.index}, {trial.candidate.describe()}", violations=trial.violations
    )
    return advise(
        nearest,
        shapes=facts.shapes,
        open_sides=facts.open_sides,
        devices=facts.devices(trial.candidate),
    )


def _ratio(violation: Violation) -> float:
    """How far from the limit it is; what was not measured is the same for all."""
    if violation.figure is None:
        return 1.0
    return violation.ratio if violation.ratio is not None and math.isfinite(violation.ratio) else 10.0


def _notes(state: State, problem: Problem, *, all_dropped: bool) -> list[str]:
    notes = []
    if state.pressed:
        worst = max(rung.pressure or 0.0 for rung in state.rungs)
        waited = sum(rung.waited_s for rung in state.rungs)
        how = (
            "candidates are compared by processor time"
            if state.clock == "processor"
            else "latencies are those on the wall and may be too high, because not all candidates run on one "
            "thread of a CPU"
        )
        notes.append(
            f"the machine was under pressure: some task waited for a processor in up to {worst:.0f} % of the "
            f"time (above {PRESSURE_PERCENT:.0f} % is too much); after waiting {waited:.0f} s, {how}"
        )
    first = len(problem.space.baselines())
    over = problem.seconds is not None and state.seconds >= MAKING_PART * problem.seconds
    only_baselines = all(made.trial < first for made in state.made.values())
    if only_baselines and all_dropped:
        notes.append("every other candidate is beyond a limit by its estimate, so none was made")
    elif only_baselines and over:
        notes.append(
            f"{(problem.seconds or 0) / 60:.3g} minutes were too few: they were over when the baselines had "
            "been measured, and no other candidate was made"
        )
    if not problem.evaluates:
        notes.append("no metric was given: accuracy is the SQNR of the outputs on a few feeds")
    if problem.budget.max_drop is not None and not problem.evaluates:
        notes.append("max_drop cannot be checked without evaluate")
    return notes
