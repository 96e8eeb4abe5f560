"""Shapes that a file states about inner values are hints; wrong ones are gone after loading."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

import edgeinfer as ei
from edgeinfer.model.model import Model
from edgeinfer.model.shape_hints import drop_wrong_shapes
from edgeinfer.transforms import FixShapes, Simplify, ToFloat16

TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 3, 4, 4] x) => (float[N, 5] y) <float[5, 3, 1, 1] w = {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6}>
{
    i = Identity (x)
    [conv] c = Conv (i, w)
    r = Relu (c)
    p = GlobalAveragePool (r)
    y = Flatten (p)
}
"""
X = np.random.default_rng(0).standard_normal((3, 3, 4, 4)).astype(np.float32)


def hinted(**shapes: list[int | str | None]) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(TEXT)
    for name, shape in shapes.items():
        proto.graph.value_info.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
    return proto


def shapes(model: Model) -> dict[str, list | None]:
    values = [value for node in model.ir.graph for value in node.outputs]
    return {
        v.name: None if v.shape is None else [d if isinstance(d, int) else d.value for d in v.shape]
        for v in values
    }


def test_a_contradiction_drops_all_inner_shapes() -> None:
    model = Model.load(hinted(c=[1, 5, 4, 4], p=["N", 5, 1, 1]))
    assert shapes(model) == {"i": None, "c": None, "r": None, "p": None, "y": ["N", 5]}
    assert model.signature.describe() == "x float32 (N, 3, 4, 4) -> y float32 (N, 5)"


def test_shapes_that_fit_stay() -> None:
    model = Model.load(hinted(c=["N", 5, 4, 4], p=[None, 5, 1, 1]))
    assert shapes(model)["c"] == ["N", 5, 4, 4]
    assert shapes(model)["p"] == [None, 5, 1, 1]


@pytest.mark.parametrize(
    ("declared", "corrected"),
    [([1, 5], ["N", 5]), (["N", 7], ["N", 5]), (["B", 5], ["B", 5]), ([5], ["N", 5])],
)
def test_an_output_stays_as_declared_unless_that_is_wrong(declared, corrected) -> None:
    proto = hinted()
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, declared))
    assert list(Model.load(proto).signature.outputs[0].shape) == corrected


@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(
    stated=st.dictionaries(
        st.sampled_from("icrp"),
        st.lists(st.sampled_from([1, 2, 3, 4, 5, "N", "M", None]), min_size=1, max_size=5),
        min_size=1,
    )
)
def test_no_statement_changes_what_transforms_make_of_it(stated) -> None:
    for transform in (Simplify(), FixShapes({"N": 3}), ToFloat16()):
        wanted = transform.apply(Model.load(hinted())).model
        found = transform.apply(Model.load(hinted(**stated))).model
        assert found.digest == wanted.digest
    assert not drop_wrong_shapes(Model.load(hinted(**stated)).copy_ir())


def test_the_exported_batch_does_not_stop_the_pipeline_of_any_target() -> None:
    proto = hinted(i=[1, 3, 4, 4], c=[1, 5, 4, 4], r=[1, 5, 4, 4], p=[1, 5, 1, 1])
    feeds = [{"x": X}, {"x": -X}]
    for target in ("onnxruntime", "openvino", "tensorrt"):
        model = ei.optimize(proto, target=target, calibration=feeds)
        assert model.signature.describe() == "x float32 (N, 3, 4, 4) -> y float32 (N, 5)"
        with ei.load(ei.compile(model, "onnxruntime")) as session:
            assert session.infer({"x": X})["y"].shape == (3, 5)


def test_the_count_of_a_loop_stays_a_scalar() -> None:
    proto = onnx.parser.parse_model("""
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[N, 2] x) => (float[N, 2] y) <int64 two = {2}, bool on = {1}>
    {
        r = Relu (x)
        y = Loop (two, on, r) <body = step (int64 i, bool c, float[9, 2] s) => (bool d, float[N, 2] t) {
            d = Identity (c)
            t = Add (s, s)
        }>
    }""")
    proto.graph.value_info.append(helper.make_tensor_value_info("r", onnx.TensorProto.FLOAT, [7, 2]))
    model = Model.load(proto)
    (body,) = model.ir.graph.subgraphs()
    assert [None if v.shape is None else len(v.shape) for v in body.inputs] == [0, 0, None]
