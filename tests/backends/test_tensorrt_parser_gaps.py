"""What older parsers lack is written in what they have, and computes the same."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgeinfer as ei
from edgeinfer.backends.tensorrt_.flavours import TABLE, Flavour
from edgeinfer.backends.tensorrt_.parser_gaps import fill_gaps
from edgeinfer.errors import CompileError
from edgeinfer.transforms import ConvertOpset
from tests.backends import fake_tensorrt

EIGHT_FIVE, EIGHT_SIX, TEN = TABLE[:3]


def filled(text: str, flavour: Flavour) -> ei.Model:
    return fill_gaps(ei.Model.load(onnx.parser.parse_model(text)), flavour)


def operators(model: ei.Model) -> set[str]:
    return {node.op_type for node in model.ir.graph}


def outputs(model: ei.Model, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    content = model.to_bytes()
    onnx.checker.check_model(content, full_check=True)
    return onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, feeds)


@pytest.mark.parametrize("flavour", [EIGHT_FIVE, TEN], ids=str)
def test_convolutions_say_the_shape_of_their_kernel(flavour: Flavour) -> None:
    """Behind DequantizeLinear the parser of 8.5 took it for 1 x 1, and refused the model."""
    model = filled(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[1,2,8,8] x, float[3,2,2,4] v, int8[3,2,2,4] w, float[2,3,2,2] u)
        => (float[1,3,4,2] y, float[1,3,7,5] z, float[1,3,9,9] t) <float s = {0.5}, int8 o = {0}>
        {
            d = DequantizeLinear(w, s, o)
            y = Conv<strides=[2, 4]>(x, d)
            z = Conv(x, v)
            t = ConvTranspose<kernel_shape=[2, 2]>(x, u)
        }""",
        flavour,
    )
    kernels = {
        node.outputs[0].name: list(node.attributes["kernel_shape"].as_ints())
        for node in model.ir.graph
        if "Conv" in node.op_type
    }
    assert kernels == {"y": [2, 4], "z": [2, 4], "t": [2, 2]}


def test_a_kernel_of_unknown_shape_is_left_to_the_parser() -> None:
    text = "g (float[1,2,8,8] x, float[3,2,A,B] w) => (float[1,3,C,D] y) { y = Conv(x, w) }"
    model = filled(f'<ir_version: 8, opset_import: ["" : 17]> {text}', EIGHT_FIVE)
    assert "kernel_shape" not in next(iter(model.ir.graph)).attributes


@settings(max_examples=30, deadline=None)
@given(
    axis=st.integers(-3, 2),
    bias=st.booleans(),
    statistics=st.booleans(),
    half=st.booleans(),
    epsilon=st.sampled_from([1e-5, 0.5]),
    seed=st.integers(0, 9),
)
def test_layer_normalization_is_taken_apart_exactly(
    axis: int, bias: bool, statistics: bool, half: bool, epsilon: float, seed: int
) -> None:
    kind, dtype = ("float16", np.float16) if half else ("float", np.float32)
    shape = (2, 3, 8)[axis:]
    sizes = ",".join(map(str, shape))
    parameters = f", {kind}[{sizes}] b" if bias else ""
    more = ", float[A,B,C] mean, float[D,E,F] inverse" if statistics else ""
    text = (
        f'<ir_version: 8, opset_import: ["" : 17]> g ({kind}[2,3,8] x, {kind}[{sizes}] s{parameters}) => '
        f"({kind}[2,3,8] y{more}) {{ y{', mean, inverse' if statistics else ''} = "
        f"LayerNormalization<axis={axis}, epsilon={epsilon}>(x, s{', b' if bias else ''}) }}"
    )
    rng = np.random.default_rng(seed)
    feeds = {"x": rng.standard_normal((2, 3, 8)) * 3 + 1, "s": rng.standard_normal(shape)}
    if bias:
        feeds["b"] = rng.standard_normal(shape)
    given_feeds = {name: array.astype(dtype) for name, array in feeds.items()}
    before, after = filled(text, TEN), filled(text, EIGHT_FIVE)
    assert "LayerNormalization" in operators(before)
    assert "LayerNormalization" not in operators(after)
    tolerance = 4e-3 if half else 2e-6
    pairs = zip(outputs(after, given_feeds), outputs(before, given_feeds), strict=True)
    for found, wanted in pairs:
        assert found.dtype == wanted.dtype
        np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("flavour", [EIGHT_SIX, TEN])
def test_versions_that_have_layer_normalization_get_it(flavour: Flavour) -> None:
    text = (
        '<ir_version: 8, opset_import: ["" : 17]> g (float[2,4] x, float[4] s) => (float[2,4] y) '
        "{ y = LayerNormalization(x, s) }"
    )
    assert operators(filled(text, flavour)) == {"LayerNormalization"}


@pytest.mark.parametrize("version", ["8.5.3.1", "8.6.1"])
def test_version_8_gets_no_node_that_its_parser_misreads(
    monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    """It would take axes that became an input for no axes, and reduce over all of them."""
    fake_tensorrt.install(monkeypatch, version)
    head = '<ir_version: 8, opset_import: ["" : 18]> g (float[2,3,4] x) => '
    text = head + "(float[2,3,1] y) <int64[1] axes = {2}> { y = ReduceMean(x, axes) }"
    model = ei.Model.load(onnx.parser.parse_model(text))
    with pytest.raises(CompileError, match="knows opsets up to 17") as caught:
        ei.compile(model, "tensorrt")
    assert "ReduceMean" in str(caught.value)
    assert "ConvertOpset(17)" in str(caught.value)
    ei.compile(ei.optimize(model, [ConvertOpset(17)]), "tensorrt")
    ei.compile(onnx.parser.parse_model(head + "(float[2,3,4] y) { y = Relu(x) }"), "tensorrt")
