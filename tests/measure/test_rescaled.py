"""Tensors that a transform scaled are compared on one scale."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgeinfer as ei
from edgeinfer.errors import InvalidModelError
from edgeinfer.graph.rescaled import RESCALED_KEY, note_rescaled, rescaled
from edgeinfer.transforms import EqualizeActivations, EqualizeWeights, SmoothQuant

UNEVEN = np.array([1, 1, 1, 1, 20, 20, 20, 20], np.float32)
CONVOLUTIONS = """<ir_version: 8, opset_import: ["" : 17]>
net (float[1, 3, 8, 8] x) => (float[1, 4, 8, 8] y) <float[8, 3, 3, 3] w1, float[4, 8, 3, 3] w2> {
    a = Conv<pads = [1, 1, 1, 1]>(x, w1)
    b = Relu(a)
    p = MaxPool<kernel_shape = [1, 1]>(b)
    y = Conv<pads = [1, 1, 1, 1]>(p, w2)
}"""
# A LayerNormalization, and a layer with a bias of its own behind it.
ATTENTION = """<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 5, 8] x) => (float[N, 5, 4] y)
<float[8] g, float[8] b, float[8, 8] w1, float[8] b1, float[8, 4] w2> {
    n = LayerNormalization(x, g, b)
    m = MatMul(n, w1)
    h = Add(m, b1)
    y = MatMul(h, w2)
}"""


def build(text: str, weights: dict[str, np.ndarray]) -> ei.Model:
    proto = onnx.parser.parse_model(text)
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()
    )
    return ei.Model.load(proto)


def convolutions() -> ei.Model:
    rng = np.random.default_rng(0)
    w1 = rng.standard_normal((8, 3, 3, 3)) * UNEVEN[:, None, None, None]
    w2 = rng.standard_normal((4, 8, 3, 3)) / UNEVEN[None, :, None, None]
    return build(CONVOLUTIONS, {"w1": w1, "w2": w2})


def attention() -> ei.Model:
    rng = np.random.default_rng(1)
    weights = {
        "g": UNEVEN,
        "b": rng.standard_normal(8),
        "w1": rng.standard_normal((8, 8)) / UNEVEN[:, None] * UNEVEN,
        "b1": rng.standard_normal(8),
        "w2": rng.standard_normal((8, 4)) / UNEVEN[:, None],
    }
    return build(ATTENTION, weights)


def feeds_for(model: ei.Model) -> list[dict[str, np.ndarray]]:
    shape = [size if isinstance(size, int) else 2 for size in model.signature.inputs[0].shape]
    rng = np.random.default_rng(2)
    return [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(3)]


CASES = {
    "EqualizeActivations": (convolutions, EqualizeActivations(), {"a", "b", "p"}),
    "EqualizeWeights": (convolutions, EqualizeWeights(), {"a", "b", "p"}),
    "SmoothQuant": (attention, SmoothQuant(), {"n", "m", "h"}),
    "one after the other": (
        convolutions,
        [EqualizeWeights(), EqualizeActivations(alpha=1.0)],
        {"a", "b", "p"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_a_transform_scaled_is_no_difference(case, tmp_path):
    make, transforms, scaled = CASES[case]
    model = make()
    feeds = feeds_for(model)
    changed = ei.optimize(model, transforms, calibration=feeds)
    assert set(rescaled(changed.ir)) == scaled
    # Also when it was saved and loaded, and with the scaled model as the reference.
    again = ei.Model.load(changed.save(tmp_path / "changed.onnx"))
    for pair in ((model, changed), (model, again), (again, model)):
        found = ei.compare(*pair, feeds, progress=False)
        assert {layer.tensor for layer in found.layers} >= scaled
        assert found.first_bad_layer is None, str(found.layer_table())
        assert min(layer.closeness.sqnr_db for layer in found.layers) > 80
        assert any(f"{len(scaled)} layers that a transform scaled" in note for note in found.notes)


def test_a_layer_that_really_went_wrong_is_still_found():
    model = convolutions()
    feeds = feeds_for(model)
    changed = ei.optimize(model, EqualizeActivations(), calibration=feeds)
    work = changed.copy_ir()
    weight = work.graph.initializers["w1"]
    weight.const_value = ir.tensor(weight.const_value.numpy() * np.float32(1.5), name="w1")
    found = ei.compare(model, ei.Model.from_ir(work), feeds, progress=False)
    assert found.first_bad_layer is not None
    assert found.first_bad_layer.tensor == "a"


def test_factors_that_do_not_fit_leave_the_layer_out_and_say_so():
    model = convolutions()
    work = model.copy_ir()
    note_rescaled(work, {"a": np.full((3, 1, 1), 2.0), "b": np.full((2, 2, 2, 2, 2), 2.0)})
    found = ei.compare(model, ei.Model.from_ir(work), feeds_for(model), progress=False)
    assert [layer.tensor for layer in found.layers] == ["p", "y"]
    assert any("2 layers were scaled by a transform" in note and "'a'" in note for note in found.notes)


def test_a_damaged_note_is_an_error():
    model = convolutions()
    for text in (
        "{",
        "[]",
        '{"a": 1}',
        '{"a": {"shape": [2], "divided_by": "AAAA"}}',
        '{"a": {"shape": [1]}}',
    ):
        work = model.copy_ir()
        work.metadata_props[RESCALED_KEY] = text
        with pytest.raises(InvalidModelError, match="scaled tensors"):
            rescaled(work)


@settings(deadline=None)
@given(
    st.lists(st.lists(st.floats(2.0**-6, 2.0**6, width=32), min_size=3, max_size=3), min_size=1, max_size=4)
)
def test_notes_multiply(factors):
    work = ir.Model(ir.Graph([], [], nodes=[], name="g"), ir_version=8)
    product = np.ones(3)
    for each in factors:
        product *= each
        note_rescaled(work, {"t": np.array(each)})
    found = rescaled(work).get("t", np.ones(3))
    np.testing.assert_allclose(found, product, rtol=1e-5)
