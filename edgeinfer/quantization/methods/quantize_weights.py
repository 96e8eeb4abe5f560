"""Weight-only quantization: small weights, float activations, no calibration.

Measured on an x86-64 CPU with AVX512-VNNI (384 x 1536 MatMul, 32 rows, one thread; ONNX Runtime 1.32 and
OpenVINO 2026.4, speed against the same runtime's float32):

| weight | size | SQNR | ONNX Runtime | OpenVINO |
| --- | --- | --- | --- | --- |
| float32 | 1 | | 1 | 1 |
| int8, one scale a channel, MatMul or Gemm with transB=0 | 0.25 | 41 dB | 1.2x faster | 1.8x faster |
| the same, Gemm with transB=1 | 0.25 | 43 dB | 0.7x | 1.8x faster |
| int4, blocks of 32, DequantizeLinear | 0.16 | 20 dB | 1.1x faster | 1.8x faster |
| int4, blocks of 32, MatMulNBits | 0.16 | 20 dB | 1.1x faster | 1.5x to 1.9x faster |
| float8e4m3fn | 0.25 | 32 dB | **0.2x** | 1.0x |
| Conv 64 x 64 x 3 x 3, int8 | 0.25 | 43 dB | **0.8x** | 1.0x |

So Gemm is written with transB=0; ONNX Runtime, which dequantizes the weights of convolutions on each run,
keeps them float; and float8 is refused there.
"""

from __future__ import annotations

from typing import final

import attrs
import ml_dtypes
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
    set_constant,
    set_type,
)
from edgeinfer.transforms.contract import GraphTransform, ReportBuilder

__all__ = ["QuantizeWeights"]

_DEFAULT_BLOCK = 32
_FLOAT8_MAX = 448.0  # the greatest finite float8e4m3fn
# Clip ratios that are tried for the 16 levels of int4; at 8 bits clipping does not pay.
_CLIP_RATIOS = np.linspace(1.0, 0.7, 13)
_WEIGHT_OPS = ("Conv", "Gather", "Gemm", "MatMul")


