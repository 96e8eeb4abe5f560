"""Layer-wise least squares: fit each layer of a pruned model to what the float model computes there.

W', b' = argmin Σ ‖Y - (W X + b)‖² + λ ‖W - W₀‖², with X from the pruned model as refitted so far and Y from
the float model, in topological order, so that errors are made up for and do not pile up. Where the layer's
output goes into a residual sum, the target is the sum of the float model: the layer then corrects what the
stream has lost before it, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias, final

import attrs
import numpy as np
import onnx_ir as ir

from edgeinfer.pruning.feeds import Feeds
from edgeinfer.pruning.frontier import Frontier, cuts
from edgeinfer.pruning.layers import Layer, read_weight, write_weight
from edgeinfer.pruning.least_squares import Equations, best_ridge
from edgeinfer.pruning.shapes import add_constant
from edgeinfer.pruning.statistics import is_held_out
from edgeinfer.quantization.moments import MomentObserver

__all__ = ["ChooseMask", "Refitter", "refusal"]

ChooseMask: TypeAlias = "Callable[[np.ndarray, np.ndarray], np.ndarray]"


@final
@attrs.define(kw_only=True, eq=False)
class Refitter:
    """Fits layers of one model to another.

    Attributes:
        reference: The float model.
        masks: Which positions of the reference's axes are left in the pruned model, by tensor name.
        feeds: The calibration.
        columns: How many output positions to take of each feed.
        ridge: λ, relative to the mean diagonal of X Xᵀ. None: the best on feeds held out, layer by layer.
    """

    reference: ir.Model
    masks: Mapping[str, list[np.ndarray | None]]
    feeds: Feeds
    columns: int
    ridge: float | None = None
    _at: tuple[Frontier, Frontier] = attrs.field(init=False)
    _refused: set[str] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.rewind()

    def refit(
        self, model: ir.Model, layer: Layer, keep: np.ndarray | ChooseMask | None = None
    ) -> tuple[float, float]:
        """Refit one layer of `model` in place.

        Args:
            model: The pruned model.
            layer: A layer of it.
            keep: Which elements of the weight, (G, R, K), may be other than zero; None for all. Or a function
                that chooses them, given the fitted dense W and the covariance of X.

        Returns:
            The relative squared error of the layer's output before and after.
        """
        fit, held, total = self._equations(model, layer)
        weight = layer.matrix(read_weight(layer.weight))
        bias = _bias(layer, weight)
        before = np.concatenate([weight, bias[..., None]], 2)
        fit_bias = layer.bias is not None or layer.kind in ("conv", "gemm")

        def solved(start: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
            ridge = self.ridge
            if ridge is None:
                ridge = best_ridge(fit, held, start, mask, fit_bias=fit_bias)
            return total.solve(start, ridge, mask, fit_bias=fit_bias)

        if callable(keep):
            dense = solved(before, None)
            covariance = total.xx[:, :-1, :-1] - total.xx[:, :-1, -1:] @ total.xx[:, -1:, :-1]
            after = solved(dense, keep(dense[..., :-1], covariance))
        else:
            after = solved(before, keep)
        losses = total.loss(before), total.loss(after)
        if not callable(keep) and losses[1] >= losses[0]:
            return losses[0], losses[0]
        write_weight(layer.weight, layer.unmatrix(after[..., :-1], read_weight(layer.weight).shape))
        _set_bias(model, layer, after[..., -1].reshape(-1), bias.reshape(-1))
        return losses

    def _equations(self, model: ir.Model, layer: Layer) -> tuple[Equations, Equations | None, Equations]:
        """Return the equations of the feeds to fit to, of those held out, and of all."""
        moments, held = self.collect(model, layer)
        fit = Equations.of(moments)
        if not held.count:
            return fit, None, fit
        judged = Equations.of(held)
        moments.add(held)
        return fit, judged, Equations.of(moments)

    def collect(self, model: ir.Model, layer: Layer) -> tuple[MomentObserver, MomentObserver]:
        """Return the moments of a layer, X of the pruned model and Y of the float model.

        The second ones are of feeds held out, to choose the ridge on; empty where there are few feeds.
        """
        anchor = residual_sum(layer)
        names = list(dict.fromkeys([layer.x.name or "", layer.y.name or "", anchor.name or ""]))
        parts = [MomentObserver(layer.layout, max_columns=self.columns) for _ in range(2)]
        self._advance(model, layer)
        pruned = self._at[0].tap(model, names)
        pairs = zip(pruned, self._at[1].tap(self.reference, [anchor.name or ""]), strict=True)
        for index, (values, wanted) in enumerate(pairs):
            x, y = values[names[0]], values[layer.y.name or ""]
            target = self._kept(anchor.name or "", wanted[anchor.name or ""])
            if anchor is not layer.y:
                target = y + (target - values[anchor.name or ""])
            parts[is_held_out(index)].update_pair(x, target)
        return parts[0], parts[1]

    def rewind(self) -> None:
        """Start from the model's inputs again, for another sweep."""
        self._at = Frontier(feeds=self.feeds), Frontier(feeds=self.feeds)
        self._refused = set()

    def _advance(self, model: ir.Model, layer: Layer) -> None:
        """Move both models to the last cut before the layer; all layers before it are done."""
        order = {node.name: index for index, node in enumerate(model.graph)}
        here, there = cuts(model.graph), cuts(self.reference.graph)
        at = order[layer.node.name]
        before = [name for name, index in here.items() if index < at and name in there]
        if not before or before[-1] in self._refused or before[-1] == self._at[0].start:
            return
        cut = before[-1]
        # Both or none: a layer's tensors are looked up behind one and the same cut.
        pruned, float_ = self._at[0].copy(), self._at[1].copy()
        if pruned.advance(model, cut) and float_.advance(self.reference, cut):
            self._at = pruned, float_
        else:
            self._refused.add(cut)

    def _kept(self, name: str, array: np.ndarray) -> np.ndarray:
        for axis, mask in enumerate(self.masks.get(name, ())):
            if mask is not None and not mask.all():
                array = np.compress(mask, array, axis=axis)
        return array


def residual_sum(layer: Layer) -> ir.Value:
    """Return the sum that the layer's output goes into, as far as nothing but Add is between."""
    value = layer.y
    while True:
        uses = list(value.uses())
        if len(uses) != 1 or uses[0].node.op_type != "Add" or value.is_graph_output():
            return value
        value = uses[0].node.outputs[0]


def _bias(layer: Layer, weight: np.ndarray) -> np.ndarray:
    if layer.bias is None:
        return np.zeros(weight.shape[:2])
    return np.broadcast_to(
        read_weight(layer.bias).astype(np.float64).reshape(-1), weight[..., 0].size
    ).reshape(weight.shape[:2])


def _set_bias(model: ir.Model, layer: Layer, bias: np.ndarray, before: np.ndarray) -> None:
    if layer.bias is not None:
        if bias.size == read_weight(layer.bias).size:
            write_weight(layer.bias, bias.reshape(read_weight(layer.bias).shape))
    elif layer.kind in ("conv", "gemm") and not np.allclose(bias, before, atol=1e-12):
        fresh = add_constant(model.graph, f"{layer.name}_bias", bias.astype(read_weight(layer.weight).dtype))
        if len(layer.node.inputs) < 3:
            layer.node.resize_inputs(3)
        layer.node.replace_input_with(2, fresh)


def refusal(layer: Layer) -> str:
    """Return why a layer cannot be refitted, or an empty text."""
    if layer.shared:
        return "its weight is used by another node, too"
    if layer.kind == "conv_transpose":
        return "transposed convolutions are not refitted"
    return ""
