"""Sizes that a graph reads from shapes, made literal where the shape fixes them.

Exporters write `x.view(x.shape[0], 4, 8, x.shape[2], x.shape[3])` as Shape, Gather and Concat. With a batch
of any size nothing of that is a constant, and inference loses the shape of a channel shuffle, even its rank.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeinfer.graph.shapes import add_constant, literal_elements, read_sizes

__all__ = ["fix_sizes"]


def fix_sizes(graph: ir.Graph) -> bool:
    """Make sizes and the targets of Reshape literal as far as the inferred shapes allow, in place.

    A size that is read from a static axis becomes a constant. In a target one unknown element becomes 0 where
    it is the input's own size there, else -1. With more unknown elements the target stays, and the output
    gets the names of the sizes that it is put together from, so that its axes can be told apart.

    Returns:
        Whether anything changed, so that folding and inferring again may find more.
    """
    changed = False
    for node in graph:
        if node.domain not in ("", "ai.onnx") or not node.outputs or node.outputs[0].is_graph_output():
            continue
        if node.op_type == "Gather":
            changed |= _fix_gather(node, graph)
        elif node.op_type == "Reshape":
            changed |= _fix_target(node, graph)
    return changed


def _fix_gather(node: ir.Node, graph: ir.Graph) -> bool:
    (size,) = read_sizes(node.outputs[0]) or [None]
    if not isinstance(size, int) or not node.outputs[0].uses():
        return False
    pick = node.inputs[1]
    assert pick is not None
    assert pick.const_value is not None
    fixed = np.full(pick.const_value.numpy().shape, size, np.int64)
    node.outputs[0].replace_all_uses_with(add_constant(graph, f"{node.outputs[0].name}_fixed", fixed))
    return True


def _fix_target(node: ir.Node, graph: ir.Graph) -> bool:
    x, target = node.inputs[0], node.inputs[1]
    if x is None or target is None or target.const_value is not None:
        return False
    read = _elements(target)
    if read is None or node.attributes.get_int("allowzero", 0) != 0:
        return False
    before = [] if x.shape is None else [_plain(size) for size in x.shape]
    names = [element if isinstance(element, str) else None for element in read]
    copied = [name is not None and before[i : i + 1] == [name] for i, name in enumerate(names)]
    elements = [
        0 if same else element if isinstance(element, int) else None
        for same, element in zip(copied, read, strict=True)
    ]
    if elements.count(None) > 1 or (None in elements and -1 in elements):
        return _name_output(node, elements, names, before, graph)
    literal = np.array([-1 if element is None else element for element in elements], np.int64)
    node.replace_input_with(1, add_constant(graph, f"{target.name}_fixed", literal))
    return True


def _name_output(
    node: ir.Node,
    elements: list[int | None],
    names: list[str | None],
    before: list[int | str | None],
    graph: ir.Graph,
) -> bool:
    """Write down the output's shape, where all of it is known, and unite the names of equal sizes."""
    shape = [before[axis] if element == 0 else element for axis, element in enumerate(elements)]
    shape = [name or size for name, size in zip(names, shape, strict=True)]
    if None in shape or -1 in shape:
        return False
    y = node.outputs[0]
    known = [None] * len(shape) if y.shape is None else [_plain(size) for size in y.shape]
    if known == shape:
        return False
    y.shape = ir.Shape(shape)
    declared = {_plain(size) for value in graph.inputs for size in value.shape or ()}
    same: dict[int | str | None, int | str | None] = {
        old: new
        for old, new in zip(known, shape, strict=True)
        if isinstance(old, str) and old not in declared
    }
    for other in graph:
        for value in other.outputs:
            if value.shape is not None and not value.is_graph_output():
                sizes = [_plain(size) for size in value.shape]
                value.shape = ir.Shape([same.get(size, size) for size in sizes])
    return True


def _elements(target: ir.Value) -> list[int | str | None] | None:
    """Return the elements of a target: numbers, names of the sizes that they are read from, or None."""
    node = target.producer()
    if node is not None and node.op_type == "Concat":
        parts = [_elements(part) for part in node.inputs if part is not None]
        return None if any(part is None for part in parts) else [e for part in parts for e in part or ()]
    sizes = read_sizes(target)
    return list(literal_elements(target) or ()) or None if sizes is None else sizes


def _plain(size: int | ir.SymbolicDim) -> int | str | None:
    return size.value if isinstance(size, ir.SymbolicDim) else size
