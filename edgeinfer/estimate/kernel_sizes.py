"""The sizes of one node: channels, positions, taps, bytes."""

from __future__ import annotations

import math

import onnx_ir as ir

from edgeinfer.graph.macs import node_macs

__all__ = ["dims", "integer", "nbytes", "precision_of", "sizes_of", "weight_nbytes"]


def sizes_of(node: ir.Node, kind: str) -> dict[str, int]:
    """Return the sizes of a kernel of products or a pooling, as `Kernel` names them."""
    out = dims(node.outputs[0])
    if kind in ("conv", "pointwise", "depthwise", "grouped", "deconv") and len(out) > 2:
        weight = dims(node.inputs[1])
        group = integer(node, "group", 1)
        transposed = kind == "deconv"
        strides = node.attributes.get("strides")
        return {
            "outs": weight[1] if transposed else weight[0] // group,
            "ins": weight[0] // group if transposed else weight[1],
            "groups": group,
            "taps": math.prod(weight[2:]),
            "width": out[-1],
            "positions": out[0] * math.prod(out[2:]),
            "stride": strides.as_ints()[-1] if strides is not None else 1,
        }
    if kind in ("gemm", "matmul") and len(out) > 1:
        matrices = math.prod(out[:-2]) if kind == "matmul" else 1
        rows = math.prod(out[:-1]) // max(1, matrices)
        macs = node_macs(node) or 0
        return {
            "outs": out[-1],
            "ins": macs // max(1, math.prod(out)),
            "groups": matrices,
            "width": rows,
            "positions": rows * matrices,
        }
    if kind in ("pool", "average_pool"):
        taps = node.attributes.get("kernel_shape")
        return {"taps": math.prod(taps.as_ints()) if taps is not None else 1}
    return {}


def weight_nbytes(value: ir.Value) -> int:
    """Return the bytes of a constant as it is stored in front of a DequantizeLinear or Cast."""
    producer = value.producer()
    while producer is not None and producer.op_type in (
        "DequantizeLinear",
        "Transpose",
        "Reshape",
        "Identity",
    ):
        inner = producer.inputs[0]
        if inner is None:
            break
        value, producer = inner, inner.producer()
    return nbytes(value)


def nbytes(value: ir.Value) -> int:
    """Return the bytes of a tensor; an unknown dimension counts as 1."""
    tensor = value.const_value
    if tensor is not None:
        return tensor.nbytes
    bits = value.dtype.bitwidth if value.dtype is not None and value.dtype is not ir.DataType.STRING else 32
    return math.ceil(math.prod(dims(value)) * bits / 8)


def precision_of(node: ir.Node) -> str:
    """Return what a float node computes in."""
    dtype = node.outputs[0].dtype
    return "float16" if dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16) else "float32"


def dims(value: ir.Value | None) -> tuple[int, ...]:
    """Return the shape of a tensor; an unknown dimension is 1."""
    if value is None or value.shape is None:
        tensor = value.const_value if value is not None else None
        return tuple(int(dim) for dim in tensor.shape) if tensor is not None else ()  # type: ignore[arg-type]
    return tuple(dim if isinstance(dim, int) else 1 for dim in value.shape)


def integer(node: ir.Node, name: str, default: int) -> int:
    """Return an attribute that is a number."""
    attribute = node.attributes.get(name)
    return attribute.as_int() if attribute is not None else default
