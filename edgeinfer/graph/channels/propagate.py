"""How each family of operators carries channel labels: one rule a family.

A rule says what removing channels takes: it reads the labels of a node's inputs, unites what must go
together, locks what must stay, and returns the labels of the outputs. And it says what scaling channels does
there. Operators without a rule lock and block everything that they touch. Further rules are in
`propagate_channelwise`, `propagate_layout` and `propagate_positions`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import onnx_ir as ir

from edgeinfer.graph.channels.labels import Axes, Labels, Row, dims
from edgeinfer.graph.channels.moves import attribute

__all__ = ["RULES", "Rule", "Scale", "broadcast", "meet", "present", "rule"]

Propagate: TypeAlias = "Callable[[ir.Node, Labels], list[Axes]]"
Scale: TypeAlias = Literal["passes", "passes by channel", "equal", "joins", "moves", "layer", "blocks"]
"""What a factor s > 0 for each channel of the input does at an operator, where f(x / s) = f(x) / s is wanted:

- passes: it holds for each element;
- passes by channel: it holds where the factor is one for all of a channel, which is worked on as one;
- equal: operands are added, so their factors must be equal;
- joins, moves: the factors are joined and moved as the values are (see `moves`);
- layer: what is divided before it is multiplied into its weight, and its outputs have factors of their own;
- blocks: factors must be 1.
"""


class Rule(NamedTuple):
    """What an operator couples.

    Attributes:
        propagate: For removal: unites the labels that go together, locks those that stay, and returns the
            labels of the outputs.
        scale: For scaling.
    """

    propagate: Propagate
    scale: Scale


RULES: dict[str, Rule] = {}
"""The rule by operator type of the default domain."""


def rule(*op_types: str, scale: Scale = "blocks") -> Callable[[Propagate], Propagate]:
    """Register a rule for operator types."""

    def register(function: Propagate) -> Propagate:
        RULES.update(dict.fromkeys(op_types, Rule(function, scale)))
        return function

    return register


def present(node: ir.Node) -> list[ir.Value]:
    """Return the inputs that are given."""
    return [value for value in node.inputs if value is not None]


def meet(labels: Labels, node: ir.Node, first: Row | None, second: Row | None, what: str) -> None:
    """Two axes that must have one size: unite them, or lock the one whose partner is not followed."""
    if first is not None and second is not None and len(first) == len(second):
        labels.unite(first, second)
        return
    for row in (first, second):
        labels.lock(row, node.name or node.op_type, f"{what} meets an axis that is not followed")


_OTHER_ELEMENTWISE = tuple(
    """
    Abs Acos Acosh And Asin Asinh Atan Atanh BitShift Cast CastLike Ceil Celu Clip Cos Cosh Div Elu
    Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish IsInf IsNaN Less
    LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or Pow Reciprocal Round Selu Shrink Sigmoid
    Sign Sin Sinh Softplus Softsign Sqrt Sub Swish Tan Tanh ThresholdedRelu Where Xor
""".split()  # noqa: SIM905 (one a line would be longer than all rules here)
)


@rule("Dropout", "Identity", "LeakyRelu", "PRelu", "Relu", scale="passes")
@rule("Add", "Sum", scale="equal")
@rule(*_OTHER_ELEMENTWISE)
def _elementwise(node: ir.Node, labels: Labels) -> list[Axes]:
    """Broadcast: axes are aligned at the right, and axes of more than one position go together."""
    operands = present(node)
    if node.op_type in ("Clip", "Dropout", "CastLike"):
        operands = operands[:1]
    rank = max((len(dims(value)) for value in operands), default=0)
    return [broadcast(node, labels, operands, rank)] * len(node.outputs)


def broadcast(node: ir.Node, labels: Labels, operands: list[ir.Value], rank: int, skip: int = 0) -> Axes:
    """Unite operands axis by axis, aligned at the right; the last `skip` axes are left out of it."""
    out: Axes = [None] * rank
    for back in range(1 + skip, rank + 1):
        wide = [value for value in operands if back <= len(dims(value)) and dims(value)[-back] != 1]
        out[-back] = _meet_all(node, labels, wide, back)
    return out


def _meet_all(node: ir.Node, labels: Labels, operands: list[ir.Value], back: int) -> Row | None:
    # Weights are labelled on demand only when an activation beside them is followed, or all are weights.
    known = [value for value in operands if value.const_value is None]
    rows = [labels.axis(value, -back) for value in known]
    followed = next((row for row in rows if row is not None), None)
    if known and followed is None:
        for value in operands:
            if value.const_value is not None:
                labels.lock(
                    labels.axis(value, -back), node.name or "", "it meets an axis that is not followed"
                )
        return None
    rows += [labels.axis(value, -back) for value in operands if value.const_value is not None]
    if any(row is None for row in rows):
        for row in rows:
            labels.lock(row, node.name or "", "it meets an axis that is not followed")
        return None
    for row in rows[1:]:
        meet(labels, node, rows[0], row, "an operand")
    return rows[0] if rows else None


@rule("Conv", scale="layer")
def _conv(node: ir.Node, labels: Labels) -> list[Axes]:
    """Conv: W is (M, C/group, k...). Groups of one input channel are depthwise; others keep equal sizes."""
    x, weight = node.inputs[0], node.inputs[1]
    assert x is not None
    assert weight is not None
    group = int(attribute(node, "group", 1))  # type: ignore[call-overload]
    inputs, filters = labels.axis(x, 1), labels.axis(weight, 0)
    if group == 1:
        meet(labels, node, inputs, labels.axis(weight, 1), "its input channels")
    else:
        filters = _grouped(node, labels, inputs, filters, labels.axis(weight, 1), group)
    return [_with_bias(node, labels, filters, len(dims(x)))]


def _grouped(
    node: ir.Node, labels: Labels, inputs: Row | None, filters: Row | None, taps: Row | None, group: int
) -> Row | None:
    """Unite what a grouped convolution holds together; `taps` are the weight's input channels in a group."""
    if inputs is None or filters is None or len(inputs) % group or len(filters) % group:
        for row in (inputs, filters, taps):
            labels.lock(row, node.name or "", "the channels of its groups are not followed")
        return filters
    per_group = filters.reshape(group, -1)
    if taps is None:  # depthwise: a channel stands or falls with the filters on it
        labels.unite(np.repeat(inputs, per_group.shape[1]), filters)
    else:  # the same positions of every group, so that the groups stay equal
        labels.unite(labels.unite_all(inputs.reshape(group, -1), 0), taps)
        labels.unite_all(per_group, 0)
    return filters


