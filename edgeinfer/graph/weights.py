"""The one view of a layer's weight: Conv, ConvTranspose, Gemm and MatMul as y = W x + b.

A weight is handled as a stack of matrices `(G, R, K)`: G groups, R output channels a group, K inputs a group
(for Conv: input channels by kernel). Then `y[g] = W[g] @ x[g]` holds for all of them. In a transposed
convolution every tap is an output of its own, which is scattered behind the product.

`find_linear` takes a node as a plain layer with a weight of its own, which quantization needs, or says why
not; `graph.layers.find_layers` finds all layers of a graph.
"""

from __future__ import annotations

import math
from typing import cast, final

import attrs
import numpy as np
import onnx_ir as ir

from edgeinfer.devices.profile import Target
from edgeinfer.graph.constants import constant_value
from edgeinfer.graph.initializers import (
    add_initializer,
    constant,
    drop_unused,
    graph_of,
    set_constant,
    set_type,
)

__all__ = [
    "LINEAR_OPS",
    "Linear",
    "add_initializer",
    "as_target",
    "constant",
    "drop_unused",
    "find_linear",
    "graph_of",
    "linear_of",
    "set_constant",
    "set_type",
]

LINEAR_OPS = ("Conv", "Gemm", "MatMul")
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.BFLOAT16)


