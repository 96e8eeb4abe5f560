"""Scales of weights with which no kernel of `QDQDialect.pairs_in_int16` overflows."""

from __future__ import annotations

import math

import attrs
import numpy as np
import onnx_ir as ir

from edgeinfer.numerics.pair_sums import neighbours, safe_scale
from edgeinfer.numerics.qparams import QParams

__all__ = ["pair_safe", "weight_neighbours"]


def pair_safe(node: ir.Node, weight: np.ndarray, axis: int, qparams: QParams) -> QParams:
    """Return the parameters with the scales that the weight of Conv, ConvTranspose, Gemm or MatMul needs.

    Args:
        node: The operator.
        weight: Its float weight.
        axis: The weight's axis of output channels.
        qparams: As they would be without overflow: int8 with zero point 0, one scale or one a channel.
    """
    filters, pairs = _filters(node, weight, axis)
    if qparams.dtype != "int8" or not pairs.size:
        return qparams
    scale = np.asarray(qparams.scale)
    if scale.ndim:
        spread = np.broadcast_to(scale[:, None], filters.shape[:2])
        scale = safe_scale(filters, spread, pairs).max(axis=1)
    else:
        scale = safe_scale(filters, scale, pairs)
    return attrs.evolve(qparams, scale=scale)


def weight_neighbours(node: ir.Node, shape: tuple[int, ...]) -> np.ndarray:
    """Return the neighbours in one filter of a Conv, Gemm or MatMul, in the order of its weight's axes.

    Args:
        node: The operator.
        shape: Of its weight.
    """
    if node.op_type == "Conv":
        depthwise = shape[1] == 1 and node.attributes.get_int("group", 1) == shape[0]
        return neighbours(0 if depthwise else shape[1], math.prod(shape[2:]))
    transposed = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) != 0
    return neighbours(shape[-1 if transposed else -2])


def _filters(node: ir.Node, weight: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the filters `(channels, filters that share a scale, K)` and the neighbours in each."""
    if node.op_type == "Conv":
        return weight.reshape(len(weight), 1, -1), weight_neighbours(node, weight.shape)
    if node.op_type == "ConvTranspose":
        groups = node.attributes.get_int("group", 1)
        inputs, kernel = weight.shape[0] // groups, math.prod(weight.shape[2:])
        by_channel = np.moveaxis(weight, 1, 0).reshape(weight.shape[1], groups, -1)
        return by_channel, neighbours(inputs, kernel)
    by_channel = np.moveaxis(weight, axis, 0)
    return by_channel.reshape(len(by_channel), -1, by_channel.shape[-1]), weight_neighbours(
        node, weight.shape
    )
