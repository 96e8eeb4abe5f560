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

from typing import final

import attrs
import numpy as np
import onnx_ir as ir

from edgeinfer.devices.profile import Target
from edgeinfer.graph.weights import (
    Linear,
    add_initializer,
    as_target,
    constant,
    drop_unused,
    find_linear,
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


@final
@attrs.frozen
class QuantizeDynamic(GraphTransform):
    """Quantize MatMul, Gemm and LSTM to int8 with ranges of activations taken on each run.

    Args:
        target: What will run it. LSTM is quantized for `onnxruntime` only, which has an operator for it.
        min_elements: Layers with smaller weights are left alone.
    """

    target: Target | None = attrs.field(default=None, kw_only=True, converter=as_target)
    min_elements: int = attrs.field(default=4096, kw_only=True, validator=attrs.validators.ge(0))

    min_opset = 11  # DynamicQuantizeLinear

    def rewrite(self, model: ir.Model, report: ReportBuilder, /) -> None:
        """Replace the layers."""
        backend = self.target.backend if self.target is not None else None
        # Without a target: as if it ran here.
        small = adds_pairs_in_int16(self.target if self.target is not None else Target.parse(DEFAULT))
        refused = _REFUSED_BY_BACKEND.get(backend or "")
        quantized: dict[ir.Value, tuple[ir.Value, ...]] = {}
        for node in list(model.graph):
            if node.op_type not in ("Conv", "Gemm", "LSTM", "MatMul") or node.domain not in ("", "ai.onnx"):
                continue
            if refused:
                report.skip(node, refused)
            elif node.op_type == "Conv":
                report.skip(node, "ConvInteger is four times slower than a float convolution in ONNX Runtime")
            elif node.op_type == "LSTM":
                reason = self._lstm_reason(node, backend)
                if reason:
                    report.skip(node, reason)
                else:
                    _quantize_lstm(node, model, small=small)
                    report.apply(node, "DynamicQuantizeLSTM with int8 weights")
            else:
                layer = find_linear(node)
                reason = layer if isinstance(layer, str) else self._reason(layer)
                if reason or isinstance(layer, str):
                    report.skip(node, reason or "")
                else:
                    _quantize_linear(layer, quantized, small=small)
                    report.apply(node, "MatMulInteger with int8 weights and dynamic uint8 activations")
        if report.applied:
            drop_unused(model)

    def _reason(self, layer: Linear) -> str | None:
        if layer.dequantize is not None:
            return "it is quantized already"
        array = constant(layer.weight)
        if array.dtype != np.float32:
            return f"its weight is {array.dtype}; DynamicQuantizeLinear takes float32"
        return self._weight_reason(array)

    def _weight_reason(self, array: np.ndarray) -> str | None:
        if array.size < self.min_elements:
            return f"its weight has {array.size} elements, under min_elements={self.min_elements}"
        if not np.isfinite(array).all():
            return "its weight is not finite"
        return None

    def _lstm_reason(self, node: ir.Node, backend: str | None) -> str | None:
        if backend != "onnxruntime":
            return "only ONNX Runtime has a quantized LSTM; say target='onnxruntime'"
        for value in node.inputs[1:3]:
            if value is None or value.const_value is None or not value.is_initializer():
                return "its weights are computed by the graph; apply Simplify first"
            array = constant(value)
            if array.dtype != np.float32:
                return f"its weights are {array.dtype}"
            reason = self._weight_reason(array)
            if reason:
                return reason
        if node.attributes.get_int("layout", 0) != 0:
            return "layout=1 is not in the quantized operator"
        return None


def _quantize_linear(
    layer: Linear, quantized: dict[ir.Value, tuple[ir.Value, ...]], *, small: bool
) -> None:
    node = layer.node
    graph = graph_of(node)
    array = constant(layer.weight)
    array = array if layer.channel_axis == 1 else array.T  # (K, N)
    integers, scale = _per_column(array, small=small)
    name = layer.weight.name or "weight"
    weight = add_initializer(graph, f"{name}_int8", integers)
    scales = add_initializer(graph, f"{name}_scale", scale)
    zero = add_initializer(graph, f"{name}_zero_point", np.zeros((), np.int8))
    made: list[ir.Node] = []

    def add(op_type: str, inputs: list[ir.Value], count: int = 1, **attributes: int) -> tuple[ir.Value, ...]:
        new = ir.node(
            op_type, inputs, attributes, num_outputs=count, name=f"{node.name}_{op_type}_{len(made)}"
        )
        for index, output in enumerate(new.outputs):
            output.name = f"{new.name}_out{index}"
        made.append(new)
        return tuple(new.outputs)

    if layer.input not in quantized:
        # Layers that read one activation share its quantization.
        quantized[layer.input] = add("DynamicQuantizeLinear", [layer.input], 3)
    activation, activation_scale, activation_zero = quantized[layer.input]
    (accumulated,) = add("MatMulInteger", [activation, weight, activation_zero, zero])
    (as_float,) = add("Cast", [accumulated], to=int(ir.DataType.FLOAT))
    (factor,) = add("Mul", [activation_scale, scales])
    (result,) = add("Mul", [as_float, factor])
    if layer.bias is not None:
        (result,) = add("Add", [result, layer.bias])
    output = node.outputs[0]
    set_type(result, output.dtype, output.shape)
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
