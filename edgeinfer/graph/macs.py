"""Multiply-accumulate operations of one node, from the shapes of its inputs and outputs.

Only operators whose work is products are counted (convolutions, matrix products, recurrent layers,
attention); element-wise operators, pooling and normalization count as 0, as is customary in the field. The
formulas follow the definitions in the ONNX operator specification.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import onnx_ir as ir

__all__ = ["UnknownShapeError", "node_macs", "works"]

Shape: TypeAlias = "tuple[int, ...]"


class UnknownShapeError(Exception):
    """A shape that the count needs is not static. Internal: the caller reports the node as not counted."""


def _shape(value: ir.Value | None) -> Shape:
    if value is None or value.shape is None or not all(isinstance(dim, int) for dim in value.shape):
        raise UnknownShapeError(value.name if value is not None else "")
    return tuple(int(dim) for dim in value.shape)  # type: ignore[arg-type]


def _conv(node: ir.Node, weight_at: int = 1) -> int:
    # Every output element is a sum over (C / group) * kernel products; W is (M, C / group, *kernel).
    return math.prod(_shape(node.outputs[0])) * math.prod(_shape(node.inputs[weight_at])[1:])


def _conv_transpose(node: ir.Node) -> int:
    # Every input element is multiplied with (M / group) * kernel weights; W is (C, M / group, *kernel).
    return math.prod(_shape(node.inputs[0])) * math.prod(_shape(node.inputs[1])[1:])


def _gemm(node: ir.Node) -> int:
    a = _shape(node.inputs[0])
    transposed = node.attributes.get("transA")
    k = a[0] if transposed is not None and transposed.as_int() else a[1]
    return math.prod(_shape(node.outputs[0])) * k


def _matmul(node: ir.Node) -> int:
    return math.prod(_shape(node.outputs[0])) * _shape(node.inputs[0])[-1]


def _recurrent(node: ir.Node) -> int:
    # W is (directions, gates * hidden, input), R is (directions, gates * hidden, hidden); both are applied to
    # every step of X, (steps, batch, input) or (batch, steps, input).
    steps, batch, _ = _shape(node.inputs[0])
    return steps * batch * (math.prod(_shape(node.inputs[1])) + math.prod(_shape(node.inputs[2])))


def _attention(node: ir.Node) -> int:
    # QKᵀ and its product with V. Rank 4: (batch, heads, length, head size); rank 3 has heads * size last.
    q, k, v = (_shape(node.inputs[index]) for index in range(3))
    if len(q) == 4:
        return math.prod(q) * k[-2] + math.prod(q[:-1]) * k[-2] * v[-1]
    heads = node.attributes["q_num_heads"].as_int()
    kv_heads = node.attributes["kv_num_heads"].as_int()
    return math.prod(q) * k[-2] + math.prod(q[:-1]) * k[-2] * v[-1] * heads // kv_heads


def _einsum(node: ir.Node) -> int:
    # The direct evaluation: one product for every combination of all labels.
    equation = node.attributes["equation"].as_string().replace(" ", "")
    terms = equation.split("->")[0].split(",")
    if "..." in equation or len(terms) < 2:
        raise UnknownShapeError("an ellipsis in einsum" if "..." in equation else "")
    sizes: dict[str, int] = {}
    for term, value in zip(terms, node.inputs, strict=True):
        sizes.update(zip(term, _shape(value), strict=True))
    return math.prod(sizes.values()) * (len(terms) - 1)


_COUNTERS: dict[tuple[str, str], Callable[[ir.Node], int]] = {
    ("", "Conv"): _conv,
    ("", "ConvInteger"): _conv,
    ("", "QLinearConv"): lambda node: _conv(node, 3),
    ("", "ConvTranspose"): _conv_transpose,
    ("", "Gemm"): _gemm,
    ("", "MatMul"): _matmul,
    ("", "MatMulInteger"): _matmul,
    ("", "QLinearMatMul"): _matmul,
    ("", "LSTM"): _recurrent,
    ("", "GRU"): _recurrent,
    ("", "RNN"): _recurrent,
    ("", "Attention"): _attention,
    ("", "Einsum"): _einsum,
}


def works(node: ir.Node) -> bool:
    """Tell whether a node's operator multiplies and accumulates."""
    return ("" if node.domain == "ai.onnx" else node.domain, node.op_type) in _COUNTERS


def node_macs(node: ir.Node) -> int | None:
    """Return the multiply-accumulates of a node; 0 for an operator that is not counted.

    Returns:
        The count, or None when a shape it needs is not known.
    """
    domain = "" if node.domain == "ai.onnx" else node.domain
    counter = _COUNTERS.get((domain, node.op_type))
    if counter is None:
        return 0
    try:
        return counter(node)
    except (UnknownShapeError, IndexError, KeyError, ValueError):
        return None
