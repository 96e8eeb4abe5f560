"""The steps that structured pruning is made of: plan, remove, refit. `PruneChannels` and `PruneHeads` use them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import attrs
import numpy as np
import onnx_ir as ir

from edgeinfer.display import track
from edgeinfer.pruning.allocate import allocate
from edgeinfer.pruning.cost import CostModel, Metric
from edgeinfer.pruning.criteria import Criterion, Ranking, rank
from edgeinfer.pruning.groups import ChannelGroup, Dependencies
from edgeinfer.pruning.layers import Layer, find_layers
from edgeinfer.pruning.refit import Refitter
from edgeinfer.pruning.sensitivity import measured_errors
from edgeinfer.pruning.statistics import Feeds, Sampler, input_moments, run, tap

__all__ = ["Plan", "Refit", "count_samples", "observed_shapes", "plan", "refit_all"]


@final
@attrs.frozen(kw_only=True)
class Plan:
    """What is to be removed.

    Attributes:
        removed: Channel indices by group name.
        before: The cost before.
        after: The cost after.
        rankings: The ranking of each group.
    """

    removed: Mapping[str, tuple[int, ...]]
    before: float
    after: float
    rankings: Mapping[str, Ranking]


def count_samples(feeds: Feeds) -> int:
    """Return how many samples the feeds hold in all."""
    return sum(next(iter(feed.values())).shape[0] if feed else 0 for feed in feeds)


def observed_shapes(model: ir.Model, feeds: Feeds) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the activations that matter for cost, from a run of one sample, or as inferred."""
    nodes = [node for node in model.graph if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")]
    values = {v.name: v for node in nodes for v in (node.inputs[0], node.outputs[0]) if v is not None and v.name}
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
    groups: Sequence[ChannelGroup],
    feeds: Feeds,
    sampler: Sampler,
    *,
    criterion: Criterion,
    keep: float,
    metric: Metric,
    multiple: int,
    measure: int,
    progress: bool | None = None,
) -> Plan:
    """Choose the channels to remove.

    Args:
        model: The graph that was analyzed.
        dependencies: What `analyze` found on it.
        groups: The groups that may be pruned.
        feeds: The calibration; empty for criteria without data.
        sampler: Chooses columns.
        criterion: How channels of a group are ranked.
        keep: The part of the cost to keep.
        metric: What the cost is.
        multiple: The multiple that channel counts should keep.
        measure: How many samples the outputs' error is measured on; 0 to rely on local errors.
        progress: Show it.
    """
    layers = {layer.name: layer for layer in dependencies.layers}
    needed = list(dict.fromkeys(name for group in groups for name in group.consumers))
    needs_data = criterion in ("second_order", "activation") or measure > 0
    moments = input_moments(model, [layers[n] for n in needed], feeds, sampler) if needs_data else {}
    rankings = {
        group.name: rank(group, layers, moments, criterion)
        for group in track(groups, "ranking channels", progress=progress)
    }
    errors: dict[str, Any] = {name: ranking.errors for name, ranking in rankings.items()}
    if measure:
        errors = dict(measured_errors(model, groups, rankings, moments, few(feeds, measure), progress=progress))
    cost = CostModel.of(model.graph, dependencies, metric, observed_shapes(model, feeds))
    before = cost.cost({})
    counts = allocate(groups, errors, cost, before * keep, multiple=multiple)
    return Plan(
        removed={name: rankings[name].order[:count] for name, count in counts.items()},
        before=before,
        after=cost.cost(counts),
        rankings=rankings,
    )


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


@final
@attrs.frozen(kw_only=True)
class Refit:
    """What became of one layer.

    Attributes:
        layer: The node's name.
        before: The relative squared error of its output before.
        after: And after.
        skipped: Why it was not refitted, if so.
    """

    layer: str
    before: float = 0.0
    after: float = 0.0
    skipped: str = ""


def refit_all(
    model: ir.Model, refitter: Refitter, *, sweeps: int = 1, changed: set[str] | None = None, progress: bool | None = None
) -> list[Refit]:
    """Refit every layer that sees a change, in topological order.

    Args:
        model: The pruned graph, changed in place.
        refitter: Knows the float model.
        sweeps: How often to go through.
        changed: Names of tensors that changed to begin with; what depends on them sees a change.
        progress: Show it.
    """
    results: dict[str, Refit] = {}
    layers = [layer for layer in find_layers(model.graph) if _affected(layer, model.graph, changed)]
    for _ in range(sweeps):
        for layer in track(layers, "refitting layers", progress=progress):
            reason = _refusal(layer)
            if reason:
                results[layer.name] = Refit(layer=layer.name, skipped=reason)
                continue
            before, after = refitter.refit(model, layer)
            first = results.get(layer.name)
            results[layer.name] = Refit(
                layer=layer.name, before=before if first is None else first.before, after=after
            )
    return list(results.values())


def _refusal(layer: Layer) -> str:
    if layer.shared:
        return "its weight is used by another node, too"
    if layer.kind == "conv_transpose":
        return "transposed convolutions are not refitted"
    return ""


def _affected(layer: Layer, graph: ir.Graph, changed: set[str] | None) -> bool:
    return changed is None or layer.name in changed


def downstream(graph: ir.Graph, changed: set[str]) -> set[str]:
    """Return the names of the nodes that read a changed tensor, or one that depends on it."""
    dirty, nodes = set(changed), set()
    for node in graph:
        if any(v is not None and v.name in dirty for v in node.inputs):
            nodes.add(node.name or "")
            dirty |= {v.name or "" for v in node.outputs}
    return nodes
