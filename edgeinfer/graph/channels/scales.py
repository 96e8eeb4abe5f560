"""Which channels of a graph may be scaled freely, and which of them must be scaled alike.

Every element of an activation has the number of a scale: two elements with the same number must be scaled
by the same factor, and number 0 is never scaled. `x / s` behind one layer, and `W[:, i] · s` in the next,
compute the same as long as everything between is homogeneous, `f(x / s) = f(x) / s` for `s > 0`. Numbers are
kept as integer arrays of the tensor's rank, with 1 along the axes that they are constant along (the batch,
height and width of an image), so operators that move values are the same operators on the numbers. A sum
joins the numbers of its operands.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import final

import attrs
import numpy as np
import onnx_ir as ir

from edgeinfer.graph.constants import constant_value
from edgeinfer.graph.weights import LINEAR_OPS, Linear, find_linear

__all__ = ["ChannelScales", "Layer"]

_SAME = frozenset(
    {
        "AveragePool",
        "Dropout",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "Identity",
        "LeakyRelu",
        "MaxPool",
        "Relu",
    }
)
_SHAPED = ("Flatten", "Reshape", "Squeeze", "Unsqueeze")
FIXED = 0


@final
@attrs.frozen(kw_only=True, eq=False)
class Layer:
    """A layer between two sets of scales.

    Attributes:
        linear: The layer.
        inputs: The number of the scale of each input channel.
        outputs: The number of the scale of each output channel; None when they cannot be scaled.
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
        self._graph = graph
        self._numbers: dict[ir.Value, np.ndarray] = {}
        self._parent = [FIXED]
        self.layers: list[Layer] = []
        for value in graph.inputs:
            self._set_fixed(value)
        for node in graph:
            self._visit(node)
        for value in graph.outputs:
            self._fix(value)

    def numbers(self, value: ir.Value) -> np.ndarray:
        """Return the numbers of a tensor's scales."""
        return self.resolve(self._numbers[value])

    def tensors(self) -> list[ir.Value]:
        """Return the tensors of which some channels may be scaled, in topological order."""
        return [value for value in self._numbers if (self.numbers(value) != FIXED).any()]

    def resolve(self, numbers: np.ndarray) -> np.ndarray:
        """Return numbers with those that were joined made the same."""
        roots = np.array([self._root(number) for number in range(len(self._parent))])
        resolved: np.ndarray = roots[numbers]
        return resolved

    @property
    def count(self) -> int:
        """How many numbers there are."""
        return len(self._parent)

    def _visit(self, node: ir.Node) -> None:
        numbers = self._layer(node) if node.op_type in LINEAR_OPS else self._moved(node)
        if numbers is None:
            for value in node.inputs:
                if value is not None:
                    self._fix(value)
            for value in node.outputs:
                self._set_fixed(value)
            return
        for value, own in zip(node.outputs, numbers, strict=False):
            fits = value.shape is not None and own.ndim == len(value.shape)
            if fits:
                self._numbers[value] = own
            else:
                self._join(own, np.zeros_like(own))
                self._set_fixed(value)

    def _layer(self, node: ir.Node) -> list[np.ndarray] | None:
        linear = find_linear(node)
        data = self._of(node.inputs[0])
        if (
            isinstance(linear, str)
            or data is None
            or linear.dequantize is not None
            or linear.cast is not None
        ):
            return None
        axis = 1 if node.op_type == "Conv" else data.ndim - 1
        channels = linear.array().shape[linear.input_axis] * linear.groups
        if data.size != data.shape[axis] or data.size not in (1, channels):
            return None
        bias = linear.bias
        owned = bias is None or (
            bias.const_value is not None and bias.is_initializer() and len(list(bias.uses())) == 1
        )
        outputs = self._new(linear.channels) if owned else None
        inputs = np.broadcast_to(data.reshape(-1), channels)
        self.layers.append(Layer(linear=linear, inputs=inputs, outputs=outputs))
        shape = [1] * data.ndim
        shape[axis] = linear.channels
        made = np.zeros(linear.channels, np.int64) if outputs is None else outputs
        return [made.reshape(shape)]

    def _moved(self, node: ir.Node) -> list[np.ndarray] | None:
        """Return the numbers of a node's outputs, or None for a node that is not homogeneous."""
        if node.domain not in ("", "ai.onnx"):
            return None
        op, data = node.op_type, self._of(node.inputs[0]) if node.inputs else None
        if data is None:
            return None
        if op in _SAME:
            return [data]
        if op in ("Add", "Sum", "Concat"):
            parts = [self._of(value) for value in node.inputs]
            found = [part for part in parts if part is not None]
            if len(found) < len(parts):
                return None
            return self._concat(node, found) if op == "Concat" else self._add(found)
        if op == "Resize":
            return [data] if self._keeps_channels(node) else None
        rearrange = _REARRANGE.get(op)
        if op in _SHAPED:
            rearrange = _reshape
        return rearrange(node, data) if rearrange is not None else self._pad(node, data)

    def _add(self, parts: list[np.ndarray]) -> list[np.ndarray]:
        spread = np.broadcast_arrays(*parts)
        for other in spread[1:]:
            self._join(spread[0], other)
        return [np.array(spread[0])]

    def _concat(self, node: ir.Node, parts: list[np.ndarray]) -> list[np.ndarray] | None:
        axis = node.attributes.get_int("axis", 0) % parts[0].ndim
        sizes = [_size(value, axis) for value in node.inputs]
        if any(size is None for size in sizes):
            return None
        varying = [
            np.repeat(part, size, axis) if part.shape[axis] == 1 and size is not None else part
            for part, size in zip(parts, sizes, strict=True)
        ]
        others = [max(part.shape[i] for part in varying) for i in range(parts[0].ndim)]
        full = [
            np.broadcast_to(part, [part.shape[i] if i == axis else n for i, n in enumerate(others)])
            for part in varying
        ]
        return [np.concatenate(full, axis)]

    def _pad(self, node: ir.Node, data: np.ndarray) -> list[np.ndarray] | None:
        """Zeros may have any scale, so padded channels get new numbers."""
        if node.op_type != "Pad" or node.attributes.get_string("mode", "constant") != "constant":
            return None
        pads = constant_value(node.inputs[1]) if len(node.inputs) > 1 else None
        fill = constant_value(node.inputs[2]) if len(node.inputs) > 2 else np.zeros(())
        axes = constant_value(node.inputs[3]) if len(node.inputs) > 3 else np.arange(data.ndim)
        if pads is None or fill is None or axes is None or fill.any() or (pads < 0).any():
            return None
        for axis, before, after in zip(axes.tolist(), *pads.reshape(2, -1).tolist(), strict=True):
            if not (before or after) or (data.shape[axis] == 1 and _size(node.inputs[0], axis) != 1):
                continue
            ends = []
            for count in (before, after):
                shape = [count if i == axis % data.ndim else n for i, n in enumerate(data.shape)]
                ends.append(self._new(int(np.prod(shape))).reshape(shape))
            data = np.concatenate([ends[0], data, ends[1]], axis)
        return [data]

    def _keeps_channels(self, node: ir.Node) -> bool:
        source, made = node.inputs[0], node.outputs[0]
        return (
            source is not None
            and source.shape is not None
            and made.shape is not None
            and len(source.shape) == len(made.shape)
            and source.shape[1] == made.shape[1]
        )

    def _of(self, value: ir.Value | None) -> np.ndarray | None:
        return self._numbers.get(value) if value is not None else None

    def _new(self, count: int) -> np.ndarray:
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        return np.arange(start, start + count)

    def _set_fixed(self, value: ir.Value) -> None:
        if value.shape is not None:
            self._numbers[value] = np.zeros([1] * len(value.shape), np.int64)

    def _fix(self, value: ir.Value) -> None:
        numbers = self._numbers.get(value)
        if numbers is not None:
            self._join(numbers, np.zeros_like(numbers))

    def _join(self, a: np.ndarray, b: np.ndarray) -> None:
        for first, second in zip(a.reshape(-1).tolist(), b.reshape(-1).tolist(), strict=True):
            one, other = sorted((self._root(first), self._root(second)))
            self._parent[other] = one

    def _root(self, number: int) -> int:
        while self._parent[number] != number:
            self._parent[number] = self._parent[self._parent[number]]
            number = self._parent[number]
        return number