@final
@attrs.frozen
class QuantizeWeights(GraphTransform):
    """Store the weights of MatMul, Gemm, Conv and embeddings in 8 or 4 bits; activations stay float.

    Four bits are for MatMul and Gemm, in blocks along the inputs; the other weights get eight.

    Args:
        bits: 8 or 4.
        block_size: Weights of one channel that share a scale, a power of two from 16 on; None: the whole
            channel at 8 bits, 32 at 4 bits.
        dtype: `"int"`, or `"float8e4m3fn"` with `bits=8`.
        target: What will run it; it decides what pays.
        min_elements: Smaller weights are left alone.
    """

    bits: int = attrs.field(default=8, validator=attrs.validators.in_((4, 8)))
    block_size: int | None = attrs.field(default=None, kw_only=True)
    dtype: str = attrs.field(
        default="int", kw_only=True, validator=attrs.validators.in_(("int", "float8e4m3fn"))
    )
    target: Target | None = attrs.field(default=None, kw_only=True, converter=as_target)
    min_elements: int = attrs.field(default=4096, kw_only=True, validator=attrs.validators.ge(0))

    def __attrs_post_init__(self) -> None:
        size = self.block_size
        if size is not None and (size < 16 or size & (size - 1)):
            raise ValueError(f"block_size is a power of two from 16 on, not {size}")
        if self.dtype == "float8e4m3fn" and (self.bits != 8 or size is not None):
            raise ValueError("float8e4m3fn has 8 bits and one scale a channel")

    @property
    def min_opset(self) -> int:  # type: ignore[override]  # it depends on the configuration
        """Blocks and int4 came with opset 21, float8 with 19, scales per channel with 13."""
        if (self.bits == 4 or self.block_size) and not self._packs:
            return 21
        return 19 if self.dtype == "float8e4m3fn" else 13

    @property
    def _on_onnxruntime(self) -> bool:
        return self.target is not None and self.target.backend == "onnxruntime"

    @property
    def _packs(self) -> bool:
        return self.bits == 4 and self._on_onnxruntime

    def rewrite(self, model: ir.Model, report: ReportBuilder, /) -> None:
        """Replace the float weights."""
        before = sum(_bytes(value) for value in model.graph.initializers.values())
        for node in list(model.graph):
            if node.op_type in _WEIGHT_OPS and node.domain in ("", "ai.onnx"):
                done = self._gather(node) if node.op_type == "Gather" else self._linear(node, model)
                if done.startswith("+"):
                    report.apply(node, done[1:])
                else:
                    report.skip(node, done)
        if not report.applied:
            return
        drop_unused(model)
        # The IR versions that brought the types: 9 float8, 10 int4.
        model.ir_version = max(
            model.ir_version, 10 if self.min_opset == 21 else 9 if self.min_opset == 19 else 4
        )
        after = sum(_bytes(value) for value in model.graph.initializers.values())
        report.data.update(weight_bytes_before=before, weight_bytes_after=after)
        report.note(f"weights: {before / 1e6:.2f} MB before, {after / 1e6:.2f} MB after")

    def _refusal(self, node: ir.Node, weight: np.ndarray) -> str | None:
        if weight.size < self.min_elements:
            return f"its weight has {weight.size} elements, under min_elements={self.min_elements}"
        if self._on_onnxruntime and self.dtype == "float8e4m3fn":
            return "ONNX Runtime's CPU provider decodes float8 on each run: 0.2x the speed of float32"
        if self._on_onnxruntime and node.op_type == "Conv":
            return "ONNX Runtime dequantizes a convolution's weight on each run: slower than float"
        if not np.isfinite(weight).all():
            return "its weight is not finite"
        if weight.dtype == np.float16 and graph_of(node).opset_imports.get("", 0) < 19:
            return (
                "its weight is float16, which DequantizeLinear gives from opset 19 on: ConvertOpset(19) first"
            )
        return None

    def _linear(self, node: ir.Node, model: ir.Model) -> str:
        """Quantize one layer; returns `+what` or the reason why not."""
        layer = find_linear(node)
        if isinstance(layer, str):
            return layer
        if layer.dequantize is not None:
            return "its weight is quantized already"
        refused = self._refusal(node, constant(layer.weight))
        if refused:
            return refused
        layer = layer.owned()
        if node.op_type == "Gemm" and layer.channel_axis == 0:
            set_constant(layer.weight, constant(layer.weight).T)
            node.attributes["transB"] = ir.AttrInt64("transB", 0)
            layer = attrs.evolve(layer, channel_axis=1, input_axis=0)
        block = self._block(layer)
        if self.bits == 4 and block and self._packs:
            return _pack(layer, block, model)
        if self.bits == 4 and block:
            return _dequantized(layer, 4, block)
        if self.dtype == "float8e4m3fn":
            return _float8(layer)
        return _dequantized(layer, 8, block if self.bits == 8 else 0)

    def _block(self, layer: Linear) -> int:
        """Return the block size along the inputs, 0 for one scale a channel."""
        wanted = self.block_size or (_DEFAULT_BLOCK if self.bits == 4 else 0)
        if layer.node.op_type == "Conv" or not wanted:
            return 0
        inputs = constant(layer.weight).shape[layer.input_axis]
        return wanted if inputs % wanted == 0 else 0

    def _gather(self, node: ir.Node) -> str:
        table = node.inputs[0]
        if table is None or table.const_value is None or not table.is_initializer():
            return "it does not read a constant table"
        array = constant(table)
        if array.dtype not in (np.float32, np.float16) or array.ndim != 2:
            return f"its table is {array.ndim}-dimensional {array.dtype}: not a float embedding"
        if node.attributes.get_int("axis", 0) != 0:
            return "it does not gather rows"
        if len(list(table.uses())) > 1:
            return f"its table {table.name!r} is shared with another node"
        output = node.outputs[0]
        if output.is_graph_output():
            return "it makes an output of the graph"
        index = node.inputs[1]
        if index is None or (output.shape is None and index.shape is None):
            return "the rank of its output is not known; apply Simplify first"
        refused = self._refusal(node, array)
        if refused or self.dtype == "float8e4m3fn":
            return refused or "embeddings are not stored in float8"
        integers, scale = _symmetric(array, axis=1, high=127)
        rank = len(output.shape) if output.shape is not None else len(index.shape or ()) + 1
        name = table.name or node.name or "table"
        dtype = table.const_value.dtype
        set_constant(table, integers.astype(np.int8))
        scales = add_initializer(graph_of(node), f"{name}_scale", scale.reshape(-1).astype(array.dtype))
        # Rows are gathered as int8 and only those dequantized; the scales are of the columns, the last axis.
        restored = ir.node(
            "DequantizeLinear", [output, scales], {"axis": rank - 1}, name=f"{node.name}_dequantize"
        )
        restored.outputs[0].name = f"{output.name}_dequantized"
        set_type(restored.outputs[0], dtype, output.shape)
        graph_of(node).insert_after(node, restored)
        output.replace_all_uses_with(restored.outputs[0])
        restored.replace_input_with(0, output)
        set_type(output, ir.DataType.INT8, output.shape)
        return f"+embedding of {array.shape[0]} x {array.shape[1]} stored as int8"


def _dequantized(layer: Linear, bits: int, block: int) -> str:
    array = constant(layer.weight)
    high = 2 ** (bits - 1) - 1
    if block:
        integers, scale = _blocked(array, layer.input_axis, block, high)
        attributes = {"axis": layer.input_axis, "block_size": block}
    else:
        integers, scale = _symmetric(array, axis=layer.channel_axis, high=high)
        scale = scale.reshape(-1)
        attributes = {"axis": layer.channel_axis}
    stored = integers.astype(np.int8 if bits == 8 else ml_dtypes.int4)
    _insert_dequantize(layer, stored, scale.astype(array.dtype), attributes)
    grain = f"blocks of {block}" if block else "one scale a channel"
    return f"+weight stored as int{bits}, {grain}"


