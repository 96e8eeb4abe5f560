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

So Gemm is written with transB=0; ONNX Runtime, which dequantizes the weights of convolutions and of Einsum
on each run, keeps them float; and float8 is refused there. The weights of LSTM, GRU and RNN stay float: a
runtime rearranges them when it loads the model, and could not if they came out of a DequantizeLinear.
"""

from __future__ import annotations

from typing import final

import attrs
import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgeinfer.devices.profile import Target
from edgeinfer.graph.stored_weights import (
    WEIGHT_OPS,
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
    drop_unused,
    graph_of,
    set_constant,
    set_type,
)
from edgeinfer.numerics.weight_codes import by_block, by_channel, pack_nibbles
from edgeinfer.transforms.contract import GraphTransform, ReportBuilder

__all__ = ["QuantizeWeights"]

_DEFAULT_BLOCK = 32
_FLOAT8_MAX = 448.0  # the greatest finite float8e4m3fn
_RECURRENT = ("GRU", "LSTM", "RNN")
# A runtime dequantizes their weights on each run, unless it has a kernel that reads integers.
_NO_INTEGER_KERNEL = ("Conv", "ConvTranspose", "Einsum")


def _power_of_two(_: object, __: object, size: int | None) -> None:
    if size is not None and (type(size) is not int or size < 16 or size & (size - 1)):
        raise ValueError(f"block_size is a power of two from 16 on, not {size}")


@final
@attrs.frozen
class QuantizeWeights(GraphTransform):
    """Store the weights of layers and embeddings in 8 or 4 bits; activations stay float.

    Layers are MatMul, Gemm, Conv, ConvTranspose and Einsum, in subgraphs, too. Four bits are for MatMul and
    Gemm, in blocks along the inputs; the other weights get eight.

    Args:
        bits: 8 or 4.
        block_size: Weights of one channel that share a scale, a power of two from 16 on; None: the whole
            channel at 8 bits, 32 at 4 bits.
        dtype: `"int"`, or `"float8e4m3fn"` with `bits=8`.
        target: What will run it; it decides what pays.
        min_elements: Smaller weights are left alone.
    """

    bits: int = attrs.field(default=8, validator=attrs.validators.in_((4, 8)))
    block_size: int | None = attrs.field(default=None, kw_only=True, validator=_power_of_two)
    dtype: str = attrs.field(
        default="int", kw_only=True, validator=attrs.validators.in_(("int", "float8e4m3fn"))
    )
    target: Target | None = attrs.field(default=None, kw_only=True, converter=as_target)
    min_elements: int = attrs.field(default=4096, kw_only=True, validator=attrs.validators.ge(0))

    names_layers = True

    def __attrs_post_init__(self) -> None:
        if self.dtype == "float8e4m3fn" and (self.bits != 8 or self.block_size is not None):
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
        before, opset = _bytes_of_weights(model), model.opset_imports.get("", 0)
        found: list[StoredWeight] = []
        for node in list(model.graph.all_nodes()):
            if node.domain:
                continue
            if node.op_type == "Gather":
                refused = self._gather(node, opset, report)
            elif node.op_type in WEIGHT_OPS:
                weight = find_weight(node)
                refused = weight if isinstance(weight, str) else self._refusal(node, weight.array(), opset)
                if not refused and not isinstance(weight, str):
                    found.append(weight)
            else:
                refused = "runtimes rearrange its weights on loading" if node.op_type in _RECURRENT else None
            if refused:
                report.skip(node, refused)
        for group in group_by_source(found):
            reason = why_not_shared(group)
            for weight in group if reason else ():
                report.skip(weight.node, reason or "")
            if not reason:
                self._quantize(group, model, report)
        if not report.applied:
            return
        drop_unused(model)
        common_passes.NameFixPass()(model)  # a name in a branch may not be that of a value around it
        # The IR versions that brought the types: 9 float8, 10 int4.
        model.ir_version = max(
            model.ir_version, 10 if self.min_opset == 21 else 9 if self.min_opset == 19 else 4
        )
        after = _bytes_of_weights(model)
        report.data.update(weight_bytes_before=before, weight_bytes_after=after)
        report.note(f"weights: {before / 1e6:.2f} MB before, {after / 1e6:.2f} MB after")

    def _refusal(self, node: ir.Node, weight: np.ndarray, opset: int) -> Refusal | None:
        if weight.size < max(self.min_elements, 1):
            return f"its weight has {weight.size} elements, under min_elements={self.min_elements}"
        if self._on_onnxruntime and self.dtype == "float8e4m3fn":
            return "ONNX Runtime's CPU provider decodes float8 on each run: 0.2x the speed of float32"
        if self._on_onnxruntime and node.op_type in _NO_INTEGER_KERNEL:
            return f"ONNX Runtime dequantizes the weight of {node.op_type} on each run: slower than float"
        if not np.isfinite(weight).all():
            return "its weight is not finite"
        if weight.dtype == np.float16 and opset < 19:
            return (
                "its weight is float16, which DequantizeLinear gives from opset 19 on: ConvertOpset(19) first"
            )
        return None

    def _quantize(self, group: list[StoredWeight], model: ir.Model, report: ReportBuilder) -> None:
        """Quantize one weight for all that read it."""
        first = group[0]
        array = first.array()
        if all(w.node.op_type == "Gemm" and w.channel_axis == 0 for w in group):
            array = np.ascontiguousarray(array.T)
            group = [attrs.evolve(weight, channel_axis=1, input_axis=0) for weight in group]
            first = group[0]
            for weight in group:
                weight.node.attributes["transB"] = ir.AttrInt64("transB", 0)
        block = self._block(first, array)
        if block and self._packs and all(weight.is_plain_product(array.shape) for weight in group):
            what = _pack(group, array, block, model)
        elif self.dtype == "float8e4m3fn":
            stored, scale = _float8(array, axis=first.channel_axis)
            _dequantize(group, stored, scale.reshape(-1), {"axis": first.channel_axis})
            what = "weight stored as float8e4m3fn, one scale a channel"
        elif block and first.input_axis is not None and not self._packs:
            high = 2 ** (self.bits - 1) - 1
            stored, scale = by_block(array, axis=first.input_axis, block=block, high=high)
            stored = stored.astype(np.int8 if self.bits == 8 else ml_dtypes.int4)
            _dequantize(group, stored, scale, {"axis": first.input_axis, "block_size": block})
            what = f"weight stored as int{self.bits}, blocks of {block}"
        else:
            stored, scale = by_channel(array, axis=first.channel_axis, high=127)
            _dequantize(group, stored.astype(np.int8), scale.reshape(-1), {"axis": first.channel_axis})
            what = "weight stored as int8, one scale a channel"
        drop_source(first)
        shared = f", shared by {len(group)} nodes" if len(group) > 1 else ""
        for weight in group:
            report.apply(weight.node, what + shared)

    def _block(self, weight: StoredWeight, array: np.ndarray) -> int:
        """Return the block size along the inputs, 0 for one scale a channel."""
        wanted = self.block_size or (_DEFAULT_BLOCK if self.bits == 4 else 0)
        if weight.input_axis is None or not wanted:
            return 0
        return wanted if array.shape[weight.input_axis] % wanted == 0 else 0

    def _gather(self, node: ir.Node, opset: int, report: ReportBuilder) -> Refusal | None:
        """Store the table of an embedding in int8, or return why not."""
        table, index, output = node.inputs[0], node.inputs[1], node.outputs[0]
        if table is None or table.const_value is None or not table.is_initializer() or table.is_graph_input():
            return "it does not read a constant table"
        array = table.const_value.numpy()
        if array.dtype not in (np.float32, np.float16) or array.ndim != 2:
            return f"its table is {array.ndim}-dimensional {array.dtype}: not a float embedding"
        if node.attributes.get_int("axis", 0) != 0:
            return "it does not gather rows"
        if len(list(table.uses())) > 1 or table.is_graph_output():
            return f"its table {table.name!r} is shared with another node"
        if output.is_graph_output():
            return "it makes an output of the graph"
        if index is None or (output.shape is None and index.shape is None):
            return "the rank of its output is not known; apply Simplify first"
        refused = self._refusal(node, array, opset)
        if refused or self.dtype == "float8e4m3fn":
            return refused or "embeddings are not stored in float8"
        integers, scale = by_channel(array, axis=1, high=127)
        rank = len(output.shape) if output.shape is not None else len(index.shape or ()) + 1
        name, dtype = table.name or node.name or "table", table.const_value.dtype
        set_constant(table, integers.astype(np.int8))
        assert isinstance(table.graph, ir.Graph)
        scales = add_initializer(table.graph, f"{name}_scale", scale.reshape(-1).astype(array.dtype))
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
        report.apply(node, f"embedding of {array.shape[0]} x {array.shape[1]} stored as int8")
        return None


def _float8(array: np.ndarray, *, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Return float8e4m3fn numbers and scales (kept dimensions), one for each index of `axis`."""
    axes = tuple(other for other in range(array.ndim) if other != axis)
    scale = np.abs(array).max(axis=axes, keepdims=True).astype(np.float32) / np.float32(_FLOAT8_MAX)
    scale = np.where(scale > 0, scale, np.float32(1.0)).astype(np.float32)
    return (array / scale).astype(ml_dtypes.float8_e4m3fn), scale


