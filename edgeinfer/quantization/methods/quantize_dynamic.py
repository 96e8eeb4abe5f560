"""Dynamic quantization: int8 weights, activations quantized on each run by their own range; no calibration.

It is made of the standard operators DynamicQuantizeLinear and MatMulInteger, which ONNX Runtime fuses.
Measured on an x86-64 CPU with AVX512-VNNI, one thread, against the same runtime's float32 (ONNX Runtime
1.32, OpenVINO 2026.4):

| layer | ONNX Runtime | OpenVINO |
| --- | --- | --- |
| MatMul 384 x 1536, 32 rows | 3.3x faster, 38 dB | 0.9x |
| LSTM of 128 / 512 units, one step | 1.3x / 2.5x faster, 39 / 35 dB | not tried |
| LSTM of 128 / 512 units, 32 steps | 1.9x / 3.5x faster, 37 / 32 dB | not tried |
| Conv 64 x 64 x 3 x 3 by ConvInteger | 0.25x | 0.9x |

So convolutions are left alone everywhere, and everything is on OpenVINO. Activations are uint8: with int8,
ONNX Runtime's MatMulInteger is twenty times slower.
"""

from __future__ import annotations

from typing import TypeAlias, final

import attrs
import numpy as np
import onnx_ir as ir

from edgeinfer.devices.profile import Target
from edgeinfer.graph.stored_weights import (
    Refusal,
    StoredWeight,
    drop_source,
    find_weight,
    group_by_source,
    read_from,
    store_beside,
    why_not_shared,
)
from edgeinfer.graph.weights import (
    add_initializer,
    as_target,
    constant,
    drop_unused,
    graph_of,
    set_type,
)
from edgeinfer.numerics.pair_sums import neighbours, safe_scale
from edgeinfer.quantization.placement.dialects import DEFAULT
from edgeinfer.quantization.placement.pair_overflow import adds_pairs_in_int16
from edgeinfer.transforms.contract import GraphTransform, ReportBuilder

__all__ = ["QuantizeDynamic"]

_REFUSED_BY_BACKEND = {
    "openvino": "OpenVINO runs MatMulInteger no faster than float (0.9x); QuantizeWeights gains 1.8x there",
    "tensorrt": "TensorRT has no DynamicQuantizeLinear; use QuantizeStatic or QuantizeWeights",
}
_NO_KERNEL = {
    "Conv": "ConvInteger is four times slower than a float convolution in ONNX Runtime",
    "ConvTranspose": "there is no transposed convolution of integers",
    "Einsum": "there is no Einsum of integers; write it as a MatMul",
    "GRU": "no runtime here has a quantized GRU",
    "RNN": "no runtime here has a quantized RNN",
}

# The quantized activations of each graph, so that layers that read one share its quantization.
_Quantized: TypeAlias = "dict[tuple[ir.Graph, ir.Value], tuple[ir.Value, ...]]"


@final
@attrs.frozen
class QuantizeDynamic(GraphTransform):
    """Quantize MatMul, Gemm and LSTM to int8 with ranges of activations taken on each run.

    Those in subgraphs are quantized, too. A weight that several layers read is stored once.

    Args:
        target: What will run it. LSTM is quantized for `onnxruntime` only, which has an operator for it.
        min_elements: Layers with smaller weights are left alone.
    """

    target: Target | None = attrs.field(default=None, kw_only=True, converter=as_target)
    min_elements: int = attrs.field(default=4096, kw_only=True, validator=attrs.validators.ge(0))

    min_opset = 11  # DynamicQuantizeLinear
    names_layers = True

    def rewrite(self, model: ir.Model, report: ReportBuilder, /) -> None:
        """Replace the layers."""
        backend = self.target.backend if self.target is not None else None
        # Without a target: as if it ran here.
        small = adds_pairs_in_int16(self.target if self.target is not None else Target.parse(DEFAULT))
        refused = _REFUSED_BY_BACKEND.get(backend or "")
        found: list[StoredWeight] = []
        for node in list(model.graph.all_nodes()):
            if node.domain or node.op_type not in ("Gemm", "LSTM", "MatMul", *_NO_KERNEL):
                continue
            if refused:
                report.skip(node, refused)
            elif node.op_type in _NO_KERNEL:
                report.skip(node, _NO_KERNEL[node.op_type])
            elif node.op_type == "LSTM":
                reason = self._lstm_reason(node, backend)
                if reason:
                    report.skip(node, reason)
                else:
                    _quantize_lstm(node, model, small=small)
                    report.apply(node, "DynamicQuantizeLSTM with int8 weights")
            else:
                weight = find_weight(node)
                reason = weight if isinstance(weight, str) else self._reason(weight)
                if isinstance(weight, str) or reason:
                    report.skip(node, reason or "")
                else:
                    found.append(weight)
        quantized: _Quantized = {}
        for group in group_by_source(found):
            reason = why_not_shared(group)
            for weight in group if reason else ():
                report.skip(weight.node, reason or "")
            if not reason:
                _quantize(group, quantized, small=small)
                for weight in group:
                    report.apply(weight.node, "MatMulInteger with int8 weights and dynamic uint8 activations")
        if report.applied:
            drop_unused(model)

    def _reason(self, weight: StoredWeight) -> Refusal | None:
        array = weight.array()
        if weight.dtype != np.float32:
            return f"its weight is {array.dtype}; DynamicQuantizeLinear takes float32"
        get = weight.node.attributes
        if weight.index != 1 or array.ndim != 2:
            return f"its weight has {array.ndim} dimensions, or stands on the left: it is no plain layer"
        plain = get.get_float("alpha", 1.0) == get.get_float("beta", 1.0) == 1.0
        if not plain or get.get_int("transA", 0) != 0:
            return "alpha, beta or transA make it no plain layer; apply FuseBatchNorm first"
        return self._weight_reason(array)

    def _weight_reason(self, array: np.ndarray) -> Refusal | None:
        if array.size < max(self.min_elements, 1):
            return f"its weight has {array.size} elements, under min_elements={self.min_elements}"
        if not np.isfinite(array).all():
            return "its weight is not finite"
        return None

    def _lstm_reason(self, node: ir.Node, backend: str | None) -> Refusal | None:
        if backend != "onnxruntime":
            return "only ONNX Runtime has a quantized LSTM; say target='onnxruntime'"
        for value in node.inputs[1:3]:
            if value is None or value.const_value is None or not value.is_initializer():
                return "its weights are computed by the graph; apply Simplify first"
            if value.is_graph_input():
                return f"its weight {value.name!r} can be overridden as an input; apply Simplify first"
            array = constant(value)
            if array.dtype != np.float32:
                return f"its weights are {array.dtype}"
            reason = self._weight_reason(array)
            if reason:
                return reason
        if node.attributes.get_int("layout", 0) != 0:
            return "layout=1 is not in the quantized operator"
        return None


