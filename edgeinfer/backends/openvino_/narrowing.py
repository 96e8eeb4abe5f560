"""Where OpenVINO computes in fewer bits than the graph says.

Its CPU plugin turns float64 into float32, and 64-bit integers and uint32 into int32, without a word (measured
on 2026.4: 2**40 + 1 doubled gives 2). What the graph alone tells is refused; what depends on the values of an
input is checked when they come; what may happen on the way between is a note of the execution report.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from edgeinfer.errors import CompileError, InputError

__all__ = ["check_graph", "check_values", "graphs_of", "is_wide"]

_INT32 = np.iinfo(np.int32)
_WIDE = frozenset({"i64", "u64", "u32"})
_SMALL = frozenset({"i8", "u8"})
_FLOAT8 = frozenset({"f8e4m3", "f8e5m2", "f8e8m0"})
_FLOATS = frozenset({"f32", "f16", "bf16"})
_ARITHMETIC = frozenset(
    {"Add", "Subtract", "Multiply", "Power", "ReduceSum", "ReduceProd", "CumSum", "MatMul"}
)
# What these say of a greater constant is the same when it is cut off at the ends of int32.
_CUT_OFF = frozenset({"Slice", "StridedSlice", "Minimum", "Maximum", "Clamp"})
# Their outputs are positions and sizes, which fit.
_POSITIONS = frozenset({"ShapeOf", "NonZero", "TopK", "NonMaxSuppression", "Range"})
_LOOPS = frozenset({"Loop", "TensorIterator"})
_SOURCES = frozenset({"Parameter", "Constant"})


def is_wide(element_type: Any) -> bool:
    """Whether values of the type may not fit OpenVINO's int32."""
    return element_type.get_type_name() in _WIDE


def check_values(name: str, array: np.ndarray) -> None:
    """Refuse values of an input that OpenVINO would cut off.

    Raises:
        InputError: A value does not fit int32.
    """
    if array.size and (array.max() > _INT32.max or array.min() < _INT32.min):
        raise InputError(
            "OpenVINO computes integers in 32 bits; a value of the input does not fit.",
            where=f"input {name!r}",
            expected=f"{_INT32.min} to {_INT32.max}",
            found=f"{array.min()} to {array.max()}",
            hint="Use backend 'onnxruntime' for this model.",
        )


def check_graph(model: Any, *, allow_float64_as_float32: bool) -> tuple[str, ...]:
    """Refuse a graph whose own constants or operators do not fit; return notes on what may not.

    Args:
        model: What OpenVINO read, before it was compiled.
        allow_float64_as_float32: Whether the user accepted that.

    Raises:
        CompileError: It computes in float64, or with an integer constant beyond int32.
    """
    notes: dict[str, None] = {}
    for graph in graphs_of(model):
        for op in _live(graph):
            _check_constants(op)
            if _computes_float64(op):
                if not allow_float64_as_float32:
                    raise _float64_error(op)
                notes["float64 is computed as float32"] = None
            _check_float8(op)
            notes |= dict.fromkeys(_notes(op))
    return tuple(notes)


def _types(ports: Iterable[Any]) -> set[str]:
    return {port.get_element_type().get_type_name() for port in ports}


def graphs_of(model: Any) -> Iterator[Any]:
    """Yield the graph and the bodies of its If, Loop and TensorIterator operators."""
    yield model
    for op in model.get_ops():
        kind = op.get_type_name()  # asking an operator for what it does not have copies all its attributes
        if kind == "If":
            yield from graphs_of(op.get_function(0))
            yield from graphs_of(op.get_function(1))
        elif kind in _LOOPS:
            yield from graphs_of(op.get_function())


def _live(graph: Any) -> Iterator[Any]:
    """Yield what computes from the values of inputs, and the outputs."""
    live: set[str] = set()
    for op in graph.get_ordered_ops():
        kind = op.get_type_name()
        if kind in _SOURCES:
            if kind == "Parameter":
                live.add(op.get_name())
            continue
        reads = any(source.get_source_output().get_node().get_name() in live for source in op.inputs())
        if reads and kind not in _POSITIONS:
            live.add(op.get_name())
        if reads or kind == "Result":
            yield op


def _computes_float64(op: Any) -> bool:
    kind = op.get_type_name()
    return kind not in ("Result", "Convert", "Identity") and "f64" in _types([*op.inputs(), *op.outputs()])


def _check_constants(op: Any) -> None:
    for port in op.inputs():
        source = port.get_source_output().get_node()
        if source.get_type_name() != "Constant" or op.get_type_name() in _CUT_OFF:
            continue
        kind = port.get_element_type().get_type_name()
        values = source.data if kind in _WIDE or (kind == "f64" and op.get_type_name() == "Result") else None
        if values is None or not values.size:
            continue
        if kind == "f64":
            fits = bool((values == values.astype(np.float32)).all() or np.isnan(values).all())
        else:
            fits = bool(values.max() <= _INT32.max and values.min() >= _INT32.min)
        if not fits:
            raise CompileError(
                f"OpenVINO computes {'float64 as float32' if kind == 'f64' else 'integers in 32 bits'}; a "
                "constant of the model does not fit.",
                where=f"{op.get_type_name()} {op.get_friendly_name()!r}",
                found=f"{values.min()} to {values.max()}",
                hint="Use backend 'onnxruntime' for this model.",
            )


def _check_float8(op: Any) -> None:
    """The CPU plugin reads float8 into floats, and has no kernels from or to anything else."""
    types = _types([*op.inputs(), *op.outputs()])
    if op.get_type_name() == "Convert" and types & _FLOAT8 and not types & _FLOATS:
        raise CompileError(
            "OpenVINO converts float8 only from and to floats.",
            where=f"Convert {op.get_friendly_name()!r}",
            found=" and ".join(sorted(types)),
            hint="Use backend 'onnxruntime' for this model, or cast to float32 between.",
        )


def _float64_error(op: Any) -> CompileError:
    return CompileError(
        "The model computes in float64, which OpenVINO does in float32.",
        where=f"{op.get_type_name()} {op.get_friendly_name()!r}",
        expected="float32 or less",
        found="float64",
        hint="Use backend 'onnxruntime', export the model in float32, or accept it with the option "
        "allow_float64_as_float32=True.",
    )


def _notes(op: Any) -> Iterator[str]:
    kind, types = op.get_type_name(), _types(op.outputs())
    wide = types & _WIDE
    if wide and (kind in _ARITHMETIC or (kind == "Convert" and _types(op.inputs()) & {"f32", "f64", "f16"})):
        yield "64-bit integers and uint32 are computed as int32: what does not fit wraps or is cut off"
    if kind == "Divide" and any(name[0] in "iu" for name in types):
        yield "integers are divided in float32: quotients beyond 2**24 are rounded"
    if kind in _ARITHMETIC and types & _SMALL:
        yield "8-bit sums and products are cut off at the ends of their range, where ONNX Runtime wraps"
