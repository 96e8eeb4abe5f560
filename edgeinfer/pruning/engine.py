"""The steps of structured pruning, which `PruneChannels` and `PruneHeads` share: plan, remove, refit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

import attrs
import numpy as np
import onnx_ir as ir

from edgeinfer.display import track
from edgeinfer.graph.channels.groups import Dependencies, analyze
from edgeinfer.graph.data_sizes import data_dependent_sizes
from edgeinfer.graph.layers import find_layers
from edgeinfer.graph.subgraphs import read_values
from edgeinfer.pruning.budget.latency import timing_target
from edgeinfer.pruning.budget.plan import plan
from edgeinfer.pruning.budget.sensitivity import compensate
from edgeinfer.pruning.budget.settings import Budget, Settings
from edgeinfer.pruning.reconstruction.batches import Batches
from edgeinfer.pruning.reconstruction.refit import Refitter, refusals
from edgeinfer.pruning.reconstruction.statistics import columns_of_each_feed
from edgeinfer.pruning.structure.prepare import prepare
from edgeinfer.pruning.structure.surgery import remove_channels
from edgeinfer.pruning.structure.unreached import unreached_layers
from edgeinfer.transforms.contract import ReportBuilder
from edgeinfer.transforms.options import require_nodes
from edgeinfer.transforms.refusal import Refusal

__all__ = ["Refit", "downstream", "prune_structured", "refit_all"]


@final
@attrs.frozen(kw_only=True)
class Refit:
    """The relative squared error of a layer's output, before it was refitted and after."""

    layer: str
    before: float
    after: float


def refit_all(
    model: ir.Model, refitter: Refitter, *, changed: set[str], progress: bool | None = None
) -> tuple[list[Refit], list[Refusal]]:
    """Refit every layer that sees a change, in topological order.

    Args:
        model: The pruned graph, changed in place.
        refitter: Knows the float model.
        changed: Names of the nodes that see a change.
        progress: Show it.
    """
    layers = [layer for layer in find_layers(model.graph) if layer.name in changed]
    refused = refusals(model.graph)
    results = []
    for layer in track(layers, "refitting layers", progress=progress):
        if layer.name not in refused:
            before, after = refitter.refit(model, layer)
            results.append(Refit(layer=layer.name, before=before, after=after))
    return results, [refused[layer.name] for layer in layers if layer.name in refused]


def downstream(graph: ir.Graph, changed: set[str]) -> set[str]:
    """Return the names of the nodes that read a changed tensor, or one that depends on it."""
    dirty, nodes = set(changed), set()
    for node in graph:
        if any(value.name in dirty for value in read_values(node)):
            nodes.add(node.name or "")
            dirty |= {v.name or "" for v in node.outputs}
    return nodes


def prune_structured(model: ir.Model, report: ReportBuilder, settings: Settings) -> None:
    """Prune channels or heads of a graph in place, refit, and report.

    Args:
        model: The graph; left as it is when there is nothing to remove.
        report: What was done.
        settings: How.
    """
    require_nodes(settings.keep_nodes, (node.name for node in model.graph.all_nodes()), "option keep_nodes")
    work = model.clone()
    prepare(work)
    reference = work.clone()
    if settings.feeds is not None:
        settings = attrs.evolve(settings, feeds=Batches.of(settings.feeds, model.graph))
    columns = columns_of_each_feed(settings.feeds or (), settings.max_columns)
    total: list[float] = []
    left = np.linspace(1, settings.budget.keep, settings.rounds + 1)[1:]
    masks: dict[str, list[np.ndarray | None]] = {}
    kept: dict[str, tuple[int, int]] = {}
    notes: tuple[str, ...] = ()
    for number, keep in enumerate(left):
        dependencies, refused = _prunable(work.graph, settings)
        if number == 0:
            _report_refused([*refused, *unreached_layers(work)], bool(dependencies.groups), report, settings)
        if not dependencies.groups:
            break
        chosen = plan(
            work,
            dependencies,
            attrs.evolve(settings, budget=Budget(metric=settings.budget.metric, keep=float(keep))),
            columns,
            total[0] * float(keep) if total else None,
        )
        total = [*total, *([chosen.before] if not total else []), chosen.after]
        notes = chosen.notes
        if not chosen.removed:
            continue
        for group in dependencies.groups:
            first, now = kept.get(group.name, (group.size, group.size))
            kept[group.name] = first, now - len(chosen.removed.get(group.name, ()))
        classes = [dependencies.members[g][c] for g, channels in chosen.removed.items() for c in channels]
        compensate(work, dependencies.groups, chosen.removed, chosen.moments, new_biases=False)
        fresh = remove_channels(work, dependencies, classes)
        masks = _compose(masks, {v.name or "": axes for v, axes in fresh.items()})
        if settings.feeds is not None:
            refitter = Refitter(
                reference=reference, masks=masks, feeds=settings.feeds, columns=columns, ridge=settings.ridge
            )
            changed = downstream(work.graph, set(masks)) - settings.keep_nodes
            refits = refit_all(work, refitter, changed=changed, progress=settings.progress)
            if number == settings.rounds - 1:
                _report_refits(*refits, report)
    for note in notes:
        report.note(note)
    if not masks:
        return
    _report_removed(kept, total, settings, report)
    model.graph, model.ir_version = work.graph, work.ir_version


