"""The steps that weight sparsity is made of; `PruneWeights` and `PruneNM` use them.

Layer by layer, in topological order: the dense weights are fitted to what the float model computes, from the
inputs that the pruned model has by now; a mask is chosen for them; the weights that stay are solved for
exactly, row by row. Sequential fitting and the exact solve are what SparseGPT's one pass leaves on the table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias, final

import attrs
import numpy as np
import onnx_ir as ir

from edgeinfer.display import track
from edgeinfer.pruning.engine import downstream
from edgeinfer.pruning.feeds import Feeds
from edgeinfer.pruning.layers import Layer, find_layers, read_weight, write_weight
from edgeinfer.pruning.prepare import prepare
from edgeinfer.pruning.refit import Refitter, refusal
from edgeinfer.pruning.statistics import columns_of_each_feed
from edgeinfer.transforms.base import ReportBuilder

__all__ = ["Pattern", "sparsify"]

Choose: TypeAlias = "Callable[[Layer, np.ndarray, np.ndarray | None], np.ndarray]"


@final
@attrs.frozen(kw_only=True, eq=False)
class Pattern:
    """A kind of sparsity.

    Attributes:
        name: How reports call it.
        refuse: Why a layer cannot have it, or an empty text.
        choose: The mask (R, K) for a layer's W (R, K) and, where there is data, the covariance of its inputs.
        satisfied: Whether a weight (R, K) has it already.
    """

    name: str
    refuse: Callable[[Layer], str]
    choose: Choose
    satisfied: Callable[[Layer, np.ndarray], bool]


@final
@attrs.frozen(kw_only=True, eq=False)
class SparseSettings:
    """How to sparsify; see `PruneNM`."""

    pattern: Pattern
    feeds: Feeds | None
    max_columns: int
    ridge: float | None
    sweeps: int
    progress: bool | None


def sparsify(model: ir.Model, report: ReportBuilder, settings: SparseSettings) -> None:
    """Give the layers of a graph a sparsity pattern in place, refit, and report.

    Args:
        model: The graph; left as it is when there is nothing to do.
        report: What was done.
        settings: How.
    """
    work = model.clone()
    prepare(work)
    wanted = _wanted(work, report, settings.pattern)
    if not wanted:
        return
    if settings.feeds is None:
        report.note("no calibration was given: weights were chosen by magnitude and nothing was refitted")
        for layer in wanted.values():
            weight = layer.matrix(read_weight(layer.weight))
            _write(
                layer, weight, settings.pattern.choose(layer, weight[0], None)[None], report, settings.pattern
            )
    else:
        _with_data(work, wanted, settings.feeds, report, settings)
    _total(wanted, report)
    model.graph, model.ir_version = work.graph, work.ir_version


def _wanted(model: ir.Model, report: ReportBuilder, pattern: Pattern) -> dict[str, Layer]:
    wanted = {}
    for layer in find_layers(model.graph):
        reason = refusal(layer) or (
            "a depthwise or grouped layer" if layer.group > 1 else pattern.refuse(layer)
        )
        if not reason and pattern.satisfied(layer, layer.matrix(read_weight(layer.weight))[0]):
            reason = f"it is {pattern.name} already"
        if reason:
            report.skip(layer.name, reason)
        else:
            wanted[layer.name] = layer
    return wanted


def _with_data(
    model: ir.Model, wanted: dict[str, Layer], feeds: Feeds, report: ReportBuilder, settings: SparseSettings
) -> None:
    columns = columns_of_each_feed(feeds, settings.max_columns)
    refitter = Refitter(reference=model.clone(), masks={}, feeds=feeds, columns=columns, ridge=settings.ridge)
    affected = downstream(model.graph, {layer.y.name or "" for layer in wanted.values()}) | set(wanted)
    masks: dict[str, np.ndarray] = {}
    layers = [layer for layer in find_layers(model.graph) if layer.name in affected and not refusal(layer)]
    for sweep in range(settings.sweeps):
        refitter.rewind()
        for layer in track(layers, "fitting sparse layers", progress=settings.progress):
            if layer.name not in wanted:
                before, after = refitter.refit(model, layer)
                if sweep == 0 and after < before:
                    report.apply(layer.name, "dense, refitted to what changed before it")
                continue

            def choose(weight: np.ndarray, cov: np.ndarray, layer: Layer = layer) -> np.ndarray:
                return settings.pattern.choose(layer, weight[0], cov[0])[None]

            known = masks.get(layer.name)
            losses = refitter.refit(model, layer, choose if known is None else known)
            masks[layer.name] = layer.matrix(read_weight(layer.weight)) != 0 if known is None else known
            if sweep == 0:
                zeros = 1 - float(masks[layer.name].mean())
                report.apply(layer.name, f"{zeros:.0%} zeros, relative error of its output {losses[1]:.4f}")


def _write(
    layer: Layer, weight: np.ndarray, mask: np.ndarray, report: ReportBuilder, pattern: Pattern
) -> None:
    write_weight(layer.weight, layer.unmatrix(weight * mask, read_weight(layer.weight).shape))
    report.apply(layer.name, f"{pattern.name}: {1 - mask.mean():.0%} zeros")


def _total(wanted: dict[str, Layer], report: ReportBuilder) -> None:
    weights = {name: read_weight(layer.weight) for name, layer in wanted.items()}
    zeros = {name: int((w == 0).sum()) for name, w in weights.items()}
    size = sum(w.size for w in weights.values())
    report.data.update({"zeros": zeros, "weights": {name: int(w.size) for name, w in weights.items()}})
    report.note(f"{sum(zeros.values())} of {size} weights of {len(weights)} layers are zero")
