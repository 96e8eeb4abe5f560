from __future__ import annotations

import attrs
import numpy as np
import onnx_ir as ir
import pytest

import edgeinfer as ei
from edgeinfer.backends.onnxruntime_.backend import DIALECT as ORT
from edgeinfer.errors import CalibrationError, PreconditionError
from edgeinfer.model.model import Model
from edgeinfer.quantization.qdq.marks import REFERENCE_KEY
from edgeinfer.transforms import QuantizeStatic
from tests.quantization.qdq_models import (
    TARGETS,
    Builder,
    feeds,
    initializer,
    quantized,
    residual_net,
    run_plain,
    sqnr_db,
)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("method", ["minmax", "mse"])
def test_outputs_are_close_to_float(target: str, method: str) -> None:
    model = residual_net()
    after = quantized(model, target, method=method)
    feed = feeds(model, 1, seed=9)[0]
    assert sqnr_db(run_plain(model, feed), run_plain(after, feed)) > 25


def test_names_of_float_tensors_are_kept() -> None:
    after = quantized(residual_net())
    names = {value.name for node in after.ir.graph for value in node.outputs}
    assert {"relu1_out", "relu1_out_quantized", "relu1_out_dequantized", "conv1_w_dequantized"} <= names
    assert after.signature == residual_net().signature


def test_onnxruntime_gets_uint8_activations_and_int32_biases() -> None:
    after = quantized(residual_net(), "onnxruntime")
    assert initializer(after, "relu1_out_zero_point").dtype == np.uint8
    assert initializer(after, "conv1_b_conv1_quantized").dtype == np.int32
    step = initializer(after, "x_scale") * initializer(after, "conv1_w_scale")
    np.testing.assert_allclose(initializer(after, "conv1_b_conv1_scale"), step, rtol=1e-6)


def test_tensorrt_gets_int8_with_zero_point_zero_and_float_biases() -> None:
    after = quantized(residual_net(), "tensorrt")
    for node in after.ir.graph:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero_point = node.inputs[2]
            assert zero_point is not None
            assert zero_point.const_value is not None
            assert zero_point.const_value.dtype is ir.DataType.INT8
            assert not zero_point.const_value.numpy().any()
    assert initializer(after, "conv1_b").dtype == np.float32


def test_weights_have_one_scale_a_channel() -> None:
    model = residual_net()
    assert initializer(quantized(model), "conv1_w_scale").shape == (32,)
    assert initializer(quantized(model), "fc_w_scale").shape == (10,)
    assert initializer(quantized(model, per_channel=False), "conv1_w_scale").shape == ()


def test_fewer_weight_bits_use_fewer_levels() -> None:
    stored = initializer(quantized(residual_net(), weight_bits=4), "conv2_w_quantized")
    assert stored.min() >= -7
    assert stored.max() == 7


def test_onnxruntime_runs_it_in_integers() -> None:
    model = residual_net()
    artifact = ei.compile(quantized(model, attrs.evolve(ORT, costs=None)), backend="onnxruntime")
    with ei.load(artifact) as session:
        kinds = [layer.op_type for layer in session.execution().layers]
    assert kinds.count("QLinearConv") == 3
    assert kinds.count("QLinearAdd") == 1
    assert kinds.count("QGemm") == 1
    assert "Conv" not in kinds
    assert "Add" not in kinds


def test_keep_float_nodes_stay_float() -> None:
    model = residual_net()
    result = QuantizeStatic(feeds(model), keep_float=["conv3"]).apply(model)
    assert "conv3_w" in result.model.ir.graph.initializers
    assert ("conv3", "kept in float as asked") in result.report.skipped


def test_twice_is_once_and_says_so() -> None:
    model = quantized(residual_net())
    result = QuantizeStatic(feeds(model)).apply(model)
    assert not result.report.modified
    assert "quantized already" in result.report.skipped[0].reason


def test_the_float_reference_is_kept_in_memory() -> None:
    model = residual_net()
    after = quantized(model)
    assert isinstance(after.ir.meta[REFERENCE_KEY], ir.Model)
    assert Model(after.ir.meta[REFERENCE_KEY]).digest == model.digest
    assert REFERENCE_KEY in after.with_metadata(a="b").ir.meta
    assert REFERENCE_KEY not in Model.load(after.to_bytes()).ir.meta


