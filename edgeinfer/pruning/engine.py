"""The steps of structured pruning, which `PruneChannels` and `PruneHeads` share: plan, remove, refit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

import attrs
import numpy as np
import onnx_ir as ir

from edgeinfer.display import track
from edgeinfer.feeds.shapes import InputShape, describe_inputs
from edgeinfer.graph.channels.groups import Dependencies, analyze
from edgeinfer.graph.layers import find_layers
from edgeinfer.pruning.budget.plan import SIZED, Budget, Settings, plan, sample_shapes
from edgeinfer.pruning.budget.sensitivity import compensate
from edgeinfer.pruning.reconstruction.refit import Refitter, refusal
from edgeinfer.pruning.reconstruction.statistics import columns_of_each_feed
from edgeinfer.pruning.structure.prepare import prepare
from edgeinfer.pruning.structure.surgery import remove_channels
from edgeinfer.transforms.contract import ReportBuilder

__all__ = ["Refit", "downstream", "prune_structured", "refit_all"]


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
    model: ir.Model,
    refitter: Refitter,
    *,
    sweeps: int = 1,
    changed: set[str] | None = None,
    progress: bool | None = None,
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
    layers = [layer for layer in find_layers(model.graph) if changed is None or layer.name in changed]
    for _ in range(sweeps):
        refitter.rewind()
        for layer in track(layers, "refitting layers", progress=progress):
            reason = refusal(layer)
            if reason:
                results[layer.name] = Refit(layer=layer.name, skipped=reason)
                continue
            before, after = refitter.refit(model, layer)
            first = results.get(layer.name)
            results[layer.name] = Refit(
                layer=layer.name, before=before if first is None else first.before, after=after
            )
    return list(results.values())


def downstream(graph: ir.Graph, changed: set[str]) -> set[str]:
    """Return the names of the nodes that read a changed tensor, or one that depends on it."""
    dirty, nodes = set(changed), set()
    for node in graph:
        if any(v is not None and v.name in dirty for v in node.inputs):
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
    work = model.clone()
    prepare(work)
    reference = work.clone()
    columns = columns_of_each_feed(settings.feeds or (), settings.max_columns)
    total: list[float] = []
    left = np.linspace(1, settings.budget.keep, settings.rounds + 1)[1:]
    masks: dict[str, list[np.ndarray | None]] = {}
    kept: dict[str, tuple[int, int]] = {}
    for number, keep in enumerate(left):
        dependencies = _restricted(analyze(work.graph), settings.kind)
        if number == 0:
            _report_locked(dependencies, report, settings.kind)
        if not dependencies.groups:
            break
        budget = total[0] * float(keep) if total else None
        chosen = plan(
            work,
            dependencies,
            attrs.evolve(settings, budget=Budget(metric=settings.budget.metric, keep=float(keep))),
            columns,
            budget,
        )
        total = [*total, *([chosen.before] if not total else []), chosen.after]
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
            refits = refit_all(
                work, refitter, changed=downstream(work.graph, set(masks)), progress=settings.progress
            )
            if number == settings.rounds - 1:
                _report_refits(refits, report)
    if not masks:
        return
    inputs = sample_shapes(model, settings.feeds) if settings.budget.metric in SIZED else ()
    _report_removed(kept, total, settings, inputs, report)
    model.graph, model.ir_version = work.graph, work.ir_version


def _restricted(dependencies: Dependencies, kind: str) -> Dependencies:
    groups = tuple(group for group in dependencies.groups if group.kind == kind)
    return attrs.evolve(dependencies, groups=groups)


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


def _report_locked(dependencies: Dependencies, report: ReportBuilder, kind: str) -> None:
    for node, reason, channels in dependencies.locked:
        report.skip(node, f"{channels} channels stay: {reason}")
    if not dependencies.groups:
        report.note(f"there is no group of {kind}s that could be pruned")


def _report_removed(
    kept: Mapping[str, tuple[int, int]],
    total: Sequence[float],
    settings: Settings,
    inputs: Sequence[InputShape],
    report: ReportBuilder,
) -> None:
    for name, (before, after) in kept.items():
        if after < before:
            report.apply(name, f"{settings.kind}s: {before} -> {after}")
        else:
            report.skip(
                name, f"all {before} {settings.kind}s are kept: the budget is met at less loss elsewhere"
            )
    metric = settings.budget.metric
    if metric in SIZED:
        report.note(f"figures are for {describe_inputs(inputs)}")
        report.data["inputs"] = [each.to_dict() for each in inputs]
    unit = f" ms on {settings.target or 'onnxruntime'}, measured" if metric == "latency" else ""
    report.note(f"{metric}: {total[0]:.6g} -> {total[-1]:.6g}{unit} ({total[-1] / total[0] - 1:+.1%})")
    if total[-1] > total[0] * settings.budget.keep * (1 + 1e-9):
        report.note(
            f"the budget of {settings.budget.keep:.0%} of {metric} cannot be met with the groups there are"
        )
    if settings.feeds is None:
        report.note("no calibration was given: channels were ranked by magnitude and nothing was refitted")
    report.data.update(
        {
            f"{metric}_before": total[0],
            f"{metric}_after": total[-1],
            "groups": {name: {"before": before, "after": after} for name, (before, after) in kept.items()},
        }
    )


def _report_refits(refits: Sequence[Refit], report: ReportBuilder) -> None:
    for refit in refits:
        if refit.skipped:
            report.skip(refit.layer, f"not refitted: {refit.skipped}")
    report.data["refits"] = {r.layer: {"before": r.before, "after": r.after} for r in refits if not r.skipped}
