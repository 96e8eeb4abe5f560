"""What may be computed in float16: by the specification, by the arithmetic, and by the numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from edgeinfer.calibration.calibration import as_calibration
from edgeinfer.errors import CalibrationError
from edgeinfer.graph.taps import probe
from edgeinfer.model.model import Model
from edgeinfer.transforms.float16_masks import FLOAT16_MAX

__all__ = [
    "MOVES_DATA",
    "activation_peaks",
    "convertible",
    "flushed_count",
    "unknown_dtype",
    "unsafe_reason",
    "weight_problem",
]

# The part of a tensor's norm that may be lost to numbers that become 0: that of rounding, 2**-11.
MAX_FLUSHED = 2.0**-11

_SUMS = "it adds up many numbers, and a float16 sum overflows or loses the small ones"
_EXPONENTIAL = "its range is exponential in its input's, so it leaves float16 soon"
_SQUARES = "it squares numbers, and 256 squared is more than float16 holds"
_QUANTIZED = "the scales of quantization stay as they are"
_ATTRIBUTE = "its attribute says the dtype; a Cast follows instead"

_UNSAFE: Mapping[str, str] = {
    **dict.fromkeys(("ReduceSum", "ReduceMean", "ReduceLogSum", "CumSum", "Einsum"), _SUMS),
    **dict.fromkeys(
        ("Exp", "Pow", "ReduceLogSumExp", "ReduceProd", "CumProd", "Log", "Reciprocal"), _EXPONENTIAL
    ),
    **dict.fromkeys(
        (
            "ReduceSumSquare",
            "ReduceL2",
            "LpNormalization",
            "LpPool",
            "GlobalLpPool",
            "LRN",
            "InstanceNormalization",
            "MeanVarianceNormalization",
            "Det",
        ),
        _SQUARES,
    ),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"), _QUANTIZED),
    **dict.fromkeys(
        (
            "ConstantOfShape",
            "EyeLike",
            "RandomNormal",
            "RandomUniform",
            "RandomNormalLike",
            "RandomUniformLike",
            "Bernoulli",
            "Multinomial",
            "HannWindow",
            "HammingWindow",
            "BlackmanWindow",
            "MelWeightMatrix",
        ),
        _ATTRIBUTE,
    ),
    "Range": "its steps add up rounding errors, and integers above 2048 are not exact in float16",
    "TopK": "numbers that differ only in float32 would tie and change the order",
    "NonMaxSuppression": "box coordinates and scores need float32, which the specification demands, too",
    "RoiAlign": "box coordinates above 2048 pixels are not exact in float16",
    "GridSample": "sampling positions need more than 11 bits",
    "STFT": _SUMS,
    "DFT": _SUMS,
}

# They only move numbers, so between two nodes in float32 they stay float32, too.
MOVES_DATA = frozenset(
    [
        "Concat",
        "DepthToSpace",
        "Expand",
        "Flatten",
        "Gather",
        "GatherElements",
        "GatherND",
        "Identity",
        "Pad",
        "Reshape",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    ]
)


def unsafe_reason(node: ir.Node) -> str | None:
    """Return why the operator is kept in float32 by default, or None."""
    if node.domain not in ("", "ai.onnx"):
        return f"nothing is known about float16 in the domain {node.domain!r}"
    if any(
        attr.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attr in node.attributes.values()
    ):
        return "it hands over what its subgraphs take and give, which is float32"
    if "Sequence" in node.op_type or node.op_type.startswith("Optional"):
        return "it handles a sequence"
    return _UNSAFE.get(node.op_type)


def unknown_dtype(node: ir.Node) -> str | None:
    """Return which of the node's tensors has no known dtype, in words, or None."""
    named = (value for value in (*node.inputs, *node.outputs) if value is not None and value.name)
    name = next((value.name for value in named if value.type is None), None)
    return None if name is None else f"the dtype of {name} is not known"


def convertible(node: ir.Node, opset: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return which inputs and which outputs are float32 and may be float16 by the specification.

    Resize, for one, takes data in float16 but scales in float32 only.
    """
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        return (), ()
    allowed = {item.type_param_str: set(item.allowed_type_strs) for item in schema.type_constraints}

    def pick(values: Iterable[ir.Value | None], formals: Any) -> tuple[int, ...]:
        found = []
        for index, value in enumerate(values):
            formal = formals[min(index, len(formals) - 1)]  # the last one may be variadic
            types = allowed.get(formal.type_str, {formal.type_str})
            is_float = value is not None and value.type == ir.TensorType(ir.DataType.FLOAT)
            if is_float and "tensor(float16)" in types:
                found.append(index)
        return tuple(found)

    return pick(node.inputs, schema.inputs), pick(node.outputs, schema.outputs)


def weight_problem(array: np.ndarray[Any, Any]) -> str | None:
    """Return why the weights do not survive float16, or None.

    Numbers that become 0 matter when they are a noticeable part of their tensor. The dead channels of a
    trained network, smaller by ten orders of magnitude than their neighbours, do not.

    Args:
        array: float32 of any shape.
    """
    finite = array[np.isfinite(array)].astype(np.float64)
    peak = float(np.abs(finite).max(initial=0.0))
    if peak > FLOAT16_MAX:
        return f"holds {peak:.3g}, more than {FLOAT16_MAX:.0f}"
    flushed = (finite != 0) & (finite.astype(np.float16) == 0)
    if np.linalg.norm(finite[flushed]) > MAX_FLUSHED * np.linalg.norm(finite):
        return f"has {int(flushed.sum())} numbers so small that they become 0"
    return None


def flushed_count(array: np.ndarray[Any, Any]) -> int:
    """Return how many numbers other than 0 become 0 in float16."""
    with np.errstate(over="ignore"):
        return int(((array != 0) & (array.astype(np.float16) == 0)).sum())


def activation_peaks(model: Model, names: Iterable[str], calibration: Any) -> dict[str, float]:
    """Return the largest magnitude that each tensor takes over the samples.

    The maxima are computed inside the graph, so that memory does not grow with tensors or samples.

    Args:
        model: The float32 model.
        names: float32 tensors of its main graph.
        calibration: Feeds; see `Feeds.of`.

    Raises:
        CalibrationError: There are no samples, or they do not fit the model.
    """
    names = tuple(names)
    feeds = as_calibration(calibration, model.signature)
    if not names:
        return {}
    work = model.copy_ir()
    values = {value.name: value for value in work.graph.inputs}
    values |= {value.name: value for node in work.graph for value in node.outputs}
    peaks: dict[str, float] = {}
    scalars: dict[str, str] = {}
    for name in names:
        magnitude = ir.node("Abs", [values[name]])
        maximum = ir.node("ReduceMax", magnitude.outputs, attributes={"keepdims": 0})
        magnitude.outputs[0].name = f"{name}__abs"
        peak = maximum.outputs[0]
        peak.name = f"{name}__peak"
        peak.type, peak.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
        work.graph.extend([magnitude, maximum])
        scalars[peak.name] = name
        peaks[name] = 0.0
    run: Callable[[Mapping[str, np.ndarray[Any, Any]]], Mapping[str, np.ndarray[Any, Any]]]
    count = 0
    with probe(Model(work, model.path), list(scalars)) as session:
        run = session.infer
        for feed in feeds:
            count += 1
            for scalar, found in run(feed).items():
                peaks[scalars[scalar]] = max(peaks[scalars[scalar]], float(found))
    if not count:
        raise CalibrationError(
            "The calibration source has no samples.",
            where="ToFloat16",
            expected="at least one",
            found=f"none in {feeds.what}",
        )
    return peaks
