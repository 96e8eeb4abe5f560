"""What structured pruning removes: channels ranked within groups, a budget shared out among the groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, final

import attrs
import numpy as np
import onnx_ir as ir

from edgeinfer.devices.profile import Target
from edgeinfer.display import track
from edgeinfer.pruning.allocate import allocate
from edgeinfer.pruning.cost import CostModel, Metric
from edgeinfer.pruning.criteria import Criterion, rank
from edgeinfer.pruning.feeds import Feeds
from edgeinfer.pruning.frontier import run, tap
from edgeinfer.pruning.groups import Dependencies
from edgeinfer.pruning.latency import latency_cost
from edgeinfer.pruning.sensitivity import measured_errors
from edgeinfer.pruning.statistics import input_moments, split_feeds
from edgeinfer.quantization.moments import MomentObserver

__all__ = ["Budget", "Plan", "Settings", "few", "plan"]


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
    feeds: Feeds | None = None
    criterion: Criterion = "second_order"
    multiple: int = 8
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


def observed_shapes(model: ir.Model, feeds: Feeds) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the activations that matter for cost, from a run of one sample, or as inferred."""
    nodes = [node for node in model.graph if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")]
    values = {
        v.name: v for node in nodes for v in (node.inputs[0], node.outputs[0]) if v is not None and v.name
    }
    values = {name: v for name, v in values.items() if v.const_value is None}
    first = next(iter(feeds), None)
    if first is None:
        return {
            name: tuple(d if isinstance(d, int) else 1 for d in v.shape)
            for name, v in values.items()
            if v.shape is not None
        }
    with tap(model, list(values)) as session:
        outputs = next(run(session, [{k: v[:1] for k, v in first.items()}]))
    return {name: array.shape for name, array in outputs.items()}


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
    held: Feeds = ()
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
    if held and settings.measure:
        some = few(held, settings.measure)
        errors = measured_errors(model, groups, rankings, moments, some, progress=settings.progress)
    cost = _cost(model, dependencies, settings)
    before = cost.cost({})
    limit = before * settings.budget.keep if budget is None else budget
    counts = allocate(groups, errors, cost, limit, multiple=settings.multiple)
    return Plan(
        removed={name: rankings[name].order[:count] for name, count in counts.items()},
        before=before,
        after=cost.cost(counts),
        moments=moments,
    )


def _cost(model: ir.Model, dependencies: Dependencies, settings: Settings) -> CostModel:
    shapes, metric = observed_shapes(model, settings.feeds or ()), settings.budget.metric
    if metric != "latency":
        return CostModel.of(model.graph, dependencies, metric, shapes)
    parameters = CostModel.of(model.graph, dependencies, "parameters", shapes)
    target = settings.target or Target.parse("onnxruntime")
    return latency_cost(parameters, dependencies.layers, shapes, target, progress=settings.progress)


def few(feeds: Feeds, samples: int) -> list[Mapping[str, np.ndarray]]:
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