def _with_bias(node: ir.Node, labels: Labels, channels: Row | None, rank: int) -> Axes:
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        meet(labels, node, channels, labels.axis(bias, 0), "its bias")
    return [None, channels, *[None] * (rank - 2)]


@rule("ConvTranspose")
def _conv_transpose(node: ir.Node, labels: Labels) -> list[Axes]:
    """ConvTranspose: W is (C, M/group, k...)."""
    x, weight = node.inputs[0], node.inputs[1]
    assert x is not None
    assert weight is not None
    group = int(attribute(node, "group", 1))  # type: ignore[call-overload]
    inputs, rows, filters = labels.axis(x, 1), labels.axis(weight, 0), labels.axis(weight, 1)
    meet(labels, node, inputs, rows, "its input channels")
    if group > 1:
        if rows is None or len(rows) % group:
            for row in (rows, filters):
                labels.lock(row, node.name or "", "the channels of its groups are not followed")
        elif filters is None and len(rows) == group:
            filters = rows
        else:
            labels.unite_all(rows.reshape(group, -1), 0)
            filters = None if filters is None else np.tile(filters, group)
    return [_with_bias(node, labels, filters, len(dims(x)))]


@rule("Gemm", scale="layer")
def _gemm(node: ir.Node, labels: Labels) -> list[Axes]:
    """Gemm: (M, K) x (K, N) + C, either factor transposed."""
    a, b = node.inputs[0], node.inputs[1]
    assert a is not None
    assert b is not None
    a_k, b_k = (0 if attribute(node, "transA") else 1), (1 if attribute(node, "transB") else 0)
    meet(labels, node, labels.axis(a, a_k), labels.axis(b, b_k), "its inner axis")
    out: Axes = [labels.axis(a, 1 - a_k), labels.axis(b, 1 - b_k)]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    for back in range(1, 3):
        if bias is not None and len(dims(bias)) >= back and dims(bias)[-back] != 1:
            meet(labels, node, out[-back], labels.axis(bias, -back), "its bias")
    return [out]


@rule("MatMul", scale="layer")
def _matmul(node: ir.Node, labels: Labels) -> list[Axes]:
    """MatMul: inner axes go together, batch axes broadcast; a batch axis of attention is its heads."""
    a, b = node.inputs[0], node.inputs[1]
    assert a is not None
    assert b is not None
    rank_a, rank_b = len(dims(a)), len(dims(b))
    meet(labels, node, labels.axis(a, -1), labels.axis(b, -2 if rank_b > 1 else -1), "its inner axis")
    if rank_a == 1 or rank_b == 1:
        # The output loses an axis; nothing in practice prunes through that.
        rest = labels.of(a)[:-1] if rank_b == 1 else [*labels.of(b)[:-2], labels.of(b)[-1]]
        labels.lock_all(rest, node.name or "", "a product with a vector")
        return [[None] * len(rest)]
    out = broadcast(node, labels, [a, b], max(rank_a, rank_b), skip=2)
    out[-2], out[-1] = labels.axis(a, -2), labels.axis(b, -1)
    return [out]
