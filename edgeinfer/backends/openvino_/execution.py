"""What OpenVINO really ran, read from the runtime model's execution information."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from edgeinfer.backends.reports import ExecutionReport, LayerExecution, LayerTime, typical_us

__all__ = ["layer_times", "report_of"]

# Layers that compute nothing.
_DATA = frozenset({"Input", "Const", "Output"})
# Layers that run others, which are counted themselves.
_HOLDERS = frozenset({"If", "Loop", "TensorIterator"})

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


def layer_times(infos: Sequence[Sequence[Any]], runtime_model: Any) -> list[LayerTime]:
    """Return the time of each primitive that was executed.

    Args:
        infos: The performance counters of each run.
        runtime_model: Says which primitive implements which layers of the model.
    """
    names = {
        op.get_friendly_name(): _text(info["originalLayersNames"])
        for op in runtime_model.get_ordered_ops()
        if "originalLayersNames" in (info := op.get_rt_info())
    }
    times: dict[str, list[float]] = {}
    for info in infos:
        for layer in info:
            times.setdefault(layer.node_name, []).append(layer.real_time.total_seconds() * 1e6)
    return [
        LayerTime(
            name=layer.node_name,
            op_type=layer.node_type,
            us=typical_us(times[layer.node_name]),
            onnx_names=_onnx_nodes(names.get(layer.node_name, "")),
            kernel=layer.exec_type,
        )
        for layer in (infos[-1] if infos else ())
        if layer.status == type(layer.status).EXECUTED and layer.node_type not in _HOLDERS
    ]


def _onnx_nodes(names: str) -> tuple[str, ...]:
    """Return ONNX names: OpenVINO splits a convolution into `name/WithoutBiases` and an Add."""
    found = (re.sub(r"(/WithoutBiases|/DequantizationMultiply)+$", "", name) for name in names.split(","))
    return tuple(dict.fromkeys(name for name in found if name))


def _precision(kernel: str, runtime: str) -> str:
    ending = re.search(r"_(f64|f32|f16|bf16|i8|u8|I8|i32|i64)$", kernel)
    if ending is not None and not kernel.startswith("unknown"):
        return _PRECISIONS[ending[1]]
    runtime = runtime.lower()
    return _PRECISIONS.get(runtime, runtime)


def _text(value: Any) -> str:
    return str(value.value if hasattr(value, "value") else value)
