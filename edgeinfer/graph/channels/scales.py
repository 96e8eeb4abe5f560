"""Which channels of a graph may be scaled freely, and which of them must be scaled alike.

Every element of an activation has the label of a scale: two elements with the same label must be scaled by
the same factor, and label 0 is never scaled. `x / s` behind one layer, and `W[:, i] · s` in the next, compute
the same as long as everything between is homogeneous, `f(x / s) = f(x) / s` for `s > 0`. The rules of the
operators (see `propagate`) say where it is, labels are grids (see `moves`), and sums unite those of operands.
"""

from __future__ import annotations

from typing import final

import attrs
import numpy as np
import onnx_ir as ir

import edgeinfer.graph.channels.propagate_channelwise
import edgeinfer.graph.channels.propagate_layout  # noqa: F401  (these modules register their rules)
from edgeinfer.graph.channels.labels import Labels, dims
from edgeinfer.graph.channels.moves import MOVES, StuckError
from edgeinfer.graph.channels.propagate import RULES
from edgeinfer.graph.channels.propagate_positions import pad_amounts
from edgeinfer.graph.constants import constant_value
from edgeinfer.graph.initializers import constant, set_constant
from edgeinfer.graph.weights import Linear, find_linear

__all__ = ["FIXED", "ChannelScales", "ScaledLayer", "rescale"]

FIXED = 0


@final
@attrs.frozen(kw_only=True, eq=False)
class ScaledLayer:
    """A layer between two sets of scales.

    Attributes:
        linear: The layer.
        inputs: The label of the scale of each input channel.
        outputs: The label of the scale of each output channel; None when they cannot be scaled.
    """

    linear: Linear
    inputs: np.ndarray
    outputs: np.ndarray | None


