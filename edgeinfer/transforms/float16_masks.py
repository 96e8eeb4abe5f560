"""Masks in float16: numbers near the least float, which Softmax is to make 0, saturate.

Exporters write a mask as 0 where a position counts and as a number such as -3.4e38 or -1e9 where it does not,
and add it to the scores or select it. In float16 that number is -inf, and a row in which no position counts
becomes NaN. So what is on its way to a Softmax saturates at -32000: far below any score, and two masks
still add up to a finite number. Other numbers beyond float16 that a float32 node hands over saturate at
65504.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from edgeinfer.graph.no_ops import constant_of

__all__ = ["FLOAT16_MAX", "MASK_LIMIT", "is_mask", "limits_of", "saturated"]

Array: TypeAlias = "np.ndarray[Any, Any]"

FLOAT16_MAX = 65504.0
MASK_LIMIT = 32000.0
# A positive number is taken for a mask (the factor of `mask - 1`) from here on; smaller ones may be scales.
_POSITIVE_MASK = 1e8

_MOVING = frozenset(
    """Concat Expand Flatten Gather GatherElements GatherND Identity Pad Reshape ScatterElements ScatterND
    Slice Split Squeeze Tile Transpose Trilu Unsqueeze""".split()  # noqa: SIM905
)
_CARRYING = _MOVING | {"Add", "Cast", "Max", "Min", "Mul", "Neg", "Sub", "Sum", "Where"}
_JOINING = frozenset(["Add", "Max", "Min", "Sub", "Sum", "Where"])
_SOFTMAX = frozenset(["LogSoftmax", "Softmax"])


def is_mask(array: Array, uses: list[tuple[ir.Node, int]]) -> bool:
    """Whether a constant is beyond float16 only where it masks what its uses hand to a Softmax.

    Args:
        array: float32 of any shape.
        uses: The nodes, with the input, that read it.
    """
    beyond = array[np.isfinite(array) & (np.abs(array) > FLOAT16_MAX)]
    if not beyond.size or not ((beyond < 0) | (beyond >= _POSITIVE_MASK)).all():
        return False
    return all(
        node.op_type in _CARRYING and not node.domain and _ends_in_softmax(node.outputs[0])
        for node, _ in uses
    )


def saturated(array: Array, limit: float) -> Array:
    """Return the array with finite numbers beyond `limit` cut to it; infinite ones and NaN stay."""
    return np.where(np.isfinite(array), np.clip(array, -limit, limit), array).astype(array.dtype)


def limits_of(graph: ir.Graph) -> dict[ir.Value, float]:
    """Return the computed values and inputs that may hold numbers beyond float16, and where they saturate.

    Such are the results of arithmetic with constants beyond float16, and the inputs of the model that are
    joined with other values on their way to a Softmax, which are masks.

    Args:
        graph: The main graph; its subgraphs are looked into.
    """
    limits: dict[ir.Value, float] = {}
    for node in graph.all_nodes():
        if node.domain or not (node.op_type in _CARRYING or node.op_type == "ConstantOfShape"):
            continue
        if any(_is_beyond(value) or value in limits for value in node.inputs if value) or _fills(node):
            for output in node.outputs:
                limits[output] = MASK_LIMIT if _ends_in_softmax(output) else FLOAT16_MAX
    for value in graph.inputs:
        if value.dtype is ir.DataType.FLOAT and _ends_in_softmax(value, joined=False):
            limits[value] = MASK_LIMIT
    return limits


def _is_beyond(value: ir.Value) -> bool:
    array = constant_of(value)
    return array is not None and array.dtype == np.float32 and _exceeds(array)


def _exceeds(array: Array) -> bool:
    return bool((np.isfinite(array) & (np.abs(array) > FLOAT16_MAX)).any())


def _fills(node: ir.Node) -> bool:
    """Whether the node makes a tensor of a number beyond float16."""
    number = node.attributes.get("value") if node.op_type == "ConstantOfShape" else None
    return (
        number is not None and not number.is_ref() and _exceeds(number.as_tensor().numpy().astype(np.float64))
    )


def _ends_in_softmax(value: ir.Value, *, joined: bool = True) -> bool:
    """Whether every use hands the value on to a Softmax, by nodes that carry it.

    Args:
        value: Where to begin.
        joined: False to require a node on the way that joins it with another value.
    """
    front, seen = [(value, joined)], set()
    while front:
        current, is_joined = front.pop()
        if current in seen:
            continue
        seen.add(current)
        uses = list(current.uses())
        if not uses or current.is_graph_output():
            return False
        for node, _ in uses:
            if node.domain or (node.op_type in _SOFTMAX and not is_joined):
                return False
            if node.op_type in _SOFTMAX:
                continue
            if node.op_type not in _CARRYING:
                return False
            front += [(output, is_joined or node.op_type in _JOINING) for output in node.outputs]
    return True