def _float8(layer: Linear) -> str:
    array = constant(layer.weight)
    axes = tuple(axis for axis in range(array.ndim) if axis != layer.channel_axis)
    scale = _positive(np.abs(array).max(axis=axes, keepdims=True).astype(np.float32) / _FLOAT8_MAX)
    stored = (array / scale).astype(ml_dtypes.float8_e4m3fn)
    _insert_dequantize(layer, stored, scale.reshape(-1).astype(array.dtype), {"axis": layer.channel_axis})
    return "+weight stored as float8e4m3fn, one scale a channel"


def _pack(layer: Linear, block: int, model: ir.Model) -> str:
    """Replace a MatMul or Gemm by ONNX Runtime's MatMulNBits (contrib operator, version 1)."""
    node = layer.node
    array = constant(layer.weight)
    inputs, channels = array.shape
    integers, scale = _blocked(array, 0, block, 7)
    # (channels, blocks, block / 2) bytes, the earlier weight in the low half; the zero point is 8.
    nibbles = (integers.T.astype(np.int16) + 8).astype(np.uint8).reshape(channels, inputs // block, block)
    packed = nibbles[..., 0::2] | (nibbles[..., 1::2] << 4)
    name = layer.weight.name or "weight"
    weight = add_initializer(graph_of(node), f"{name}_int4", packed)
    scales = add_initializer(
        graph_of(node), f"{name}_scale", np.ascontiguousarray(scale.T).astype(array.dtype)
    )
    bias = [None, None, layer.bias] if layer.bias is not None else []
    made = ir.node(
        "MatMulNBits",
        [layer.input, weight, scales, *bias],
        # accuracy_level 4 lets it compute in int8, as the runtime does for the DequantizeLinear form, too.
        {"K": inputs, "N": channels, "bits": 4, "block_size": block, "accuracy_level": 4},
        domain="com.microsoft",
        name=node.name,
    )
    output = node.outputs[0]
    made.outputs[0].type, made.outputs[0].shape = output.type, output.shape
    ir.convenience.replace_nodes_and_values(graph_of(node), node, [node], [made], [output], made.outputs)
    model.opset_imports.setdefault("com.microsoft", 1)
    return f"+MatMulNBits with int4 weights, blocks of {block}"


def _insert_dequantize(
    layer: Linear, stored: np.ndarray, scale: np.ndarray, attributes: dict[str, int]
) -> None:
    weight = layer.weight
    dtype = ir.DataType.from_numpy(constant(weight).dtype)
    name = weight.name or "weight"
    set_constant(weight, stored)
    scales = add_initializer(graph_of(layer.node), f"{name}_scale", scale)
    node = ir.node("DequantizeLinear", [weight, scales], attributes, name=f"{name}_dequantize")
    node.outputs[0].name = f"{name}_dequantized"
    set_type(node.outputs[0], dtype, ir.Shape(stored.shape))
    graph_of(layer.node).insert_before(layer.node, node)
    layer.node.replace_input_with(1, node.outputs[0])


def _symmetric(array: np.ndarray, *, axis: int, high: int) -> tuple[np.ndarray, np.ndarray]:
    """Return integers and scales (kept dimensions) of one scale for each index of `axis`."""
    axes = tuple(other for other in range(array.ndim) if other != axis)
    return _rounded(array.astype(np.float32), axes, high)


def _blocked(array: np.ndarray, axis: int, block: int, high: int) -> tuple[np.ndarray, np.ndarray]:
    """Return integers `(K, N)` and scales `(K / block, N)`, or transposed, of blocks along `axis`."""
    shape = list(array.shape)
    shape[axis : axis + 1] = [shape[axis] // block, block]
    integers, scale = _rounded(array.astype(np.float32).reshape(shape), (axis + 1,), high)
    return integers.reshape(array.shape), scale.squeeze(axis + 1)


def _rounded(array: np.ndarray, axes: tuple[int, ...], high: int) -> tuple[np.ndarray, np.ndarray]:
    """Quantize with one symmetric scale over `axes`, chosen by least squares where levels are few."""
    widest = np.abs(array).max(axis=axes, keepdims=True) / high
    best = _positive(widest)
    least: np.ndarray | None = None
    for ratio in _CLIP_RATIOS if high < 127 else _CLIP_RATIOS[:1]:
        scale = _positive(widest * np.float32(ratio))
        error = ((np.clip(np.rint(array / scale), -high - 1, high) * scale - array) ** 2).sum(
            axis=axes, keepdims=True
        )
        best = scale if least is None else np.where(error < least, scale, best)
        least = error if least is None else np.minimum(error, least)
    low = -high if high == 127 else -high - 1
    return np.clip(np.rint(array / best), low, high), best


def _positive(scale: np.ndarray) -> np.ndarray:
    return np.where(scale > 0, scale, np.float32(1.0)).astype(np.float32)


def _bytes(value: ir.Value) -> int:
    return value.const_value.nbytes if value.const_value is not None else 0
