"""Turning a float graph and a placement into a Q/DQ graph."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping

import attrs
import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgeinfer.backends.dialect import QDQDialect
from edgeinfer.graph.constants import constant_value
from edgeinfer.numerics.qparams import QParams, activation_qparams
from edgeinfer.quantization.placement.fused_kernels import BIAS, DATA, WEIGHT, Region
from edgeinfer.quantization.placement.placement import Placement
from edgeinfer.quantization.qdq.emit import Emitter
from edgeinfer.quantization.qdq.marks import DIALECT_KEY, NOTES_KEY
from edgeinfer.quantization.qdq.pair_safe import pair_safe
from edgeinfer.transforms.contract import ReportBuilder

__all__ = ["Range", "insert_qdq"]

Range = tuple[float, float]

# An int32 bias must leave room for the accumulator beside it.
_MAX_BIAS = 2.0**30
_NEXT_TO_NOTHING = 1e-30


def insert_qdq(
    model: ir.Model,
    placement: Placement,
    ranges: Mapping[str, Range],
    weights: Callable[[Region], QParams],
    dialect: QDQDialect,
    report: ReportBuilder,
    *,
    activation_dtype: str | None = None,
    keep_float: Collection[str] = (),
) -> None:
    """Write the quantizers of a placement into the graph, and note in its metadata what RetargetQDQ needs.

    Args:
        model: The float graph; it is changed.
        placement: Where quantizers go.
        ranges: The lowest and highest value of every tensor that any dialect quantizes.
        weights: Returns the scales of a region's weight.
        dialect: What the runtime wants.
        report: Told of every region.
        activation_dtype: The dtype of activations; None for the dialect's own.
        keep_float: What was asked to stay in float, to be remembered.
    """
    dtype = activation_dtype or dialect.activation_dtype
    qparams: dict[str, QParams] = {}
    for group in placement.groups:
        ends = [ranges[name] for name in group if name in ranges]
        low, high = min(low for low, _ in ends), max(high for _, high in ends)
        shared = activation_qparams(low, high, dtype, dialect.activation_symmetric)
        qparams |= dict.fromkeys(group, shared)
    emitter = Emitter(model.graph)
    written: dict[str, ir.Value] = {}
    grown: list[float] = []
    for region in placement.regions:  # before the activations, which reroute the inputs
        data = region.node.inputs[DATA]
        assert data is not None
        scales = weights(region)
        if dialect.pairs_in_int16:
            safe = pair_safe(region.node, region.weight, region.axis, scales)
            grown.append(float((safe.scale / scales.scale).max()))
            scales = safe
        _write_weight(emitter, region, qparams[str(data.name)], scales, dialect, written)
        report.apply(region.node, f"{region.node.op_type} in integers")
        if dialect.bias_where_shared:
            _write_bias_where_shared(emitter, region)
        if dialect.gemm_of_matmul:
            _keep_add_apart(emitter, region)
    for value, uses in placement.tensors.items():
        dequantized = emitter.activation(value, qparams[str(value.name)], uses)
        if value in placement.outputs:
            emitter.output(value, dequantized)
    _note_grown(grown, dialect, report)
    if dialect.keeps_float_by_axis:
        for node in list(model.graph):
            _dequantize_by_axis(emitter, node)
    common_passes.RemoveUnusedNodesPass()(model)
    model.metadata_props[DIALECT_KEY] = dialect.name
    notes = {
        "ranges": {name: list(ends) for name, ends in ranges.items()},
        "keep_float": sorted(keep_float),
        "pairs_in_int16": dialect.pairs_in_int16,
    }
    model.metadata_props[NOTES_KEY] = json.dumps(notes)


def _note_grown(grown: list[float], dialect: QDQDialect, report: ReportBuilder) -> None:
    larger = [ratio for ratio in grown if ratio > 1.0]
    if larger:
        report.note(
            f"the integer kernels of {dialect.name} on this CPU add pairs of products in 16 bits: the scales "
            f"of {len(larger)} weights are up to {max(larger):.2f} times as large, so that none overflows"
        )


def _write_weight(
    emitter: Emitter,
    region: Region,
    data: QParams,
    weight: QParams,
    dialect: QDQDialect,
    written: dict[str, ir.Value],
) -> None:
    source = region.node.inputs[WEIGHT]
    assert source is not None
    place = _bias_place(region, dialect) if dialect.quantize_bias else None
    bias = _bias(region, *place) if place is not None else None
    if bias is not None:
        # A channel of tiny weights and a large bias would overflow int32: its weights take a larger scale.
        least = np.abs(bias) / (_MAX_BIAS * np.asarray(data.scale, np.float64))
        least = least if np.ndim(weight.scale) else least.max()
        weight = attrs.evolve(weight, scale=np.maximum(weight.scale, least).astype(np.float32))
    name = str(source.name)
    if name in written and bias is not None:
        name = f"{name}_{region.node.name}"  # a shared weight whose scales may differ by node
    if name not in written:
        stored = weight.quantize(region.weight)
        written[name] = emitter.constant(name, stored, weight.scale, weight.zero_point, weight.axis)
    region.node.replace_input_with(WEIGHT, written[name])
    if place is None or bias is None:
        return
    owner, index = place
    scale = (np.asarray(data.scale, np.float32) * weight.scale).astype(np.float32)
    integers = np.rint(bias.astype(np.float64) / scale).astype(np.int32)
    old = owner.inputs[index]
    assert old is not None
    name = f"{old.name}_{region.node.name}"
    zero = np.zeros(scale.shape, np.int32)
    owner.replace_input_with(index, emitter.constant(name, integers, scale, zero, 0 if scale.ndim else None))


def _write_bias_where_shared(emitter: Emitter, region: Region) -> None:
    node = region.node
    if node.op_type != "Conv" or len(node.outputs[0].uses()) < 2:
        return
    old = node.inputs[BIAS] if len(node.inputs) > BIAS else None
    bias = constant_value(old)
    if old is not None and (bias is None or bias.any()):
        return  # a runtime drops a bias that is all 0
    node.resize_inputs(BIAS + 1)
    nothing = np.full(region.weight.shape[region.axis], _NEXT_TO_NOTHING, np.float32)
    node.replace_input_with(BIAS, emitter.initializer(f"{node.name}_next_to_nothing", nothing))


def _dequantize_by_axis(emitter: Emitter, node: ir.Node) -> None:
    """Let a float layer read its input from a dequantizer with one and the same scale for each channel."""
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm") or node.attributes.get_int("transA", 0) != 0:
        return
    data, weight = node.inputs[DATA], node.inputs[WEIGHT]
    dequantize = data.producer() if data is not None else None
    if dequantize is None or dequantize.op_type != "DequantizeLinear" or weight is None:
        return
    array = constant_value(weight)
    if array is None or len(dequantize.inputs) < 3:
        return  # the weight is quantized
    if node.op_type == "Conv":
        channels = array.shape[1] * node.attributes.get_int("group", 1)
    else:
        channels = array.shape[int(node.attributes.get_int("transB", 0) != 0)]
    scale, zero_point = (constant_value(value) for value in dequantize.inputs[1:3])
    assert scale is not None
    assert zero_point is not None
    if scale.size != 1:
        return
    name = f"{node.name}_input"
    parameters = emitter.parameters(name, np.repeat(scale, channels), np.repeat(zero_point, channels))
    own = ir.node(
        "DequantizeLinear",
        [dequantize.inputs[0], *parameters],
        {"axis": 1},
        name=f"{name}_DequantizeLinear",
    )
    own.outputs[0].name = f"{name}_dequantized"
    own.outputs[0].shape, own.outputs[0].type = data.shape, data.type  # type: ignore[union-attr]
    emitter.graph.insert_before(node, own)
    node.replace_input_with(DATA, own.outputs[0])


def _bias_place(region: Region, dialect: QDQDialect) -> tuple[ir.Node, int] | None:
    """Return the node and the input that have the bias of a region's operator."""
    node = region.node
    if node.op_type != "MatMul":
        return (node, BIAS) if len(node.inputs) > BIAS else None
    data = node.inputs[DATA]
    two_axes = data is not None and data.shape is not None and len(data.shape) == 2
    return _constant_added(node) if two_axes and dialect.gemm_of_matmul else None


