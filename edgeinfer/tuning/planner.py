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
5. Time the survivors with larger batches, where these were asked for.
6. Evaluate the survivors with the user's metric, and measure their memory. Where none of them keeps the
   budget, evaluate a few others that are slower and closer, too: they show how near it comes.
"""

from __future__ import annotations

import math

import attrs
import numpy as np

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
from edgeinfer.tuning.halving import (
    WORTH_DB,
    by_exchange,
    entrants,
    keeps_limits,
    latency_limit,
    next_batch,
    next_rung,
    ranking,
    same_model,
    survivors,
)
from edgeinfer.tuning.optuna_sampler import Tried, propose
from edgeinfer.tuning.space import FLOAT, Space
from edgeinfer.tuning.state import Made, State

__all__ = [
    "MAKING_PART",
    "dropped",
    "next_action",
    "space_of",
]

_MODELS = 14  # made beside the baselines, where no time is given
_MOST_MODELS = 40
MAKING_PART = 0.5  # of the time, for making models and for timing them on the way
# What quantizing one layer alone takes, of what quantizing all takes; the part of the time for all layers.
_SENSITIVITY_PER_LAYER, _SENSITIVITY_PART = 0.1, 0.15
_PROBE = 4  # so many new ones are timed together
_RUNS = {"baseline": 40, "probe": 20}
_DRAWN_FROM = 10
_INSTEAD = 3  # evaluated where no survivor keeps the budget


def space_of(state: State, problem: Problem) -> Space:
    """Return the space, with what the journal says of the model."""
    sensitive = tuple(node for node, _ in state.sensitivity or ())
    useless = state.prepared.get("changes_nothing", ())
    precisions = tuple(each for each in problem.space.precisions if each not in useless)
    return attrs.evolve(problem.space, precisions=precisions, prunes=state.prunes, sensitive=sensitive)


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
    return (
        _search(state, problem)
        or next_rung(state, problem)
        or next_batch(state, problem)
        or _last(state, problem)
        or Finish()
    )


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
    limit = latency_limit(problem.budget)
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
    return candidate.prune, candidate.keep, candidate.precision + effort + repr(candidate.narrow)


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
    limit = latency_limit(problem.budget)
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
    limit = latency_limit(problem.budget)
    if math.isfinite(limit):
        # Beyond the limit only what the estimate may be wrong about.
        return min(close_db, 60.0) - 100 * max(0.0, latency_ms / limit - 1)
    weight = WORTH_DB[len(state.made) % len(WORTH_DB)]
    return min(close_db, 60.0) - weight * math.log2(latency_ms / (state.latency_ms(FLOAT) or 1.0))


def _known_ms(state: State, estimator: Estimator, made: Made) -> float | None:
    """The latency that was measured, or else the one that is expected."""
    if made.outcome != "ok":
        return None
    measured = state.latency_ms(made.trial)
    estimate = estimator.estimate(made.candidate) if measured is None else None
    return estimate.latency_ms if estimate is not None else measured


def _instead(state: State, problem: Problem) -> list[int]:
    """Return others than the survivors that are worth evaluating because no survivor keeps the budget."""
    most, metrics = problem.budget.max_drop, state.metrics
    original = metrics.get(FLOAT)
    left = survivors(state)
    if most is None or original is None:
        return []
    for index in left:
        metric = metrics.get(same_model(index))
        if metric is not None and original - metric <= most and keeps_limits(state, problem, index):
            return []
    slowest = state.latency_ms(FLOAT) or math.inf
    others = [
        index
        for index, made in entrants(state, problem).items()
        if index not in left and made.outcome == "ok" and (state.latency_ms(index) or math.inf) < slowest
    ]
    return by_exchange(state, problem, others)[:_INSTEAD]


def _ok(state: State, candidate: Candidate) -> bool:
    made = state.made.get(candidate.model_key)
    return made is not None and made.outcome == "ok"


def _halved(state: State) -> bool:
    return any(rung.name == "halving" for rung in state.rungs)


def _last(state: State, problem: Problem) -> Action | None:
    """Return what is to be found out of the survivors yet: the metric, best first, then the memory."""
    candidates = {index: made.candidate for index, made in entrants(state, problem).items()}
    left = [index for index in survivors(state) if index != FLOAT]
    order = [FLOAT, *ranking(state, problem, left)]
    if problem.evaluates:
        for index in order:
            if same_model(index) not in state.metrics:
                return Evaluate(same_model(index), candidates[same_model(index)])
        instead = _instead(state, problem)
        order += instead
        for index in instead:
            if index not in state.metrics:
                return Evaluate(index, candidates[index])
    for index in order:
        if index not in state.peaks:
            return MeasureMemory(index, candidates[index])
    return None
