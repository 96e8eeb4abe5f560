"""What really ran: the engine inspector's JSON as an `ExecutionReport`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from edgeinfer.backends.reports import ExecutionReport, LayerExecution
from edgeinfer.backends.tensorrt_.record import BuildRecord

__all__ = ["execution_report", "inspect_layers", "names_in", "parse_layers"]

# How the inspector writes types within a format: "Row major linear FP16 format", "Int8 NC/32HW32", "Half".
_TYPES = (
    (re.compile(r"\b(FP32|Float|kFLOAT)\b", re.I), "float32"),
    (re.compile(r"\b(FP16|Half|kHALF)\b", re.I), "float16"),
    (re.compile(r"\b(BF16|BFloat16|kBF16)\b", re.I), "bfloat16"),
    (re.compile(r"\b(FP8|kFP8)\b", re.I), "fp8"),
    (re.compile(r"\b(Int8|kINT8)\b", re.I), "int8"),
    (re.compile(r"\b(Int4|kINT4)\b", re.I), "int4"),
    (re.compile(r"\b(Int64|kINT64)\b", re.I), "int64"),
    (re.compile(r"\b(Int32|kINT32)\b", re.I), "int32"),
    (re.compile(r"\b(Bool|kBOOL)\b", re.I), "bool"),
)
UNKNOWN = "unknown"  # host-side shape computations have no tensors with a type
_ONNX_LAYER = re.compile(r"\[ONNX Layer: ([^\]]+)\]")


def execution_report(trt: Any, engine: Any, record: BuildRecord, notes: Sequence[str]) -> ExecutionReport:
    """Ask the inspector of an engine, and compare with the precision that the graph asked for."""
    layers = inspect_layers(trt, engine, known=tuple(record.precisions))
    if not layers:
        notes = [*notes, "what the engine inspector says of the layers cannot be read"]
    return ExecutionReport(backend="tensorrt", layers=layers, notes=(*notes, *_shortfalls(layers, record)))


def inspect_layers(trt: Any, engine: Any, *, known: Sequence[str] = ()) -> tuple[LayerExecution, ...]:
    """Return what the inspector of an engine says of its layers; see `parse_layers`."""
    inspector = engine.create_engine_inspector()
    return parse_layers(inspector.get_engine_information(trt.LayerInformationFormat.JSON), known=known)


def parse_layers(text: str, *, known: Sequence[str] = ()) -> tuple[LayerExecution, ...]:
    """Read the inspector's JSON.

    Args:
        text: What `get_engine_information` returned.
        known: ONNX node names to look for in names of fused layers, where the engine has no metadata.
    """
    try:
        entries = json.loads(text).get("Layers", [])
    except ValueError:
        return ()
    return tuple(_layer(entry, known) for entry in entries)


def _layer(entry: Any, known: Sequence[str]) -> LayerExecution:
    if isinstance(entry, str):  # an engine that was built without details has names alone
        return LayerExecution(name=entry, op_type="", precision=UNKNOWN, onnx_nodes=_nodes(entry, "", known))
    name = str(entry.get("Name", ""))
    # TensorRT 8 gives no formats where shapes are dynamic; then the type of the weights is left.
    typed = (*(entry.get("Inputs") or ()), entry.get("Weights"), *(entry.get("Outputs") or ()))
    on_dla = "DLA" in str(entry.get("LayerType", "")).upper() or (
        "ForeignNode" in name and "DLA" in name.upper()
    )
    return LayerExecution(
        name=name,
        op_type=str(entry.get("ParameterType") or entry.get("LayerType", "")),
        device="DLA" if on_dla else "GPU",
        precision=next((found for tensor in typed if (found := _precision(tensor))), UNKNOWN),
        onnx_nodes=_nodes(name, str(entry.get("Metadata", "")), known),
        kernel=str(entry.get("TacticName", "")),
    )


def _precision(tensor: Any) -> str:
    # The first input's type is the type of the computation: a convolution of int8 may well write float16.
    if not isinstance(tensor, Mapping):
        return ""
    text = " ".join(
        str(value) for key, value in tensor.items() if "format" in key.lower() or "type" in key.lower()
    )
    return next((name for pattern, name in _TYPES if pattern.search(text)), "")


def _nodes(name: str, metadata: str, known: Sequence[str]) -> tuple[str, ...]:
    named = _ONNX_LAYER.findall(metadata)
    if named:
        return tuple(dict.fromkeys(named))
    parts = set(names_in(name))
    return tuple(node for node in known if node in parts)


def names_in(name: str) -> tuple[str, ...]:
    """Return the names that a layer's name is made of.

    A fused layer is called after its parts: "conv1 + relu1", "conv1.weight + q + conv1 || conv2".
    """
    parts = re.split(r" \+ |\|\||[{}\[\],]", name)
    cleaned = (re.sub(r"^\(?Unnamed Layer.*|\(.*\)$", "", part).strip() for part in parts)
    return tuple(dict.fromkeys(part for part in cleaned if part))


def _shortfalls(layers: Sequence[LayerExecution], record: BuildRecord) -> tuple[str, ...]:
    """Say which nodes were to run in a low precision and did not, or that it cannot be told."""
    if not record.precisions:
        return ()
    told = [layer for layer in layers if layer.precision != UNKNOWN]
    ran = {node: layer.precision for layer in told for node in layer.onnx_nodes}
    notes = []
    for precision in sorted(set(record.precisions.values())):
        asked = [node for node, wanted in record.precisions.items() if wanted == precision]
        known = [node for node in asked if ran.get(node)]
        missed = [f"{node} ({ran[node]})" for node in known if ran[node] != precision]
        if missed:
            notes.append(
                f"{precision} was asked for and not reached by {len(missed)} nodes: {', '.join(missed)}"
            )
        if len(known) < len(asked):
            notes.append(
                f"the engine does not tell what became of {len(asked) - len(known)} of {len(asked)} nodes "
                f"that the graph has in {precision}"
            )
    return tuple(notes)
