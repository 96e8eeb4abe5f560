"""What structured pruning removes: channels ranked within groups, a budget shared out among the groups."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import final

import attrs
import numpy as np
import onnx_ir as ir

from edgeinfer.calibration.moments import MomentObserver
from edgeinfer.display import track
from edgeinfer.graph.channels.groups import Dependencies
from edgeinfer.pruning.budget.allocate import allocate_closely
from edgeinfer.pruning.budget.cost import CostModel
from edgeinfer.pruning.budget.criteria import Criterion, Ranking, rank
from edgeinfer.pruning.budget.latency_plan import plan_by_latency
from edgeinfer.pruning.budget.observed_shapes import observe_shapes
from edgeinfer.pruning.budget.proposal import Proposal, Trial, chosen_channels
from edgeinfer.pruning.budget.sensitivity import Fold, measured_errors, plan_error, scored_outputs
from edgeinfer.pruning.budget.settings import Settings
from edgeinfer.pruning.reconstruction.batches import few, halves
from edgeinfer.pruning.reconstruction.statistics import input_moments

__all__ = ["Plan", "plan"]

# Errors of groups do not just add up: below 1 a plan takes much from few groups, above 1 little from many.
_POWERS = (0.5, 1.0, 2.0)


@final
@attrs.frozen(kw_only=True)
class Plan:
    """What is to be removed.

    Attributes:
        removed: Channel indices by group name.
        before: The cost before.
        after: The cost after.
        moments: The moments of the inputs of the layers that read the groups, by name.
        notes: What the report says of how it came about.
    """

    removed: Mapping[str, tuple[int, ...]]
    before: float
    after: float
    moments: Mapping[str, MomentObserver]
    notes: tuple[str, ...] = ()


def plan(
    model: ir.Model,
    dependencies: Dependencies,
    settings: Settings,
    columns: int,
    budget: float | None = None,
) -> Plan:
    """Choose the channels to remove.

    Args:
        model: The graph that was analyzed.
        dependencies: What `analyze` found on it, only the groups that may be pruned among its groups.
        settings: How.
        columns: How many output positions to take of each feed.
        budget: The cost to reach; None: the settings' part of the present cost.
    """
    groups, feeds = dependencies.groups, settings.feeds
    layers = {layer.name: layer for layer in dependencies.layers}
    needed = list(dict.fromkeys(name for group in groups for name in group.consumers))
    criterion: Criterion = settings.criterion
    parts = [] if feeds is None else halves(feeds)
    if feeds is None:
        criterion = criterion if criterion in ("magnitude", "random") else "magnitude"
    seen = [input_moments(model, [layers[n] for n in needed], part, columns) for part in parts]
    rankings = {
        group.name: rank(group, layers, _merged(seen, group.consumers), criterion, settings.seed)
        for group in track(groups, "ranking channels", progress=settings.progress)
    }
    errors: Mapping[str, Sequence[float]] = {name: ranking.errors for name, ranking in rankings.items()}
    scored, notes = scored_outputs(model)
    folds: list[Fold] = []
    if scored and settings.measure and parts:
        some = [few(part, math.ceil(settings.measure / len(parts))) for part in parts]
        pairs = zip(some, reversed(seen), strict=True)  # each with the moments of the other half
        folds = [Fold(feeds=judged, moments=moments) for judged, moments in pairs]
        errors = measured_errors(model, groups, rankings, folds, progress=settings.progress)

    def error_of(counts: Mapping[str, int]) -> float:
        return plan_error(model, groups, chosen_channels(rankings, counts), folds)

    trial = error_of if folds else None
    made = plan_by_latency if settings.budget.metric == "latency" else _plan_by_cost
    proposal = made(model, dependencies, errors, rankings, settings, budget, trial)
    return Plan(
        removed=chosen_channels(rankings, proposal.counts),
        before=proposal.before,
        after=proposal.after,
        moments=_merged(seen, needed),
        notes=(*proposal.notes, *(notes if feeds is not None else ())),
    )


def _merged(seen: Sequence[Mapping[str, MomentObserver]], names: Sequence[str]) -> dict[str, MomentObserver]:
    """Return the moments of some layers over all that was seen."""
    merged = {}
    for name in names if seen else ():
        merged[name] = MomentObserver(seen[0][name].layout)
        for moments in seen:
            merged[name].add(moments[name])
    return merged


def _plan_by_cost(
    model: ir.Model,
    dependencies: Dependencies,
    errors: Mapping[str, Sequence[float]],
    _: Mapping[str, Ranking],
    settings: Settings,
    budget: float | None,
    trial: Trial,
) -> Proposal:
    """Return the plan that meets a counted cost; of several, the one that `trial` finds least error with."""
    metric = settings.budget.metric
    shapes = observe_shapes(model, settings.feeds or (), needed=metric in ("macs", "memory"))
    cost = CostModel.of(model.graph, dependencies, metric, shapes.tensors)
    before = cost.cost({})
    limit = before * settings.budget.keep if budget is None else budget
    proposals: list[Proposal] = []
    for power in (1.0,) if trial is None else _POWERS:
        bent = {name: [error**power for error in curve] for name, curve in errors.items()}
        counts, note = allocate_closely(dependencies.groups, bent, cost, limit, multiple=settings.multiple)
        if all(counts != other.counts for other in proposals):
            notes = (
                *([note] if note else []),
                *([shapes.describe()] if metric in ("macs", "memory") else []),
            )
            proposals.append(Proposal(counts=counts, before=before, after=cost.cost(counts), notes=notes))
    if trial is None or len(proposals) == 1:
        return proposals[0]
    found = [trial(proposal.counts) for proposal in proposals]
    return proposals[int(np.argmin(found))]
