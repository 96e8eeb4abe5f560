"""Nodes that do a layer's work with constant weights, wherever they are in the model.

A transform that is about layers names each of them: as changed, or as left alone with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import onnx_ir as ir

__all__ = ["Place", "layer_like", "subgraph_owners"]

_LAYERS = frozenset(["Conv", "ConvTranspose", "DeformConv", "Einsum", "GRU", "Gemm", "LSTM", "MatMul", "RNN"])
_FLOATS = frozenset([ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE, None])
# How far a weight may be from its initializer: behind a Cast, a DequantizeLinear, a Transpose, ...
_DEPTH = 6


class Place(NamedTuple):
    """A layer and where it stands.

    Attributes:
        node: Its name.
        op_type: Its operator, with the domain where that is not ONNX's own.
        inside: The subgraph or function around it, in words; "" in the main graph.
    """

    node: str
    op_type: str
    inside: str


def layer_like(model: ir.Model) -> Iterator[Place]:
    """Yield the nodes that multiply by weights: of the main graph, of its subgraphs and of functions.

    An operator of another domain is taken for one when it reads a constant float matrix.
    """
    owners = subgraph_owners(model.graph)
    for node in model.graph.all_nodes():
        if node.op_identifier() not in model.functions and _has_weights(node):
            owner = owners.get(node.graph)
            inside = "" if owner is None else f"in a subgraph of {owner.op_type} {owner.name!r}"
            yield Place(node.name or node.op_type, _operator(node), inside)
    for function in model.functions.values():
        for node in function.all_nodes():
            if node.op_identifier() not in model.functions and _has_weights(node):
                yield Place(node.name or node.op_type, _operator(node), f"in the function {function.name!r}")


def subgraph_owners(graph: ir.Graph) -> dict[object, ir.Node]:
    """Return the node that has each subgraph as an attribute."""
    owners: dict[object, ir.Node] = {}
    for node in graph.all_nodes():
        for attribute in node.attributes.values():
            if attribute.type is ir.AttributeType.GRAPH and not attribute.is_ref():
                owners[attribute.as_graph()] = node
            elif attribute.type is ir.AttributeType.GRAPHS and not attribute.is_ref():
                owners.update(dict.fromkeys(attribute.as_graphs(), node))
    return owners


def _operator(node: ir.Node) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type


def _has_weights(node: ir.Node) -> bool:
    if not node.domain and node.op_type not in _LAYERS:
        return False
    return any(
        value is not None and value.dtype in _FLOATS and _rank_of_constant(value, _DEPTH) >= 2
        for value in node.inputs
    )


def _rank_of_constant(value: ir.Value | None, depth: int) -> int:
    """Return the rank of the constant that the value comes from, 0 when it depends on an input."""
    if value is None:
        return 0
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is not None:
        return len(tensor.shape) if tensor.dtype is not ir.DataType.STRING else 0
    node = value.producer()
    if node is None or not depth or not node.inputs or value.is_graph_input():
        return 0
    ranks = [_rank_of_constant(source, depth - 1) for source in node.inputs if source is not None]
    return max(ranks) if ranks and all(_is_constant(source, depth - 1) for source in node.inputs) else 0


def _is_constant(value: ir.Value | None, depth: int) -> bool:
    if value is None or ir.convenience.get_const_tensor(value) is not None:
        return True
    node = value.producer()
    return bool(
        node is not None and depth and node.inputs and all(_is_constant(v, depth - 1) for v in node.inputs)
    )
