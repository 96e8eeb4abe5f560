"""`compare`: outputs, layers, and the first that goes wrong."""

from __future__ import annotations

import json
import math

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

import edgeinfer as ei
from edgeinfer.errors import InputError, OptionsError
from edgeinfer.measure.layers import common_tensors

TEXT = """<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 4] x) => (float[N, 4] y)
<float[4, 4] w1 = {WEIGHTS}, float[4, 4] w2 = {WEIGHTS}> {
    a = MatMul(x, w1)
    b = Relu(a)
    c = MatMul(b, w2)
    shape = Constant<value = int64[2] {-1, 4}>()
    y = Reshape(c, shape)
}"""
WEIGHTS = "{" + ", ".join(f"{v:.1f}" for v in np.linspace(-1, 1, 16) + 0.05) + "}"


QDQ = "    q = QuantizeLinear(b, s, z)\n    d = DequantizeLinear(q, s, z)\n"


def parse(text: str) -> ei.Model:
    return ei.Model.load(onnx.parser.parse_model(text.replace("{WEIGHTS}", WEIGHTS)))


@pytest.fixture
def model():
    return parse(TEXT)


@pytest.fixture
def feeds():
    rng = np.random.default_rng(0)
    return [{"x": rng.standard_normal((8, 4)).astype(np.float32)} for _ in range(3)]


def damaged(model: ei.Model, name: str, factor: float) -> ei.Model:
    work = model.copy_ir()
    value = work.graph.initializers[name]
    value.const_value = ir.tensor(value.const_value.numpy() * np.float32(factor), name=name)
    return ei.Model.from_ir(work)


def test_a_model_is_equal_to_itself(model, feeds):
    found = ei.compare(model, model, feeds, progress=False)
    assert found.sqnr_db == math.inf
    assert found.outputs["y"].top1_agreement == 1.0
    assert [layer.tensor for layer in found.layers] == ["a", "b", "c", "y"]
    assert found.first_bad_layer is None
    assert found.feeds == 3
    assert "all 4 layers" in str(found)


def test_the_first_layer_that_goes_wrong_is_named(model, feeds):
    worse = damaged(model, "w2", 2.0)
    found = ei.compare(model, worse, feeds, tensors_per_pass=1, progress=False)
    assert found.first_bad_layer is not None
    assert (found.first_bad_layer.tensor, found.first_bad_layer.op_type) == ("c", "MatMul")
    node = next(n for n in worse.ir.graph if n.outputs[0].name == "c")
    assert found.first_bad_layer.node == node.name
    assert found.first_bad_layer.closeness.sqnr_db == pytest.approx(0.0, abs=1e-4)
    assert node.name in str(found)
    assert "✗" in str(found.layer_table())


def test_the_threshold_decides(model, feeds):
    slightly = damaged(model, "w1", 1.01)  # an error of 1 % is 40 dB
    assert ei.compare(model, slightly, feeds, progress=False).first_bad_layer is None
    strict = ei.compare(model, slightly, feeds, threshold_db=45, progress=False)
    assert strict.first_bad_layer.tensor == "a"
    assert strict.first_bad_layer.closeness.sqnr_db == pytest.approx(40, abs=0.01)


def test_the_number_of_passes_changes_nothing(model, feeds):
    worse = damaged(model, "w1", 1.1)
    one, many = (ei.compare(model, worse, feeds, tensors_per_pass=n, progress=False) for n in (1, 99))
    assert one.layers == many.layers


def test_layers_that_only_one_has_are_left_out(model, feeds):
    other = parse(TEXT.replace("b = Relu(a)", "q = Identity(a)\n    b = Relu(q)"))
    assert common_tensors(model, other) == ["a", "b", "c", "y"]
    assert common_tensors(other, model) == ["a", "b", "c", "y"]
    assert ei.compare(model, other, feeds, progress=False).sqnr_db == math.inf


def test_quantized_models_have_the_tensor_before_the_quantizer(model, feeds):
    quantized = parse(
        TEXT.replace(
            "    b = Relu(a)\n",
            "    b = Relu(a)\n" + QDQ,
        )
        .replace("MatMul(b, w2)", "MatMul(d, w2)")
        .replace("<float[4, 4] w1", "<float s = {0.5}, uint8 z = {0}, float[4, 4] w1")
    )
    found = ei.compare(model, quantized, feeds, threshold_db=60, progress=False)
    by_name = {layer.tensor: layer.closeness.sqnr_db for layer in found.layers}
    assert list(by_name) == ["a", "b", "c", "y"]
    assert by_name["a"] == math.inf
    assert 5 < by_name["b"] < 40  # as the next layer reads it
    assert found.first_bad_layer.tensor == "b"


