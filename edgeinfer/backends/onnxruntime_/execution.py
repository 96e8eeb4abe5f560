"""What ONNX Runtime really ran: its optimized graph, and the provider that it gave each node to."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from edgeinfer.backends.reports import ExecutionReport, LayerExecution

__all__ = ["report_of"]

# Operators that compute in 8-bit integers, whatever they return; besides all that begin with QLinear.
_INT8_OPERATORS = frozenset(
    {
        "ConvInteger",
        "DynamicQuantizeLSTM",
        "DynamicQuantizeMatMul",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "QAttention",
        "QEmbedLayerNormalization",
        "QGemm",
    }
)
_OUTPUT_TYPES = {
    "ConvInteger": ir.DataType.INT32,
    "MatMulInteger": ir.DataType.INT32,
    "DynamicQuantizeLinear": ir.DataType.UINT8,
    **dict.fromkeys(("ArgMax", "ArgMin", "NonZero", "Shape", "Size"), ir.DataType.INT64),
    **dict.fromkeys(
        ("Equal", "Greater", "GreaterOrEqual", "IsNaN", "Less", "LessOrEqual", "Not"), ir.DataType.BOOL
    ),
    **dict.fromkeys(
        ("DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "QAttention"),
        ir.DataType.FLOAT,
    ),
}
_NAMES = {"float": "float32", "double": "float64", "uint8": "int8"}  # 8-bit kernels are one precision


def report_of(diagnose: Callable[[Path], Any]) -> ExecutionReport:
    """Return one layer for each node of the optimized graph.

    Args:
        diagnose: Creates a session that records which provider takes which node, and writes its optimized
            graph to a path.
    """
    with tempfile.TemporaryDirectory(prefix="edgeinfer-") as folder:
        path = Path(folder) / "optimized.onnx"
        session = diagnose(path)
        model = ir.load(path)
        providers = _assignments(session)
        asked = session.get_providers()
        if providers is not None:
            layers = _layers(model.graph, providers, "CPUExecutionProvider")
        else:
            layers = _layers(model.graph, {}, asked[0] if len(asked) == 1 else "")
    left_over = sum(layer.device != _short(asked[0]) for layer in layers)
    notes = [f"{left_over} of {len(layers)} nodes were not taken by {_short(asked[0])}"] if left_over else []
    if providers is None:
        where = "" if len(asked) == 1 else ", and several could"
        notes = [f"this version of onnxruntime does not tell which provider took a node{where}"]
    return ExecutionReport(backend="onnxruntime", layers=layers, notes=notes)


def _assignments(session: Any) -> dict[str, str] | None:
    """Return the provider by the name of the node, as it was called before the providers fused it.

    None before ONNX Runtime 1.24, which does not tell.
    """
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return None
    return {
        node.name: subgraph.ep_name
        for subgraph in session.get_provider_graph_assignment_info()
        for node in subgraph.get_nodes()
    }


def _layers(graph: ir.Graph, providers: Mapping[str, str], otherwise: str) -> list[LayerExecution]:
    """Return a layer a node; what is not among `providers` was taken by the provider `otherwise`."""
    types: dict[ir.Value, ir.DataType] = {}
    layers = []
    for node in ir.traversal.RecursiveGraphIterator(graph):
        inputs = [_type_of(value, types) for value in node.inputs if value is not None]
        computed = _computed_in(node.op_type, [kind for kind in inputs if kind is not None])
        returned = _returned(node, computed, types)
        for output in node.outputs:
            types[output] = returned
        name = node.name or ""
        layers.append(
            LayerExecution(
                name=name or node.op_type,
                op_type=node.op_type,
                # A name that is not recorded is that of a fusion, which only the CPU provider leaves visible.
                device=_short(providers.get(name, otherwise)),
                precision=_name(returned if node.op_type == "Cast" else computed),
                onnx_nodes=(name,) if name in providers or (name and not providers) else (),
                kernel=f"{node.domain}.{node.op_type}" if node.domain else node.op_type,
            )
        )
    return layers


def _type_of(value: ir.Value, types: Mapping[ir.Value, ir.DataType]) -> ir.DataType | None:
    """Return the type of a value: the file has none for what lies between the nodes."""
    if value in types:
        return types[value]
    return value.const_value.dtype if value.const_value is not None else value.dtype


def _computed_in(op_type: str, inputs: Sequence[ir.DataType]) -> ir.DataType:
    """Return the type of the arithmetic: a float type where a float goes in, else the first."""
    if op_type in _INT8_OPERATORS or op_type.startswith("QLinear"):
        return ir.DataType.UINT8
    floats = [kind for kind in inputs if kind.is_floating_point()]
    return next(iter([*floats, *inputs]), ir.DataType.UNDEFINED)


def _returned(node: ir.Node, computed: ir.DataType, types: Mapping[ir.Value, ir.DataType]) -> ir.DataType:
    if node.op_type in ("Cast", "CastLike") and "to" in node.attributes:
        return ir.DataType(node.attributes["to"].as_int())
    if node.op_type == "QuantizeLinear":
        zero_point = node.inputs[2] if len(node.inputs) > 2 else None
        found = _type_of(zero_point, types) if zero_point is not None else None
        return found or ir.DataType.UINT8
    if node.op_type == "QGemm" and (len(node.inputs) < 9 or node.inputs[8] is None):
        return ir.DataType.FLOAT
    declared = node.outputs[0].dtype if node.outputs else None
    return declared or _OUTPUT_TYPES.get(node.op_type, computed)


def _name(kind: ir.DataType) -> str:
    name = kind.name.lower()
    return "" if kind == ir.DataType.UNDEFINED else _NAMES.get(name, name)


def _short(provider: str) -> str:
    return provider.removesuffix("ExecutionProvider").upper()
