"""What OpenVINO really ran, read from the runtime model's execution information."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from edgeinfer.backends.base import ExecutionReport, LayerExecution

__all__ = ["report_of"]

# Layers that compute nothing.
_DATA = frozenset({"Input", "Const", "Output"})

_PRECISIONS = {
    "f64": "float64",
    "f32": "float32",
    "f16": "float16",
    "bf16": "bfloat16",
    "i8": "int8",
    "u8": "int8",  # 8-bit kernels are one precision, whichever way the activations are signed
    "I8": "int8",
    "i32": "int32",
    "i64": "int64",
    "boolean": "bool",
}


def report_of(runtime_model: Any, *, device: str, notes: Sequence[str] = ()) -> ExecutionReport:
    """Return one layer for each executed primitive.

    A CPU kernel's name ends in the precision that it computes in, such as `brgconv_avx512_I8`. That is asked
    first; `runtimePrecision`, the type of what the layer reads, decides where the name says nothing.
    """
    layers = []
    for op in runtime_model.get_ordered_ops():
        info = {key: _text(value) for key, value in op.get_rt_info().items()}
        kind = info.get("layerType", op.get_type_name())
        if kind in _DATA:
            continue
        kernel = info.get("primitiveType", "")
        layers.append(
            LayerExecution(
                name=op.get_friendly_name(),
                op_type=kind,
                device=device,
                precision=_precision(kernel, info.get("runtimePrecision", "")),
                onnx_nodes=_onnx_nodes(info.get("originalLayersNames", "")),
                kernel=kernel,
            )
        )
    return ExecutionReport(backend="openvino", layers=layers, notes=notes)


def _onnx_nodes(names: str) -> tuple[str, ...]:
    """Return ONNX names: OpenVINO splits a convolution into `name/WithoutBiases` and an Add."""
    return tuple(name.removesuffix("/WithoutBiases") for name in names.split(",") if name)


def _precision(kernel: str, runtime: str) -> str:
    ending = re.search(r"_(f64|f32|f16|bf16|i8|u8|I8|i32|i64)$", kernel)
    if ending is not None and not kernel.startswith("unknown"):
        return _PRECISIONS[ending[1]]
    runtime = runtime.lower()
    return _PRECISIONS.get(runtime, runtime)


def _text(value: Any) -> str:
    return str(value.value if hasattr(value, "value") else value)