def _dequantize(
    group: list[StoredWeight], stored: np.ndarray, scale: np.ndarray, attributes: dict[str, int]
) -> None:
    """Let the nodes read the stored weight through a DequantizeLinear, one in each of their graphs.

    The integers are in that graph, too: ONNX Runtime 1.32 refuses a model where they are in one around it.
    """
    source, dtype = group[0].source, group[0].dtype
    name = source.name or "weight"
    made: dict[ir.Graph, ir.Value] = {}
    for member in group:
        graph = graph_of(member.node)
        if graph not in made:
            suffix = f"_{len(made)}" if made else ""
            if source.is_initializer() and source.graph is graph:
                set_constant(source, stored)
                weight = source
            else:
                weight = add_initializer(graph, f"{name}_stored{suffix}", stored)
            parameters = [add_initializer(graph, f"{name}_scale{suffix}", scale.astype(dtype))]
            if stored.dtype == np.int8:
                # Where there is none, ONNX Runtime's exact kernels add one for all channels, and refuse it.
                zeros = np.zeros(scale.shape, np.int8)
                parameters.append(add_initializer(graph, f"{name}_zero_point{suffix}", zeros))
            node = ir.node(
                "DequantizeLinear", [weight, *parameters], attributes, name=f"{name}_dequantize{suffix}"
            )
            node.outputs[0].name = f"{name}_dequantized{suffix}"
            set_type(node.outputs[0], ir.DataType.from_numpy(dtype), ir.Shape(stored.shape))
            graph.insert_before(member.node, node)
            made[graph] = node.outputs[0]
        read_from(member, made[graph])


