"""Clip and Relu that follow each other become one, exactly.

Both are y = min(high, max(low, x)); when low is greater than high, all of y is high (ONNX, Clip from version
11 on). A bound that is missing is the least or greatest finite number of the dtype. Each maps onto
[min(low, high), high], so two of them in a row are one again, with the second applied to the ends of the
first:

    low' = second(min(low, high)),     high' = second(high)

Every end is one of the numbers that were given, or the 0 of Relu: nothing is rounded. NaN passes through
both. A bound that is NaN is left alone, since runtimes differ about it.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, TypeAlias

import ml_dtypes
import numpy as np
import onnx_ir as ir

from edgeinfer.graph.no_ops import constant_of

__all__ = ["merge_clips"]

Number: TypeAlias = "int | float"


class _Bound(NamedTuple):
    """A number, and the initializer that holds it; None for a missing bound and for the 0 of Relu."""

    number: Number
    value: ir.Value | None


_ZERO, _UNBOUNDED = _Bound(0, None), _Bound(math.inf, None)


def merge_clips(graph: ir.Graph, opset: int) -> None:
    """Merge pairs in the graph and its subgraphs, in place; the first of a pair is left without a consumer.

    Args:
        graph: The main graph.
        opset: Its version of the default domain. Before 11, the bounds are attributes: only Relu is merged.
    """
    for node in list(graph.all_nodes()):
        second = _range(node, opset)
        data = node.inputs[0] if second is not None else None
        first_node = data.producer() if data is not None else None
        if second is None or data is None or first_node is None or first_node.graph is not node.graph:
            continue
        first = _range(first_node, opset)
        if first is None or len(data.uses()) > 1 or data.is_graph_output():
            continue
        low, high = (_clamped(end, second) for end in (_least(*first), first[1]))
        like = next(
            (bound.value for bound in (*first, *second) if bound.value is not None), first_node.inputs[0]
        )
        _rewrite(node, first_node.inputs[0], low, high, like)


def _range(node: ir.Node, opset: int) -> tuple[_Bound, _Bound] | None:
    """Return the bounds of a Clip or Relu; None for another node, or where one is not a constant number."""
    if node.domain or not node.inputs:
        return None
    if node.op_type == "Relu":
        return _ZERO, _UNBOUNDED
    ends = _finite_ends(node.inputs[0]) if node.op_type == "Clip" and opset >= 11 else None
    if ends is None:
        return None
    bounds = [_Bound(end, None) for end in ends]
    for index, value in enumerate(node.inputs[1:3]):
        if value is None:
            continue
        array = constant_of(value)
        if array is None or array.size != 1 or math.isnan(array.item()):
            return None
        bounds[index] = _Bound(array.item(), value)
    return bounds[0], bounds[1]


def _finite_ends(value: ir.Value | None) -> tuple[Number, Number] | None:
    """Return the least and the greatest finite number of the dtype, which a Clip without bounds has."""
    if value is None or value.dtype is None or value.dtype is ir.DataType.STRING:
        return None
    dtype = value.dtype.numpy()
    if dtype.kind in "iu":
        return int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    info: Any = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
    return float(info.min), float(info.max)


def _clamped(bound: _Bound, to: tuple[_Bound, _Bound]) -> _Bound:
    return _least(to[1], _greatest(to[0], bound))


def _least(*bounds: _Bound) -> _Bound:
    """Return the lower one; of equal ones, one that is stored."""
    return min(bounds, key=lambda bound: (bound.number, bound.value is None))


def _greatest(*bounds: _Bound) -> _Bound:
    return max(bounds, key=lambda bound: (bound.number, bound.value is not None))


def _rewrite(node: ir.Node, data: ir.Value | None, low: _Bound, high: _Bound, like: ir.Value | None) -> None:
    """Turn the node into a Clip of `data`, or into a Relu where that says the same.

    Args:
        node: The second of the pair.
        data: What the first of the pair reads.
        low: The new lower bound.
        high: The new upper bound.
        like: A value of their dtype.
    """
    inputs = [data]
    is_relu = (low.number, high.number) == (0, math.inf)
    if not is_relu:
        ends = _finite_ends(like)
        assert ends is not None  # two Relu are a Relu, and a Clip without a known dtype is not read
        for bound, end in zip((low, high), ends, strict=True):
            if bound.value is not None or bound.number == end:
                inputs.append(bound.value)
            else:
                inputs.append(_new_bound(node, bound.number, like))
    while inputs[-1] is None:
        inputs.pop()
    node.op_type = "Relu" if is_relu else "Clip"
    node.resize_inputs(len(inputs))
    for index, value in enumerate(inputs):
        node.replace_input_with(index, value)


def _new_bound(node: ir.Node, number: Number, like: ir.Value | None) -> ir.Value:
    """Register a scalar initializer."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    assert like is not None
    assert like.dtype is not None
    name = f"{node.name}_bound"
    while name in graph.initializers:
        name += "_"
    tensor = ir.tensor(np.array(number, like.dtype.numpy()), name=name)
    value = ir.Value(name=name, shape=ir.Shape([]), type=ir.TensorType(like.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value
