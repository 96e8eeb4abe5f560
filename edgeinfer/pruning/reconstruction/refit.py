"""Layer-wise least squares: fit each layer of a pruned model to what the float model computes there.

W', b' = argmin Σ ‖Y - (W X + b)‖² + λ ‖W - W₀‖², with X from the pruned model as refitted so far and Y from
the float model, in topological order, so that errors are made up for and do not pile up. Where the layer's
output goes into a residual sum, the target is the sum of the float model: the layer then corrects what the
stream has lost before it, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias, final

import attrs
import numpy as np
import onnx_ir as ir

from edgeinfer.calibration.moments import MomentObserver
from edgeinfer.feeds.feeds import FeedIterable
from edgeinfer.graph.data_sizes import data_dependent_sizes
from edgeinfer.graph.im2col import Layout
from edgeinfer.graph.initializers import constant, set_constant
from edgeinfer.graph.layers import find_layers, layout_of
from edgeinfer.graph.weights import Linear
from edgeinfer.pruning.reconstruction.activation import bend_behind
from edgeinfer.pruning.reconstruction.batches import is_held_out
from edgeinfer.pruning.reconstruction.frontier import Frontier, cuts
from edgeinfer.pruning.reconstruction.least_squares import Equations, best_ridge
from edgeinfer.pruning.reconstruction.transposed import Phase, phases, refusal_of_transposed
from edgeinfer.transforms.refusal import Refusal

__all__ = ["ChooseMask", "Refitter", "refusals"]

_PASSES = 2

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
    feeds: FeedIterable
    columns: int
    ridge: float | None = None
    _at: tuple[Frontier, Frontier] = attrs.field(init=False)
    _refused: set[str] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.rewind()

    def refit(
        self, model: ir.Model, layer: Linear, keep: np.ndarray | ChooseMask | None = None
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
        if layer.kind == "ConvTranspose":
            return self._refit_transposed(model, layer)
        before, after = self._refit_once(model, layer, keep)
        for _ in range(_PASSES - 1 if bend_behind(residual_sum(layer)) is not None else 0):
            # What may be fitted otherwise depends on the present outputs, which are others now.
            mask = layer.matrices() != 0 if keep is not None else None
            after = self._refit_once(model, layer, mask)[1]
        return before, after

    def _refit_once(
        self, model: ir.Model, layer: Linear, keep: np.ndarray | ChooseMask | None
    ) -> tuple[float, float]:
        fit, held, total = _equations(*self.collect(model, layer))
        weight = layer.matrices()
        bias = layer.bias_vector().reshape(weight.shape[:2])
        before = np.concatenate([weight, bias[..., None]], 2)
        fit_bias = layer.takes_bias

        def solved(start: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
            ridge = self.ridge
            if ridge is None:
                ridge = best_ridge(fit, held, start, mask, fit_bias=fit_bias)
            return total.solve(start, ridge, mask, fit_bias=fit_bias)

        if callable(keep):
            dense = solved(before, None)
            covariance = total.xx[:, :-1, :-1] - total.xx[:, :-1, -1:] * total.xx[:, -1:, :-1]
            after = solved(dense, keep(dense[..., :-1], covariance))
        else:
            after = solved(before, keep)
        losses = total.loss(before), total.loss(after)
        if not callable(keep) and losses[1] >= losses[0]:
            return losses[0], losses[0]
        layer.write(after[..., :-1])
        if fit_bias and not np.allclose(after[..., -1], bias, atol=1e-12):
            layer.write_bias(after[..., -1].reshape(-1))
        return losses

    def _refit_transposed(self, model: ir.Model, layer: Linear) -> tuple[float, float]:
        """Refit a transposed convolution phase by phase; the bias takes what is left of the mean."""
        weight = constant(layer.weight).astype(np.float64)
        bias = layer.bias_vector()
        parts: list[tuple[Phase, list[MomentObserver]]] = []
        for is_held, x, target in self._pairs(model, layer):
            if not parts:
                found = phases(layer.node, weight.shape, target.shape[2:])
                parts = [
                    (p, [MomentObserver(p.layout, max_columns=self.columns) for _ in "ab"]) for p in found
                ]
            for phase, observers in parts:
                observers[is_held].update_pair(phase.read(x), phase.output(target))
        before = after = energy = 0.0
        left = np.zeros(bias.size)
        count = sum(observer.count for _, observers in parts for observer in observers)
        for phase, observers in parts:
            fit, held, total = _equations(*observers)
            start = phase.matrix(weight)
            start = np.concatenate([start, bias.reshape(*start.shape[:2], 1)], 2)
            ridge = best_ridge(fit, held, start, fit_bias=False) if self.ridge is None else self.ridge
            solved = total.solve(start, ridge, fit_bias=False)
            power = total.power * observers[0].count
            old, new = total.loss(start), total.loss(solved)
            before, after, energy = before + old * power, after + min(old, new) * power, energy + power
            chosen = solved if new < old else start
            phase.write(weight, chosen[..., :-1])
            missing = total.yx[..., -1] - (chosen * total.xx[:, None, :, -1]).sum(2)
            left += missing.reshape(-1) * observers[0].count / count
        set_constant(layer.weight, weight.astype(constant(layer.weight).dtype))
        if layer.bias is not None:
            layer.write_bias(bias + left)
        return before / max(energy, 1e-30), after / max(energy, 1e-30)

    def collect(self, model: ir.Model, layer: Linear) -> tuple[MomentObserver, MomentObserver]:
        """Return the moments of a layer, X of the pruned model and Y of the float model.

        The second ones are of feeds held out, to choose the ridge on; empty where there are few feeds.
        """
        parts = self._observers(layout_of(layer))
        for is_held, x, target in self._pairs(model, layer):
            parts[is_held].update_pair(x, target)
        return parts[0], parts[1]

    def _observers(self, layout: Layout) -> list[MomentObserver]:
        """Return one for the feeds to fit to, and one for those held out."""
        return [MomentObserver(layout, max_columns=self.columns) for _ in range(2)]

    def _pairs(self, model: ir.Model, layer: Linear) -> Iterator[tuple[bool, np.ndarray, np.ndarray]]:
        """Yield for each feed whether it is held out, the layer's input, and the output it ought to have."""
        anchor = residual_sum(layer)
        bend = bend_behind(anchor)
        names = list(dict.fromkeys([layer.input.name or "", layer.output.name or "", anchor.name or ""]))
        self._advance(model, layer)
        pruned = self._at[0].tap(model, names)
        pairs = zip(pruned, self._at[1].tap(self.reference, [anchor.name or ""]), strict=True)
        for index, (values, wanted) in enumerate(pairs):
            target = self._kept(anchor.name or "", wanted[anchor.name or ""])
            if bend is not None:
                target = bend.target(target, values[anchor.name or ""])
            if anchor is not layer.output:
                target = values[layer.output.name or ""] + (target - values[anchor.name or ""])
            yield is_held_out(index), values[layer.input.name or ""], target

    def rewind(self) -> None:
        """Start from the model's inputs again, for another sweep."""
        self._at = Frontier(feeds=self.feeds), Frontier(feeds=self.feeds)
        self._refused = set()

    def _advance(self, model: ir.Model, layer: Linear) -> None:
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


