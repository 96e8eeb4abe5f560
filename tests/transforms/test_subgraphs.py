"""Layers in branches, loops and functions, and operators without a recipe: transformed, or named."""

from __future__ import annotations

import re

import numpy as np
import onnx
import onnx.parser
import pytest

import edgeinfer as ei
from edgeinfer.graph.layer_like import layer_like
from edgeinfer.model.model import Model
from edgeinfer.transforms import (
    FuseBatchNorm,
    PruneNM,
    PruneWeights,
    QuantizeDynamic,
    QuantizeWeights,
    RoundWeights,
    Simplify,
    ToFloat16,
)

SIZE = 64
DECODER = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 64] x, bool c) => (float[N, 64] y)
{
    [if] y = If (c) <
        then_branch = one () => (float[N, 64] o) {
            [first] a = MatMul (x, w)  r = Relu (a)  [second] o = MatMul (r, v) },
        else_branch = two () => (float[N, 64] p) {
            [first2] b = MatMul (x, w)  s = Tanh (b)  [second2] p = MatMul (s, v) }>
}
"""
FUNCTION = """
<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
net (float[N, 64] x) => (float[N, 64] y) { h = local.block (x, w)  y = local.block (h, v) }
<domain: "local", opset_import: ["" : 17]>
block (p, q) => (r) { [inner] m = MatMul (p, q)  r = Relu (m) }
"""
OLD_FUNCTION = """
<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
net (float[N, 64] x) => (float[N, 64] y) { h = local.block (x, w)  y = local.block (h, v) }
<domain: "local", opset_import: ["" : 14]>
block (p, q) => (r) { [inner] m = MatMul (p, q)  r = Relu (m) }
"""
OTHERS = {
    "Einsum": '[layer] y = Einsum <equation = "nd,de->ne"> (x, w)',
    "ConvTranspose": "u = Unsqueeze (x, last)  [layer] t = ConvTranspose (u, k)  y = Squeeze (t, last)",
    "Gemm": "[layer] y = Gemm <alpha = 0.5, transB = 1> (x, w)",
    "GRU": "u = Unsqueeze (x, zero) [layer] g, h = GRU <hidden_size = 64> (u, wg, rg) y = Squeeze (h, zero)",
    "LSTM": "u = Unsqueeze (x, zero) [layer] g,h = LSTM <hidden_size = 64> (u, k4, r4) y = Squeeze (h, zero)",
    "MatMul": "xt = Transpose (x)  [layer] t = MatMul (w, xt)  y = Transpose (t)",
}
SHAPES = {
    "w": (64, 64), "v": (64, 64), "k": (64, 64, 1), "wg": (1, 192, 64), "rg": (1, 192, 64),
    "k4": (1, 256, 64), "r4": (1, 256, 64),
}  # fmt: skip
X = np.random.default_rng(3).standard_normal((4, SIZE)).astype(np.float32)


def make(text: str) -> Model:
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(1)
    for name, shape in SHAPES.items():
        if not re.search(rf"\b{name}\b", text):
            continue
        array = (rng.standard_normal(shape) / 8).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    for name, axis in (("zero", 0), ("last", 2)):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([axis]), name))
    return Model.load(proto)


def other(kind: str) -> Model:
    body = OTHERS[kind]
    head = '<ir_version: 8, opset_import: ["" : 17]>'
    return make(f"{head} net (float[N, 64] x) => (float[N, 64] y) {{ {body} }}")


def named(report) -> set[str]:
    return {node for node, _ in (*report.applied, *report.skipped)}


def noise_db(expected: np.ndarray, found: np.ndarray) -> float:
    return float(10 * np.log10((expected**2).sum() / max(((expected - found) ** 2).sum(), 1e-30)))


@pytest.mark.parametrize(
    ("transform", "least_db"),
    [
        (QuantizeWeights(8), 38),
        (QuantizeWeights(4, target="onnxruntime"), 14),
        (QuantizeWeights(4), 14),
        (QuantizeWeights(dtype="float8e4m3fn"), 26),
        (QuantizeDynamic(), 30),
        (ToFloat16(), 55),
    ],
    ids=str,
)
@pytest.mark.parametrize("taken", [True, False])
def test_both_branches_of_a_merged_decoder_are_transformed(transform, least_db, taken, run) -> None:
    model = make(DECODER)
    after, report = transform.apply(model)
    assert {"first", "second", "first2", "second2"} <= {node for node, _ in report.applied}
    feed = {"x": X, "c": np.array(taken)}
    assert noise_db(run(model, feed)[0], run(after, feed)[0]) > least_db
    assert after.nbytes < 0.6 * model.nbytes, "the weight that both branches read is stored once"
    with ei.load(ei.compile(after, "onnxruntime")) as session:
        assert noise_db(run(model, feed)[0], session.infer(feed)["y"]) > least_db
    assert not transform.apply(after).report.modified


@pytest.mark.parametrize("transform", [PruneNM(), PruneWeights(), RoundWeights(calibration=[])], ids=str)
def test_what_does_not_look_into_branches_says_so(transform) -> None:
    report = transform.apply(make(DECODER)).report
    assert not report.modified
    for node in ("first", "second", "first2", "second2"):
        (reason,) = [reason for name, reason in report.skipped if name == node]
        assert "in a subgraph of If 'if'" in reason


@pytest.mark.parametrize(
    "transform", [QuantizeWeights(8), QuantizeDynamic(), PruneNM(), PruneWeights(), ToFloat16()], ids=str
)
def test_functions_are_inlined_for_it(transform) -> None:
    model = make(FUNCTION)
    after, report = transform.apply(model)
    assert {node for node, _ in report.applied if "inner" in node} == {"inner", "inner_2"}
    assert report.notes[0] == "inlined the function block"
    assert not after.ir.functions
    assert model.ir.functions


def test_functions_stay_when_nothing_is_done() -> None:
    model = make(FUNCTION)
    after, report = QuantizeWeights(min_elements=1 << 20).apply(model)
    assert after.digest == model.digest
    assert named(report) == {"inner", "inner_2"}
    assert not report.notes


def test_a_function_that_cannot_be_inlined_is_named() -> None:
    model = make(OLD_FUNCTION)
    for transform in (QuantizeWeights(), Simplify(), FuseBatchNorm()):
        report = transform.apply(model).report
        assert any(node == "block" and "opset 14" in reason for node, reason in report.skipped)


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize(
    "transform",
    [QuantizeDynamic(), QuantizeDynamic(target="onnxruntime"), QuantizeWeights(8), QuantizeWeights(4),
     QuantizeWeights(4, target="onnxruntime"), PruneNM(), PruneWeights(), ToFloat16()],
    ids=str,
)  # fmt: skip
def test_operators_are_handled_or_named(kind, transform, run) -> None:
    model = other(kind)
    assert [place.node for place in layer_like(model.ir)] == ["layer"]
    after, report = transform.apply(model)
    assert "layer" in named(report)
    if report.modified and not isinstance(transform, (PruneNM, PruneWeights)):
        assert noise_db(run(model, {"x": X})[0], run(after, {"x": X})[0]) > 14
    if isinstance(transform, QuantizeWeights) and transform.target is None:
        assert report.modified == (kind not in ("GRU", "LSTM"))


def test_operators_of_another_domain_with_weights_are_named() -> None:
    model = make("""<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
    net (float[N, 64] x) => (float[N, 64] y) { [fused] y = com.microsoft.FusedMatMul (x, w) }""")
    for transform in (QuantizeWeights(), QuantizeDynamic(), PruneNM()):
        assert named(transform.apply(model).report) == {"fused"}


@pytest.mark.parametrize("dtype", ["double", "bfloat16", "float16"])
@pytest.mark.parametrize(
    "transform",
    [QuantizeWeights(8), QuantizeWeights(4), QuantizeDynamic(), QuantizeWeights(4, target="onnxruntime")],
    ids=str,
)  # fmt: skip
def test_weights_of_another_dtype_are_handled_or_refused(dtype, transform) -> None:
    text = f"""<ir_version: 8, opset_import: ["" : 17]> net ({dtype}[N, 64] x) => ({dtype}[N, 64] y)
    {{ [layer] y = MatMul (x, w2) }}"""
    proto = onnx.parser.parse_model(text)
    kind = {"double": 11, "bfloat16": 16, "float16": 10}[dtype]
    array = np.random.default_rng(0).standard_normal((64, 64))
    array = array.astype(onnx.helper.tensor_dtype_to_np_dtype(kind))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(array, "w2"))
    after, report = transform.apply(Model.load(proto))
    onnx.checker.check_model(after.to_proto(), full_check=True)
    assert "layer" in named(report)
    if not report.modified:
        assert dtype in report.skipped[0].reason


def test_a_weight_that_another_node_reads_in_another_way_stays() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> net (float[64, 64] x) => (float[64, 64] y)
    { [layer] a = MatMul (x, w)  [other] y = Add (a, w) }"""
    for transform in (QuantizeWeights(), QuantizeDynamic()):
        report = transform.apply(make(text)).report
        assert not report.modified
        assert "'other'" in report.skipped[0].reason
    twice = text.replace("Add (a, w)", "Gemm <transB = 1> (a, w)")
    assert "along another axis" in QuantizeWeights().apply(make(twice)).report.skipped[0].reason


def test_a_weight_that_is_an_input_stays() -> None:
    model = make(
        '<ir_version: 8, opset_import: ["" : 17]> '
        "n (float[N, 64] x) => (float[N, 64] y) { y = MatMul (x, w) }"
    )
    work = model.copy_ir()
    work.graph.inputs.append(work.graph.initializers["w"])
    for transform in (QuantizeWeights(), QuantizeDynamic()):
        report = transform.apply(Model.from_ir(work.clone())).report
        assert not report.modified
        assert "overridden" in report.skipped[0].reason
