"""Rules for operators that move positions about: Reshape, Transpose, Concat, Split, Slice, Gather, Pad."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeinfer.graph.channels.labels import Axes, Labels, Row, dims, is_weight
from edgeinfer.graph.channels.propagate import attribute, fixed_input, meet, present, rule
from edgeinfer.graph.shapes import literal_elements

__all__ = ["all_rows", "slice_rows"]


@rule("Transpose")
def _transpose(node: ir.Node, labels: Labels) -> list[Axes]:
    x = node.inputs[0]
    assert x is not None
    rows = all_rows(labels, x)
    perm = attribute(node, "perm") or list(reversed(range(len(rows))))
    return [[rows[int(axis)] for axis in perm]]  # type: ignore[attr-defined]


@rule("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def _reshape(node: ir.Node, labels: Labels) -> list[Axes]:
    """Match axes by their sizes; an axis that splits or merges carries its labels along.

    Where an axis splits in two, one of the parts is followed and the other kept whole: the positions within
    a channel shuffle's groups, the heads of attention.
    """
    x, y = node.inputs[0], node.outputs[0]
    assert x is not None
    rows, before, after = all_rows(labels, x), dims(x), dims(y)
    name = node.name or node.op_type
    if y.shape is None:
        labels.lock_all(rows, name, "the shape after it is not known")
        return [[]]
    if node.op_type == "Squeeze" and len(node.inputs) < 2 and "axes" not in node.attributes:
        labels.lock_all(rows, name, "a Squeeze without axes would drop an axis pruned to one channel")
    out: Axes = [None] * len(after)
    for sources, targets in match_axes(before, after):
        followed = [axis for axis in sources if rows[axis] is not None]
        if not followed:
            continue
        sizes = [before[axis] for axis in sources]
        new = [after[axis] for axis in targets]
        if len(sources) == len(targets) == 1:
            out[targets[0]] = rows[sources[0]]
        elif len(followed) > 1 or not _static(sizes) or not _static(new):
            reason = (
                "two followed axes become one" if len(followed) > 1 else "the shapes around it are not static"
            )
            labels.lock_all([rows[axis] for axis in followed], name, reason)
        else:
            axis = followed[0]
            shape = [size if source == axis else 1 for source, size in zip(sources, sizes, strict=True)]
            grid = np.broadcast_to(np.reshape(rows[axis], shape), sizes).reshape(new)  # type: ignore[arg-type]
            kept, row = _follow_one(node, labels, grid)
            if row is not None:
                out[targets[kept]] = row
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


def _static(sizes: list[int | str | None]) -> bool:
    return all(isinstance(size, int) for size in sizes)


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


def match_axes(
    before: list[int | str | None], after: list[int | str | None]
) -> list[tuple[list[int], list[int]]]:
    """Pair the axes of two shapes of one tensor: blocks of axes with equal products, outermost first.

    Axes of unknown size pair with one another from both ends; what is left between them is one block.
    """
    left: list[tuple[list[int], list[int]]] = []
    right: list[tuple[list[int], list[int]]] = []
    i, j, m, n = 0, 0, len(before), len(after)
    while i < m and j < n:
        block = _block(before[i:m], after[j:n])
        if block is None:
            break
        p, q = block
        left.append((list(range(i, i + p)), list(range(j, j + q))))
        i, j = i + p, j + q
    while m > i and n > j:
        block = _block(before[i:m][::-1], after[j:n][::-1])
        if block is None:
            break
        p, q = block
        right.append((list(range(m - p, m)), list(range(n - q, n))))
        m, n = m - p, n - q
    if i < m or j < n:
        left.append((list(range(i, m)), list(range(j, n))))
    return left + right[::-1]


def _block(before: list[int | str | None], after: list[int | str | None]) -> tuple[int, int] | None:
    """Return how many axes at the front of both shapes have one product, or None."""
    first, second = before[0], after[0]
    if not isinstance(first, int) or not isinstance(second, int):
        known = isinstance(first, int) or isinstance(second, int)
        return None if known or (first is not None and second is not None and first != second) else (1, 1)
    p = q = 1
    left, right = first, second
    while left != right:
        shorter, at = (before, p) if left < right else (after, q)
        factor = shorter[at] if at < len(shorter) else None
        if not isinstance(factor, int):
            return None
        if left < right:
            left, p = left * factor, p + 1
        else:
            right, q = right * factor, q + 1
    return p, q


@rule("Concat")
def _concat(node: ir.Node, labels: Labels) -> list[Axes]:
    operands = present(node)
    rank = len(dims(node.outputs[0]))
    axis = int(attribute(node, "axis")) % max(rank, 1)  # type: ignore[call-overload]
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
    if not _static(sizes):
        labels.lock_all(parts, name, "the sizes of what it joins are not static")
        return None
    filled = []
    for part, size in zip(parts, sizes, strict=True):
        if part is None:
            assert isinstance(size, int)
            part = labels.fresh(size)
            labels.lock(part, name, "it is joined with channels that are not followed")
        filled.append(part)
    return np.concatenate(filled)


@rule("Split")
def _split(node: ir.Node, labels: Labels) -> list[Axes]:
    x = node.inputs[0]
    assert x is not None
    rows = all_rows(labels, x)
    axis = int(attribute(node, "axis", 0)) % len(rows)  # type: ignore[call-overload]
    row = rows[axis]
    sizes = [dims(value)[axis] if dims(value) else None for value in node.outputs]
    computed = len(node.inputs) > 1 and node.inputs[1] is not None and fixed_input(node, 1) is None
    if row is not None and (computed or not _static(sizes)):
        labels.lock(row, node.name or "", "the sizes of a Split are computed from data")
        row = None
    starts = np.cumsum([0, *sizes]) if row is not None else [0] * (len(sizes) + 1)
    result = []
    for index in range(len(node.outputs)):
        part = None if row is None else row[starts[index] : starts[index + 1]]
        result.append([*rows[:axis], part, *rows[axis + 1 :]])
    return result


@rule("Slice")
def _slice(node: ir.Node, labels: Labels) -> list[Axes]:
    x = node.inputs[0]
    assert x is not None
    rows = all_rows(labels, x)
    parts = slice_rows(node, len(rows))
    out: Axes = list(rows)
    if parts is None:
        labels.lock_all(rows, node.name or "", "the bounds of a Slice are computed from data")
        return [[None] * len(rows)]
    for axis, part in parts.items():
        row = rows[axis]
        if row is None:
            continue
        if part.step not in (None, 1):
            labels.lock(row, node.name or "", "a Slice with a step runs over these channels")
        out[axis] = row[part]
    return [out]


def slice_rows(node: ir.Node, rank: int) -> dict[int, slice] | None:
    """Return the Python slice by axis of a Slice node, or None when its bounds are not constants."""
    if "starts" in node.attributes:  # opset 9 and older
        starts, ends = attribute(node, "starts"), attribute(node, "ends")
        axes, steps = attribute(node, "axes"), None
    else:
        fixed = [fixed_input(node, index) for index in range(1, 5)]
        given = [index < len(node.inputs) and node.inputs[index] is not None for index in range(1, 5)]
        if any(value is None and there for value, there in zip(fixed, given, strict=True)):
            return None
        starts, ends, axes, steps = (None if value is None else value.tolist() for value in fixed)
    count = len(starts)  # type: ignore[arg-type]
    axes = list(range(count)) if axes is None else axes
    steps = [1] * count if steps is None else steps
    result = {}
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):  # type: ignore[call-overload]
        # ONNX clamps where Python wraps: an end before the first position means "through the first one".
        result[axis % rank] = slice(start, None if step < 0 and end < -(1 << 31) else end, step)
    return result


def all_rows(labels: Labels, value: ir.Value) -> Axes:
    """Return the labels of all axes; those of a weight are made on demand."""
    if is_weight(value):
        return [labels.axis(value, axis) for axis in range(len(dims(value)))]
    return labels.of(value)