def _pack(group: list[StoredWeight], array: np.ndarray, block: int, model: ir.Model) -> str:
    """Replace MatMul or Gemm by ONNX Runtime's MatMulNBits (contrib operator, version 1)."""
    inputs, channels = array.shape
    integers, scale = by_block(array, axis=0, block=block, high=7)
    weight = store_beside(group[0], "_int4", pack_nibbles(integers, block))
    scales = store_beside(group[0], "_scale", np.ascontiguousarray(scale.T).astype(array.dtype))
    for member in group:
        node = member.node
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        made = ir.node(
            "MatMulNBits",
            [node.inputs[0], weight, scales, *([None, None, bias] if bias is not None else [])],
            # accuracy_level 4 lets it compute in int8, as it does for the DequantizeLinear form, too.
            {"K": inputs, "N": channels, "bits": 4, "block_size": block, "accuracy_level": 4},
            domain="com.microsoft",
            name=node.name,
        )
        output = node.outputs[0]
        made.outputs[0].type, made.outputs[0].shape = output.type, output.shape
        read_from(member, weight)  # so that a Cast of the float weight goes, too
        ir.convenience.replace_nodes_and_values(graph_of(node), node, [node], [made], [output], made.outputs)
    model.opset_imports.setdefault("com.microsoft", 1)
    return f"MatMulNBits with int4 weights, blocks of {block}"


def _bytes_of_weights(model: ir.Model) -> int:
    graphs = [model.graph, *model.graph.subgraphs()]
    values = [value for graph in graphs for value in graph.initializers.values()]
    return sum(value.const_value.nbytes for value in values if value.const_value is not None)