def _quantize(group: list[StoredWeight], quantized: _Quantized, *, small: bool) -> None:
    """Replace the layers that read one weight."""
    first = group[0]
    array = first.array() if first.channel_axis == 1 else first.array().T  # (K, N)
    integers, scale = _per_column(array, small=small)
    weight = store_beside(first, "_int8", integers)
    scales = store_beside(first, "_scale", scale)
    zero = store_beside(first, "_zero_point", np.zeros((), np.int8))
    for layer in group:
        _quantize_layer(layer, (weight, scales, zero), quantized)
    drop_source(first)


def _quantize_layer(
    layer: StoredWeight, constants: tuple[ir.Value, ir.Value, ir.Value], quantized: _Quantized
) -> None:
    node, (weight, scales, zero) = layer.node, constants
    graph, source = graph_of(node), node.inputs[0]
    assert source is not None
    made: list[ir.Node] = []

    def add(op_type: str, inputs: list[ir.Value], count: int = 1, **attributes: int) -> tuple[ir.Value, ...]:
        new = ir.node(
            op_type, inputs, attributes, num_outputs=count, name=f"{node.name}_{op_type}_{len(made)}"
        )
        for index, output in enumerate(new.outputs):
            output.name = f"{new.name}_out{index}"
        made.append(new)
        return tuple(new.outputs)

    if (graph, source) not in quantized:
        quantized[graph, source] = add("DynamicQuantizeLinear", [source], 3)
    activation, activation_scale, activation_zero = quantized[graph, source]
    (accumulated,) = add("MatMulInteger", [activation, weight, activation_zero, zero])
    (as_float,) = add("Cast", [accumulated], to=int(ir.DataType.FLOAT))
    (factor,) = add("Mul", [activation_scale, scales])
    (result,) = add("Mul", [as_float, factor])
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        (result,) = add("Add", [result, bias])
    output = node.outputs[0]
    set_type(result, output.dtype, output.shape)
    read_from(layer, weight)  # so that a Cast of the float weight goes, too
    ir.convenience.replace_nodes_and_values(graph, node, [node], made, [output], [result])


def _quantize_lstm(node: ir.Node, model: ir.Model, *, small: bool) -> None:
    """Replace an LSTM by ONNX Runtime's DynamicQuantizeLSTM (contrib operator, version 1)."""
    graph = graph_of(node)
    inputs: list[ir.Value | None] = [*node.inputs, *[None] * (8 - len(node.inputs))]
    scales: list[ir.Value | None] = []
    for index in (1, 2):
        value = inputs[index]
        # Per direction (inputs, 4 hidden).
        matrices = [_per_column(matrix.T, small=small) for matrix in constant(value)]
        name = (value.name if value is not None else None) or f"{node.name}_{index}"
        scale = np.stack([scale for _, scale in matrices])
        inputs[index] = add_initializer(graph, f"{name}_int8", np.stack([weight for weight, _ in matrices]))
        scales.append(add_initializer(graph, f"{name}_scale", scale))
        scales.append(add_initializer(graph, f"{name}_zero_point", np.zeros(scale.shape, np.int8)))
    attributes = [attr for attr in node.attributes.values() if attr.name != "layout"]
    made = ir.Node(
        "com.microsoft",
        "DynamicQuantizeLSTM",
        [*inputs, *scales],
        attributes,
        num_outputs=len(node.outputs),
        name=node.name,
    )
    for new, old in zip(made.outputs, node.outputs, strict=True):
        new.type, new.shape = old.type, old.shape
    ir.convenience.replace_nodes_and_values(graph, node, [node], [made], node.outputs, made.outputs)
    model.opset_imports.setdefault("com.microsoft", 1)


def _per_column(array: np.ndarray, *, small: bool) -> tuple[np.ndarray, np.ndarray]:
    """Quantize `(K, N)` with one symmetric scale for each column; `small` for kernels that overflow."""
    scale = np.abs(array).max(axis=0) / np.float32(127)
    scale = np.where(scale > 0, scale, np.float32(1)).astype(np.float32)
    if small:
        scale = safe_scale(np.ascontiguousarray(array.T), scale, neighbours(len(array)))
    return np.clip(np.rint(array / scale), -127, 127).astype(np.int8), scale
