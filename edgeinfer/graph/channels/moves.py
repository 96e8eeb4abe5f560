"""Operators that only move values about, as operations on labels: what removal and scaling share.

A grid holds one label for each element of a tensor, with size 1 along the axes that it is constant along (the
batch, height and width of an image). A move of values is the same move of labels, so that channel shuffles,
branches and flattened images need no rule of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from edgeinfer.graph.channels.labels import dims
from edgeinfer.graph.constants import constant_value

__all__ = [
    "MOVES",
    "Move",
    "StuckError",
    "attribute",
    "fixed_input",
    "match_axes",
    "slice_parts",
]

Move: TypeAlias = "Callable[[ir.Node, np.ndarray], list[np.ndarray]]"
Sizes: TypeAlias = "list[int | str | None]"


class StuckError(Exception):
    """Where the labels of a node's output are is not known, with the reason. It never leaves the package."""


def attribute(node: ir.Node, name: str, default: object = None) -> object:
    """Return an attribute's value, or `default`."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def fixed_input(node: ir.Node, index: int) -> np.ndarray | None:
    """Return an input's value if the graph fixes it."""
    return constant_value(node.inputs[index]) if index < len(node.inputs) else None


def _axis(node: ir.Node, grid: np.ndarray) -> int:
    return node.attributes.get_int("axis", 0) % max(grid.ndim, 1)


def _transpose(node: ir.Node, grid: np.ndarray) -> list[np.ndarray]:
    perm = node.attributes.get("perm")
    return [np.transpose(grid, None if perm is None else perm.as_ints())]


def _reshape(node: ir.Node, grid: np.ndarray) -> list[np.ndarray]:
    """Match axes by their sizes; blocks of axes along which nothing varies need no size."""
    x, y = node.inputs[0], node.outputs[0]
    if x is None or y.shape is None:
        raise StuckError("the shape after it is not known")
    before, after = dims(x), dims(y)
    spread: list[int] = []
    shape: list[int] = []
    for sources, targets in match_axes(before, after):
        old, new = [before[axis] for axis in sources], [after[axis] for axis in targets]
        if all(grid.shape[axis] == 1 for axis in sources):
            old, new = [1] * len(sources), [1] * len(targets)
        elif len(sources) == len(targets) == 1:
            old = new = [grid.shape[sources[0]]]
        fixed_old = [size for size in old if isinstance(size, int)]
        fixed_new = [size for size in new if isinstance(size, int)]
        if len(fixed_old) < len(old) or len(fixed_new) < len(new):
            raise StuckError("the shapes around it are not static")
        spread += fixed_old
        shape += fixed_new
    return [np.broadcast_to(grid, spread).reshape(shape)]


def _split(node: ir.Node, grid: np.ndarray) -> list[np.ndarray]:
    axis = _axis(node, grid)
    if grid.shape[axis] == 1:
        return [grid] * len(node.outputs)
    sizes = [dims(value)[axis] if dims(value) else None for value in node.outputs]
    fixed = [size for size in sizes if isinstance(size, int)]
    if len(fixed) < len(sizes):
        raise StuckError("the sizes of a Split are computed from data")
    return np.split(grid, np.cumsum(fixed)[:-1], axis)


def _slice(node: ir.Node, grid: np.ndarray) -> list[np.ndarray]:
    parts = slice_parts(node, grid.ndim)
    if parts is None:
        raise StuckError("the bounds of a Slice are computed from data")
    where = [slice(None)] * grid.ndim
    for axis, part in parts.items():
        if grid.shape[axis] > 1:
            where[axis] = part
    return [grid[tuple(where)]]


def _gather(node: ir.Node, grid: np.ndarray) -> list[np.ndarray]:
    axis, picks, indices = _axis(node, grid), fixed_input(node, 1), node.inputs[1]
    if grid.shape[axis] == 1 and indices is not None and indices.shape is not None:
        picks = np.zeros([1] * len(indices.shape), np.int64)
    if picks is None:
        raise StuckError("a Gather picks single channels")
    return [np.take(grid, picks, axis)]


MOVES: dict[str, Move] = {
    "Flatten": _reshape,
    "Gather": _gather,
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _reshape,
    "Transpose": _transpose,
    "Unsqueeze": _reshape,
}
"""The moves of one tensor by operator type."""


def slice_parts(node: ir.Node, rank: int) -> dict[int, slice] | None:
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


def match_axes(before: Sizes, after: Sizes) -> list[tuple[list[int], list[int]]]:
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


def _block(before: Sizes, after: Sizes) -> tuple[int, int] | None:
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