def _constant_added(node: ir.Node) -> tuple[ir.Node, int] | None:
    """Return the Add that alone reads a node's output, and its input that is a constant."""
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or node.outputs[0].is_graph_output():
        return None
    (user, index), *_ = uses
    if (
        user.op_type != "Add"
        or user.graph is not node.graph
        or constant_value(user.inputs[1 - index]) is None
    ):
        return None
    return user, 1 - index


def _bias(region: Region, owner: ir.Node, index: int) -> np.ndarray | None:
    """Return the bias of a region's operator when it is one constant for each output channel."""
    node = region.node
    bias = constant_value(owner.inputs[index])
    groups = node.attributes.get("group")
    channels = region.weight.shape[region.axis]
    if node.op_type == "ConvTranspose" and groups is not None:
        channels *= groups.as_int()
    if bias is not None and owner is not node and bias.shape == (1, channels):
        bias = bias[0]
    return bias if bias is not None and bias.shape == (channels,) else None


def _keep_add_apart(emitter: Emitter, region: Region) -> None:
    node = region.node
    shape = node.inputs[DATA].shape if node.inputs[DATA] is not None else None  # type: ignore[union-attr]
    place = _constant_added(node) if node.op_type == "MatMul" else None
    if place is None or shape is None or len(shape) < 3 or not shape.is_static():
        return
    add, index = place
    bias = constant_value(add.inputs[index])
    if bias is None or not 0 < bias.ndim < 3:
        return
    spread = bias.reshape((1,) * (len(shape) - bias.ndim) + bias.shape)
    add.replace_input_with(index, emitter.initializer(f"{add.name}_spread", spread))
