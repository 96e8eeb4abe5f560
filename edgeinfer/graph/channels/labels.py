"""Labels of channels: which positions of which tensor axes stand or fall together.

Every axis that is followed carries one integer label a position. Operators transform these label arrays as
they transform data: Concat concatenates them, Split splits them, Transpose permutes axes. Where two
positions must be kept or removed together, their labels are united (a union-find). What may not be removed
is locked, with the node and the reason. Channel shuffles, residual streams and branches need no further
rule: they are what comes out.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, TypeAlias, final

import numpy as np
import onnx_ir as ir

__all__ = ["Axes", "Labels", "Locked", "Row"]

Row: TypeAlias = np.ndarray
"""The labels of one axis: int64, shape (dim,)."""

Axes: TypeAlias = "list[Row | None]"
"""The labels of a tensor, one entry an axis; None where the axis is not followed."""

_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.BFLOAT16})


class Locked(NamedTuple):
    """Channels that cannot be pruned.

    Attributes:
        node: The node (or graph input or output) that holds them.
        reason: Why.
        channels: How many coupled channels that concerns.
    """

    node: str
    reason: str
    channels: int


@final
class Labels:
    """The labels of all tensors of a graph while they are being worked out."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._locks: dict[int, tuple[str, str]] = {}
        self.axes: dict[ir.Value, Axes] = {}

    def __len__(self) -> int:
        """How many labels there are."""
        return len(self._parent)

    def fresh(self, count: int) -> Row:
        """Return `count` new labels."""
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        return np.arange(first, first + count)

    def root(self, label: int) -> int:
        """Return the representative of a label's class."""
        parent = self._parent
        while parent[label] != label:
            parent[label] = parent[parent[label]]
            label = parent[label]
        return label

    def roots(self, row: Row) -> Row:
        """Return the representatives of many labels."""
        return np.array([self.root(int(label)) for label in row], np.int64)

    def unite(self, first: Row, second: Row) -> None:
        """Unite two rows position by position. They have one length."""
        for left, right in zip(first.ravel(), second.ravel(), strict=True):
            a, b = self.root(int(left)), self.root(int(right))
            if a == b:
                continue
            low, high = min(a, b), max(a, b)
            self._parent[high] = low
            if high in self._locks:
                self._locks.setdefault(low, self._locks[high])

    def unite_all(self, grid: np.ndarray, axis: int) -> Row:
        """Unite the labels of a grid along one axis and return one label a remaining position."""
        lines = np.moveaxis(grid, axis, 0)
        for line in lines[1:]:
            self.unite(lines[0], line)
        first: Row = lines[0]
        return first

    def lock(self, row: Row | None, node: str, reason: str) -> None:
        """Say that these positions must stay, and why. The first reason counts."""
        for label in () if row is None else row.ravel():
            self._locks.setdefault(self.root(int(label)), (node, reason))

    def lock_all(self, axes: Iterable[Row | None], node: str, reason: str) -> None:
        """Lock every followed axis of a tensor."""
        for row in axes:
            self.lock(row, node, reason)

    def of(self, value: ir.Value) -> Axes:
        """Return the labels of a tensor, one entry an axis. Weights get theirs axis by axis, on demand."""
        if value not in self.axes:
            self.axes[value] = [None] * (0 if value.shape is None else len(value.shape))
        return self.axes[value]

    def axis(self, value: ir.Value, axis: int) -> Row | None:
        """Return the labels of one axis; a float weight's axis of more than one position gets fresh ones."""
        rows = self.of(value)
        if not rows:
            return None
        axis %= len(rows)
        if rows[axis] is None and is_weight(value):
            size = dims(value)[axis]
            if isinstance(size, int) and size > 1:
                rows[axis] = self.fresh(size)
        return rows[axis]

    def locked(self) -> dict[int, tuple[str, str]]:
        """Return node and reason by locked class."""
        result: dict[int, tuple[str, str]] = {}
        for label, why in self._locks.items():
            result.setdefault(self.root(label), why)
        return result


def is_weight(value: ir.Value) -> bool:
    """Tell whether a tensor is a float constant of the graph."""
    return value.const_value is not None and value.dtype in _FLOATS


def dims(value: ir.Value) -> list[int | str | None]:
    """Return the dimensions of a tensor: ints, names of symbolic dimensions, or None."""
    return [] if value.shape is None else [d if isinstance(d, int) else d.value for d in value.shape]