def _prunable(graph: ir.Graph, settings: Settings) -> tuple[Dependencies, list[Refusal]]:
    """Return the dependencies with the groups that may be pruned, and why the others may not."""
    dependencies = analyze(graph)
    dependent = data_dependent_sizes(graph)
    layers = {layer.name: layer for layer in dependencies.layers}
    refused = [
        Refusal(node, f"{channels} channels stay: {reason}") for node, reason, channels in dependencies.locked
    ]
    groups = []
    for group in dependencies.groups:
        inputs = [layers[name].input for name in group.consumers]
        sources = [dependent[value] for value in inputs if value in dependent]
        if group.kind != settings.kind:
            continue
        if settings.keep_nodes & {*group.producers, *group.consumers}:
            refused.append(
                Refusal(group.name, f"{group.size} channels stay: keep_nodes has a layer of theirs")
            )
        elif sources:
            reason = f"how often they are read depends on the data, by {sources[0]!r}"
            refused.append(Refusal(group.name, f"{group.size} channels stay: {reason}"))
        else:
            groups.append(group)
    return attrs.evolve(dependencies, groups=tuple(groups)), refused


def _compose(
    first: Mapping[str, list[np.ndarray | None]], second: Mapping[str, list[np.ndarray | None]]
) -> dict[str, list[np.ndarray | None]]:
    """Return masks over the original axes of what is left after two removals in a row."""
    result = {name: list(axes) for name, axes in first.items()}
    for name, axes in second.items():
        before = result.setdefault(name, [None] * len(axes))
        for axis, mask in enumerate(axes):
            known = before[axis]
            if mask is None:
                continue
            if known is None:
                before[axis] = mask
            else:
                known = known.copy()
                known[known] = mask
                before[axis] = known
    return result


def _report_refused(
    refused: Sequence[Refusal], any_left: bool, report: ReportBuilder, settings: Settings
) -> None:
    for refusal in refused:
        report.skip(*refusal)
    if not any_left:
        report.note(f"there is no group of {settings.kind}s that could be pruned")


def _report_removed(
    kept: Mapping[str, tuple[int, int]], total: Sequence[float], settings: Settings, report: ReportBuilder
) -> None:
    for name, (before, after) in kept.items():
        if after < before:
            report.apply(name, f"{settings.kind}s: {before} -> {after}")
        else:
            report.skip(
                name, f"all {before} {settings.kind}s are kept: the budget is met at less loss elsewhere"
            )
    metric = settings.budget.metric
    unit = f" ms on {timing_target(settings.target).backend}, measured" if metric == "latency" else ""
    asked, reached = settings.budget.keep, total[-1] / total[0]
    report.note(
        f"{metric}: asked to keep {asked:.1%}, kept {reached:.1%} ({total[0]:.6g} -> {total[-1]:.6g}{unit})"
    )
    if reached > asked * (1 + 1e-9):
        report.note(f"the budget of {asked:.0%} of {metric} cannot be met with the groups there are")
    if settings.feeds is None:
        report.note("no calibration was given: channels were ranked by magnitude and nothing was refitted")
    report.data.update(
        {
            f"{metric}_before": total[0],
            f"{metric}_after": total[-1],
            "groups": {name: {"before": before, "after": after} for name, (before, after) in kept.items()},
        }
    )


def _report_refits(refits: Sequence[Refit], refused: Sequence[Refusal], report: ReportBuilder) -> None:
    for name, reason in refused:
        report.skip(name, f"not refitted: {reason}")
    report.data["refits"] = {refit.layer: {"before": refit.before, "after": refit.after} for refit in refits}
