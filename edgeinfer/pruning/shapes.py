"""Shapes that a graph holds as data: reading their literal elements, and writing new ones."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

__all__ = ["add_constant", "literal_elements", "read_size", "with_elements"]


def literal_elements(value: ir.Value) -> list[int | None] | None:
    """Return the elements of a 1-D integer tensor as far as the graph fixes them.

    Follows Concat and Unsqueeze, which is how exporters put a shape together.

    Returns:
        One entry an element, None where it depends on data; None when not even the count is known.
    """
    if value.const_value is not None:
        return [int(element) for element in np.atleast_1d(value.const_value.numpy())]
    node = value.producer()
    if node is not None and node.op_type == "Concat":
        parts = [literal_elements(part) for part in node.inputs if part is not None]
        return None if any(part is None for part in parts) else [e for part in parts for e in part or ()]
    if value.shape is not None and len(value.shape) == 1 and isinstance(value.shape[0], int):
        count = value.shape[0]
        return [_static_size(value)] if count == 1 else [None] * count
    return None


def read_size(value: ir.Value | None) -> int | str | None:
    """Follow Unsqueeze(Gather(Shape(x), i)) to a dimension of x: its size, its name, or None."""
    node = None if value is None else value.producer()
    if node is None:
        return None
    if node.op_type in ("Unsqueeze", "Squeeze", "Cast", "Identity", "Reshape"):
        return read_size(node.inputs[0])
    if node.op_type != "Gather" or node.inputs[0] is None or node.inputs[1] is None:
        return None
    shape, pick = node.inputs[0].producer(), node.inputs[1].const_value
    if shape is None or shape.op_type != "Shape" or shape.attributes or pick is None or pick.size != 1:
        return None
    sizes = None if shape.inputs[0] is None else shape.inputs[0].shape
    size = None if sizes is None else sizes[int(pick.numpy().reshape(-1)[0])]
    return size.value if isinstance(size, ir.SymbolicDim) else size


def _static_size(value: ir.Value) -> int | None:
    size = read_size(value)
    return size if isinstance(size, int) else None


def with_elements(value: ir.Value, changes: Mapping[int, int], graph: ir.Graph) -> ir.Value:
    """Return a tensor like `value` with some literal elements replaced; `value` itself is left alone."""
    if value.const_value is not None:
        array = np.array(value.const_value.numpy())
        flat = array.reshape(-1)
        for index, element in changes.items():
            flat[index] = element
        return add_constant(graph, f"{value.name}_pruned", array)
    node = value.producer()
    assert node is not None
    if node.op_type != "Concat":  # one element, read from the shape of a tensor
        return add_constant(graph, f"{value.name}_pruned", np.array([changes[0]], np.int64))
    parts: list[ir.Value] = []
    offset = 0
    for part in node.inputs:
        assert part is not None
        count = len(literal_elements(part) or ())
        inner = {i - offset: e for i, e in changes.items() if offset <= i < offset + count}
        parts.append(with_elements(part, inner, graph) if inner else part)
        offset += count
    fresh = ir.node("Concat", parts, attributes={"axis": 0})
    fresh.outputs[0].name = _free_name(graph, f"{value.name}_pruned")
    fresh.outputs[0].type, fresh.outputs[0].shape = value.type, value.shape
    fresh.name = fresh.outputs[0].name
    graph.insert_before(node, fresh)
    # Its inputs are all produced before `node`, so this is a place where they are there.
    return fresh.outputs[0]


def add_constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """Add an initializer under a free name."""
    name = _free_name(graph, name)
    tensor = ir.tensor(array, name=name)
    value = ir.Value(
        name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape)
    )
    graph.register_initializer(value)
    return value


def _free_name(graph: ir.Graph, name: str) -> str:
    taken = {v.name for v in graph.inputs} | set(graph.initializers)
    taken |= {v.name for node in graph.all_nodes() for v in node.outputs}
    taken |= {node.name for node in graph.all_nodes()}
    candidate, count = name, 0
    while candidate in taken:
        count += 1
        candidate = f"{name}_{count}"
    return candidate