def test_a_relu_that_the_quantizer_does_by_its_range_is_no_difference(model, feeds):
    folded = parse(
        TEXT.replace("a = MatMul(x, w1)\n    b = Relu(a)\n", "b = MatMul(x, w1)\n" + QDQ)
        .replace("MatMul(b, w2)", "MatMul(d, w2)")
        .replace("<float[4, 4] w1", "<float s = {0.02}, uint8 z = {0}, float[4, 4] w1")
    )
    found = ei.compare(model, folded, feeds, progress=False)
    assert [layer.tensor for layer in found.layers] == ["b", "c", "y"]
    assert found.layers[0].closeness.sqnr_db > 35
    assert found.first_bad_layer is None


def test_layers_of_other_shapes_are_said_and_not_compared(model, feeds):
    wider = parse(TEXT.replace("a = MatMul(x, w1)", "a0 = MatMul(x, w1)\n    a = Concat<axis = 0>(a0, a0)")
                  .replace("b = Relu(a)", "b = Relu(a0)"))  # fmt: skip
    found = ei.compare(model, wider, feeds, progress=False)
    assert [layer.tensor for layer in found.layers] == ["b", "c", "y"]
    assert any("other shapes" in note and "'a'" in note for note in found.notes)


def test_paths_artifacts_and_sessions(model, feeds, tmp_path):
    path = model.save(tmp_path / "net.onnx")
    artifact = ei.compile(model, "onnxruntime").save(tmp_path / "net.edge")
    with ei.load(artifact) as session:
        for a, b in ((path, artifact), (str(path), session), (model, tmp_path / "net.edge")):
            found = ei.compare(a, b, feeds, progress=False)
            assert found.sqnr_db > 100
            assert found.layers == ()
        assert not session.closed
    assert "net.edge on onnxruntime:CPU" in str(ei.compare(path, artifact, feeds, progress=False))


def test_feeds_are_made_up_when_there_are_none(model):
    found = ei.compare(model, model, shapes={"N": 2}, progress=False)
    assert found.feeds == 4
    assert "made-up inputs" in found.notes


def test_the_shapes_that_were_compared_are_shown(model, feeds):
    found = ei.compare(model, model, progress=False)
    assert "4 feeds of x float32 (1, 4), N = 1 assumed" in str(found)
    found = ei.compare(model, model, [*feeds, {"x": np.zeros((2, 4), np.float32)}], progress=False)
    assert found.inputs[0].describe() == "x float32 (8, 4), N = 8 from feeds"
    assert "the feeds have 2 shapes: 3 of x (8, 4); 1 of x (2, 4)" in found.notes
    assert ei.compare(model, model, feeds, batch=4, progress=False).feeds == 6
    images = parse(
        TEXT.replace("float[N, 4] x", "float[N, H, 4] x").replace("float[N, 4] y", "float[M, 4] y")
    )
    with pytest.raises(InputError, match="not known"):
        ei.compare(images, images, progress=False)


def for_target(model: ei.Model, target: str) -> ei.Model:
    return model.with_metadata(edgeinfer_target=target)


def test_a_model_runs_on_the_target_that_it_was_made_for(model, feeds):
    pytest.importorskip("openvino")
    made = for_target(model, "openvino:CPU")
    found = ei.compare(model, made, feeds, progress=False)
    assert (found.reference_on, found.candidate_on) == ("onnxruntime:CPU", "openvino:CPU")
    assert "on openvino:CPU compared with" in str(found)
    assert "layers are compared in ONNX Runtime" in found.notes
    assert found.to_dict()["candidate_on"] == "openvino:CPU"
    both = ei.compare(model, made, feeds, target="openvino", progress=False)
    assert both.reference_on == "openvino:CPU"
    assert ei.compare(model, model, feeds, progress=False).candidate_on == "onnxruntime:CPU"


