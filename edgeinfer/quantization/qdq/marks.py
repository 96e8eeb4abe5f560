"""Whether a model is quantized already, and by whom."""

from __future__ import annotations

import json

import onnx_ir as ir

from edgeinfer.errors import PreconditionError

__all__ = [
    "DIALECT_KEY",
    "NOTES_KEY",
    "REFERENCE_KEY",
    "pairs_in_int16",
    "quantized_for",
    "ranges_of",
    "refuse_half",
    "refuse_operators",
    "refuse_quantized",
]

# Metadata: the dialect that edgeinfer's own Q/DQ in the model are written in.
DIALECT_KEY = "edgeinfer.qdq_dialect"
# Metadata, as JSON: the ranges of all tensors that any dialect quantizes, and what is kept in float.
NOTES_KEY = "edgeinfer.qdq_notes"
# `ir.Model.meta`, in memory only: the float model, for corrections that compare with it.
REFERENCE_KEY = "edgeinfer.float_reference"

_INTEGER_OPS = frozenset({"DynamicQuantizeLinear", "ConvInteger", "MatMulInteger", "MatMulNBits"})
_INTEGER_PREFIXES = ("QLinear", "QGemm", "QAttention", "DynamicQuantizeMatMul", "MatMulIntegerToFloat")


def quantized_for(model: ir.Model) -> str | None:
    """Return the dialect of the Q/DQ that edgeinfer wrote into the model, or None when it wrote none."""
    return model.metadata_props.get(DIALECT_KEY)


def refuse_quantized(model: ir.Model) -> None:
    """Refuse a model that somebody else quantized.

    Raises:
        PreconditionError: It names the first quantized node.
    """
    refuse_operators(model)
    for node in model.graph.all_nodes():
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            raise PreconditionError(
                "The model is quantized already.",
                where=f"node {node.name!r} ({node.op_type})",
                expected="a model in float",
                found="QuantizeLinear/DequantizeLinear (Q/DQ)",
                hint="Compile it as it is, or rewrite its Q/DQ for another runtime with RetargetQDQ(target); "
                "to quantize again, start from the float model.",
            )


def refuse_operators(model: ir.Model) -> None:
    """Refuse a model with integer operators in place of Q/DQ (QOperator).

    Raises:
        PreconditionError: It names the first such node.
    """
    for node in model.graph.all_nodes():
        if node.op_type in _INTEGER_OPS or node.op_type.startswith(_INTEGER_PREFIXES):
            raise PreconditionError(
                "The model is quantized already, in integer operators.",
                where=f"node {node.name!r} ({node.op_type})",
                expected="a model in float",
                found="quantized operators (QOperator)",
                hint="Compile it as it is for a runtime that has these operators, such as ONNX Runtime; to "
                "quantize again or for another runtime, start from the float model.",
            )


def refuse_half(model: ir.Model) -> None:
    """Refuse a model that computes in float16, in which there is nothing to calibrate in float32.

    Raises:
        PreconditionError: It names the first such node.
    """
    for node in model.graph.all_nodes():
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul") and any(
            value is not None and value.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
            for value in node.outputs
        ):
            raise PreconditionError(
                "The model computes in float16.",
                where=f"node {node.name!r} ({node.op_type})",
                expected="a float32 model",
                found="float16 tensors",
                hint="Quantize the float32 model that this one was made from, without ToFloat16.",
            )


def ranges_of(model: ir.Model) -> dict[str, tuple[float, float]]:
    """Return the calibrated ranges that `QuantizeStatic` noted in the model, by tensor name."""
    text = model.metadata_props.get(NOTES_KEY)
    return {name: (low, high) for name, (low, high) in json.loads(text)["ranges"].items()} if text else {}


def pairs_in_int16(model: ir.Model) -> bool:
    """Whether the weights of a Q/DQ graph of ours are to be kept from overflowing (see `QDQDialect`)."""
    text = model.metadata_props.get(NOTES_KEY)
    return bool(text and json.loads(text).get("pairs_in_int16"))
