"""What a pruned graph will cost, as a function of channel counts: work, parameters, memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, TypeAlias, TypeVar, final

import attrs
import numpy as np
import onnx_ir as ir

from edgeinfer.graph.channels.groups import Dependencies
from edgeinfer.graph.channels.labels import Row, dims
from edgeinfer.graph.layers import positions_of
from edgeinfer.graph.weights import Linear

__all__ = ["Axis", "CostModel", "Metric", "Term"]

_T = TypeVar("_T")
Metric: TypeAlias = "Literal['macs', 'parameters', 'memory', 'channels', 'latency']"


@final
@attrs.frozen(kw_only=True)
class Axis:
    """The size of one axis: a fixed part and so many positions a channel of each group."""

    fixed: int
    per_channel: tuple[tuple[str, int, int], ...]  # group, its size, positions a channel

    def size(self, removed: Mapping[str, int]) -> int:
        """Return the size when so many channels of each group are gone."""
        return self.fixed + sum((n - removed.get(g, 0)) * each for g, n, each in self.per_channel)

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups whose channels lie on the axis."""
        return tuple(name for name, _, _ in self.per_channel)


_MakeAxis: TypeAlias = "Callable[[Row | None, int], Axis]"


@final
@attrs.frozen(kw_only=True)
class Term:
    """The cost of one layer: a factor times the sizes of its followed axes."""

    node: str
    factor: float
    axes: tuple[Axis, ...]

    def value(self, removed: Mapping[str, int]) -> float:
        """Return the cost when so many channels of each group are gone."""
        result = self.factor
        for axis in self.axes:
            result *= axis.size(removed)
        return result


@final
@attrs.frozen(kw_only=True)
class CostModel:
    """The cost of a graph as a sum over its layers.

    Attributes:
        terms: One a layer: a factor times the sizes of its followed axes.
        axes: Every followed axis of every tensor, none of which may become empty.
    """

    terms: tuple[Any, ...]
    axes: tuple[Axis, ...]

    @classmethod
    def of(
        cls,
        graph: ir.Graph,
        dependencies: Dependencies,
        metric: Metric,
        shapes: Mapping[str, tuple[int, ...]],
    ) -> CostModel:
        """Make the model of a metric.

        Args:
            graph: The graph that was analyzed.
            dependencies: What `analyze` found on it.
            metric: `macs` of one sample; `parameters`; `memory`, the bytes of weights and of the layers'
                outputs; `channels`, how many channels the groups have in all.
            shapes: The shapes of activations as they were seen in a run, by name; the batch axis counts as 1.
        """
        owner = {c: (g.name, g.size) for g in dependencies.groups for c in dependencies.members[g.name]}

        def axis(row: Row | None, size: int) -> Axis:
            return Axis(fixed=size, per_channel=()) if row is None else _axis(row, owner)

        if metric == "channels":
            terms = [
                Term(node=g.name, factor=1.0, axes=(Axis(fixed=0, per_channel=((g.name, g.size, 1),)),))
                for g in dependencies.groups
            ]
        else:
            terms = [_weight_term(layer, dependencies, metric, shapes, axis) for layer in dependencies.layers]
        if metric == "macs":
            terms += [
                term for node in graph if (term := _product(node, dependencies, shapes, axis)) is not None
            ]
        if metric == "memory":
            outputs = (layer.node.outputs[0] for layer in dependencies.layers)
            terms += [_activation_term(value, dependencies, shapes, axis) for value in outputs]
        axes = {axis(row, 0) for rows in dependencies.rows.values() for row in rows if row is not None}
        return cls(terms=tuple(terms), axes=tuple(axes))

    def cost(self, removed: Mapping[str, int]) -> float:
        """Return the cost when so many channels of each group are gone."""
        return float(sum(term.value(removed) for term in self.terms))

    def change(self, removed: Mapping[str, int], then: Mapping[str, int], group: str) -> float:
        """Return by how much the cost changes from one state to another that differ in one group only."""
        terms = self._terms_of.get(group, ())
        return float(sum(term.value(then) - term.value(removed) for term in terms))

    def feasible(self, removed: Mapping[str, int], group: str) -> bool:
        """Tell whether no axis that a group lies on becomes empty."""
        return all(axis.size(removed) > 0 for axis in self._axes_of.get(group, ()))

    @cached_property
    def _terms_of(self) -> Mapping[str, Sequence[Any]]:
        return _by_group((name, term) for term in self.terms for axis in term.axes for name in axis.groups)

    @cached_property
    def _axes_of(self) -> Mapping[str, Sequence[Axis]]:
        return _by_group((name, axis) for axis in self.axes for name in axis.groups)


