from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgeinfer.errors import TransformError
from edgeinfer.model.model import Model
from edgeinfer.transforms import ConvertOpset, GraphTransform


@pytest.mark.parametrize("name", ["mnist_cntk", "silero_vad_16k", "nanodet_m_320", "cifar10_resnet20"])
def test_shared_models_reach_the_newest_opset_that_the_runtime_knows(name, models, run) -> None:
    model = Model.load(models(name))
    after, report = ConvertOpset(22).apply(model)
    assert after.opset == 22
    assert report.modified
    assert {node.name for node in model.ir.graph} <= {node.name for node in after.ir.graph}
    rng = np.random.default_rng(0)
    feed = {
        spec.name: rng.standard_normal([1 if isinstance(d, str) else d for d in spec.shape]).astype("f4")
        for spec in model.signature.inputs
    }
    for expected, found in zip(run(model, feed), run(after, feed), strict=True):
        assert np.abs(expected - found).max() <= 1e-5 * np.abs(expected).max()


def test_newest() -> None:
    newest = onnx.defs.onnx_opset_version()
    text = """<ir_version: 8, opset_import: ["" : 7]> g (float[2] x) => (float[2] y) { y = Relu (x) }"""
    assert ConvertOpset(newest).apply(Model.load(onnx.parser.parse_model(text))).model.opset == newest


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("opset", [7, 9])
@pytest.mark.parametrize("scale", [2.0, 3.0])
def test_upsample_keeps_its_sampling_positions(opset, mode, scale, parse, run) -> None:
    """The converter alone gives a Resize that samples at other positions."""
    if opset == 7:
        model = parse(f"""<ir_version: 4, opset_import: ["" : 7]>
        g (float[1, 1, 3, 3] x) => (float[1, 1, A, B] y)
        {{ [up] y = Upsample <mode = "{mode}", scales = [1.0, 1.0, {scale}, {scale}]> (x) }}""")
    else:
        model = parse(f"""<ir_version: 4, opset_import: ["" : 9]>
        g (float[1, 1, 3, 3] x) => (float[1, 1, A, B] y)
        <float[4] s = {{1, 1, {scale}, {scale}}}> {{ [up] y = Upsample <mode = "{mode}"> (x, s) }}""")
    after = ConvertOpset(13).apply(model).model
    assert [node.name for node in after.ir.graph if node.op_type == "Resize"] == ["up"]
    x = np.random.default_rng(0).standard_normal((1, 1, 3, 3)).astype(np.float32)
    np.testing.assert_allclose(run(after, {"x": x})[0], run(model, {"x": x})[0], rtol=1e-6, atol=1e-6)


def test_weights_do_not_pass_through_the_converter(parse) -> None:
    model = parse("""<ir_version: 8, opset_import: ["" : 9]> g (float[1, 64] x) => (float[1, 64] y)
    { y = Relu (x) }""")
    work = model.copy_ir()
    tensor = ir.Tensor(np.ones((64, 64), np.float32), name="w")
    weight = ir.Value(
        name="w", const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape((64, 64))
    )
    work.graph.register_initializer(weight)
    node = ir.node("MatMul", [work.graph.inputs[0], weight])
    node.outputs[0].name = "m"
    work.graph.insert_before(work.graph[0], node)
    work.graph[1].replace_input_with(0, node.outputs[0])
    after = ConvertOpset(17).apply(Model.load(work)).model
    assert after.ir.graph.initializers["w"].const_value is tensor


def test_custom_domains_pass_through(parse) -> None:
    model = parse("""<ir_version: 8, opset_import: ["" : 9, "com.acme" : 3]>
    g (float[1, 3] x) => (float[1, 3] y)
    { [a] r = Relu (x)  [b] y = com.acme.Foo (r) }""")
    after = ConvertOpset(17).apply(model).model
    assert after.ir.opset_imports == {"": 17, "com.acme": 3}
    assert [(node.domain, node.op_type, node.name) for node in after.ir.graph] == [
        ("", "Relu", "a"),
        ("com.acme", "Foo", "b"),
    ]


def test_subgraphs_are_converted(parse, run) -> None:
    model = parse("""<ir_version: 8, opset_import: ["" : 9]> g (bool c, float[1, 3] x) => (float[3] y)
    { y = If (c) <then_branch = t () => (float[3] a) { a = Squeeze <axes = [0]> (x) },
                  else_branch = e () => (float[3] b) { n = Neg (x)  b = Squeeze <axes = [0]> (n) }> }""")
    after = ConvertOpset(17).apply(model).model
    feed = {"c": np.array(False), "x": np.float32([[1, 2, 3]])}
    np.testing.assert_array_equal(run(after, feed)[0], run(model, feed)[0])


def test_what_cannot_be_converted_is_named(parse) -> None:
    model = parse("""<ir_version: 8, opset_import: ["" : 17]> g (float[2, 2] x, float[2] s) => (float[2, 2] y)
    { r = Relu (x)  y = LayerNormalization (r, s) }""")
    with pytest.raises(TransformError, match="opset 17 to 13") as caught:
        ConvertOpset(13).apply(model)
    assert caught.value.facts["operator"] == "LayerNormalization"
    assert caught.value.where == "ConvertOpset operator LayerNormalization"


@pytest.mark.parametrize("version", [6, 1000])
def test_no_such_opset(version) -> None:
    with pytest.raises(TransformError, match="no such opset"):
        ConvertOpset(version)


class Needs13(GraphTransform):
    min_opset = 13

    def rewrite(self, model, report) -> None:
        for node in model.graph:
            if node.name == "r" and node.op_type == "Relu":
                node.name = "renamed"
                report.apply(node, "renamed")


def test_a_transform_that_needs_a_newer_opset_says_so(parse) -> None:
    text = """<ir_version: 8, opset_import: ["" : 8]> g (float[2] x) => (float[2] y) { [%s] y = Relu (x) }"""
    after, report = Needs13().apply(parse(text % "r"))
    assert after.opset == 13
    assert report.notes == ("converted from opset 8 to 13",)
    untouched, report = Needs13().apply(parse(text % "q"))
    assert untouched.opset == 8
    assert not report.modified
