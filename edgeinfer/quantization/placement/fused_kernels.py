"""Fused kernels: an operator with a constant weight, and what a runtime computes behind it in one kernel.

No tensor inside such a region is ever stored, so a quantizer there would split the kernel and cost
accuracy for nothing. Quantizers stand at the borders: on the region's inputs, and on its output.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import final

import attrs
import numpy as np
import onnx_ir as ir

from edgeinfer.backends.dialect import QDQDialect
from edgeinfer.graph.constants import constant_value

__all__ = ["Region", "find_regions", "is_float", "refusal", "weight_axis"]

# Input 1 is the weight and input 2, where there is one, the bias of all of these.
DATA, WEIGHT, BIAS = 0, 1, 2
# What runtimes fuse into the kernel in front, beside the epilogues of a dialect.
_VALUE_BY_VALUE = frozenset({"Abs", "Add", "Div", "Erf", "Exp", "Mul", "Neg", "Sqrt", "Sub", "Transpose"})


@final
@attrs.frozen(kw_only=True, eq=False)
class Region:
    """One fused kernel.

    Attributes:
        node: The operator with the weight.
        weight: The weight's values.
        axis: The weight's axis of output channels.
        chain: The nodes behind it that the kernel takes in.
        output: What the kernel stores.
        residual: The use, as (node, input index), of a residual that the kernel adds, if any.
    """

    node: ir.Node
    weight: np.ndarray
    axis: int
    chain: tuple[ir.Node, ...]
    output: ir.Value
    residual: tuple[ir.Node, int] | None


def is_float(value: ir.Value) -> bool:
    """Whether a tensor is float32."""
    return value.dtype is ir.DataType.FLOAT


def weight_axis(node: ir.Node, weight: np.ndarray) -> int:
    """Return the axis of output channels of the weight of Conv, ConvTranspose, Gemm or MatMul.

    For ConvTranspose, `(C_in, C_out / groups, *kernel)`, it is 1.
    """
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "Gemm":
        transposed = node.attributes.get("transB")
        return 0 if transposed is not None and transposed.as_int() else 1
    return weight.ndim - 1


def refusal(node: ir.Node, dialect: QDQDialect) -> str | None:
    """Say why an operator of `dialect.integer_ops` cannot run in integers, or None when it can."""
    data = node.inputs[DATA]
    weight = constant_value(node.inputs[WEIGHT])
    if data is None or constant_value(data) is not None:
        return "its input is a constant"
    if weight is None:
        return "its weight is computed, not constant"
    if weight.dtype != np.float32:
        return f"its weight is {weight.dtype}, not float32"
    if not np.isfinite(weight).all():
        return "its weight has NaN or infinite values"
    if weight.ndim < 2:
        return "its weight is a vector"
    if node.op_type == "Gemm":
        transposed = node.attributes.get("transA")
        beta = node.attributes.get("beta")
        alpha = node.attributes.get("alpha")
        if transposed is not None and transposed.as_int():
            return "its input is transposed (transA)"
        if (beta is not None and beta.as_float() != 1) or (alpha is not None and alpha.as_float() != 1):
            return "its alpha or beta is not 1"
    above = _wrong_above(data, dialect)
    if above is not None:
        return f"{dialect.name} computes {above.op_type} {above.name!r} wrongly with a quantizer behind it"
    refused = dialect.needs_output if not dialect.quantize_outputs else ()
    if node.op_type in refused and node.outputs[0].is_graph_output():
        return f"it is an output of the model, and {dialect.name} would need it quantized to run in integers"
    return None


def _wrong_above(value: ir.Value | None, dialect: QDQDialect) -> ir.Node | None:
    """Return the operator of `dialect.wrong_before` that a quantizer of `value` could be fused into."""
    while value is not None and len(value.consumers()) == 1:
        node = value.producer()
        if node is None:
            return None
        if node.op_type in dialect.wrong_before:
            return node
        if node.op_type not in dialect.epilogue | _VALUE_BY_VALUE:
            return None
        value = next(
            (each for each in node.inputs if each is not None and constant_value(each) is None), None
        )
    return None


def find_regions(
    nodes: Iterable[ir.Node],
    dialect: QDQDialect,
    skip: Callable[[ir.Node, str], None],
    keep_float: Collection[str],
) -> list[Region]:
    """Return the regions in topological order; `skip` is told of each operator that is in none.

    Args:
        nodes: The nodes of the graph in topological order.
        dialect: What the runtime has kernels for.
        skip: Called with a node that is left in float and the reason.
        keep_float: Names of nodes that stay in float.
    """
    found: list[Region] = []
    taken: set[ir.Node] = set()
    # The last operator before a sum takes it in: only then its other operand is there already.
    for node in reversed(list(nodes)):
        if node.op_type not in dialect.integer_ops or node.domain not in ("", "ai.onnx"):
            continue
        reason = "kept in float as asked" if node.name in keep_float else refusal(node, dialect)
        if reason is not None:
            skip(node, reason)
            continue
        weight = constant_value(node.inputs[WEIGHT])
        assert weight is not None
        region = _grow(node, weight, dialect, taken, keep_float)
        taken.update(region.chain)
        found.append(region)
    return found[::-1]


def _grow(
    node: ir.Node, weight: np.ndarray, dialect: QDQDialect, taken: set[ir.Node], keep_float: Collection[str]
) -> Region:
    chain: list[ir.Node] = []
    residual: tuple[ir.Node, int] | None = None
    value = node.outputs[0]
    while not value.is_graph_output():
        step = _next(value, dialect)
        if step is None or step[-1] in taken or any(each.name in keep_float for each in step):
            break
        last = step[-1]
        if last.op_type == "Add":
            index = 1 if last.inputs[0] is value else 0
            if constant_value(last.inputs[index]) is None:
                if residual is not None or not _same_shape(last.inputs[index], value):
                    break
                residual = (last, index)
        chain.extend(step)
        value = last.outputs[0]
    return Region(
        node=node,
        weight=weight,
        axis=weight_axis(node, weight),
        chain=tuple(chain),
        output=value,
        residual=residual,
    )


def _next(value: ir.Value, dialect: QDQDialect) -> tuple[ir.Node, ...] | None:
    """Return the node, or the nodes of SiLU, that the kernel of `value` takes in next."""
    users = value.consumers()
    if len(users) == 1:
        user = users[0]
        if user.op_type == "Add" and "Add" not in dialect.epilogue:
            return None
        return (user,) if user.op_type in dialect.epilogue else None
    if len(users) == 2 and "SiLU" in dialect.epilogue:
        gate = next((user for user in users if user.op_type in ("Sigmoid", "HardSigmoid")), None)
        product = next((user for user in users if user.op_type == "Mul"), None)
        if (
            gate is not None
            and product is not None
            and tuple(gate.outputs[0].consumers()) == (product,)
            and not gate.outputs[0].is_graph_output()
        ):
            return gate, product
    return None


def _same_shape(a: ir.Value | None, b: ir.Value) -> bool:
    return a is not None and (a.shape is None or b.shape is None or a.shape == b.shape)
