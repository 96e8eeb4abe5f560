"""Shapes that a graph holds as data: reading their literal elements, and writing new ones."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

__all__ = ["add_constant", "literal_elements", "read_sizes", "with_elements"]


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


def read_sizes(value: ir.Value | None) -> list[int | str | None] | None:
    """Follow Gather(Shape(x), i) and Slice(Shape(x), ...) to dimensions of x: sizes, names, or None.

    Returns:
        One entry an element; None when the value is not read from a shape.
    """
    node = None if value is None else value.producer()
    if node is None or not node.inputs:
        return None
    if node.op_type in ("Unsqueeze", "Squeeze", "Cast", "Identity", "Reshape"):
        return read_sizes(node.inputs[0])
    x = node.inputs[0]
    if node.op_type == "Shape":
        sizes = None if x is None or node.attributes else x.shape
        return None if sizes is None else [s.value if isinstance(s, ir.SymbolicDim) else s for s in sizes]
    if node.op_type not in ("Gather", "Slice"):
        return None
    all_sizes = read_sizes(x)
    fixed = [None if v is None or v.const_value is None else v.const_value.numpy() for v in node.inputs[1:]]
    if all_sizes is None or not fixed or any(array is None or array.size != 1 for array in fixed):
        return None
    numbers = [int(array.reshape(-1)[0]) for array in fixed if array is not None]
    if node.op_type == "Gather":
        return [all_sizes[numbers[0]]]
    step = numbers[3] if len(numbers) > 3 else 1
    return all_sizes[numbers[0] : numbers[1]] if step == 1 else None


def _static_size(value: ir.Value) -> int | None:
    sizes = read_sizes(value) or [None]
    return sizes[0] if len(sizes) == 1 and isinstance(sizes[0], int) else None


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
