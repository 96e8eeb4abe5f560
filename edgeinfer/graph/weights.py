"""Layers that multiply by a constant weight, seen alike: Conv, Gemm and MatMul, float or behind Q/DQ.

A weight is handled as a stack of matrices `(G, R, K)`: G groups, R output channels a group, K inputs a group
(for Conv: input channels by kernel). Then `y[g] = W[g] @ x[g]` holds for all of them.
"""

from __future__ import annotations

from typing import cast, final

import attrs
import numpy as np
import onnx_ir as ir

from edgeinfer.devices.profile import Target

__all__ = [
    "LINEAR_OPS",
    "Linear",
    "add_initializer",
    "as_target",
    "constant",
    "drop_unused",
    "find_linear",
    "graph_of",
    "set_constant",
    "set_type",
]

LINEAR_OPS = ("Conv", "Gemm", "MatMul")
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)


@final
@attrs.frozen(kw_only=True)
class Linear:
    """One Conv, Gemm or MatMul with a constant weight.

    Attributes:
        node: The node.
        weight: The initializer: float, or integer when `dequantize` is there.
        dequantize: The DequantizeLinear between the initializer and the node, or None.
        cast: The Cast between them, where the weight is stored in another float type, or None.
        groups: The number of groups; 1 but for grouped and depthwise convolutions.
        channel_axis: The axis of `weight` that counts output channels.
        input_axis: The axis of `weight` that counts input channels of a group.
    """

    node: ir.Node
    weight: ir.Value
    dequantize: ir.Node | None
    cast: ir.Node | None = None
    groups: int
    channel_axis: int
    input_axis: int

    @property
    def input(self) -> ir.Value:
        """The activation that the layer reads."""
        value = self.node.inputs[0]
        if value is None:
            raise AssertionError(f"{self.node.name} has no input")
        return value

    @property
    def output(self) -> ir.Value:
        """The activation that the layer makes."""
        return self.node.outputs[0]

    @property
    def bias(self) -> ir.Value | None:
        """The third input of Conv and Gemm, if it is there."""
        return self.node.inputs[2] if len(self.node.inputs) > 2 else None

    @property
    def channels(self) -> int:
        """The number of output channels."""
        return int(self.weight.const_value.shape[self.channel_axis])  # type: ignore[union-attr, arg-type]

    def array(self) -> np.ndarray:
        """Return the float weight, dequantized where it is quantized, float32 in the initializer's shape."""
        raw = constant(self.weight)
        if self.dequantize is None:
            return raw.astype(np.float32)
        scale, zero_point = self.grid()
        weight: np.ndarray = (raw.astype(np.float32) - zero_point) * scale
        return weight

    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        """Return scale and zero point of a quantized weight, float32, broadcastable to the initializer."""
        if self.dequantize is None:
            raise AssertionError(f"{self.node.name} has a float weight")
        _, scale, *rest = self.dequantize.inputs
        axis = self.dequantize.attributes.get_int("axis", 1)
        block = self.dequantize.attributes.get_int("block_size", 0)
        shape = constant(self.weight).shape
        scales = _spread(constant(scale), shape, axis, block).astype(np.float32)
        if not rest or rest[0] is None:
            return scales, np.zeros((), np.float32)
        return scales, _spread(constant(rest[0]), shape, axis, block).astype(np.float32)

    def owned(self) -> Linear:
        """Return the layer with a float weight that may be written to: a stored Cast is carried out."""
        if self.cast is None:
            return self
        value = self.cast.outputs[0]
        dtype = ir.DataType(self.cast.attributes.get_int("to", int(ir.DataType.FLOAT)))
        array = constant(self.weight).astype(dtype.numpy())
        weight = add_initializer(graph_of(self.node), f"{self.weight.name}_{dtype.name.lower()}", array)
        value.replace_all_uses_with(weight)
        graph_of(self.cast).remove(self.cast, safe=True)
        if not self.weight.uses() and self.weight.name:
            del graph_of(self.node).initializers[self.weight.name]
        return attrs.evolve(self, weight=weight, cast=None)

    def to_matrices(self, array: np.ndarray) -> np.ndarray:
        """Return an array of the initializer's shape as `(G, R, K)`."""
        if self.channel_axis == array.ndim - 1:
            return np.ascontiguousarray(array.T)[None]
        return array.reshape(self.groups, array.shape[0] // self.groups, -1)

    def from_matrices(self, matrices: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Return `(G, R, K)` in the initializer's shape again."""
        if self.channel_axis == len(shape) - 1:
            return np.ascontiguousarray(matrices[0].T)
        return matrices.reshape(shape)


def find_linear(node: ir.Node) -> Linear | str:
    """Return the layer that a Conv, Gemm or MatMul is, or the reason why it cannot be taken as one."""
    if node.op_type not in LINEAR_OPS or node.domain not in ("", "ai.onnx"):
        return f"{node.op_type} has no constant weight"
    weight = node.inputs[1]
    if weight is None:
        return "it has no weight"
    between = weight.producer()
    if between is not None:
        if between.op_type not in ("Cast", "DequantizeLinear") or between.inputs[0] is None:
            return "its weight is computed by the graph"
        if any(value is not None and value.const_value is None for value in between.inputs):
            return "its weight is computed by the graph"
        weight = between.inputs[0]
    cast = between if between is not None and between.op_type == "Cast" else None
    dequantize = between if cast is None else None
    tensor = weight.const_value
    if tensor is None or not weight.is_initializer():
        return "its weight is computed by the graph"
    if dequantize is None and tensor.dtype not in _FLOATS:
        return f"its weight is {tensor.dtype.name}"
    users = len(list(weight.uses()))
    if users > 1 or (between is not None and len(list(between.outputs[0].uses())) > 1):
        return f"its weight {weight.name!r} is shared with another node"
    rank = len(tensor.shape)
    found = Linear(
        node=node, weight=weight, dequantize=dequantize, cast=cast, groups=1, channel_axis=0, input_axis=1
    )
    if node.op_type == "Conv":
        groups = node.attributes.get_int("group", 1)
        return attrs.evolve(found, groups=groups)
    if rank != 2:
        return f"its weight has {rank} dimensions, 2 are handled"
    if node.op_type == "MatMul":
        return attrs.evolve(found, channel_axis=1, input_axis=0)
    factors = {name: node.attributes.get_float(name, 1.0) for name in ("alpha", "beta")}
    if factors != {"alpha": 1.0, "beta": 1.0} or node.attributes.get_int("transA", 0) != 0:
        return f"Gemm with {factors} and transA={node.attributes.get_int('transA', 0)} is not a plain layer"
    axis = 0 if node.attributes.get_int("transB", 0) else 1
    return attrs.evolve(found, channel_axis=axis, input_axis=1 - axis)


def constant(value: ir.Value | None) -> np.ndarray:
    """Return the data of a value that is known to be constant."""
    if value is None or value.const_value is None:
        raise AssertionError(f"{value} is not constant")
    return value.const_value.numpy()


def set_constant(value: ir.Value, array: np.ndarray) -> None:
    """Give an initializer new data."""
    tensor = ir.tensor(np.asarray(array, order="C"), name=value.name)  # a scalar stays one
    value.const_value = tensor
    set_type(value, tensor.dtype, ir.Shape(array.shape))


def set_type(value: ir.Value, dtype: ir.DataType | None, shape: ir.Shape | None) -> None:
    """Set dtype and shape of a tensor; setting `value.dtype` would change the copies of the model, too."""
    value.type = ir.TensorType(dtype) if dtype is not None else None
    value.shape = shape


def add_initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """Add a constant, under this name or a free one like it."""
    while name in graph.initializers:
        name += "_"
    value = ir.Value(name=name)
    set_constant(value, array)
    graph.register_initializer(value)
    return value


def drop_unused(model: ir.Model) -> None:
    """Remove the initializers that nothing reads."""
    for graph in (model.graph, *model.graph.subgraphs()):
        for name, value in list(graph.initializers.items()):
            if not (value.uses() or value.is_graph_output() or value.is_graph_input()):
                del graph.initializers[name]


def graph_of(node: ir.Node) -> ir.Graph:
    """Return the graph that the node stands in."""
    return cast(ir.Graph, node.graph)


def as_target(value: Target | str | None) -> Target | None:
    """Read a target, or None."""
    return None if value is None else Target.parse(value)


def _spread(parameter: np.ndarray, shape: tuple[int, ...], axis: int, block: int) -> np.ndarray:
    """Return a scale or zero point so that it broadcasts over a tensor of `shape`."""
    if parameter.ndim == 0 or parameter.size == 1:
        return parameter.reshape(())
    if block:
        return np.repeat(parameter, block, axis=axis)[tuple(slice(size) for size in shape)]
    axis %= len(shape)
    return parameter.reshape([-1 if i == axis else 1 for i in range(len(shape))])
