"""Clip and Relu in a row become one, exactly, whatever their bounds are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from edgeinfer.model.model import Model
from edgeinfer.transforms import Simplify

FLOATS = (None, -np.inf, -2.0, -1.0, 0.0, 1.0, 2.0, np.inf)
INTEGERS = (None, -128, -2, -1, 0, 1, 2, 127)
DTYPES = {"float32": FLOATS, "float16": FLOATS, "float64": FLOATS, "int8": INTEGERS, "int64": INTEGERS}

Step = tuple[object, object] | None  # the bounds of a Clip, or a Relu


def chain(steps: list[Step], dtype: str) -> Model:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes, weights, last = [], [], "x"
    for index, step in enumerate(steps):
        inputs = [last]
        for end, bound in zip(("low", "high"), step or (), strict=False):
            name = f"{end}{index}" if bound is not None else ""
            inputs.append(name)
            if name:
                weights.append(numpy_helper.from_array(np.array(bound, dtype), name))
        last = f"t{index}" if index < len(steps) - 1 else "y"
        nodes.append(helper.make_node("Relu" if step is None else "Clip", inputs, [last], f"n{index}"))
    ends = [[helper.make_tensor_value_info(name, kind, ["N"])] for name in "xy"]
    graph = helper.make_graph(nodes, "chain", *ends, weights)
    return Model.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


@pytest.mark.parametrize("dtype", DTYPES)
@settings(
    max_examples=25, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(data=st.data())
def test_any_chain_is_one_node_with_the_same_answers(dtype, run, data) -> None:
    bound = st.sampled_from(DTYPES[dtype])
    step = st.one_of(st.tuples(bound, bound), st.none() if dtype.startswith("float") else st.nothing())
    model = chain(data.draw(st.lists(step, min_size=1, max_size=5)), dtype)
    after = Simplify().apply(model).model
    x = np.arange(-5, 6).astype(dtype)
    if dtype.startswith("float"):
        x = np.concatenate([x / 2, np.array([np.nan, np.inf, -np.inf], dtype)]).astype(dtype)
    np.testing.assert_array_equal(run(after, {"x": x})[0], run(model, {"x": x})[0])
    assert [node.op_type for node in after.ir.graph] in (["Clip"], ["Relu"])
    assert not Simplify().apply(after).report.modified


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([(-1.0, 1.0), (2.0, 3.0)], (2.0, 2.0)),  # they do not meet
        ([(2.0, 3.0), (-1.0, 1.0)], (1.0, 1.0)),
        ([(None, -1.0), None], (0.0, 0.0)),
        ([None, (None, 6.0)], (0.0, 6.0)),
        ([(5.0, 1.0), (0.0, 9.0)], (1.0, 1.0)),  # low above high: all is high
    ],
)
def test_the_bounds(steps, expected) -> None:
    (node,) = Simplify().apply(chain(steps, "float32")).model.ir.graph
    assert tuple(float(value.const_value.numpy()) for value in node.inputs[1:]) == expected


def test_what_is_not_certain_stays(parse) -> None:
    texts = [
        "<float nan = {nan}> { a = Clip (x, nan)  y = Relu (a) }",  # runtimes differ about it
        "<float low = {0}> { a = Clip (x, low)  z = Neg (a)  b = Relu (a)  y = Add (b, z) }",  # used twice
    ]
    for text in texts:
        if "nan" in text:
            model = chain([(np.nan, None), None], "float32")
        else:
            model = parse(f'<ir_version: 8, opset_import: ["" : 17]> g (float[N] x) => (float[N] y) {text}')
        after = Simplify().apply(model).model
        assert "Clip" in [node.op_type for node in after.ir.graph]
        assert "Relu" in [node.op_type for node in after.ir.graph]


def test_computed_bounds_stay(parse) -> None:
    model = parse("""<ir_version: 8, opset_import: ["" : 17]>
    g (float[N] x, float low) => (float[N] y) { a = Clip (x, low)  y = Relu (a) }""")
    assert not Simplify().apply(model).report.modified