def _by_group(pairs: Iterable[tuple[str, _T]]) -> dict[str, list[_T]]:
    result: dict[str, dict[int, _T]] = {}
    for name, item in pairs:
        result.setdefault(name, {})[id(item)] = item
    return {name: list(items.values()) for name, items in result.items()}


def _axis(row: Row, owner: Mapping[int, tuple[str, int]]) -> Axis:
    counts: Counter[tuple[str, int]] = Counter(owner[c] for c in row.tolist() if c in owner)
    fixed = len(row) - sum(counts.values())
    present: dict[str, int] = {}
    for c in set(row.tolist()):
        if c in owner:
            present[owner[c][0]] = present.get(owner[c][0], 0) + 1
    # All channels of a group lie on the same axes equally often, by construction of the groups.
    parts = tuple(
        (name, present[name], total // present[name]) for (name, _), total in sorted(counts.items())
    )
    return Axis(fixed=fixed, per_channel=parts)


def _weight_term(
    layer: Linear,
    dependencies: Dependencies,
    metric: Metric,
    shapes: Mapping[str, tuple[int, ...]],
    axis: _MakeAxis,
) -> Term:
    weight = layer.node.inputs[1]
    assert weight is not None
    rows = dependencies.rows.get(weight) or [None] * len(dims(weight))
    factor = 1.0
    if metric == "macs":
        factor = float(positions_of(layer, shapes))
    elif metric == "memory":
        factor = float(layer.weight.dtype.itemsize) if layer.weight.dtype is not None else 4.0
    sizes = [axis(row, int(size)) for row, size in zip(rows, dims(weight), strict=True)]  # type: ignore[arg-type]
    return Term(node=layer.name, factor=factor, axes=tuple(sizes))


def _activation_term(
    value: ir.Value, dependencies: Dependencies, shapes: Mapping[str, tuple[int, ...]], axis: _MakeAxis
) -> Term:
    seen = (1, *shapes.get(value.name or "", (1,))[1:])
    rows = dependencies.rows.get(value) or [None] * len(seen)
    sizes = [axis(row, int(size)) for row, size in zip(rows, seen, strict=True)]
    return Term(node=value.name or "", factor=4.0, axes=tuple(sizes))


def _product(
    node: ir.Node, dependencies: Dependencies, shapes: Mapping[str, tuple[int, ...]], axis: _MakeAxis
) -> Term | None:
    """A MatMul of two activations: the products of attention, by heads."""
    if node.op_type != "MatMul" or any(v is None or v.const_value is not None for v in node.inputs):
        return None
    x, y = node.inputs[0], node.outputs[0]
    assert x is not None
    seen_x, seen_y = shapes.get(x.name or ""), shapes.get(y.name or "")
    if seen_x is None or seen_y is None:
        return None
    rows = dependencies.rows.get(y) or [None] * len(seen_y)
    sizes = [
        1 if i == 0 or row is not None else n for i, (n, row) in enumerate(zip(seen_y, rows, strict=True))
    ]
    factor = float(np.prod(sizes)) * seen_x[-1]
    return Term(
        node=node.name or "",
        factor=factor,
        axes=tuple(axis(row, 0) for row in rows if row is not None),
    )
