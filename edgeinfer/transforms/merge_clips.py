"""Clip and Relu that follow each other become one, exactly.

Both are y = min(high, max(low, x)); when low is greater than high, all of y is high (ONNX, Clip from version
11 on). Each maps onto [min(low, high), high], so two of them in a row are one again, with the second applied
to the ends of the first:

    low' = second(min(low, high)),     high' = second(high)

Every end is one of the numbers that were given, or the 0 of Relu: nothing is rounded. NaN passes through
both. A bound that is NaN is left alone, since runtimes differ about it.
"""

from __future__ import annotations

import math
from typing import NamedTuple, TypeAlias

import numpy as np
import onnx_ir as ir

from edgeinfer.graph.no_ops import constant_of

__all__ = ["merge_clips"]

Number: TypeAlias = "int | float"


class _Bound(NamedTuple):
    number: Number
    value: ir.Value | None  # None: unbounded, or the 0 of Relu


_LOWEST, _HIGHEST, _ZERO = _Bound(-math.inf, None), _Bound(math.inf, None), _Bound(0, None)


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
        low, high = (_clamped(end, second) for end in (min(*first, key=_number), first[1]))
        like = next((bound.value for bound in (*first, *second) if bound.value is not None), None)
        _rewrite(node, first_node.inputs[0], low, high, like)


def _range(node: ir.Node, opset: int) -> tuple[_Bound, _Bound] | None:
    """Return the bounds of a Clip or Relu; None for another node, or where one is not a constant number."""
    if node.domain or not node.inputs:
        return None
    if node.op_type == "Relu":
        return _ZERO, _HIGHEST
    if node.op_type != "Clip" or opset < 11:
        return None
    bounds = [_LOWEST, _HIGHEST]
    for index, value in enumerate(node.inputs[1:3]):
        if value is None:
            continue
        array = constant_of(value)
        if array is None or array.size != 1 or math.isnan(array.item()):
            return None
        bounds[index] = _Bound(array.item(), value)
    return bounds[0], bounds[1]


def _clamped(bound: _Bound, to: tuple[_Bound, _Bound]) -> _Bound:
    return min(to[1], max(to[0], bound, key=_number), key=_number)


def _number(bound: _Bound) -> Number:
    return bound.number


def _rewrite(node: ir.Node, data: ir.Value | None, low: _Bound, high: _Bound, like: ir.Value | None) -> None:
    """Turn the node into a Clip of `data`, or into a Relu where that says the same.

    Args:
        node: The second of the pair.
        data: What the first of the pair reads.
        low: The new lower bound.
        high: The new upper bound.
        like: A bound of either node, for the dtype of a 0; None when both are Relu.
    """
    inputs = [data]
    if low != _ZERO or high.number != math.inf:
        assert like is not None or (low.number, high.number) == (-math.inf, math.inf)
        ends = ((low, -math.inf), (high, math.inf))
        bounds = [None if bound.number == end else bound for bound, end in ends]
        zero = None if _ZERO not in bounds or like is None else _new_zero(node, like)
        inputs += [None if bound is None else bound.value or zero for bound in bounds]
    while inputs[-1] is None:
        inputs.pop()
    node.op_type = "Relu" if low == _ZERO and high.number == math.inf else "Clip"
    node.resize_inputs(len(inputs))
    for index, value in enumerate(inputs):
        node.replace_input_with(index, value)


def _new_zero(node: ir.Node, like: ir.Value) -> ir.Value:
    """Register the 0 of a Relu as a scalar initializer."""
    graph, array = node.graph, constant_of(like)
    assert isinstance(graph, ir.Graph)
    assert array is not None
    name = f"{node.name}_zero"
    while name in graph.initializers:
        name += "_"
    tensor = ir.tensor(np.zeros((), array.dtype), name=name)
    value = ir.Value(name=name, shape=ir.Shape([]), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value
