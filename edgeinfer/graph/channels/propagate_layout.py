"""Rules for operators that move positions about: Reshape, Transpose, Concat, Split, Slice, Gather."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeinfer.graph.channels.labels import Axes, Labels, Row, dims, is_weight
from edgeinfer.graph.channels.moves import (
    MOVES,
    StuckError,
    attribute,
    fixed_input,
    match_axes,
    slice_parts,
)
from edgeinfer.graph.channels.propagate import meet, present, rule
from edgeinfer.graph.shapes import literal_elements

__all__ = ["all_rows"]


def _carried(node: ir.Node, labels: Labels, rows: Axes) -> list[Axes]:
    """Move the labels of each followed axis as the node moves values; follow one axis of what they become.

    Where an axis splits in two, one of the parts is followed, and the other stays as it is: the positions
    within a channel shuffle's groups, the heads of attention.
    """
    results: list[Axes] = [[None] * len(dims(value)) for value in node.outputs]
    for axis, row in enumerate(rows):
        if row is None:
            continue
        grid = row.reshape([-1 if index == axis else 1 for index in range(len(rows))])
        try:
            moved = MOVES[node.op_type](node, grid)
        except StuckError as stuck:
            labels.lock(row, node.name or node.op_type, str(stuck))
            continue
        for out, made in zip(results, moved, strict=False):
            target, followed = _follow_one(node, labels, made)
            if followed is not None:
                out[target] = followed
    return results


def _follow_one(node: ir.Node, labels: Labels, grid: np.ndarray) -> tuple[int, Row | None]:
    """Choose the axis of a grid of labels that is followed, and unite the labels along all others."""
    wide = [axis for axis, size in enumerate(grid.shape) if size > 1]
    if not wide:
        return 0, None
    for axis in wide:
        lines = np.moveaxis(grid, axis, 0).reshape(grid.shape[axis], -1)
        if (lines == lines[:, :1]).all():
            return axis, lines[:, 0].copy()
    chosen = wide[-1] if len(wide) == 1 or _is_shuffle(node) else wide[-2]
    lines = np.moveaxis(grid, chosen, 0).reshape(grid.shape[chosen], -1)
    return chosen, labels.unite_all(lines, 1)


def _is_shuffle(node: ir.Node) -> bool:
    """Reshape, Transpose, Reshape back to the shape before: ShuffleNet's channel shuffle."""
    uses = [user for user, _ in node.outputs[0].uses()]
    if len(uses) != 1 or uses[0].op_type != "Transpose":
        return False
    uses = [user for user, _ in uses[0].outputs[0].uses()]
    return (
        len(uses) == 1
        and uses[0].op_type == "Reshape"
        and node.inputs[0] is not None
        and len(dims(uses[0].outputs[0])) == len(dims(node.inputs[0]))
    )


@rule("Transpose", scale="moves")
def _transpose(node: ir.Node, labels: Labels) -> list[Axes]:
    return _carried(node, labels, all_rows(labels, node.inputs[0]))


@rule("Reshape", "Flatten", "Squeeze", "Unsqueeze", scale="moves")
def _reshape(node: ir.Node, labels: Labels) -> list[Axes]:
    """An axis that splits or merges carries its labels along; to be adapted its size must be literal."""
    x, y = node.inputs[0], node.outputs[0]
    assert x is not None
    rows, name = list(all_rows(labels, x)), node.name or node.op_type
    if y.shape is None:
        labels.lock_all(rows, name, "the shape after it is not known")
        return [[]]
    if node.op_type == "Squeeze" and len(node.inputs) < 2 and "axes" not in node.attributes:
        labels.lock_all(rows, name, "a Squeeze without axes would drop an axis pruned to one channel")
    for sources, _ in match_axes(dims(x), dims(y)):
        followed = [axis for axis in sources if rows[axis] is not None]
        if len(followed) > 1:
            labels.lock_all([rows[axis] for axis in followed], name, "two followed axes become one")
            for axis in followed:
                rows[axis] = None
    (out,) = _carried(node, labels, rows)
    if node.op_type == "Reshape":
        _lock_computed_target(node, labels, out)
    return [out]


def _lock_computed_target(node: ir.Node, labels: Labels, out: Axes) -> None:
    target = node.inputs[1]
    assert target is not None
    elements = literal_elements(target)
    for axis, row in enumerate(out):
        if row is not None and (elements is None or axis >= len(elements) or elements[axis] is None):
            labels.lock(row, node.name or "", "the target shape of a Reshape is computed from data")


@rule("Concat", scale="joins")
def _concat(node: ir.Node, labels: Labels) -> list[Axes]:
    operands = present(node)
    rank = len(dims(node.outputs[0]))
    axis = node.attributes.get_int("axis", 0) % max(rank, 1)
    name = node.name or ""
    rows = [all_rows(labels, value) for value in operands]
    out: Axes = [None] * rank
    for index in range(rank):
        parts = [row[index] for row in rows]
        if index != axis:
            for part in parts[1:]:
                meet(labels, node, parts[0], part, "an operand")
            out[index] = None if any(part is None for part in parts) else parts[0]
        elif any(part is not None for part in parts):
            out[index] = _joined(labels, name, parts, [dims(value)[axis] for value in operands])
    return [out]


def _joined(labels: Labels, name: str, parts: Axes, sizes: list[int | str | None]) -> Row | None:
    filled = []
    for part, size in zip(parts, sizes, strict=True):
        if not isinstance(size, int):
            labels.lock_all(parts, name, "the sizes of what it joins are not static")
            return None
        if part is None:
            part = labels.fresh(size)
            labels.lock(part, name, "it is joined with channels that are not followed")
        filled.append(part)
    return np.concatenate(filled)


@rule("Split", scale="moves")
def _split(node: ir.Node, labels: Labels) -> list[Axes]:
    rows = list(all_rows(labels, node.inputs[0]))
    axis = node.attributes.get_int("axis", 0) % max(len(rows), 1)
    if len(node.inputs) > 1 and node.inputs[1] is not None and fixed_input(node, 1) is None:
        labels.lock(rows[axis], node.name or "", "the sizes of a Split are computed from data")
        rows[axis] = None
    return _carried(node, labels, rows)


@rule("Slice", scale="moves")
def _slice(node: ir.Node, labels: Labels) -> list[Axes]:
    rows = all_rows(labels, node.inputs[0])
    for axis, part in (slice_parts(node, len(rows)) or {}).items():
        if part.step not in (None, 1):
            labels.lock(rows[axis], node.name or "", "a Slice with a step runs over these channels")
    return _carried(node, labels, rows)


@rule("Gather", scale="moves")
def _gather(node: ir.Node, labels: Labels) -> list[Axes]:
    data = node.inputs[0]
    assert data is not None
    rank = len(dims(data))
    axis = int(attribute(node, "axis", 0)) % max(rank, 1)  # type: ignore[call-overload]
    rows = [labels.axis(data, index) if index != axis else labels.of(data)[index] for index in range(rank)]
    picks = fixed_input(node, 1)
    if rows and rows[axis] is not None and (picks is None or picks.ndim != 1):
        labels.lock(rows[axis], node.name or "", "a Gather picks single channels")
        rows[axis] = None
    return _carried(node, labels, rows)


def all_rows(labels: Labels, value: ir.Value | None) -> Axes:
    """Return the labels of all axes; those of a weight are made on demand."""
    if value is None:
        return []
    if is_weight(value):
        return [labels.axis(value, axis) for axis in range(len(dims(value)))]
    return labels.of(value)
