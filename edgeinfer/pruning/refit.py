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
from edgeinfer.pruning.shapes import add_constant
from edgeinfer.pruning.statistics import is_held_out
from edgeinfer.quantization.moments import MomentObserver

DEFAULT_RIDGE = 1e-2
RIDGES = (3e-4, 3e-3, 3e-2, 3e-1, 3.0)

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
        moments, held = self.collect(model, layer)
        weight = layer.matrix(read_weight(layer.weight))
        bias = _bias(layer, weight)
        before = np.concatenate([weight, bias[..., None]], 2)
        fit_bias = layer.bias is not None or layer.kind in ("conv", "gemm")
        fixed = None if callable(keep) else keep
        ridge = (
            self.ridge
            if self.ridge is not None
            else best_ridge(moments, held, before, fixed, fit_bias=fit_bias)
        )
        if held.count:
            moments.add(held)
        if callable(keep):
            dense = solve(moments, before, ridge, fit_bias=fit_bias)
            keep, before = keep(dense[..., :-1], moments.covariance), dense
            forced = True
        else:
            forced = False
        after = solve(moments, before, ridge, keep, fit_bias=fit_bias)
        losses = _loss(moments, before), _loss(moments, after)
        if forced or losses[1] < losses[0]:
            write_weight(layer.weight, layer.unmatrix(after[..., :-1], read_weight(layer.weight).shape))
            _set_bias(model, layer, after[..., -1].reshape(-1), bias.reshape(-1))
        return losses[0], min(losses)

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


def best_ridge(
    moments: MomentObserver,
    held: MomentObserver,
    start: np.ndarray,
    keep: np.ndarray | None = None,
    *,
    fit_bias: bool = True,
) -> float:
    """Return the ridge whose solution has the least error on data held out.

    Layers late in a network have many inputs and few positions: without this they would learn the calibration
    by heart.
    """
    if not held.count:
        return DEFAULT_RIDGE
    losses = [_loss(held, solve(moments, start, ridge, keep, fit_bias=fit_bias)) for ridge in RIDGES]
    return RIDGES[int(np.argmin(losses))]


def solve(
    moments: MomentObserver,
    start: np.ndarray,
    ridge: float,
    keep: np.ndarray | None = None,
    *,
    fit_bias: bool = True,
) -> np.ndarray:
    """Return the least-squares W and b as (G, R, K + 1), drawn towards `start` by the ridge.

    Args:
        moments: Of the layer.
        start: The present W and b, (G, R, K + 1).
        ridge: Relative to the mean diagonal of X Xᵀ; the bias is not drawn.
        keep: A mask of W's elements that may be other than zero.
        fit_bias: Whether b may change.
    """
    size = start.shape[2]
    result: np.ndarray = start.copy()
    wide_xx, wide_yx = _wide(moments)
    for g in range(start.shape[0]):
        xx, yx = wide_xx[g], wide_yx[g]
        penalty = np.full(size, ridge * np.trace(xx[:-1, :-1]) / max(size - 1, 1) + 1e-12)
        penalty[-1] = 0.0 if fit_bias else 1e6
        left = xx + np.diag(penalty)
        right = yx + start[g] * penalty
        if keep is None:
            result[g] = _solve(left, right)
            continue
        result[g] = _solve_rows(left, right, np.pad(keep[g], ((0, 0), (0, 1)), constant_values=True))
    return result


def _solve_rows(left: np.ndarray, right: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Solve each row for the elements that it may have; rows with the same ones share a factorization."""
    result: np.ndarray = np.zeros_like(right)
    patterns, which = np.unique(keep, axis=0, return_inverse=True)
    for index, free in enumerate(patterns):
        rows = np.flatnonzero(which.ravel() == index)
        result[np.ix_(rows, free)] = _solve(left[np.ix_(free, free)], right[np.ix_(rows, free)])
    return result


def _solve(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    try:
        solved: np.ndarray = np.linalg.solve(left, right.T).T
    except np.linalg.LinAlgError:
        solved = (np.linalg.pinv(left) @ right.T).T
    return solved


def _wide(moments: MomentObserver) -> tuple[np.ndarray, np.ndarray]:
    """Return X Xᵀ and Y Xᵀ with a row of ones below X, divided by the number of columns."""
    mean = moments.mean[..., None]
    ones = np.ones((len(mean), 1, 1))
    xx = np.block([[moments.hessian, mean], [mean.transpose(0, 2, 1), ones]])
    return xx, np.concatenate([moments.cross, moments.target_mean[..., None]], 2)


def _loss(moments: MomentObserver, weights: np.ndarray) -> float:
    """Return Σ‖Y - W X‖² relative to the centred Σ‖Y‖²."""
    xx, yx = _wide(moments)
    power = moments.target_power.sum()
    error = power - 2 * (weights * yx).sum() + np.einsum("grk,gkl,grl->", weights, xx, weights, optimize=True)
    return float(max(error, 0.0) / max(power - np.square(moments.target_mean).sum(), 1e-30))


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