def test_old_opsets_are_converted_and_int16_needs_opset_21() -> None:
    model = residual_net(opset=11)
    assert quantized(model).opset == 13
    after = quantized(residual_net(), activation_dtype="int16")
    assert after.opset == 21
    feed = feeds(model, 1)[0]
    assert sqnr_db(run_plain(residual_net(), feed), run_plain(after, feed)) > 35


def test_float8_is_for_targets_that_run_it() -> None:
    model = residual_net()
    with pytest.raises(PreconditionError, match="float8") as caught:
        quantized(model, "onnxruntime", activation_dtype="float8e4m3fn")
    assert "int16" in str(caught.value.hint)
    after = quantized(model, "tensorrt", activation_dtype="float8e4m3fn")
    assert after.opset == 19
    feed = feeds(model, 1)[0]
    assert sqnr_db(run_plain(model, feed), run_plain(after, feed)) > 15


def test_calibration_is_needed() -> None:
    with pytest.raises(CalibrationError, match="needs calibration") as caught:
        QuantizeStatic().apply(residual_net())
    assert caught.value.hint is not None
    with pytest.raises(CalibrationError):
        QuantizeStatic([]).apply(residual_net())


def test_others_quantized_models_are_refused_by_node() -> None:
    model = quantized(residual_net())
    stranger = Model.load(model.to_bytes()).copy_ir()
    stranger.metadata_props.clear()
    with pytest.raises(PreconditionError, match="quantized already") as caught:
        QuantizeStatic(feeds(model)).apply(Model.from_ir(stranger))
    assert "(QuantizeLinear)" in str(caught.value.where)
    assert "RetargetQDQ" in str(caught.value.hint)


def test_integer_operators_are_refused_by_node() -> None:
    model = Model.load(
        __import__("onnx").parser.parse_model(
            """<ir_version: 8, opset_import: ["": 13]> g (uint8[2,4] x) => (int32[2,3] y)
            <int8[4,3] w = {1,2,3,4,5,6,7,8,9,10,11,12}> { y = MatMulInteger(x, w) }"""
        )
    )
    with pytest.raises(PreconditionError, match="integer operators") as caught:
        QuantizeStatic([{"x": np.ones((2, 4), np.uint8)}]).apply(model)
    assert "MatMulInteger" in str(caught.value.where)


def test_float16_models_are_refused_by_node() -> None:
    from edgeinfer.transforms import ToFloat16

    model = ToFloat16().apply(residual_net()).model
    feed = {spec.name: np.zeros(spec.shape, spec.dtype) for spec in model.signature.inputs}  # type: ignore[arg-type]
    with pytest.raises(PreconditionError, match="float16") as caught:
        QuantizeStatic([feed]).apply(model)
    assert "conv1" in str(caught.value.where)


def test_float16_weights_behind_a_cast_count_as_float32() -> None:
    b = Builder(4, 64)
    half = b.weight("w16", b.rng.standard_normal((64, 64)).astype(np.float16))
    wide = b.node("Cast", half, name="cast", to=ir.DataType.FLOAT)
    model = b.model(b.node("MatMul", b.input, wide, name="fc"), 4, 64)
    after = quantized(model, attrs.evolve(ORT, costs=None))
    assert "w16" not in after.ir.graph.initializers
    assert initializer(after, "cast_out_quantized").dtype == np.int8


def test_a_tiny_weight_with_a_large_bias_does_not_overflow_int32() -> None:
    b = Builder(1, 16, 16, 16)
    w = b.rng.standard_normal((32, 16, 3, 3)).astype(np.float32)
    w[0] *= 1e-12
    bias = np.full(32, 1000, np.float32)
    conv = b.node("Conv", b.input, b.weight("w", w), b.weight("bias", bias), name="conv", pads=[1] * 4)
    model = b.model(b.node("GlobalAveragePool", b.node("Relu", conv, name="relu"), name="gap"), 1, 32, 1, 1)
    after = quantized(model, attrs.evolve(ORT, costs=None))
    feed = feeds(model, 1)[0]
    np.testing.assert_allclose(run_plain(after, feed), run_plain(model, feed), rtol=0.01)
