"""The least memory that activations need when nodes run in the graph's order.

A tensor lives from the node that makes it to the last node that reads it; graph inputs live from the start to
their last use, graph outputs to the end. Weights are not counted, and no node works in place. A runtime needs
more than this (workspaces, alignment) or less (fusion, in-place operators); between versions of a model the
figure shows what changed.
"""

from __future__ import annotations

import math
from typing import final

import attrs
import onnx_ir as ir

from edgeinfer.values import as_tuple

__all__ = ["MemoryPlan", "plan_memory", "tensor_nbytes"]


@final
@attrs.frozen(kw_only=True)
class MemoryPlan:
    """Peak activation memory.

    Attributes:
        peak_bytes: The most bytes of activations alive at once.
        peak_node: The node while which that is so.
        alive: The tensors alive then, largest first, with their bytes.
        unknown: How many tensors have no known size and are not counted.
    """

    peak_bytes: int
    peak_node: str
    alive: tuple[tuple[str, int], ...] = attrs.field(converter=as_tuple)
    unknown: int


def tensor_nbytes(value: ir.Value) -> int | None:
    """Return the size of a tensor in bytes, or None when its shape or dtype is not known."""
    shape, dtype = value.shape, value.dtype
    if shape is None or dtype is None or dtype is ir.DataType.STRING:
        return None
    dims = [dim for dim in shape if isinstance(dim, int)]
    if len(dims) != len(shape):
        return None
    return math.ceil(math.prod(dims) * dtype.bitwidth / 8)


def plan_memory(graph: ir.Graph) -> MemoryPlan:
    """Compute the plan of a graph whose shapes are inferred, nodes in topological order."""
    nodes = list(graph)
    last_use: dict[str, int] = {}
    for index, node in enumerate(nodes):
        for value in _reads(node):
            last_use[value.name or ""] = index
    for value in graph.outputs:
        last_use[value.name or ""] = len(nodes)
    weights = graph.initializers
    alive: dict[str, int] = {}
    unknown = 0
    for value in graph.inputs:
        if value.name not in weights:
            size = tensor_nbytes(value)
            unknown += size is None
            alive[value.name or ""] = size or 0
    peak, peak_node, peak_alive = sum(alive.values()), "", dict(alive)
    for index, node in enumerate(nodes):
        for value in node.outputs:
            if value.name and node.op_type != "Constant":
                size = tensor_nbytes(value)
                unknown += size is None
                alive[value.name] = size or 0
        total = sum(alive.values())
        if total > peak:
            peak, peak_node, peak_alive = total, node.name or "", dict(alive)
        for name in [name for name in alive if last_use.get(name, index) <= index]:
            del alive[name]
    largest = sorted(peak_alive.items(), key=lambda item: -item[1])
    return MemoryPlan(peak_bytes=peak, peak_node=peak_node, alive=largest, unknown=unknown)


def _reads(node: ir.Node) -> list[ir.Value]:
    """Return what a node reads, in its subgraphs too: those may read outer tensors."""
    values = [value for value in node.inputs if value is not None]
    for attribute in node.attributes.values():
        if attribute.type is ir.AttributeType.GRAPH:
            subgraphs = [attribute.as_graph()]
        elif attribute.type is ir.AttributeType.GRAPHS:
            subgraphs = list(attribute.as_graphs())
        else:
            continue
        for subgraph in subgraphs:
            values += [value for inner in subgraph.all_nodes() for value in inner.inputs if value is not None]
            values += list(subgraph.outputs)
    return values