@pytest.mark.parametrize("target", ["tensorrt", "jetson-orin-nano", "openvino:NPU", "nowhere:CPU"])
def test_a_target_that_is_not_here_is_said(model, feeds, target):
    found = ei.compare(model, for_target(model, target), feeds, progress=False)
    assert found.candidate_on == "onnxruntime:CPU"
    assert any(f"was made for {target} and runs in ONNX Runtime instead" in note for note in found.notes)


def test_a_target_that_was_asked_for_and_is_not_here_is_an_error(model, feeds):
    with pytest.raises(ei.EdgeInferError):
        ei.compare(model, model, feeds, target="openvino:NPU", progress=False)


@pytest.mark.parametrize("threshold", [math.nan, math.inf])
def test_a_threshold_is_a_number(model, feeds, threshold):
    with pytest.raises(OptionsError, match="threshold_db"):
        ei.compare(model, model, feeds, threshold_db=threshold, progress=False)


ROWS = """<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 4] x) => (float[N, 4] y, int64[2, M] at)
<float limit = {LIMIT}> {
    y = Identity(x)
    over = Greater(x, limit)
    at = NonZero(over)
}"""


def test_an_output_whose_size_depends_on_the_data_is_left_out_and_said(feeds):
    loose, strict = (parse(ROWS.replace("LIMIT", limit)) for limit in ("-9", "0.5"))
    found = ei.compare(loose, strict, feeds, layers=False, progress=False)
    assert list(found.outputs) == ["y"]
    assert "output 'at' has another shape in 3 of 3 feeds and is not compared" in found.notes
    alone = [
        parse(
            ROWS.replace("LIMIT", limit).replace("float[N, 4] y, ", "").replace("    y = Identity(x)\n", "")
        )
        for limit in ("-9", "0.5")
    ]
    with pytest.raises(InputError, match="No output can be compared"):
        ei.compare(*alone, feeds, progress=False)


def test_text_is_compared_for_equality(feeds):
    text = """<ir_version: 8, opset_import: ["" : 17]>
    net (string[N] s, float[N, 4] x) => (string[N] t, float[N, 4] y) { t = Identity(s) y = Identity(x) }"""
    model = ei.Model.load(onnx.parser.parse_model(text))
    feed = {"s": np.array(["a", "b"], object), "x": np.ones((2, 4), np.float32)}
    found = ei.compare(model, model, feed, layers=False, progress=False)
    assert list(found.outputs) == ["y"]
    assert "output 't' is text: 2 of 2 equal" in found.notes


def test_outputs_that_cannot_be_paired_are_refused(model, feeds):
    two = parse(TEXT.replace("=> (float[N, 4] y)", "=> (float[N, 4] y, float[N, 4] c)"))
    with pytest.raises(InputError, match="different outputs"):
        ei.compare(model, two, feeds, progress=False)


def test_outputs_of_other_names_are_paired_by_position(model, feeds):
    renamed = parse(TEXT.replace(" y)", " out)").replace("y = Reshape", "out = Reshape"))
    found = ei.compare(model, renamed, feeds, progress=False)
    assert found.outputs["y"].sqnr_db == math.inf
    assert any("by position" in note for note in found.notes)


def test_no_feed_is_refused(model):
    with pytest.raises(InputError):
        ei.compare(model, model, [], progress=False)
    with pytest.raises(OptionsError):
        ei.compare(model, model, tensors_per_pass=0, progress=False)


def test_a_nan_is_a_layer_gone_wrong(model, feeds):
    found = ei.compare(model, damaged(model, "w1", math.nan), feeds, progress=False)
    assert found.first_bad_layer.tensor == "a"
    json.dumps(found.to_dict(), allow_nan=False)
    assert found.to_dict()["first_bad_layer"] == found.first_bad_layer.node


def test_the_html_has_outputs_and_layers(model, feeds):
    assert ei.compare(model, model, feeds, progress=False)._repr_html_().count("<table") == 2


@pytest.mark.data
def test_a_damaged_convolution_of_a_real_model_is_found(models):
    model = ei.Model.load(models("cifar10_resnet20"))
    convolutions = [node for node in model.ir.graph if node.op_type == "Conv"]
    node = convolutions[7]
    worse = damaged(model, node.inputs[1].name, 1.5)
    found = ei.compare(model, worse, shapes={"N": 2}, progress=False)
    assert found.first_bad_layer.node == node.name
