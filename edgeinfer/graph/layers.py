"""Layers with weights, seen as matrices: Conv, ConvTranspose, Gemm and MatMul as Y = W X + b.

Each layer is one product a convolution group: W is (G, R, K) with R outputs and K = inputs times taps, X is
(G, K, n) with one column an output position. Dense layers have G = 1; depthwise ones one group a channel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, final

import attrs
import numpy as np
import onnx_ir as ir

from edgeinfer.graph.channels.labels import dims, is_weight
from edgeinfer.graph.im2col import Layout, layout_of_node

__all__ = ["Layer", "find_layers", "read_weight", "write_weight"]


@final
@attrs.frozen(kw_only=True, eq=False)
class Layer:
    """A node with a weight.

    Attributes:
        node: The node.
        kind: How its weight is laid out.
        x: The input tensor.
        y: The output tensor.
        weight: The initializer that holds W, behind any Cast.
        bias: The initializer that holds b, if the node has one.
        group: The number of convolution groups.
        shared: Whether another node uses the same weight, so that it cannot be refitted for one of them.
    """

    node: ir.Node
    kind: Literal["conv", "conv_transpose", "gemm", "matmul"]
    x: ir.Value
    y: ir.Value
    weight: ir.Value
    bias: ir.Value | None
    group: int = 1
    shared: bool = False

    @property
    def name(self) -> str:
        """The node's name."""
        return self.node.name or self.node.op_type

    @property
    def in_axis(self) -> int:
        """The axis of the weight that runs over input channels (of one group)."""
        if self.kind == "conv":
            return 1
        if self.kind == "gemm":
            return 1 if _flag(self.node, "transB") else 0
        return 0

    @property
    def out_axis(self) -> int:
        """The axis of the weight that runs over output channels."""
        return 0 if self.kind == "conv" else 1 - self.in_axis

    @property
    def taps(self) -> int:
        """Kernel positions: 9 for a 3x3 convolution, 1 for a product."""
        return math.prod(_ints(self.weight)[2:]) if self.kind.startswith("conv") else 1

    @property
    def scale(self) -> float:
        """Gemm's alpha, by which the product is multiplied."""
        return float(_attr(self.node, "alpha", 1.0)) if self.kind == "gemm" else 1.0

    def matrix(self, weight: np.ndarray) -> np.ndarray:
        """Return a weight as (G, R, K), alpha included, float64."""
        w: np.ndarray = weight.astype(np.float64)
        if self.kind == "conv":
            return w.reshape(self.group, w.shape[0] // self.group, -1)
        if self.kind == "conv_transpose":  # (C, M/G, k...): every tap is an output of its own
            per = w.reshape(self.group, w.shape[0] // self.group, -1)
            turned: np.ndarray = per.transpose(0, 2, 1)
            return turned
        flat: np.ndarray = (w if self.in_axis == 1 else w.T)[None] * self.scale
        return flat

    def unmatrix(self, matrix: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """The inverse of `matrix` for a weight of the given shape."""
        if self.kind == "conv":
            return matrix.reshape(shape)
        if self.kind == "conv_transpose":
            return np.ascontiguousarray(matrix.transpose(0, 2, 1)).reshape(shape)
        flat = matrix[0] / self.scale
        return np.ascontiguousarray(flat if self.in_axis == 1 else flat.T)

    def positions(self, shapes: Mapping[str, Sequence[int]]) -> int:
        """Return how many output positions one sample has.

        Args:
            shapes: The shapes of activations as seen in a run, by name.
        """
        x, y = shapes.get(self.x.name or ""), shapes.get(self.node.outputs[0].name or "")
        if self.kind == "conv_transpose":
            return 1 if x is None else math.prod(x[2:])
        if y is None or self.kind == "gemm":
            return 1
        return math.prod(y[2:] if self.kind == "conv" else y[1:-1])

    @property
    def layout(self) -> Layout:
        """How the layer reads X."""
        shape = tuple(_ints(self.weight))
        if self.kind != "conv_transpose":
            return layout_of_node(self.node, shape)
        # Before its taps are scattered, a transposed convolution multiplies like one with a 1x1 kernel.
        ones, rank = (1,) * (len(shape) - 2), len(shape) - 2
        return Layout(
            op_type="Conv",
            groups=self.group,
            rows=shape[0] // self.group,
            outputs=shape[0],
            kernel=ones,
            strides=ones,
            dilations=ones,
            pads=(0,) * (2 * rank),
        )


def find_layers(graph: ir.Graph) -> list[Layer]:
    """Return the layers of the main graph in topological order."""
    layers = []
    for node in graph:
        layer = _layer(node)
        if layer is not None:
            layers.append(layer)
    return layers


def _layer(node: ir.Node) -> Layer | None:
    kinds: dict[str, Any] = {
        "Conv": "conv",
        "ConvTranspose": "conv_transpose",
        "Gemm": "gemm",
        "MatMul": "matmul",
    }
    if node.domain not in ("", "ai.onnx") or node.op_type not in kinds:
        return None
    x, weight = node.inputs[0], node.inputs[1]
    source = None if weight is None else _behind_cast(weight)
    if x is None or weight is None or source is None or x.const_value is not None:
        return None
    if node.op_type == "MatMul" and (len(_ints(source)) != 2 or len(dims(x)) < 2):
        return None
    bias, y = (node.inputs[2] if len(node.inputs) > 2 else None), node.outputs[0]
    if bias is None and node.op_type != "Gemm":
        bias, y = _added_bias(node, dims(weight)[1 if node.op_type != "Conv" else 0])
    return Layer(
        node=node,
        kind=kinds[node.op_type],
        x=x,
        y=y,
        weight=source,
        bias=None if bias is None else _behind_cast(bias),
        group=int(_attr(node, "group", 1)),
        shared=len(list(source.uses())) > 1 or (source is not weight and len(list(weight.uses())) > 1),
    )


def _added_bias(node: ir.Node, channels: int | str | None) -> tuple[ir.Value | None, ir.Value]:
    """Return the bias that an Add behind the node adds (one number a channel), and the Add's output."""
    y = node.outputs[0]
    uses = list(y.uses())
    if len(uses) == 1 and uses[0].node.op_type == "Add" and not y.is_graph_output():
        other = uses[0].node.inputs[1 - uses[0].idx]
        trailing = 0 if node.op_type == "MatMul" else len(dims(y)) - 2
        if other is not None and is_weight(other) and len(list(other.uses())) == 1:
            shape = dims(other)
            wanted = [channels, *[1] * trailing]
            if [1] * (len(shape) - len(wanted)) + wanted == shape:
                return other, uses[0].node.outputs[0]
    return None, y


def _behind_cast(value: ir.Value) -> ir.Value | None:
    while not is_weight(value):
        producer = value.producer()
        if producer is None or producer.op_type not in ("Cast", "Identity") or producer.inputs[0] is None:
            return None
        value = producer.inputs[0]
    return value


def read_weight(value: ir.Value) -> np.ndarray:
    """Return an initializer's value."""
    assert value.const_value is not None
    array: np.ndarray = value.const_value.numpy()
    return array


def write_weight(value: ir.Value, array: np.ndarray) -> None:
    """Set an initializer's value, in the dtype that it has."""
    assert value.const_value is not None
    kept = np.asarray(array, value.const_value.dtype.numpy(), order="C")  # a scalar stays one
    value.const_value = ir.tensor(kept, name=value.name)
    value.shape = ir.Shape(kept.shape)


def _attr(node: ir.Node, name: str, default: Any) -> Any:
    found = node.attributes.get(name)
    return default if found is None else found.value


def _flag(node: ir.Node, name: str) -> bool:
    return bool(_attr(node, name, 0))


def _ints(value: ir.Value) -> list[int]:
    return [dim for dim in (value.shape or ()) if isinstance(dim, int)]