def _size(value: ir.Value | None, axis: int) -> int | None:
    if value is None or value.shape is None:
        return None
    size = value.shape[axis]
    return size if isinstance(size, int) else None


def _transpose(node: ir.Node, data: np.ndarray) -> list[np.ndarray] | None:
    order = node.attributes.get("perm")
    return [np.transpose(data, order.as_ints() if order is not None else None)]


def _reshape(node: ir.Node, data: np.ndarray) -> list[np.ndarray] | None:
    """Follow a reshape of the leading axes; trailing axes that stay as they are may be constant."""
    before, after = (
        value.shape if value is not None else None for value in (node.inputs[0], node.outputs[0])
    )
    if before is None or after is None:
        return None
    old, new = list(before), list(after)
    kept: list[int] = []
    while old and new and len(old) > 1 and len(new) > 1 and old[-1] == new[-1]:
        old.pop()
        new.pop()
        kept.insert(0, data.shape[len(old)])
    # The first axis is then the batch, of one size in both, and has one number throughout.
    inner, outer = ([size for size in sizes[1:] if isinstance(size, int)] for sizes in (old, new))
    if not old or not new or len(inner) < len(old) - 1 or len(outer) < len(new) - 1:
        return None
    if data.shape[0] != 1 or math.prod(inner) != math.prod(outer):
        return None
    varied = np.broadcast_to(data, [1, *inner, *data.shape[len(old) :]])
    return [varied.reshape([1, *outer, *kept])]


def _slice(node: ir.Node, data: np.ndarray) -> list[np.ndarray] | None:
    constants = [constant_value(value) for value in node.inputs[1:]]
    if len(constants) < 2 or any(array is None for array in constants):
        return None
    starts, ends, *rest = [array.tolist() for array in constants if array is not None]
    axes = rest[0] if rest else list(range(len(starts)))
    steps = rest[1] if len(rest) > 1 else [1] * len(starts)
    where = [slice(None)] * data.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if data.shape[axis] > 1:
            where[axis] = slice(start, end if end > -(2**31) else None, step)
    return [data[tuple(where)]]


def _split(node: ir.Node, data: np.ndarray) -> list[np.ndarray] | None:
    axis = node.attributes.get_int("axis", 0)
    if data.shape[axis] == 1:
        return [data] * len(node.outputs)
    sizes = [_size(value, axis) for value in node.outputs]
    if any(size is None for size in sizes):
        return None
    return np.split(data, np.cumsum([size or 0 for size in sizes])[:-1], axis)


_REARRANGE: dict[str, Callable[[ir.Node, np.ndarray], list[np.ndarray] | None]] = {
    "Slice": _slice,
    "Split": _split,
    "Transpose": _transpose,
}
