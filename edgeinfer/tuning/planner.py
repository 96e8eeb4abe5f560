"""What to do next, decided from the journal alone.

`next_action(state, problem)` is a pure function: the same journal gives the same action, so a run that was
killed goes on as if nothing had happened. The order:

1. Prepare the model. Make and measure the baselines: float and int8, with each set of options.
2. See how sensitive each layer is to int8, if there is time for it.
3. Make candidates, one at a time, and look how close their outputs are. Out of about a thousand, those whose
   estimated latency is beyond the limit and the band of the estimate are dropped; of the rest the one with
   the best expected closeness is next, and every third time one of the ten best, drawn by (seed, trial).
   After every few, those are timed, which corrects the estimates.
4. Successive halving: time the best in turns, keep half, time longer. Of a model with several sets of options
   the fastest one takes part.
5. Evaluate the survivors with the user's metric, and measure their memory.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any

import attrs
import numpy as np

from edgeinfer.budget import Budget
from edgeinfer.tuning.actions import (
    Action,
    Evaluate,
    Finish,
    Make,
    MeasureMemory,
    MeasureSensitivity,
    Prepare,
    Problem,
    Time,
)
from edgeinfer.tuning.candidate import Candidate
from edgeinfer.tuning.closeness import ClosenessGuess
from edgeinfer.tuning.estimate import Estimator
from edgeinfer.tuning.optuna_sampler import Tried, propose
from edgeinfer.tuning.space import FLOAT, Space
from edgeinfer.tuning.state import Made, State

__all__ = [
    "MAKING_PART",
    "dropped",
    "entrants",
    "next_action",
    "ranking",
    "space_of",
    "survivors",
]

_MODELS = 14  # made beside the baselines, where no time is given
_MOST_MODELS = 40
MAKING_PART = 0.5  # of the time, for making models and for timing them on the way
# What quantizing one layer alone takes, of what quantizing all takes; the part of the time for all layers.
_SENSITIVITY_PER_LAYER, _SENSITIVITY_PART = 0.1, 0.15
_PROBE = 4  # so many new ones are timed together
_FIRST_RUNG, _SURVIVORS = 8, 4
_RUNS = {"baseline": 40, "probe": 20, "halving": 50}
_HOPELESS_DB = 3.0  # noise half as strong as the signal
_DRAWN_FROM = 10
# What half the time is worth, in dB, where no latency is asked for: nobody knows, so each in turn.
_WORTH_DB = (4.0, 8.0, 16.0, 32.0)


def space_of(state: State, problem: Problem) -> Space:
    """Return the space, with what the journal says of the model."""
    sensitive = tuple(node for node, _ in state.sensitivity or ())
    return attrs.evolve(problem.space, prunes=state.prunes, sensitive=sensitive)


def next_action(state: State, problem: Problem) -> Action:
    """Return what to do next; see the module."""
    if state.layers is None:
        return Prepare()
    baselines = problem.space.baselines()
    for index, candidate in enumerate(baselines):
        if candidate.model_key not in state.made:
            return Make(index, candidate)
    if not _ok(state, baselines[FLOAT]):
        return Finish()
    if not state.rungs:
        able = [pair for pair in enumerate(baselines) if _ok(state, pair[1])]
        return Time("baseline", tuple(able), _RUNS["baseline"])
    if state.sensitivity is None and _worth_its_time(state, problem):
        return MeasureSensitivity()
    if state.latency_ms(FLOAT) is None:
        return Finish()
    return _search(state, problem) or _halving(state, problem) or _last(state, problem) or Finish()


def _worth_its_time(state: State, problem: Problem) -> bool:
    """Whether there is time to quantize each layer alone, which takes about so long as to quantize all."""
    int8 = next((each for each in problem.space.baselines() if each.precision == "int8"), None)
    made = state.made.get(int8.model_key) if int8 is not None else None
    if made is None or made.outcome != "ok":
        return False
    expected = made.seconds * _SENSITIVITY_PER_LAYER * len(state.layers or ())
    return problem.seconds is None or expected <= _SENSITIVITY_PART * problem.seconds


def dropped(state: State, problem: Problem) -> dict[int, str]:
    """Return the candidates that are not made because of their estimate, with the reason."""
    estimator = Estimator(state, problem.space.baselines())
    limit = _latency_limit(problem.budget)
    found = {}
    for index, candidate in enumerate(space_of(state, problem).candidates(problem.seed)):
        estimate = estimator.estimate(candidate)
        if estimate is None:
            found[index] = "there is no baseline to estimate it from"
        elif estimate.latency_ms * (1 - estimate.band) > limit:
            expected = f"{estimate.latency_ms:.3g} ms ± {estimate.band:.0%}"
            found[index] = f"estimated {expected}, where {limit:.3g} ms is allowed"
    return found


def _search(state: State, problem: Problem) -> Action | None:
    """Return the next candidate to make, or the timing of those made last."""
    timed = state.timings
    new = [made for made in state.made.values() if made.outcome == "ok" and made.trial not in timed]
    done = _making_is_over(state, problem)
    chosen = None if done else _propose(state, problem)
    if new and (len(new) >= _PROBE or chosen is None) and not _halved(state):
        reference = (FLOAT, problem.space.baselines()[FLOAT])
        trials = (reference, *((made.trial, made.candidate) for made in new))
        return Time("probe", trials, _RUNS["probe"])
    return Make(*chosen) if chosen is not None and not _halved(state) else None


def _kind(candidate: Candidate) -> tuple[str, float, str]:
    """What fails together: the same pruning in the same precision; int8 with all efforts only one by one."""
    effort = "searched" if candidate.effort == "searched" else ""
    return candidate.prune, candidate.keep, candidate.precision + effort


def _making_is_over(state: State, problem: Problem) -> bool:
    count = sum(1 for made in state.made.values() if made.trial >= len(problem.space.baselines()))
    if problem.seconds is None:
        return count >= _MODELS
    return count >= _MOST_MODELS or state.seconds >= MAKING_PART * problem.seconds


def _propose(state: State, problem: Problem) -> tuple[int, Candidate] | None:
    """Return the candidate to make next: by (seed, trial index, journal) alone."""
    space = space_of(state, problem)
    candidates = space.candidates(problem.seed)
    estimator = Estimator(state, problem.space.baselines())
    guess = ClosenessGuess(state)
    limit = _latency_limit(problem.budget)
    best = {
        precision: space.options[estimator.best_options(precision, space.options)]
        for precision in space.precisions
    }
    hopeless = {_kind(made.candidate) for made in state.made.values() if made.outcome != "ok"}
    scored: list[tuple[float, int]] = []
    for index, candidate in enumerate(candidates):
        if candidate.model_key in state.made or candidate.options != best[candidate.precision]:
            continue
        if _kind(candidate) in hopeless:
            continue
        estimate = estimator.estimate(candidate)
        if estimate is None or estimate.latency_ms * (1 - estimate.band) > limit:
            continue
        scored.append((-_worth(state, problem, guess.db(candidate), estimate.latency_ms), index))
    if not scored:
        return None
    scored.sort()
    number = len(state.made)
    place = 0
    if problem.sampler == "optuna":
        tried = [
            Tried(made.candidate, _worth(state, problem, guess.db(made.candidate), took))
            for made in state.made.values()
            if (took := _known_ms(state, estimator, made)) is not None
        ]
        place = propose(tried, [candidates[i] for _, i in scored], seed=problem.seed, number=number)
    elif number % 3 == 2:
        place = int(np.random.default_rng((problem.seed, number)).integers(min(_DRAWN_FROM, len(scored))))
    index = scored[place][1]
    return index, candidates[index]


def _worth(state: State, problem: Problem, close_db: float, latency_ms: float) -> float:
    """What a closeness and a latency are worth, in dB."""
    limit = _latency_limit(problem.budget)
    if math.isfinite(limit):
        # Beyond the limit only what the estimate may be wrong about.
        return min(close_db, 60.0) - 100 * max(0.0, latency_ms / limit - 1)
    weight = _WORTH_DB[len(state.made) % len(_WORTH_DB)]
    return min(close_db, 60.0) - weight * math.log2(latency_ms / (state.latency_ms(FLOAT) or 1.0))


def _known_ms(state: State, estimator: Estimator, made: Made) -> float | None:
    """The latency that was measured, or else the one that is expected."""
    if made.outcome != "ok":
        return None
    measured = state.latency_ms(made.trial)
    estimate = estimator.estimate(made.candidate) if measured is None else None
    return estimate.latency_ms if estimate is not None else measured


def _halving(state: State, problem: Problem) -> Action | None:
    """Return the next rung: half of the last one, timed twice as long."""
    rungs = [rung for rung in state.rungs if rung.name == "halving"]
    by_trial = entrants(state, problem)
    if rungs and len([index for index in rungs[-1].timings if index != FLOAT]) <= _SURVIVORS:
        return None
    outdone = _outdone(state, problem)
    pool = [i for i in (rungs[-1].timings if rungs else by_trial) if i != FLOAT and i not in outdone]
    able = [
        index
        for index in pool
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
    return Time("halving", tuple(trials), _RUNS["halving"] * 2 ** len(rungs))


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
    """Return what was made by index; of the baselines also those with other options, which share a model."""
    found = {made.trial: made for made in state.made.values()}
    for index, candidate in enumerate(problem.space.baselines()):
        made = state.made.get(candidate.model_key)
        if made is not None:
            found[index] = attrs.evolve(made, trial=index, candidate=candidate)
    return found


def _ok(state: State, candidate: Candidate) -> bool:
    made = state.made.get(candidate.model_key)
    return made is not None and made.outcome == "ok"


def _halved(state: State) -> bool:
    return any(rung.name == "halving" for rung in state.rungs)


def ranking(state: State, problem: Problem, indices: Iterable[int]) -> list[int]:
    """Return candidates that were timed, the most promising first.

    With a limit on latency those that keep it come first, by closeness. Without one, each rate of exchange
    between time and closeness has its own order, and they take turns.
    """
    able = list(indices)
    if math.isfinite(_latency_limit(problem.budget)):
        return sorted(able, key=lambda index: _rank(state, problem, index))
    close = {index: min(made.rank_db or 0.0, 60.0) for index, made in entrants(state, problem).items()}
    times = {index: math.log2(state.latency_ms(index) or math.inf) for index in able}
    orders = [
        sorted(able, key=lambda index: (weight * times[index] - close[index], index)) for weight in _WORTH_DB
    ]
    return list(dict.fromkeys(itertools.chain.from_iterable(zip(*orders, strict=True))))


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
    """Return the candidates of the last rung of the halving that could be timed, with the float model."""
    rungs = [rung for rung in state.rungs if rung.name == "halving"]
    found = {FLOAT} | ({i for i, t in rungs[-1].timings.items() if t.outcome == "ok"} if rungs else set())
    return tuple(sorted(found))


def _last(state: State, problem: Problem) -> Action | None:
    """Return what is to be found out of the survivors yet: the metric, best first, then the memory."""
    candidates = {index: made.candidate for index, made in entrants(state, problem).items()}
    left = [index for index in survivors(state) if index != FLOAT]
    order = [FLOAT, *ranking(state, problem, left)]
    if problem.evaluates:
        for index in order:
            if index not in state.metrics:
                return Evaluate(index, candidates[index])
    for index in order:
        if index not in state.peaks:
            return MeasureMemory(index, candidates[index])
    return None


def _latency_limit(budget: Budget) -> float:
    limits: list[Any] = [budget.latency_p50_ms, budget.latency_p99_ms]
    return min((limit for limit in limits if limit is not None), default=math.inf)
