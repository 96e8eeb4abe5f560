"""Weights as they are stored, and all that read them, for quantizing weights only.

Two layers may read one weight, as the branches of a merged decoder do. It is quantized once for all of them,
when all that read it read it alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias, final

import attrs
import numpy as np
import onnx_ir as ir

from edgeinfer.graph.weights import add_initializer, graph_of

__all__ = [
    "WEIGHT_OPS",
    "Refusal",
    "StoredWeight",
    "drop_source",
    "find_weight",
    "group_by_source",
    "read_from",
    "store_beside",
    "why_not_shared",
]

WEIGHT_OPS = ("Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul")
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)

Refusal: TypeAlias = str


@final
@attrs.frozen(kw_only=True)
class StoredWeight:
    """The constant weight of one node.

    Attributes:
        node: The node, in the main graph or in a subgraph.
        index: Which of its inputs the weight is.
        source: The initializer or Constant that stores it.
        cast: The Cast between them, where it is stored in another float type, or None.
        dtype: The dtype in which the node reads it.
        channel_axis: The axis that has one scale for each index: that of the output channels.
        input_axis: The axis that is summed over, for blocks; None where there is not one.
    """

    node: ir.Node
    index: int
    source: ir.Value
    cast: ir.Node | None
    dtype: np.dtype
    channel_axis: int
    input_axis: int | None

    def array(self) -> np.ndarray:
        """Return the weight as the node reads it."""
        tensor = ir.convenience.get_const_tensor(self.source)
        assert tensor is not None
        return np.asarray(tensor.numpy()).astype(self.dtype, copy=False)

    def is_plain_product(self, shape: tuple[int, ...]) -> bool:
        """Whether the node is activation times a matrix, plus one number a channel at most.

        Args:
            shape: Of the weight, (inputs, channels).
        """
        get = self.node.attributes
        bias = self.node.inputs[2] if len(self.node.inputs) > 2 else None
        tensor = None if bias is None else ir.convenience.get_const_tensor(bias)
        per_channel = bias is None or (tensor is not None and tuple(tensor.shape) == shape[1:])
        return (
            self.node.op_type in ("Gemm", "MatMul")
            and per_channel
            and len(shape) == 2
            and (self.index, self.channel_axis, self.input_axis) == (1, 1, 0)
            and get.get_float("alpha", 1.0) == get.get_float("beta", 1.0) == 1.0
            and get.get_int("transA", 0) == 0
        )


def find_weight(node: ir.Node) -> StoredWeight | Refusal:
    """Return the constant weight that the node multiplies by, or why it has none."""
    constant = [index for index, value in enumerate(node.inputs[:2]) if _root(value) is not None]
    if len(constant) != 1 or (node.op_type not in ("Einsum", "MatMul") and constant != [1]):
        both = "both its factors are constant; apply Simplify first"
        return both if len(constant) == 2 else "its weight is computed by the graph"
    (index,) = constant
    value = node.inputs[index]
    found = _root(value)
    assert found is not None
    source, between = found
    if between is not None and between.op_type == "DequantizeLinear":
        return "its weight is quantized already"
    if source.is_graph_input():
        return f"its weight {source.name!r} can be overridden as an input; apply Simplify first"
    tensor = ir.convenience.get_const_tensor(source)
    assert tensor is not None
    dtype = tensor.dtype
    if between is not None:
        dtype = ir.DataType(between.attributes.get_int("to", int(ir.DataType.FLOAT)))
    if dtype not in _FLOATS:
        return f"its weight is {dtype.name.lower()}, and a scale is float32 or float16"
    if tensor.dtype not in (*_FLOATS, ir.DataType.DOUBLE, ir.DataType.BFLOAT16):
        return f"its weight is stored as {tensor.dtype.name.lower()}"
    axes = _axes(node, index, len(tensor.shape))
    if isinstance(axes, str):
        return axes
    return StoredWeight(
        node=node,
        index=index,
        source=source,
        cast=between,
        dtype=dtype.numpy(),
        channel_axis=axes[0],
        input_axis=axes[1],
    )


def group_by_source(weights: Iterable[StoredWeight]) -> list[list[StoredWeight]]:
    """Return those that read one and the same initializer or Constant together, in order."""
    groups: dict[ir.Value, list[StoredWeight]] = {}
    for weight in weights:
        groups.setdefault(weight.source, []).append(weight)
    return list(groups.values())


def why_not_shared(group: list[StoredWeight]) -> Refusal | None:
    """Return why a weight cannot be replaced for all that read it, or None."""
    first, nodes = group[0], {weight.node for weight in group}
    name = first.source.name
    if first.source.is_graph_output():
        return f"its weight {name!r} is an output, too"
    for use in first.source.uses():
        users = [use.node]
        if use.node in {weight.cast for weight in group}:
            if use.node.outputs[0].is_graph_output():
                return f"its weight {name!r} is an output, too"
            users = [inner.node for inner in use.node.outputs[0].uses()]
        other = next((user for user in users if user not in nodes), None)
        if other is not None:
            return f"its weight {name!r} is shared with {other.name!r}, which reads it in another way"
    alike = {(weight.index, weight.channel_axis, weight.input_axis, weight.dtype) for weight in group}
    if len(alike) > 1:
        return f"its weight {name!r} is shared with another node, which reads it along another axis"
    return None


def read_from(weight: StoredWeight, value: ir.Value) -> None:
    """Let the node read `value`, and drop the Cast that nothing reads any more."""
    weight.node.replace_input_with(weight.index, value)
    cast = weight.cast
    if cast is not None and cast.graph is not None and not cast.outputs[0].uses():
        graph_of(cast).remove(cast, safe=True)


def drop_source(weight: StoredWeight) -> None:
    """Remove the initializer or Constant that nothing reads any more."""
    source, node = weight.source, weight.source.producer()
    if source.uses() or source.is_graph_output():
        return
    if node is not None:
        graph_of(node).remove(node, safe=True)
    elif isinstance(source.graph, ir.Graph) and source.name in source.graph.initializers:
        del source.graph.initializers[source.name or ""]


def store_beside(weight: StoredWeight, suffix: str, array: np.ndarray) -> ir.Value:
    """Store an array in the graph that holds the weight; returns the new initializer."""
    graph = weight.source.graph
    assert isinstance(graph, ir.Graph)
    return add_initializer(graph, f"{weight.source.name}{suffix}", array)


def _root(value: ir.Value | None) -> tuple[ir.Value, ir.Node | None] | None:
    """Return the constant behind at most one Cast or DequantizeLinear, and that node."""
    if value is None:
        return None
    if ir.convenience.get_const_tensor(value) is not None:
        return value, None
    node = value.producer()
    if node is None or node.domain or node.op_type not in ("Cast", "DequantizeLinear"):
        return None
    if any(source is not None and ir.convenience.get_const_tensor(source) is None for source in node.inputs):
        return None
    source = node.inputs[0]
    return None if source is None else (source, node)


def _axes(node: ir.Node, index: int, rank: int) -> tuple[int, int | None] | Refusal:
    """Return the axis of the output channels, and the one that is summed over if there is exactly one."""
    if node.op_type == "Conv":
        return 0, None
    if node.op_type == "ConvTranspose":
        return 1, None
    if node.op_type == "Einsum":
        return _einsum_axes(node, index, rank)
    if rank < 2:
        return "its weight is a vector"
    if node.op_type == "Gemm" and node.attributes.get_int("transB", 0) != 0:
        return 0, 1
    return (rank - 1, rank - 2) if index == 1 else (rank - 2, rank - 1)


def _einsum_axes(node: ir.Node, index: int, rank: int) -> tuple[int, int | None] | Refusal:
    equation = node.attributes.get_string("equation", "").replace(" ", "")
    left, arrow, output = equation.partition("->")
    terms = left.split(",")
    if "." in equation or not arrow or len(terms) != 2 or len(set(terms[index])) != rank:
        return f"an axis of its weight for the scales cannot be read from {equation!r}"
    own, other = terms[index], terms[1 - index]
    free = [axis for axis, letter in enumerate(own) if letter in output and letter not in other]
    return (free[-1], None) if free else "no axis of its weight belongs to the output alone"
