"""The least memory that activations need when nodes run in the graph's order.

A tensor lives from the node that makes it to the last node that reads it; graph inputs live from the start to
their last use, graph outputs to the end. No node works in place. Weights, and what follows from constants
alone, are not counted: a runtime computes that when it loads.

A quantized tensor counts as what it is. Between QuantizeLinear and DequantizeLinear it is stored in the
integer dtype, and it lives until the last node that reads it behind the DequantizeLinear. Its float values
on either side take no memory where a kernel computes from integers to integers: behind, for a reader that
multiplies by a weight or whose outputs are quantized, too; in front, for a producer that reads integers.

A runtime needs more than this (workspaces, alignment) or less (fusion, in-place operators); between versions
of a model the figure shows what changed.
"""

from __future__ import annotations

import math
from typing import final

import attrs
import onnx_ir as ir

from edgeinfer.values import as_tuple

__all__ = ["MemoryPlan", "plan_memory", "tensor_nbytes"]

_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
# Operators whose kernels read integers and can write floats.
_MULTIPLIES = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16})
_RANDOM = frozenset({"RandomNormal", "RandomUniform"})  # they read nothing and are no constants


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
    stored = _stored_as(graph)
    last_use: dict[ir.Value, int] = {}
    for index, node in enumerate(nodes):
        for value in _reads(node):
            last_use[stored.get(value, value)] = index
    for value in graph.outputs:
        last_use[stored.get(value, value)] = len(nodes)
    variable = _variable(graph)
    alive: dict[ir.Value, int] = {}
    unknown = 0

    def add(value: ir.Value) -> None:
        nonlocal unknown
        size = tensor_nbytes(value)
        unknown += size is None
        alive[value] = size or 0

    for value in graph.inputs:
        if value in variable:
            add(value)
    peak, peak_node, peak_alive = sum(alive.values()), "", dict(alive)
    for index, node in enumerate(nodes):
        for value in node.outputs:
            kept = stored.get(value, value)  # what a kernel quantizes at its end it writes as integers
            if value.name and value in variable and kept not in alive:
                add(kept)
        total = sum(alive.values())
        if total > peak:
            peak, peak_node, peak_alive = total, node.name or "", dict(alive)
        for value in [value for value in alive if last_use.get(value, index) <= index]:
            del alive[value]
    largest = sorted(((value.name or "", size) for value, size in peak_alive.items()), key=lambda x: -x[1])
    return MemoryPlan(peak_bytes=peak, peak_node=peak_node, alive=largest, unknown=unknown)


def _variable(graph: ir.Graph) -> set[ir.Value]:
    """Return the tensors that depend on the inputs, not on constants alone."""
    found = {value for value in graph.inputs if value.name not in graph.initializers}
    for node in graph:
        subgraphs = any(
            attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
            for attribute in node.attributes.values()
        )
        if subgraphs or node.op_type in _RANDOM or any(value in found for value in node.inputs):
            found.update(node.outputs)
    return found


def _stored_as(graph: ir.Graph) -> dict[ir.Value, ir.Value]:
    """Return the float tensors that take no memory of their own, each with the integer one in their place."""
    outputs = set(graph.outputs)
    found: dict[ir.Value, ir.Value] = {}
    for node in graph:
        source, made = node.inputs[0] if node.inputs else None, node.outputs[0] if node.outputs else None
        if source is None or made is None or source.is_initializer():
            continue
        if node.op_type == _DEQUANTIZE:
            if made not in outputs and all(_reads_integers(user, outputs) for user, _ in made.uses()):
                found[made] = source
        elif node.op_type == _QUANTIZE:
            producer = source.producer()
            only = source not in outputs and len(list(source.uses())) == 1
            if only and producer is not None and _reads_integers(producer, outputs):
                found[source] = made
    return found


def _reads_integers(node: ir.Node, outputs: set[ir.Value]) -> bool:
    """Tell whether a runtime has a kernel for the node that reads its integer inputs as they are."""
    multiplies = node.op_type in _MULTIPLIES
    data = [
        value.producer()
        for value in (node.inputs[:2] if multiplies else node.inputs)
        if value is not None and value.dtype in _FLOATS and not value.is_initializer()
    ]
    if not data or any(source is None or source.op_type != _DEQUANTIZE for source in data):
        return False
    return multiplies or all(
        value not in outputs
        and bool(users := list(value.uses()))
        and all(user.op_type == _QUANTIZE for user, _ in users)
        for value in node.outputs
        if value.name
    )


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
