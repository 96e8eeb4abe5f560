"""Quantizing models of old opsets, which are converted on the way."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import edgeinfer as ei
from edgeinfer.model.model import Model
from edgeinfer.quantization.search.model_runs import run_outputs
from edgeinfer.quantization.search.output_score import output_sqnr_db
from edgeinfer.transforms import ConvertOpset, CorrectBias, QuantizeStatic, QuantizeWeights, RoundWeights

CLOSE_DB = 25.0  # int8 of two layers

# The converter writes Shape, Flatten, Reshape around each Softmax, and no name to any.
OLD = """
<ir_version: 6, opset_import: ["" : 11]>
old (float[2,16,5,5] x) => (float[2,8,5,5] y) {
    hidden = Conv(x, w)
    odds = Softmax(hidden)
    again = Softmax(odds)
    y = Conv(again, v)
}
"""


@pytest.fixture(scope="module")
def model() -> Model:
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(OLD)
    for name, shape in {"w": (8, 16, 1, 1), "v": (8, 8, 1, 1)}.items():
        weight = rng.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    return Model.load(proto)


@pytest.fixture(scope="module")
def feeds() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((2, 16, 5, 5)).astype(np.float32)} for _ in range(8)]


@pytest.mark.parametrize("mend", [CorrectBias, RoundWeights])
def test_what_the_converter_adds_has_names(model, feeds, mend):
    quantized = ei.optimize(model, [QuantizeStatic(target="openvino"), mend()], calibration=feeds)
    assert output_sqnr_db(run_outputs(model, feeds), run_outputs(quantized, feeds)) > CLOSE_DB


def test_a_reference_of_an_older_opset_is_named_too(model, feeds):
    quantized = ei.optimize(model, QuantizeStatic(target="openvino"), calibration=feeds)
    stored = Model.load(quantized.to_bytes())
    mended = ei.optimize(stored, CorrectBias(reference=model), calibration=feeds)
    assert output_sqnr_db(run_outputs(model, feeds), run_outputs(mended, feeds)) > CLOSE_DB


def test_float16_weights_need_an_opset_that_dequantizes_to_float16(half):
    x = np.random.default_rng(0).standard_normal((4, 16)).astype(np.float16)
    quantized = ei.optimize(half, QuantizeWeights(min_elements=1))
    assert any("opset 19" in entry.reason for entry in quantized.report.skipped)
    newer = ei.optimize(half, [ConvertOpset(19), QuantizeWeights(min_elements=1)])
    assert any(node.op_type == "DequantizeLinear" for node in newer.ir.graph)
    for model in (quantized, newer):
        assert output_sqnr_db(run_outputs(half, [{"x": x}]), run_outputs(model, [{"x": x}])) > CLOSE_DB


@pytest.fixture(scope="module")
def half() -> Model:
    proto = onnx.parser.parse_model(
        """
        <ir_version: 8, opset_import: ["" : 17]>
        half (float16[4,16] x) => (float16[4,8] y) { y = MatMul(x, w) }
        """
    )
    weight = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float16)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    return Model.load(proto)
