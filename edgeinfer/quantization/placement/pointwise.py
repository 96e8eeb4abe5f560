"""Convolutions that are a Gemm in disguise: a kernel of 1 over an input of spatial size 1.

A classifier behind a global pooling is such. Some runtimes have an integer Gemm with a float output but no
such convolution: ONNX Runtime's QLinearConv must round its output to 8 bits. Where no integer kernel reads
that output, the rounding is noise for nothing, and the Gemm does without.

Measured in ONNX Runtime: on MobileNetV2's classifier this gains 0.3 to 0.9 dB at the output, on small random
nets 0.4 to 6 dB, also on a layer with HardSwish before the classifier, and it costs no time. The gates of
squeeze-and-excite are such convolutions, too: there it gains less than 0.3 dB and costs 1.5 % of the time,
for the transposes around it, so they stay as they are.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx_ir as ir

from edgeinfer.backends.dialect import QDQDialect
from edgeinfer.graph.constants import constant_value
from edgeinfer.graph.weights import add_initializer, set_constant
from edgeinfer.quantization.placement.fused_kernels import BIAS, DATA, WEIGHT
from edgeinfer.quantization.placement.placement import place

__all__ = ["follow_gemms", "pointwise_as_gemm"]

_TO_MATRIX = ("Flatten", "Reshape", "Squeeze")


def pointwise_as_gemm(
    model: ir.Model,
    dialect: QDQDialect,
    *,
    keep_float: Collection[str] = (),
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> dict[str, str]:
    """Rewrite the convolutions that an integer Gemm of the same name computes with less noise.

    Args:
        model: The float graph, with shapes inferred; it is changed.
        dialect: What the runtime wants. Where its convolutions need no quantized output, nothing is done.
        keep_float: Names of nodes that stay in float; they stay convolutions, too.
        shapes: See `place`.

    Returns:
        For each new tensor with the values of an old one, but another shape: the old one's name.
    """
    if (
        "Gemm" not in dialect.integer_ops
        or "Gemm" in dialect.needs_output
        or "Conv" not in dialect.needs_output
    ):
        return {}
    names = [
        str(node.name)
        for node in model.graph
        if node.name not in keep_float and _is_gemm(node) and not _is_gate(node.outputs[0])
    ]
    same: dict[str, str] = {}
    for name in reversed(names):  # a layer that becomes a Gemm may read the one before it in integers
        placement = place(model, dialect, keep_float=keep_float, shapes=shapes)
        if name in placement.read_in_integers:
            continue
        trial = model.clone()
        _rewrite(trial, {name})
        placement = place(trial, dialect, keep_float=keep_float, shapes=shapes)
        if any(region.node.name == name for region in placement.regions):
            same |= _rewrite(model, {name})
    return same


def follow_gemms(model: ir.Model, other: ir.Model) -> None:
    """Rewrite the convolutions of a float graph with shapes whose namesake in `other` is a Gemm."""
    _rewrite(model, {node.name or "" for node in other.graph if node.op_type == "Gemm"})


def _is_gemm(node: ir.Node) -> bool:
    if node.op_type != "Conv" or node.domain not in ("", "ai.onnx"):
        return False
    data, weight = node.inputs[DATA], constant_value(node.inputs[WEIGHT])
    if data is None or data.shape is None or weight is None or node.attributes.get_int("group", 1) != 1:
        return False
    # A kernel of 1 needs no padding; where there is some, the output is larger than the input.
    ones = (1,) * (weight.ndim - 2)
    return weight.shape[2:] == ones == tuple(data.shape[2:]) and not any(node.attributes.get_ints("pads", ()))


def _is_gate(value: ir.Value) -> bool:
    """Whether something with more than one position, or of unknown shape, is computed from the value."""
    front, seen = [value], set[ir.Value]()
    while front:
        value = front.pop()
        if value.shape is None or any(size != 1 for size in tuple(value.shape)[2:]):
            return True
        for user in value.consumers():
            front.extend(output for output in user.outputs if output not in seen)
            seen.update(user.outputs)
    return False


def _rewrite(model: ir.Model, names: Collection[str]) -> dict[str, str]:
    graph = model.graph
    same: dict[str, str] = {}
    for node in [node for node in graph if node.name in names and _is_gemm(node)]:
        data = node.inputs[DATA]
        assert data is not None
        assert data.shape is not None
        weight = _matrix(graph, node)
        batch, (channels, inputs) = data.shape[0], weight.shape  # type: ignore[misc]
        flatten = ir.node("Flatten", [data], {"axis": 1}, name=f"{node.name}_Flatten")
        gemm = ir.node(
            "Gemm", [flatten.outputs[0], weight, *node.inputs[BIAS:]], {"transB": 1}, name=node.name
        )
        for made, size in ((flatten, inputs), (gemm, channels)):
            made.outputs[0].name = f"{node.name}_{made.op_type}_output"
            made.outputs[0].type, made.outputs[0].shape = (
                ir.TensorType(ir.DataType.FLOAT),
                ir.Shape([batch, size]),
            )
        same[str(flatten.outputs[0].name)] = str(data.name)
        graph.insert_before(node, [flatten, gemm])
        last = _to_matrix(node)
        if last is None:
            last = node
            shape = add_initializer(
                graph, f"{node.name}_shape", np.array([0, channels] + [1] * (len(data.shape) - 2), np.int64)
            )
            back = ir.node("Reshape", [gemm.outputs[0], shape], name=f"{node.name}_Reshape")
            graph.insert_before(node, back)
            replacement = back.outputs[0]
        else:
            replacement = gemm.outputs[0]
        old = last.outputs[0]
        name, replacement.type, replacement.shape = old.name, old.type, old.shape
        old.replace_all_uses_with(replacement, replace_graph_outputs=True)
        graph.remove([last, node] if last is not node else [node], safe=True)
        replacement.name = name
    return same


def _matrix(graph: ir.Graph, node: ir.Node) -> ir.Value:
    """Return the weight of a convolution as `(outputs, inputs)`, of the same name unless others read it."""
    source, array = node.inputs[WEIGHT], constant_value(node.inputs[WEIGHT])
    assert source is not None
    assert array is not None
    matrix = np.ascontiguousarray(array).reshape(array.shape[:2])
    own = source.is_initializer() and not source.is_graph_input() and len(source.uses()) == 1
    notes = source.const_value.metadata_props if source.const_value is not None else {}
    if own:
        set_constant(source, matrix)
        value = source
    else:
        value = add_initializer(graph, f"{source.name}_{node.name}", matrix)
    assert value.const_value is not None
    value.const_value.metadata_props.update(notes)
    return value


def _to_matrix(node: ir.Node) -> ir.Node | None:
    """Return the node that does nothing but drop the spatial axes, if it alone reads the node's output."""
    output = node.outputs[0]
    users = output.consumers()
    if output.is_graph_output() or len(users) != 1 or users[0].op_type not in _TO_MATRIX:
        return None
    if users[0].graph is not node.graph:
        return None
    shape = users[0].outputs[0].shape
    if shape is None or output.shape is None or len(shape) != 2:
        return None
    return users[0] if isinstance(shape[1], int) and shape[1] == output.shape[1] else None