def _equations(
    moments: MomentObserver, held: MomentObserver
) -> tuple[Equations, Equations | None, Equations]:
    """Return the equations of the feeds to fit to, of those held out, and of all; `moments` becomes all."""
    fit = Equations.of(moments)
    if not held.count:
        return fit, None, fit
    judged = Equations.of(held)
    moments.add(held)
    return fit, judged, Equations.of(moments)


def residual_sum(layer: Linear) -> ir.Value:
    """Return the sum that the layer's output goes into, as far as nothing but Add is between."""
    value = layer.output
    while True:
        uses = list(value.uses())
        if len(uses) != 1 or uses[0].node.op_type != "Add" or value.is_graph_output():
            return value
        value = uses[0].node.outputs[0]


def refusals(graph: ir.Graph) -> dict[str, Refusal]:
    """Return the layers of a graph that cannot be refitted, by name.

    Args:
        graph: The graph, its shapes inferred.
    """
    dependent = data_dependent_sizes(graph)
    found = {}
    for layer in find_layers(graph):
        seen = (layer.input, layer.output, residual_sum(layer))
        source = next((dependent[value] for value in seen if value in dependent), "")
        reason = ""
        if source:
            reason = f"how many inputs it has depends on the data, by {source!r}"
        elif layer.shared:
            reason = "its weight is used by another node, too"
        elif layer.kind == "ConvTranspose":
            reason = refusal_of_transposed(layer.node)
        if reason:
            found[layer.name] = Refusal(layer.name, reason)
    return found