@final
class ChannelScales:
    """The scales of a graph with static ranks. Shapes must have been inferred.

    Attributes:
        layers: The layers that can take scales in, in topological order.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self._grids: dict[ir.Value, np.ndarray] = {}
        self._labels = Labels()
        self._labels.fresh(1)  # FIXED, which the union-find keeps as the representative
        self.layers: list[ScaledLayer] = []
        for value in graph.inputs:
            self._set_fixed(value)
        for node in graph:
            self._visit(node)
        for value in graph.outputs:
            self._fix(value)

    def numbers(self, value: ir.Value) -> np.ndarray:
        """Return the labels of a tensor's scales."""
        return self.resolve(self._grids[value])

    def tensors(self) -> list[ir.Value]:
        """Return the tensors of which some channels may be scaled, in topological order."""
        return [value for value in self._grids if (self.numbers(value) != FIXED).any()]

    def resolve(self, labels: np.ndarray) -> np.ndarray:
        """Return labels with those that were united made the same."""
        resolved: np.ndarray = self._labels.roots(labels.reshape(-1)).reshape(labels.shape)
        return resolved

    @property
    def count(self) -> int:
        """How many labels there are."""
        return len(self._labels)

    def _visit(self, node: ir.Node) -> None:
        try:
            made = self._made(node)
        except StuckError:
            made = None
        if made is None:
            for read in node.inputs:
                if read is not None:
                    self._fix(read)
            for value in node.outputs:
                self._set_fixed(value)
            return
        for value, grid in zip(node.outputs, made, strict=False):
            self._grids[value] = grid
            if value.shape is None or grid.ndim != len(value.shape):
                self._fix(value)
                self._set_fixed(value)

    def _made(self, node: ir.Node) -> list[np.ndarray] | None:
        """Return the labels of a node's outputs, or None where scales cannot pass."""
        rule = RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        grid = self._of(node.inputs[0]) if node.inputs else None
        if rule is None or grid is None:
            return None
        if rule.scale == "layer":
            return self._layer(node, grid)
        if rule.scale == "passes":
            return [grid]
        if rule.scale == "passes by channel":
            return [grid] if max(grid.shape[2:], default=1) == 1 and _keeps_channels(node) else None
        if rule.scale == "moves":
            return MOVES[node.op_type](node, grid)
        if node.op_type == "Pad":
            return self._pad(node, grid)
        parts = [self._of(value) for value in node.inputs]
        found = [part for part in parts if part is not None]
        if rule.scale not in ("equal", "joins") or len(found) < len(parts):
            return None
        return self._equal(found) if rule.scale == "equal" else _joined(node, found)

    def _layer(self, node: ir.Node, grid: np.ndarray) -> list[np.ndarray] | None:
        linear = find_linear(node)
        if isinstance(linear, str) or linear.dequantize is not None or linear.cast is not None:
            return None
        axis, channels = 1 if linear.is_conv else grid.ndim - 1, linear.input_channels
        if grid.size != grid.shape[axis] or grid.size not in (1, channels):
            return None
        bias = linear.bias
        owned = bias is None or (
            bias.const_value is not None and bias.is_initializer() and len(list(bias.uses())) == 1
        )
        outputs = self._labels.fresh(linear.channels) if owned else None
        inputs = np.broadcast_to(grid.reshape(-1), channels)
        self.layers.append(ScaledLayer(linear=linear, inputs=inputs, outputs=outputs))
        made = np.full(linear.channels, FIXED) if outputs is None else outputs
        return [made.reshape([-1 if index == axis else 1 for index in range(grid.ndim)])]

    def _equal(self, parts: list[np.ndarray]) -> list[np.ndarray]:
        spread = np.broadcast_arrays(*parts)
        for other in spread[1:]:
            self._labels.unite(spread[0], other)
        return [np.array(spread[0])]

    def _pad(self, node: ir.Node, grid: np.ndarray) -> list[np.ndarray] | None:
        """Zeros may have any scale, so padded channels get new labels."""
        pads = pad_amounts(node, grid.ndim)
        fill = constant_value(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else np.zeros(())
        if node.attributes.get_string("mode", "constant") != "constant" or pads is None or fill is None:
            return None
        if fill.any() or node.attributes.get_float("value", 0.0) != 0.0 or min(min(p) for p in pads) < 0:
            return None
        for axis, amounts in enumerate(pads):
            if not any(amounts) or (grid.shape[axis] == 1 and _size(node.inputs[0], axis) != 1):
                continue
            shapes = [[n if i == axis else size for i, size in enumerate(grid.shape)] for n in amounts]
            before, after = (self._labels.fresh(int(np.prod(shape))).reshape(shape) for shape in shapes)
            grid = np.concatenate([before, grid, after], axis)
        return [grid]

    def _of(self, value: ir.Value | None) -> np.ndarray | None:
        return self._grids.get(value) if value is not None else None

    def _set_fixed(self, value: ir.Value) -> None:
        if value.shape is not None:
            self._grids[value] = np.full([1] * len(value.shape), FIXED)

    def _fix(self, value: ir.Value) -> None:
        grid = self._grids.get(value)
        if grid is not None:
            self._labels.unite(grid, np.full_like(grid, FIXED))


def _joined(node: ir.Node, parts: list[np.ndarray]) -> list[np.ndarray]:
    axis = node.attributes.get_int("axis", 0) % parts[0].ndim
    varying = []
    for part, value in zip(parts, node.inputs, strict=True):
        size = _size(value, axis)
        if size is None:
            raise StuckError("the sizes of what it joins are not static")
        varying.append(np.repeat(part, size, axis) if part.shape[axis] == 1 else part)
    others = np.broadcast_shapes(*(part.take([0], axis).shape for part in varying))
    full = [
        np.broadcast_to(part, [part.shape[i] if i == axis else size for i, size in enumerate(others)])
        for part in varying
    ]
    return [np.concatenate(full, axis)]


def _keeps_channels(node: ir.Node) -> bool:
    before, after = node.inputs[0], node.outputs[0]
    if before is None or before.shape is None or after.shape is None:
        return False
    return len(dims(before)) == len(dims(after)) and dims(before)[1:2] == dims(after)[1:2]


def _size(value: ir.Value | None, axis: int) -> int | None:
    size = None if value is None or value.shape is None else value.shape[axis]
    return size if isinstance(size, int) else None


def rescale(layer: Linear, *, inputs: np.ndarray | None = None, outputs: np.ndarray | None = None) -> None:
    """Multiply W of a layer by a factor an input channel; divide W and b by one an output channel."""
    stored = constant(layer.weight)
    array = stored.astype(np.float64)
    if inputs is not None:
        rows = stored.shape[layer.channel_axis] // layer.groups
        factor = np.repeat(inputs.reshape(layer.groups, -1), rows, axis=0)  # (outputs, inputs of a group)
        array *= _as_weight(layer, factor)
    if outputs is not None:
        array /= _as_weight(layer, outputs[:, None])
        if layer.bias is not None:
            bias = constant(layer.bias)
            set_constant(layer.bias, (bias / outputs).astype(bias.dtype))
    set_constant(layer.weight, array.astype(stored.dtype))


def _as_weight(layer: Linear, factor: np.ndarray) -> np.ndarray:
    """Return factors (outputs, inputs) so that they broadcast over the weight."""
    factor = factor if layer.channel_axis == 0 else factor.T
    return factor.reshape(*factor.shape, *[1] * (len(constant(layer.weight).shape) - 2))
