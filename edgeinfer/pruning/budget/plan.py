"""What structured pruning removes: channels ranked within groups, a budget shared out among the groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, final

import attrs
import numpy as np
import onnx_ir as ir

from edgeinfer.artifact.signature import Signature
from edgeinfer.calibration.moments import MomentObserver
from edgeinfer.devices.profile import Target
from edgeinfer.display import track
from edgeinfer.feeds.batch import batch_axis
from edgeinfer.feeds.choose import shapes_of_feeds
from edgeinfer.feeds.feeds import FeedIterable
from edgeinfer.feeds.shapes import InputShape, input_shapes
from edgeinfer.graph.channels.groups import Dependencies, analyze
from edgeinfer.measure.inspection import with_static_shapes
from edgeinfer.model.model import Model
from edgeinfer.pruning.budget.allocate import allocate
from edgeinfer.pruning.budget.cost import CostModel, Metric
from edgeinfer.pruning.budget.criteria import Criterion, Ranking, rank
from edgeinfer.pruning.budget.latency import latency_cost, least_ms
from edgeinfer.pruning.budget.sensitivity import measured_errors, plan_error
from edgeinfer.pruning.reconstruction.frontier import run, tap
from edgeinfer.pruning.reconstruction.statistics import input_moments, split_feeds
from edgeinfer.pruning.structure.surgery import remove_channels

__all__ = ["SIZED", "Budget", "Plan", "Settings", "few", "plan", "sample_shapes"]

# How often a plan is made and timed to meet a latency, how close to it is close enough, and how long to time.
_TRIALS = 6
_CLOSE = 0.03
_SECONDS = 2.0
# Errors of groups do not just add up: below 1 a plan takes much from few groups, above 1 little from many.
_POWERS = (0.5, 1.0, 2.0)


@final
@attrs.frozen(kw_only=True)
class Budget:
    """A limit: the part of a cost to keep."""

    metric: Metric
    keep: float


@final
@attrs.frozen(kw_only=True, eq=False)
class Settings:
    """How to prune; see `PruneChannels` for what each means."""

    kind: Literal["channel", "head"]
    budget: Budget
    feeds: FeedIterable | None = None
    criterion: Criterion = "second_order"
    multiple: int = 16
    rounds: int = 1
    measure: int = 48
    max_columns: int = 24_000
    ridge: float | None = None
    seed: int = 0
    progress: bool | None = None
    target: Target | None = None


@final
@attrs.frozen(kw_only=True)
class Plan:
    """What is to be removed.

    Attributes:
        removed: Channel indices by group name.
        before: The cost before.
        after: The cost after.
        moments: The moments of the inputs of the layers that read the groups, by name.
    """

    removed: Mapping[str, tuple[int, ...]]
    before: float
    after: float
    moments: Mapping[str, MomentObserver]


# What costs depend on the sizes of activations, not only on weights.
SIZED = frozenset({"macs", "memory", "latency"})


def sample_shapes(model: ir.Model, feeds: FeedIterable | None) -> tuple[InputShape, ...]:
    """Return the input shapes that costs are counted for: of one sample, or of the signature without any.

    Raises:
        InputError: There is no sample, and a size is open that is not that of the batch.
    """
    signature = Signature.of_graph(model.graph)
    first = next(iter(feeds or ()), None)
    if first is None:
        return input_shapes(signature)
    return shapes_of_feeds(signature, [_one_sample(signature, first)])[0]


def observed_shapes(model: ir.Model, feeds: FeedIterable | None) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the activations that matter for cost, from a run of one sample, or as inferred."""
    nodes = [node for node in model.graph if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")]
    values = {
        v.name: v for node in nodes for v in (node.inputs[0], node.outputs[0]) if v is not None and v.name
    }
    names = [name for name, v in values.items() if v.const_value is None]
    first = next(iter(feeds or ()), None)
    if first is None:
        return _inferred_shapes(model, names)
    with tap(model, names) as session:
        outputs = next(run(session, [_one_sample(Signature.of_graph(model.graph), first)]))
    return {name: array.shape for name, array in outputs.items()}


def _inferred_shapes(model: ir.Model, names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    shapes = {each.name: each.shape for each in sample_shapes(model, None)}
    static, _ = with_static_shapes(Model(model), shapes)
    values = {v.name: v for v in (*static.graph.inputs, *(v for n in static.graph for v in n.outputs))}
    found = {}
    for name in names:
        shape = values[name].shape
        if shape is not None and shape.is_static():
            found[name] = tuple(int(size) for size in shape.numpy())
    return found


def _one_sample(signature: Signature, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the first sample of a feed, or all of it where the first axes are no batch of any size."""
    batched = {spec.name for spec in signature.inputs if batch_axis(spec, signature) == 0}
    return {name: array[:1] if name in batched else array for name, array in feed.items()}


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
    moments: Mapping[str, MomentObserver] = {}
    held: FeedIterable = ()
    if feeds is None:
        criterion = criterion if criterion in ("magnitude", "random") else "magnitude"
    else:
        fit, held = split_feeds(feeds)
        moments = input_moments(model, [layers[n] for n in needed], fit, columns)
    rankings = {
        group.name: rank(group, layers, moments, criterion, settings.seed)
        for group in track(groups, "ranking channels", progress=settings.progress)
    }
    errors: Mapping[str, Sequence[float]] = {name: ranking.errors for name, ranking in rankings.items()}
    some = few(held, settings.measure) if held else []
    if some:
        errors = measured_errors(model, groups, rankings, moments, some, progress=settings.progress)

    def error_of(counts: Mapping[str, int]) -> float:
        return plan_error(model, groups, _chosen(rankings, counts), moments, some)

    trial = error_of if some else None
    if settings.budget.metric == "latency":
        counts, before, after = _by_latency(model, dependencies, errors, rankings, settings, budget, trial)
    else:
        counts, before, after = _by_cost(model, dependencies, errors, settings, budget, trial)
    return Plan(
        removed=_chosen(rankings, counts),
        before=before,
        after=after,
        moments=moments,
    )


def _chosen(rankings: Mapping[str, Ranking], counts: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    return {name: rankings[name].order[:count] for name, count in counts.items()}


def _by_cost(
    model: ir.Model,
    dependencies: Dependencies,
    errors: Mapping[str, Sequence[float]],
    settings: Settings,
    budget: float | None,
    trial: Callable[[Mapping[str, int]], float] | None,
) -> tuple[dict[str, int], float, float]:
    """Return the channels to remove from each group, and the cost before and after.

    Of several plans the one is taken that `trial` finds the least error with.
    """
    sized = settings.budget.metric in SIZED
    shapes = observed_shapes(model, settings.feeds) if sized else {}
    cost = CostModel.of(model.graph, dependencies, settings.budget.metric, shapes)
    before = cost.cost({})
    limit = before * settings.budget.keep if budget is None else budget
    plans: list[dict[str, int]] = []
    for power in (1.0,) if trial is None else _POWERS:
        bent = {name: [error**power for error in curve] for name, curve in errors.items()}
        counts = allocate(dependencies.groups, bent, cost, limit, multiple=settings.multiple)
        plans += [counts] if counts not in plans else []
    best = plans[0] if trial is None or len(plans) == 1 else min(plans, key=trial)
    return best, before, cost.cost(best)


def _by_latency(
    model: ir.Model,
    dependencies: Dependencies,
    errors: Mapping[str, Sequence[float]],
    rankings: Mapping[str, Ranking],
    settings: Settings,
    budget: float | None,
    trial: Callable[[Mapping[str, int]], float] | None,
) -> tuple[dict[str, int], float, float]:
    """Return the channels to remove from each group, and the model's latency before and after in ms.

    Two costs guide the plans: the layers' own times, which know of blocked kernels but also hold what a
    runtime does around a layer that stands alone, and multiply-accumulates. Of the plans that meet the budget
    `trial` chooses.
    """
    shapes = observed_shapes(model, settings.feeds)
    target = settings.target or Target.parse("onnxruntime")
    parameters = CostModel.of(model.graph, dependencies, "parameters", shapes)
    costs = (
        latency_cost(
            parameters,
            dependencies.layers,
            shapes,
            target,
            settings.multiple,
            progress=settings.progress,
        ),
        CostModel.of(model.graph, dependencies, "macs", shapes),
    )
    first = next(iter(settings.feeds or ()), None)
    feed = None if first is None else _one_sample(Signature.of_graph(model.graph), first)

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
    return dict(best.counts), best.before, best.after


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
    chosen = _chosen(rankings, counts)
    gone = [dependencies.members[name][c] for name, channels in chosen.items() for c in channels]
    remove_channels(work, dependencies, gone)
    return work


def few(feeds: FeedIterable, samples: int) -> list[Mapping[str, np.ndarray]]:
    """Return the first feeds that hold at least so many samples, the last one cut to fit."""
    chosen: list[Mapping[str, np.ndarray]] = []
    left = samples
    for feed in feeds:
        if left <= 0:
            break
        size = next(iter(feed.values())).shape[0]
        chosen.append(feed if size <= left else {k: v[:left] for k, v in feed.items()})
        left -= size
    return chosen
