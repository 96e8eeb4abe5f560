"""Reading nodes that compute a·x + c for each channel: BatchNormalization, and arithmetic with constants."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np
import onnx_ir as ir

from edgeinfer.graph.no_ops import constant_of

__all__ = ["Affine", "NotAffineError", "Vector", "data_input", "read_affine"]

Vector: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.BFLOAT16)


class NotAffineError(Exception):
    """Why a node cannot be read as an affine map, or not be fused; it becomes a skip and never leaves."""


class Affine(NamedTuple):
    """x ↦ scale · x + shift, both float64 of shape (C,)."""

    scale: Vector
    shift: Vector


def data_input(node: ir.Node) -> int | None:
    """Return which input is the data of a node that may be affine; None when it is no candidate."""
    if node.domain:
        return None
    if node.op_type == "BatchNormalization":
        return 0
    if node.op_type in ("Add", "Sub", "Mul", "Div") and len(node.inputs) == 2:
        constant = [constant_of(value) is not None for value in node.inputs]
        if constant == [False, True]:
            return 0
        if constant == [True, False] and node.op_type != "Div":
            return 1
    return None


def read_affine(node: ir.Node, opset: int, *, channels: int, axis: int, rank: int | None) -> Affine:
    """Read the map that the node applies to each channel of its data.

    Args:
        node: A node for which `data_input` is not None.
        opset: The model's version of the default domain.
        channels: The size C of the data's channel axis.
        axis: The channel axis: 1, or -1 for the last.
        rank: The data's rank, if known.

    Raises:
        NotAffineError: It is not such a map, with the reason.
    """
    if node.op_type == "BatchNormalization":
        return _batch_normalization(node, opset, channels, axis, rank)
    index = data_input(node)
    assert index is not None
    constant = _float64(node.inputs[1 - index])
    vector = _per_channel(constant, channels, axis, rank)
    zeros, ones = np.zeros(channels), np.ones(channels)
    if node.op_type == "Add":
        return Affine(ones, vector)
    if node.op_type == "Sub":
        return Affine(ones, -vector) if index == 0 else Affine(-ones, vector)
    if node.op_type == "Mul":
        return Affine(vector, zeros)
    if not vector.all():
        raise NotAffineError("it divides by zero")
    return Affine(1.0 / vector, zeros)


def _batch_normalization(node: ir.Node, opset: int, channels: int, axis: int, rank: int | None) -> Affine:
    if axis == -1 and rank != 2:
        raise NotAffineError("it normalizes axis 1, which is not the axis of the weight's output channels")
    if opset < 9 and node.attributes.get_int("spatial", 1) == 0:
        raise NotAffineError("spatial=0: the statistics vary over space")
    if node.attributes.get_int("training_mode", 0):
        raise NotAffineError("training_mode=1: it computes its statistics from the data")
    if any(out.uses() or out.is_graph_output() for out in node.outputs[1:]):
        raise NotAffineError("its running statistics are used: it is in training mode")
    gamma, beta, mean, variance = (_float64(value) for value in node.inputs[1:5])
    if any(array.shape != (channels,) for array in (gamma, beta, mean, variance)):
        raise NotAffineError(f"its parameters do not have the shape ({channels},)")
    deviation = variance + node.attributes.get_float("epsilon", 1e-5)
    if not (deviation > 0).all():
        raise NotAffineError("a variance plus epsilon is not positive")
    scale = gamma / np.sqrt(deviation)
    return Affine(scale, beta - mean * scale)


def _float64(value: ir.Value | None) -> Vector:
    array = constant_of(value)
    if array is None or value is None:
        hint = (
            " (it can be overridden as an input; Simplify first)" if value and value.is_graph_input() else ""
        )
        raise NotAffineError(f"a parameter is not constant{hint}")
    if value.const_value is not None and value.const_value.dtype not in _FLOATS:
        raise NotAffineError(f"a parameter is {value.const_value.dtype.name}, not floating point")
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise NotAffineError("a parameter is not finite")
    return array


def _per_channel(constant: Vector, channels: int, axis: int, rank: int | None) -> Vector:
    """Return the constant as shape (C,) when it varies over nothing but the channel axis."""
    if constant.size == 1 and constant.ndim <= (rank or 1):
        return np.full(channels, constant.item())
    if constant.ndim > (rank or 1):
        raise NotAffineError(f"the constant has rank {constant.ndim}, more than is known of the data")
    size = constant.ndim if rank is None else rank
    shape = (1,) * (size - constant.ndim) + constant.shape
    if any(dim != 1 for at, dim in enumerate(shape) if at != axis % size):
        raise NotAffineError(
            f"the constant of shape {constant.shape} varies over other axes than the channels"
        )
    if constant.size != channels:
        raise NotAffineError(f"the constant of {constant.size} channels makes {channels} channels larger")
    return constant.reshape(channels)