@final
@attrs.frozen(kw_only=True)
class Linear:
    """One layer with a constant weight.

    Attributes:
        node: The node.
        weight: The initializer: float, or integer when `dequantize` is there.
        dequantize: The DequantizeLinear between the initializer and the node, or None.
        cast: The Cast between them, where the weight is stored in another float type, or None.
        groups: The number of groups; 1 but for grouped and depthwise convolutions.
        channel_axis: The axis of `weight` that counts output channels (of a group, for ConvTranspose).
        input_axis: The axis of `weight` that counts input channels (of a group, for Conv).
        bias_add: The Add behind the node that has its bias, or None: the bias is the node's third input.
        shared: Whether another node uses the same weight.
    """

    node: ir.Node
    weight: ir.Value
    dequantize: ir.Node | None = None
    cast: ir.Node | None = None
    groups: int = 1
    channel_axis: int
    input_axis: int
    bias_add: ir.Node | None = None
    shared: bool = False

    @property
    def name(self) -> str:
        """The node's name."""
        return self.node.name or self.node.op_type

    @property
    def kind(self) -> str:
        """The operator."""
        return self.node.op_type

    @property
    def is_conv(self) -> bool:
        """Whether its channels are the second axis, and taps the further axes of its weight."""
        return self.kind in ("Conv", "ConvTranspose")

    @property
    def input(self) -> ir.Value:
        """The activation that the layer reads."""
        return cast(ir.Value, self.node.inputs[0])

    @property
    def output(self) -> ir.Value:
        """The activation that the layer makes, its bias included."""
        return (self.bias_add or self.node).outputs[0]

    @property
    def bias(self) -> ir.Value | None:
        """The third input of the node, or what the Add behind it adds."""
        if self.bias_add is not None:
            return next(v for v in self.bias_add.inputs if v is not self.node.outputs[0])
        return self.node.inputs[2] if len(self.node.inputs) > 2 else None

    @property
    def channels(self) -> int:
        """The number of output channels."""
        size = int(self.weight.const_value.shape[self.channel_axis])  # type: ignore[union-attr, arg-type]
        return size * self.groups if self.kind == "ConvTranspose" else size

    @property
    def input_channels(self) -> int:
        """The number of input channels."""
        size = int(self.weight.const_value.shape[self.input_axis])  # type: ignore[union-attr, arg-type]
        return size * self.groups if self.kind == "Conv" else size

    @property
    def taps(self) -> int:
        """Kernel positions: 9 for a 3x3 convolution, 1 for a product."""
        return math.prod(constant(self.weight).shape[2:])

    @property
    def alpha(self) -> float:
        """Gemm's alpha, by which the product is multiplied."""
        return self.node.attributes.get_float("alpha", 1.0) if self.kind == "Gemm" else 1.0

    @property
    def beta(self) -> float:
        """Gemm's beta, by which the bias is multiplied."""
        return self.node.attributes.get_float("beta", 1.0) if self.kind == "Gemm" else 1.0

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

    def matrices(self) -> np.ndarray:
        """Return W as `(G, R, K)`, Gemm's alpha included, float64."""
        return self.to_matrices(constant(self.weight).astype(np.float64)) * self.alpha

    def write(self, matrices: np.ndarray) -> None:
        """Set W, given as `matrices` gives it, in the dtype that it is stored in."""
        stored = constant(self.weight)
        array = self.from_matrices(matrices / self.alpha, stored.shape)
        set_constant(self.weight, array.astype(stored.dtype))

    @property
    def takes_bias(self) -> bool:
        """Whether there is a place for a bias: a MatMul without an Add behind it has none."""
        return self.kind != "MatMul" or self.bias_add is not None

    @property
    def owns_bias(self) -> bool:
        """Whether the bias is a constant that nothing else reads."""
        return self.bias is not None and self.bias.is_initializer() and len(list(self.bias.uses())) == 1

    def bias_vector(self) -> np.ndarray:
        """Return b as (channels,), Gemm's beta included, float64; zeros where there is none."""
        array = None if self.bias is None else constant_value(self.bias)
        flat = np.zeros(1) if array is None else array.astype(np.float64).reshape(-1) * self.beta
        vector: np.ndarray = np.broadcast_to(flat, (self.channels,)).copy()
        return vector

    def write_bias(self, vector: np.ndarray) -> None:
        """Set b, as `bias_vector` gives it, in a constant of its own."""
        old = self.bias
        shape: tuple[int, ...] = (self.channels,)
        if old is not None:
            stored = constant_value(old)
            if stored is None or stored.size not in (1, self.channels):
                return
            shape = (*[1] * (stored.ndim - 1), self.channels) if stored.size == 1 else stored.shape
        array = (vector / self.beta).reshape(shape).astype(constant(self.weight).dtype)
        if old is not None and self.owns_bias:
            set_constant(old, array.astype(constant(old).dtype))
            return
        fresh = add_initializer(graph_of(self.node), f"{self.name}_bias", array)
        reader, index = (self.node, 2) if self.bias_add is None else (self.bias_add, 0)
        if self.bias_add is not None:
            index = next(i for i, v in enumerate(self.bias_add.inputs) if v is old)
        if index >= len(reader.inputs):
            reader.resize_inputs(index + 1)
        reader.replace_input_with(index, fresh)

    def to_matrices(self, array: np.ndarray) -> np.ndarray:
        """Return an array of the initializer's shape as `(G, R, K)`."""
        if not self.is_conv:
            return np.ascontiguousarray(array.T if self.channel_axis else array)[None]
        grouped = array.reshape(self.groups, array.shape[0] // self.groups, -1)
        return grouped if self.kind == "Conv" else grouped.transpose(0, 2, 1)

    def from_matrices(self, matrices: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Return `(G, R, K)` in the initializer's shape again."""
        if not self.is_conv:
            return np.ascontiguousarray(matrices[0].T if self.channel_axis else matrices[0])
        grouped = matrices if self.kind == "Conv" else matrices.transpose(0, 2, 1)
        return np.ascontiguousarray(grouped).reshape(shape)


def linear_of(node: ir.Node, weight: ir.Value) -> Linear:
    """Return the view of a Conv, ConvTranspose, Gemm or MatMul, given the initializer of its weight."""
    groups, axis = 1, 1
    if node.op_type in ("Conv", "ConvTranspose"):
        groups = node.attributes.get_int("group", 1)
        axis = 0 if node.op_type == "Conv" else 1
    elif node.op_type == "Gemm" and node.attributes.get_int("transB", 0) != 0:
        axis = 0
    return Linear(node=node, weight=weight, groups=groups, channel_axis=axis, input_axis=1 - axis)


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
    if dequantize is None and tensor.dtype not in _FLOATS[:3]:
        return f"its weight is {tensor.dtype.name}"
    users = len(list(weight.uses()))
    if users > 1 or (between is not None and len(list(between.outputs[0].uses())) > 1):
        return f"its weight {weight.name!r} is shared with another node"
    rank = len(tensor.shape)
    if node.op_type != "Conv" and rank != 2:
        return f"its weight has {rank} dimensions, 2 are handled"
    if node.op_type == "Gemm":
        factors = {name: node.attributes.get_float(name, 1.0) for name in ("alpha", "beta")}
        trans_a = node.attributes.get_int("transA", 0)
        if factors != {"alpha": 1.0, "beta": 1.0} or trans_a != 0:
            return f"Gemm with {factors} and transA={trans_a} is not a plain layer"
    return attrs.evolve(linear_of(node, weight), dequantize=dequantize, cast=cast)


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
