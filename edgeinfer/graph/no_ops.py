"""Operators that give back their input unchanged, found one node at a time.

Every test here is exact, bit for bit: a Mul by 1.000001 is not a no-op. (A pattern matcher that compares
constants with a tolerance would take it for one.)
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

__all__ = ["constant_of", "no_op_input"]


def constant_of(value: ir.Value | None) -> np.ndarray[Any, Any] | None:
    """Return the value's array if it is an initializer (and not an input) or comes from a Constant node."""
    if value is None or value.is_graph_input():
        return None
    tensor = value.const_value
    producer = value.producer()
    if tensor is None and producer is not None and (producer.domain, producer.op_type) == ("", "Constant"):
        tensor = ir.convenience.get_const_tensor(value)
    if tensor is None or tensor.dtype is ir.DataType.STRING:
        return None
    return tensor.numpy()


def no_op_input(node: ir.Node, opset: int) -> ir.Value | None:
    """Return the input that the node's first output always equals, or None.

    Args:
        node: A node of the default domain.
        opset: The model's version of it.
    """
    if node.domain or not node.inputs or node.inputs[0] is None:
        return None
    first = node.inputs[0]
    kind = node.op_type
    if kind == "Identity":
        return first
    if kind == "Dropout":
        return first if _is_inference_dropout(node, opset) else None
    if kind == "Cast":
        return first if first.dtype is not None and first.dtype == node.attributes.get_int("to", 0) else None
    if kind == "Transpose":
        perm = node.attributes.get_ints("perm", ())
        return first if perm and list(perm) == list(range(len(perm))) else None
    if kind in ("Add", "Mul"):
        neutral = 0 if kind == "Add" else 1
        for value, other in ((first, node.inputs[1]), (node.inputs[1], first)):
            if value is not None and _is_scalar(other, neutral, value):
                return value
    elif kind in ("Sub", "Div", "Pow") and _is_scalar(node.inputs[1], 0 if kind == "Sub" else 1, first):
        return first
    elif kind == "Pad" and opset >= 11:
        pads = constant_of(node.inputs[1])
        return first if pads is not None and not pads.any() else None
    elif kind == "Concat" and len(node.inputs) == 1:
        return first
    return None


def _is_inference_dropout(node: ir.Node, opset: int) -> bool:
    if len(node.outputs) > 1 and (node.outputs[1].uses() or node.outputs[1].is_graph_output()):
        return False
    if opset < 12 or len(node.inputs) < 3 or node.inputs[2] is None:
        return True
    training = constant_of(node.inputs[2])
    return training is not None and not training.any()


def _is_scalar(value: ir.Value | None, number: int, other: ir.Value) -> bool:
    """Whether `value` is exactly `number` and broadcasts to `other` without making its rank larger."""
    array = constant_of(value)
    if array is None or array.size != 1 or array.dtype.kind not in "fiu" or array.item() != number:
        return False
    return array.ndim == 0 or (other.shape is not None and array.ndim <= len(other.shape))
