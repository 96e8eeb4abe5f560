"""What a runtime computes otherwise than the graph says is found, and kept out of the model."""

from __future__ import annotations

import attrs
import numpy as np
import onnx
import pytest

import edgeinfer as ei
from edgeinfer.backends.openvino_ import dialect as openvino_dialect
from edgeinfer.model.model import Model
from edgeinfer.quantization.search.model_runs import run_outputs
from edgeinfer.quantization.search.output_score import output_sqnr_db
from edgeinfer.quantization.search.quantize_int8 import QuantizeInt8
from edgeinfer.transforms import QuantizeStatic

SAME_DB = 40.0  # two runtimes on one int8 graph
BROKEN_DB = 10.0

TEXT = """
<ir_version: 8, opset_import: ["" : 18]>
pool (float[1,16,24,3] x) => (float[1,16,8] y) <int64[1] axes = {3}> {
    least = ReduceMin<keepdims = 0>(x, axes)
    y = MatMul(least, w)
}
"""


@pytest.fixture(scope="module")
def model() -> Model:
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(TEXT)
    weight = rng.choice([-1, 1], (24, 8)) * rng.uniform(0.5, 1, (24, 8))  # nothing to smooth
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight.astype(np.float32), "w"))
    return Model.load(proto)


@pytest.fixture(scope="module")
def feeds() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((1, 16, 24, 3)).astype(np.float32)} for _ in range(8)]


def test_openvino_gets_no_quantizer_that_it_fuses_into_a_reduction(model, feeds):
    quantized = ei.optimize(model, QuantizeStatic(calibration=feeds, target="openvino"))
    here, there = (run_outputs(quantized, feeds, target) for target in (None, "openvino"))
    assert output_sqnr_db(here, there) > SAME_DB
    reasons = {entry.reason for entry in quantized.report.steps[0].skipped}
    assert any("ReduceMin" in reason and "wrongly" in reason for reason in reasons)


def test_layers_are_judged_on_the_target_when_it_gives_something_else(model, feeds, monkeypatch):
    unaware = attrs.evolve(openvino_dialect.DIALECT, wrong_before=())
    monkeypatch.setattr(openvino_dialect, "DIALECT", unaware)
    result = QuantizeInt8(calibration=feeds, target="openvino", measure=False).apply(model)
    reference = run_outputs(model, feeds)
    assert output_sqnr_db(reference, run_outputs(result.model, feeds, "openvino")) > BROKEN_DB
    assert any("judged on it" in note for note in result.report.notes)


def test_without_a_tolerance_a_broken_model_is_not_given_back():
    """Layers that eight bits cannot hold: they cancel to a thousandth of what they are."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((24, 8)).astype(np.float32)
    big = 1e4 * rng.standard_normal((24, 8)).astype(np.float32)
    proto = onnx.parser.parse_model(
        """
        <ir_version: 8, opset_import: ["" : 18]>
        cancel (float[1,16,24] x) => (float[1,16,8] y) <float[24,8] a, float[24,8] b> {
            left = MatMul(x, a)
            right = MatMul(x, b)
            y = Sub(left, right)
        }
        """
    )
    del proto.graph.initializer[:]
    for name, values in {"a": big + weight, "b": big}.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    model = Model.load(proto)
    feeds = [{"x": rng.standard_normal((1, 16, 24)).astype(np.float32)} for _ in range(8)]
    result = QuantizeInt8(calibration=feeds, target="openvino", measure=False).apply(model)
    closeness = output_sqnr_db(run_outputs(model, feeds), run_outputs(result.model, feeds))
    assert closeness >= BROKEN_DB


GELU_OF_A_CONVOLUTION = """
<ir_version: 8, opset_import: ["" : 17]>
gelu (float[N,24,T] x) => (float[N,24,L] y) <float root = {1.4142135}, float one = {1}> {
    [conv] c = Conv<pads = [1, 1]>(x, w, conv_bias)
    d = Div(c, root)
    e = Erf(d)
    a = Add(e, one)
    g = Mul(c, a)
    [next] y = Conv(g, v)
}
"""


@pytest.mark.parametrize("size", [0.0, 0.1])
def test_a_bias_that_is_all_0_is_no_bias_to_openvino(size):
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(GELU_OF_A_CONVOLUTION)
    weights = {"w": (24, 24, 3), "v": (24, 24, 3), "conv_bias": (24,)}
    for name, shape in weights.items():
        array = (size if name == "conv_bias" else 0.1) * rng.standard_normal(shape)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    model = Model.load(proto)
    feeds = [{"x": rng.standard_normal((2, 24, 100)).astype(np.float32)} for _ in range(4)]
    quantized = ei.optimize(model, QuantizeStatic(calibration=feeds, target="openvino"))
    here, there = (run_outputs(quantized, feeds, target) for target in (None, "openvino"))
    assert output_sqnr_db(here, there) > SAME_DB


SQUEEZE_AND_EXCITE = """
<ir_version: 8, opset_import: ["" : 14]>
gated (float[N,32,6,6] x) => (float[N,32,6,6] y) {
    mixed = Conv<pads = [1, 1, 1, 1]>(x, w)
    mean = GlobalAveragePool(mixed)
    wish = Conv(mean, w_gate, b_gate)
    gate = Sigmoid(wish)
    y = Mul(mixed, gate)
}
"""


def test_a_convolution_without_bias_before_a_gate_runs_right_with_a_symbolic_batch():
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(SQUEEZE_AND_EXCITE)
    weights = {"w": rng.standard_normal((32, 32, 3, 3)), "w_gate": 3 * rng.standard_normal((32, 32, 1, 1))}
    weights["b_gate"] = 3 * rng.standard_normal(32)
    for name, values in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values.astype(np.float32), name))
    model = Model.load(proto)
    feeds = [{"x": rng.standard_normal((1, 32, 6, 6)).astype(np.float32)} for _ in range(4)]
    step = QuantizeStatic(calibration=feeds, target="openvino", keep_float=("Conv_2",))
    quantized = ei.optimize(model, step)
    assert any(node.op_type == "QuantizeLinear" for node in quantized.ir.graph)
    here, there = (run_outputs(quantized, feeds, target) for target in (None, "openvino"))
    assert output_sqnr_db(here, there) > SAME_DB
