"""The precision that a graph asks for: what the execution report is compared with."""

from __future__ import annotations

import onnx_ir as ir

from edgeinfer.model.model import Model

__all__ = ["COMPUTE_OPS", "graph_precisions", "used_precisions"]

# The operators whose precision decides the speed.
COMPUTE_OPS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})

_NAMES = {
    ir.DataType.FLOAT16: "float16",
    ir.DataType.BFLOAT16: "bfloat16",
    ir.DataType.INT8: "int8",
    ir.DataType.UINT8: "int8",  # TensorRT makes int8 of it
    ir.DataType.FLOAT8E4M3FN: "fp8",
}


def graph_precisions(model: Model) -> dict[str, str]:
    """Return, by node name, what the graph wants below float32 of each Conv, Gemm and MatMul."""
    wanted = {}
    for node in model.ir.graph:
        if node.op_type in COMPUTE_OPS and node.name:
            precision = _asked(node)
            if precision is not None:
                wanted[node.name] = precision
    return wanted


def used_precisions(model: Model) -> frozenset[str]:
    """Return which of float16 and int8 occur in the graph at all: a weakly typed builder must be told."""
    graph = model.ir.graph
    nodes = list(graph.all_nodes())
    values = (*graph.inputs, *graph.initializers.values(), *graph.outputs)
    found = {_NAMES[value.dtype] for value in values if value.dtype in _NAMES} - {"int8"}
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in nodes):
        found.add("int8")
    casts = (node.attributes.get_int("to", 0) for node in nodes if node.op_type == "Cast")
    return frozenset(
        found | {_NAMES[dtype] for to in casts if (dtype := ir.DataType(to)) is ir.DataType.FLOAT16}
    )


def _asked(node: ir.Node) -> str | None:
    data, weight = (node.inputs[index] if len(node.inputs) > index else None for index in (0, 1))
    if data is None or weight is None:
        return None
    producer = data.producer()
    if producer is not None and producer.op_type == "DequantizeLinear":
        # int8 products need both sides quantized; a weight alone that is quantized is stored small, no more.
        source = producer.inputs[0]
        weight_source = weight.producer()
        both = weight_source is not None and weight_source.op_type == "DequantizeLinear"
        return _dtype_of_quantized(source) if both and source is not None else None
    dtypes = {value.dtype for value in (data, weight) if value.dtype is not None}
    return next((_NAMES[dtype] for dtype in dtypes if dtype in _NAMES), None)


def _dtype_of_quantized(value: ir.Value) -> str:
    if value.dtype in _NAMES:
        return _NAMES[value.dtype]
    producer = value.producer()
    if producer is not None and len(producer.inputs) > 2 and producer.inputs[2] is not None:
        return _NAMES.get(producer.inputs[2].dtype, "int8")  # type: ignore[arg-type]
    return "int8"
