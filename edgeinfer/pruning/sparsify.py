"""`Sparsify`: what transforms that zero single weights have in common.

Layer by layer, in topological order: the dense weights are fitted to what the float model computes, from the
inputs that the pruned model has by now; a mask is chosen for them; the weights that stay are solved for
exactly, row by row. Sequential fitting and the exact solve are what SparseGPT's one pass leaves on the table.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, TypeAlias, final

import attrs
import numpy as np
import onnx_ir as ir

from edgeinfer.artifact.signature import Signature
from edgeinfer.calibration.calibration import as_calibration
from edgeinfer.calibration.statistics import Statistics
from edgeinfer.devices.profile import Target
from edgeinfer.display import track
from edgeinfer.feeds.feeds import FeedIterable
from edgeinfer.graph.initializers import constant
from edgeinfer.graph.layers import find_layers
from edgeinfer.graph.weights import Linear
from edgeinfer.pruning import options
from edgeinfer.pruning.engine import downstream
from edgeinfer.pruning.reconstruction.batches import Batches
from edgeinfer.pruning.reconstruction.refit import Refitter, refusals
from edgeinfer.pruning.reconstruction.statistics import columns_of_each_feed
from edgeinfer.pruning.structure.prepare import prepare
from edgeinfer.pruning.structure.unreached import unreached_layers
from edgeinfer.transforms.contract import GraphTransform, ReportBuilder
from edgeinfer.transforms.options import require_nodes
from edgeinfer.transforms.refusal import Refusal
from edgeinfer.values import as_frozenset

__all__ = ["Pattern", "Sparsify"]

Choose: TypeAlias = "Callable[[Linear, np.ndarray, np.ndarray | None], np.ndarray]"


@final
@attrs.frozen(kw_only=True, eq=False)
class Pattern:
    """A kind of sparsity.

    Attributes:
        name: How reports call it.
        refuse: Why a layer cannot have it, or None.
        choose: The mask (R, K) for a layer's W (R, K) and, where there is data, the covariance of its inputs.
        satisfied: Whether a weight (R, K) has it already.
        prepare: Changes the graph in place so that the layers suit the pattern better.
    """

    name: str
    refuse: Callable[[Linear], Refusal | None]
    choose: Choose
    satisfied: Callable[[Linear, np.ndarray], bool]
    prepare: Callable[[ir.Model, dict[str, Linear], Statistics | None, ReportBuilder], None] | None = None


@attrs.frozen
class Sparsify(GraphTransform):
    """What `PruneNM` and `PruneWeights` have in common.

    Attributes:
        calibration: A re-iterable of feeds. Without one: magnitude, and nothing is refitted.
        keep_nodes: Names of layers that stay as they are.
        sweeps: How often all layers are fitted; the masks are chosen in the first.
        max_columns: How many output positions of a layer its moments are taken from.
        ridge: How strongly refitted weights are drawn to the present ones. None: chosen on held-out feeds.
        target: Taken for the sake of `optimize`.
        progress: Show progress. None: in a terminal or a notebook.
    """

    calibration: Any = attrs.field(default=None, kw_only=True, eq=False, validator=options.feeds)
    keep_nodes: frozenset[str] = attrs.field(default=(), kw_only=True, converter=as_frozenset)
    sweeps: int = attrs.field(default=1, kw_only=True, validator=options.number(at_least=1, whole=True))
    max_columns: int = attrs.field(
        default=24_000, kw_only=True, validator=options.number(at_least=100, whole=True)
    )
    ridge: float | None = attrs.field(
        default=None, kw_only=True, validator=options.number(at_least=0, optional=True)
    )
    target: Target | str | None = attrs.field(default=None, kw_only=True, validator=options.target)
    progress: bool | None = attrs.field(default=None, kw_only=True)

    names_layers = True

    @property
    @abc.abstractmethod
    def pattern(self) -> Pattern:
        """The pattern that layers are given."""

    def rewrite(self, model: ir.Model, report: ReportBuilder, /) -> None:
        """Give every layer that can have it the pattern, refit, and report."""
        names = (node.name for node in model.graph.all_nodes())
        require_nodes(self.keep_nodes, names, f"{type(self).__name__}, keep_nodes")
        work = model.clone()
        prepare(work)
        wanted = _wanted(work, report, self)
        for refusal in unreached_layers(work):
            report.skip(*refusal)
        if not wanted:
            return
        feeds = None
        if self.calibration is not None:
            feeds = as_calibration(self.calibration, Signature.of_graph(model.graph))
        if self.pattern.prepare is not None:
            self.pattern.prepare(work, wanted, None if feeds is None else Statistics(lambda: feeds), report)
        if feeds is None:
            report.note("no calibration was given: weights were chosen by magnitude and nothing was refitted")
            for layer in wanted.values():
                _by_magnitude(layer, report, self.pattern)
        else:
            _with_data(work, wanted, Batches.of(feeds, model.graph), report, self)
        _total(wanted, report)
        model.graph, model.ir_version = work.graph, work.ir_version


def _wanted(model: ir.Model, report: ReportBuilder, settings: Sparsify) -> dict[str, Linear]:
    pattern, cannot = settings.pattern, refusals(model.graph)
    wanted = {}
    for layer in find_layers(model.graph):
        refused = _refuse(layer, settings) or cannot.get(layer.name) or pattern.refuse(layer)
        if refused is None and pattern.satisfied(layer, layer.matrices()[0]):
            refused = Refusal(layer.name, f"it is {pattern.name} already")
        if refused is None:
            wanted[layer.name] = layer
        else:
            report.skip(*refused)
    return wanted


def _refuse(layer: Linear, settings: Sparsify) -> Refusal | None:
    if layer.name in settings.keep_nodes:
        return Refusal(layer.name, "keep_nodes has it")
    if layer.kind == "ConvTranspose":
        return Refusal(layer.name, "it is a transposed convolution")
    return Refusal(layer.name, "it is a depthwise or grouped layer") if layer.groups > 1 else None


def _with_data(
    model: ir.Model, wanted: dict[str, Linear], feeds: FeedIterable, report: ReportBuilder, settings: Sparsify
) -> None:
    columns = columns_of_each_feed(feeds, settings.max_columns)
    refitter = Refitter(reference=model.clone(), masks={}, feeds=feeds, columns=columns, ridge=settings.ridge)
    affected = downstream(model.graph, {layer.output.name or "" for layer in wanted.values()}) | set(wanted)
    affected -= {*refusals(model.graph), *settings.keep_nodes}
    masks: dict[str, np.ndarray] = {}
    layers = [layer for layer in find_layers(model.graph) if layer.name in affected]
    for sweep in range(settings.sweeps):
        refitter.rewind()
        for layer in track(layers, "fitting sparse layers", progress=settings.progress):
            if layer.name not in wanted:
                before, after = refitter.refit(model, layer)
                if sweep == 0 and after < before:
                    report.apply(layer.name, "dense, refitted to what changed before it")
                continue

            def choose(weight: np.ndarray, cov: np.ndarray, layer: Linear = layer) -> np.ndarray:
                return settings.pattern.choose(layer, weight[0], cov[0])[None]

            known = masks.get(layer.name)
            losses = refitter.refit(model, layer, choose if known is None else known)
            masks[layer.name] = layer.matrices() != 0 if known is None else known
            if sweep == 0:
                zeros = 1 - float(masks[layer.name].mean())
                report.apply(layer.name, f"{zeros:.0%} zeros, relative error of its output {losses[1]:.4f}")


def _by_magnitude(layer: Linear, report: ReportBuilder, pattern: Pattern) -> None:
    weight = layer.matrices()
    mask = pattern.choose(layer, weight[0], None)[None]
    layer.write(weight * mask)
    report.apply(layer.name, f"{pattern.name}: {1 - mask.mean():.0%} zeros")


def _total(wanted: dict[str, Linear], report: ReportBuilder) -> None:
    weights = {name: constant(layer.weight) for name, layer in wanted.items()}
    zeros = {name: int((w == 0).sum()) for name, w in weights.items()}
    size = sum(w.size for w in weights.values())
    report.data.update({"zeros": zeros, "weights": {name: int(w.size) for name, w in weights.items()}})
    report.note(f"{sum(zeros.values())} of {size} weights of {len(weights)} layers are zero")
