"""Small random models with their outputs in numpy: odd dtypes, scalars, empty tensors, aliases, strings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs
import ml_dtypes
import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

DTYPES: Mapping[str, Any] = {
    "FLOAT": np.float32,
    "FLOAT16": np.float16,
    "DOUBLE": np.float64,
    "BFLOAT16": ml_dtypes.bfloat16,
    "FLOAT8E4M3FN": ml_dtypes.float8_e4m3fn,
    "FLOAT8E5M2": ml_dtypes.float8_e5m2,
    "INT8": np.int8,
    "UINT8": np.uint8,
    "INT16": np.int16,
    "INT32": np.int32,
    "UINT32": np.uint32,
    "INT64": np.int64,
    "UINT64": np.uint64,
    "BOOL": np.bool_,
    "INT4": ml_dtypes.int4,
    "UINT4": ml_dtypes.uint4,
    "STRING": np.object_,
}
# Values that every dtype has, and twice of which it has, too.
VALUES = (0, 1, 2, 3)
WORDS = ("", "edge", "ünïcode", "x" * 40)
_FLOATS = frozenset({"FLOAT", "FLOAT16", "DOUBLE", "BFLOAT16"})
_NUMBERS = _FLOATS | {"INT8", "UINT8", "INT16", "INT32", "UINT32", "INT64", "UINT64"}


@attrs.frozen
class Value:
    """A tensor of the graph: what ONNX says of it, and how numpy computes it from the inputs."""

    name: str
    kind: str
    rank: int
    function: Callable[[Mapping[str, np.ndarray]], np.ndarray]
    doubled: bool = False


@attrs.frozen
class RandomModel:
    """A model, the shapes of its inputs for a size of its symbol, and its outputs in numpy."""

    proto: onnx.ModelProto
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    shapes: Mapping[str, tuple[int | str, ...]]

    def feed(self, seed: int, size: int) -> dict[str, np.ndarray]:
        """Return values for the inputs, with that size for the symbol."""
        rng = np.random.default_rng(seed)
        feed = {}
        for value in self.inputs:
            shape = tuple(size if isinstance(dim, str) else dim for dim in self.shapes[value.name])
            choices = WORDS if value.kind == "STRING" else VALUES[:2] if value.kind == "BOOL" else VALUES
            drawn = rng.integers(0, len(choices), shape)
            array = np.array([choices[i] for i in drawn.reshape(-1)], object).reshape(shape)
            feed[value.name] = (
                array if value.kind == "STRING" else array.astype(float).astype(DTYPES[value.kind])
            )
        return feed

    def expected(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return what numpy computes."""
        return {value.name: value.function(feed) for value in self.outputs}


@st.composite
def random_models(draw: st.DrawFn) -> RandomModel:
    """Draw a model of one or two inputs, up to five nodes, and outputs among all of its values."""
    shapes: dict[str, tuple[int | str, ...]] = {}
    values: list[Value] = []
    nodes: list[onnx.NodeProto] = []
    for name in ("a", "b")[: draw(st.integers(1, 2))]:
        kind = draw(st.sampled_from(sorted(DTYPES)))
        shapes[name] = tuple(draw(st.lists(st.sampled_from(["N", 0, 1, 2, 3]), max_size=3)))
        values.append(Value(name, kind, len(shapes[name]), lambda feed, name=name: feed[name]))
    inputs = tuple(values)
    for index in range(draw(st.integers(0, 5))):
        source = draw(st.sampled_from(values))
        step = draw(st.sampled_from(_steps(source)))
        node, value = step(source, f"v{index}")
        nodes.append(node)
        values.append(value)
    if not nodes:  # a graph needs a node; this one's output need not be one of the model
        node, value = _identity(inputs[0], "v0")
        nodes.append(node)
        values.append(value)
    outputs = tuple(
        draw(st.lists(st.sampled_from(values), min_size=1, max_size=4, unique_by=lambda v: v.name))
    )
    proto = helper.make_model(
        helper.make_graph(
            nodes,
            "random",
            [
                helper.make_tensor_value_info(v.name, getattr(TensorProto, v.kind), shapes[v.name])
                for v in inputs
            ],
            [_output(v) for v in outputs],
            [numpy_helper.from_array(array, name) for name, array in _CONSTANTS.items()],
        ),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )
    return RandomModel(proto, inputs, outputs, shapes)


def _output(value: Value) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(value.name, getattr(TensorProto, value.kind), [None] * value.rank)


# Steps: from a value to a node and its output.

_CONSTANTS = {
    "flat": np.array([-1], np.int64),
    "front": np.array([0], np.int64),
    "first": np.array([0], np.int64),
}


def _step(op: str, source: Value, name: str, function: Any, *, more: tuple[str, ...] = (), **changes: Any):
    attributes = changes.pop("attributes", {})
    node = helper.make_node(op, [source.name, *more], [name], name=name, **attributes)
    made = Value(
        name,
        source.kind,
        source.rank,
        lambda feed: np.asarray(function(source.function(feed))),
        source.doubled,
    )
    return node, attrs.evolve(made, **changes)


def _identity(source, name):
    return _step("Identity", source, name, lambda a: a)


def _dropout(source, name):
    return _step("Dropout", source, name, lambda a: a)


def _flatten(source, name):
    return _step("Reshape", source, name, lambda a: a.reshape(-1), more=("flat",), rank=1)


def _unsqueeze(source, name):
    return _step("Unsqueeze", source, name, lambda a: a[None], more=("front",), rank=source.rank + 1)


def _transpose(source, name):
    return _step("Transpose", source, name, lambda a: a.transpose())


def _twice(source, name):
    node, value = _step("Concat", source, name, lambda a: np.concatenate([a, a]), attributes={"axis": 0})
    node.input.append(source.name)
    return node, value


def _add(source, name):
    node, value = _step("Add", source, name, lambda a: (a + a).astype(a.dtype), doubled=True)
    node.input.append(source.name)
    return node, value


def _relu(source, name):
    return _step("Relu", source, name, lambda a: np.maximum(a, a.dtype.type(0)))


def _not(source, name):
    return _step("Not", source, name, np.logical_not)


def _cast(kind):
    def step(source, name):
        dtype = DTYPES[kind]
        return _step(
            "Cast",
            source,
            name,
            lambda a: a.astype(np.float64).astype(dtype),
            attributes={"to": getattr(TensorProto, kind)},
            kind=kind,
        )

    return step


def _steps(source: Value) -> list[Any]:
    steps = [_identity, _flatten, _unsqueeze, _transpose]
    if source.rank:
        steps.append(_twice)
    if source.kind in _NUMBERS and not source.doubled:
        steps.append(_add)
    if source.kind in _FLOATS:
        steps += [_relu, _dropout]
    if source.kind == "BOOL":
        steps.append(_not)
    if source.kind != "STRING":  # doubled values may reach 6, and int4 ends at 7
        steps += [_cast(kind) for kind in sorted(DTYPES) if kind != "STRING"]
    return steps
