"""A plan that meets a latency: plans by counted costs, timed on the target until one meets it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import final

import attrs
import onnx_ir as ir

from edgeinfer.display import track
from edgeinfer.graph.channels.groups import Dependencies, analyze
from edgeinfer.model.model import Model
from edgeinfer.pruning.budget.allocate import allocate
from edgeinfer.pruning.budget.cost import CostModel
from edgeinfer.pruning.budget.criteria import Ranking
from edgeinfer.pruning.budget.latency import latency_cost, least_ms, timing_target
from edgeinfer.pruning.budget.observed_shapes import observe_shapes
from edgeinfer.pruning.budget.proposal import Proposal, Trial, chosen_channels
from edgeinfer.pruning.budget.settings import Settings
from edgeinfer.pruning.reconstruction.batches import one_sample
from edgeinfer.pruning.structure.surgery import remove_channels

__all__ = ["plan_by_latency"]

# How often a plan is made and timed to meet a latency, how close to it is close enough, and how long to time.
_TRIALS = 6
_CLOSE = 0.03
_SECONDS = 2.0


def plan_by_latency(
    model: ir.Model,
    dependencies: Dependencies,
    errors: Mapping[str, Sequence[float]],
    rankings: Mapping[str, Ranking],
    settings: Settings,
    budget: float | None,
    trial: Trial,
) -> Proposal:
    """Return the plan that meets a latency, with the model's latency before and after in ms.

    Two costs guide the plans: the layers' own times, which know of blocked kernels but also hold what a
    runtime does around a layer that stands alone, and multiply-accumulates. Of the plans that meet the budget
    `trial` chooses.
    """
    shapes = observe_shapes(model, settings.feeds or ())
    target = timing_target(settings.target)
    parameters = CostModel.of(model.graph, dependencies, "parameters", shapes.tensors)
    costs = (
        latency_cost(
            parameters,
            dependencies.layers,
            shapes.tensors,
            target,
            settings.multiple,
            progress=settings.progress,
        ),
        CostModel.of(model.graph, dependencies, "macs", shapes.tensors),
    )
    first = next(iter(settings.feeds or ()), None)
    feed = None if first is None else one_sample(model.graph, first)

    def timed(counts: Mapping[str, int]) -> tuple[float, float]:
        models = [Model(model), Model(_pruned(model, rankings, counts))]
        before, after = least_ms(models, feed, target, seconds=_SECONDS)
        return before, after

    found = [_within(dependencies, errors, cost, settings, budget, timed) for cost in costs]
    met = [timing for timing in found if timing.met]
    if len(met) > 1 and trial is not None:
        best = min(met, key=lambda timing: trial(timing.counts))
    else:
        best = max(found, key=_Timing.rank)
    notes = (f"{shapes.describe()}, timed on {target.backend}",)
    return Proposal(counts=best.counts, before=best.before, after=best.after, notes=notes)


@final
@attrs.frozen(kw_only=True)
class _Timing:
    """A plan, and the model's latency without it and with it in ms."""

    counts: Mapping[str, int]
    before: float
    after: float
    met: bool

    def rank(self) -> tuple[bool, float]:
        """The best plan meets the budget and saves no more than it must; failing that, it saves the most."""
        ratio = self.after / self.before
        return self.met, ratio if self.met else -ratio


def _within(
    dependencies: Dependencies,
    errors: Mapping[str, Sequence[float]],
    cost: CostModel,
    settings: Settings,
    budget: float | None,
    timed: Callable[[Mapping[str, int]], tuple[float, float]],
) -> _Timing:
    """Return a plan by a cost that meets a latency and is close to it.

    The cost only guides: how much of it may stay is corrected by what the whole model takes.
    """
    aim, saved = settings.budget.keep, 1 - settings.budget.keep
    tried: list[_Timing] = []
    for _ in track(range(_TRIALS), "measuring plans", progress=settings.progress):
        limit = cost.cost({}) * (1 - saved)
        counts = allocate(dependencies.groups, errors, cost, limit, multiple=settings.multiple)
        if any(counts == other.counts for other in tried):
            if any(other.met for other in tried):
                break
            saved = min(1.15 * saved, 0.95)
            continue
        before, after = timed(counts)
        if budget is not None:
            aim = budget / before
        ratio = after / before
        tried.append(_Timing(counts=counts, before=before, after=after, met=ratio <= aim))
        if aim - _CLOSE < ratio <= aim:
            break
        gained = max(1 - ratio, 0.2 * saved)
        saved = min(saved * (1 - aim + 0.25 * _CLOSE) / gained, 0.95)
    return max(tried, key=_Timing.rank)


def _pruned(model: ir.Model, rankings: Mapping[str, Ranking], counts: Mapping[str, int]) -> ir.Model:
    """Return the graph without some channels; nothing is compensated: it is only timed."""
    work = model.clone()
    dependencies = analyze(work.graph)
    chosen = chosen_channels(rankings, counts)
    gone = [dependencies.members[name][c] for name, channels in chosen.items() for c in channels]
    remove_channels(work, dependencies, gone)
    return work
