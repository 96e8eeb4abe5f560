"""Successive halving: the best candidates are timed in turns, half of them is kept and timed longer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any

import attrs

from edgeinfer.budget import Budget
from edgeinfer.tuning.actions import Action, Problem, Time
from edgeinfer.tuning.estimate import Estimator
from edgeinfer.tuning.space import FLOAT
from edgeinfer.tuning.state import Made, State

__all__ = [
    "WORTH_DB",
    "by_exchange",
    "entrants",
    "keeps_limits",
    "latency_limit",
    "next_batch",
    "next_rung",
    "ranking",
    "same_model",
    "survivors",
]

_FIRST_RUNG, _SURVIVORS = 8, 4
_RUNS = 50  # in the first rung
_LARGER_BATCH = 10_000  # between the index of a candidate and that of the same one with the next larger batch
_HOPELESS_DB = 3.0  # noise half as strong as the signal
# What half the time is worth, in dB, where no latency is asked for: nobody knows, so each in turn.
WORTH_DB = (4.0, 8.0, 16.0, 32.0)


def next_rung(state: State, problem: Problem) -> Action | None:
    """Return the next rung: half of the last one, timed twice as long."""
    rungs = [rung for rung in state.rungs if rung.name == "halving"]
    by_trial = entrants(state, problem)
    if rungs and len([index for index in rungs[-1].timings if index != FLOAT]) <= _SURVIVORS:
        return None
    # Which options are the fastest is decided once, or later timings could leave a model with none.
    pool = set(rungs[-1].timings) if rungs else set(by_trial) - _outdone(state, problem)
    able = [
        index
        for index in sorted(pool - {FLOAT})
        if by_trial[index].outcome == "ok"
        and (by_trial[index].rank_db or -math.inf) >= _HOPELESS_DB
        and state.latency_ms(index) is not None
    ]
    if not able:
        return None
    count = _FIRST_RUNG if not rungs else max(_SURVIVORS, len(able) // 2)
    ranked = ranking(state, problem, able)[:count]
    trials = [(FLOAT, problem.space.baselines()[FLOAT])]
    trials += [(index, by_trial[index].candidate) for index in sorted(ranked)]
    return Time("halving", tuple(trials), _RUNS * 2 ** len(rungs))


def next_batch(state: State, problem: Problem) -> Action | None:
    """Return the timing of the survivors with the next larger batch, but for those beyond the limit.

    A request waits for all of its batch, so what is too slow with one batch is too slow with a larger one.
    """
    limit = latency_limit(problem.budget)
    by_trial = entrants(state, problem)
    for place, batch in enumerate(problem.batches[1:], 1):
        first = place * _LARGER_BATCH
        if any(index >= first for index in state.timings):
            continue
        smaller = [index for index in survivors(state) if index >= first - _LARGER_BATCH]
        able = [index for index in smaller if (state.latency_ms(index) or math.inf) <= limit]
        trials = [
            (index + _LARGER_BATCH, attrs.evolve(by_trial[index].candidate, batch=batch)) for index in able
        ]
        return Time("batch", tuple(trials), _RUNS) if trials else None
    return None


def same_model(index: int) -> int:
    """Return the index of the candidate with the smallest batch that has the same model and options."""
    return index % _LARGER_BATCH


def _outdone(state: State, problem: Problem) -> set[int]:
    """Return the baselines whose model is faster with other options: they are as accurate, so that is all."""
    budget = problem.budget
    if (budget.peak_bytes, budget.latency_p99_ms, budget.power_w) != (None, None, None):
        return set()  # of which options may decide, too
    baselines, options = problem.space.baselines(), problem.space.options
    estimator = Estimator(state, baselines)
    best = {each.precision: options[estimator.best_options(each.precision, options)] for each in baselines}
    return {i for i, each in enumerate(baselines) if i != FLOAT and each.options != best[each.precision]}


def entrants(state: State, problem: Problem) -> dict[int, Made]:
    """Return what was made by index.

    What shares a model is there, too: the baselines with other options, the survivors with larger batches.
    """
    found = {made.trial: made for made in state.made.values()}
    for index, candidate in enumerate(problem.space.baselines()):
        made = state.made.get(candidate.model_key)
        if made is not None:
            found[index] = attrs.evolve(made, trial=index, candidate=candidate)
    if problem.batches:
        smallest = problem.batches[0]
        found = {
            i: attrs.evolve(made, candidate=attrs.evolve(made.candidate, batch=smallest))
            for i, made in found.items()
        }
    for index in state.timings:
        if same_model(index) != index:
            made = found[same_model(index)]
            batch = problem.batches[index // _LARGER_BATCH]
            candidate = attrs.evolve(made.candidate, batch=batch)
            found[index] = attrs.evolve(made, trial=index, candidate=candidate)
    return found


def ranking(state: State, problem: Problem, indices: Iterable[int]) -> list[int]:
    """Return candidates that were timed, the most promising first.

    With a limit on latency those that keep it come first, by closeness. Without one, each rate of exchange
    between time and closeness has its own order, and they take turns.
    """
    able = list(indices)
    if math.isfinite(latency_limit(problem.budget)):
        return sorted(able, key=lambda index: _rank(state, problem, index))
    return by_exchange(state, problem, able)


def by_exchange(state: State, problem: Problem, indices: Iterable[int]) -> list[int]:
    """Return what was timed: each rate of exchange between time and closeness has its best in turn."""
    able = list(indices)
    close = {index: min(made.rank_db or 0.0, 60.0) for index, made in entrants(state, problem).items()}
    times = {index: math.log2(state.latency_ms(index) or math.inf) for index in able}
    orders = [
        sorted(able, key=lambda index: (weight * times[index] - close[index], index)) for weight in WORTH_DB
    ]
    return list(dict.fromkeys(itertools.chain.from_iterable(zip(*orders, strict=True))))


def keeps_limits(state: State, problem: Problem, index: int) -> bool:
    """Return whether a candidate that was timed keeps the limits, except that on the metric."""
    return _rank(state, problem, index)[0] <= 1.0


def _rank(state: State, problem: Problem, index: int) -> tuple[float, ...]:
    """What sorts candidates: those within the limits by closeness, then the others by how near."""
    budget = problem.budget
    made = entrants(state, problem)[index]
    over = 1.0
    for limit, percent in ((budget.latency_p50_ms, 50), (budget.latency_p99_ms, 99)):
        figure = state.latency_ms(index, percent)
        over = max(over, figure / limit) if limit is not None and figure is not None else over
    disk = state.timings[index].disk_bytes
    if budget.disk_bytes is not None and disk is not None:
        over = max(over, disk / budget.disk_bytes)
    if budget.min_sqnr_db is not None and (made.sqnr_db or -math.inf) < budget.min_sqnr_db:
        over += 1.0
    return (over, -(made.rank_db or 0.0), state.latency_ms(index) or math.inf, index)


def survivors(state: State) -> tuple[int, ...]:
    """Return the candidates of the last rung of the halving that could be timed, with the float model.

    Behind them come the same with larger batches, as far as these were timed.
    """
    last = [rung for rung in state.rungs if rung.name == "halving"][-1:]
    last += [rung for rung in state.rungs if rung.name == "batch"]
    found = {FLOAT} | {i for rung in last for i, t in rung.timings.items() if t.outcome == "ok"}
    return tuple(sorted(found))


def latency_limit(budget: Budget) -> float:
    """Return the tighter limit on the latency in ms; infinity where there is none."""
    limits: list[Any] = [budget.latency_p50_ms, budget.latency_p99_ms]
    return min((limit for limit in limits if limit is not None), default=math.inf)
