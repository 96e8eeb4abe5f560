"""The algebra of quantization against the ONNX reference and against its own laws."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from edgeinfer.errors import CalibrationError
from edgeinfer.numerics.qparams import DTYPES, QParams, activation_qparams, range_qparams, weight_qparams

INTEGERS = [name for name in DTYPES if not name.startswith("float")]
finite = st.floats(-(2.0**120), 2.0**120, width=32)
moderate = hnp.arrays(
    np.float32, hnp.array_shapes(max_dims=3, max_side=6), elements=st.floats(-50, 50, width=32)
)


def reference_quantize(x: np.ndarray, qparams: QParams) -> np.ndarray:
    code = getattr(TensorProto, qparams.dtype.upper())
    attributes = {"axis": qparams.axis} if qparams.axis is not None else {}
    if qparams.block_size is not None:
        attributes["block_size"] = qparams.block_size
    q = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **attributes)
    dq = helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], **attributes)
    graph = helper.make_graph(
        [q, dq],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("s", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("z", code, None),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)])
    feeds = {"x": x, "s": qparams.scale, "z": qparams.zero_point}
    return ReferenceEvaluator(model).run(None, feeds)[0]


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "float8e4m3fn"])
@pytest.mark.parametrize("symmetric", [True, False])
@settings(max_examples=30, deadline=None)
@given(x=moderate, low=st.just(0.0) | st.floats(-40, -0.01), high=st.floats(0.01, 40))
def test_rounding_and_saturation_are_those_of_the_onnx_reference(dtype, symmetric, x, low, high):
    qparams = activation_qparams(low, high, dtype, symmetric)
    np.testing.assert_allclose(qparams.fake_quantize(x), reference_quantize(x, qparams), rtol=1e-6, atol=0)


@settings(max_examples=30, deadline=None)
@given(x=moderate, data=st.data())
def test_per_channel_agrees_with_the_onnx_reference(x, data):
    axis = data.draw(st.integers(0, x.ndim - 1))
    qparams = weight_qparams(x, axis, "int8", True)
    np.testing.assert_allclose(qparams.fake_quantize(x), reference_quantize(x, qparams), rtol=1e-6, atol=0)


def test_ties_round_to_even():
    qparams = QParams(scale=np.float32(1), zero_point=np.int8(0), dtype="int8")
    x = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5], np.float32)
    assert qparams.quantize(x).tolist() == [-2, -2, 0, 0, 2, 2]
    assert qparams.quantize(x).dtype == np.int8


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("symmetric", [True, False])
@settings(max_examples=60, deadline=None)
@given(ends=st.tuples(finite, finite))
def test_any_range_gives_usable_parameters_and_an_exact_zero(dtype, symmetric, ends):
    qparams = activation_qparams(min(ends), max(ends), dtype, symmetric)
    assert np.isfinite(qparams.scale)
    assert qparams.scale >= np.finfo(np.float32).tiny
    back = qparams.fake_quantize(np.array([0, min(ends), max(ends)], np.float32))
    assert back[0] == 0
    assert np.isfinite(back).all()


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("symmetric", [True, False])
@settings(max_examples=60, deadline=None)
@given(low=st.floats(-100, 0), high=st.floats(0, 100), data=st.data())
def test_the_error_within_the_range_is_at_most_one_step(dtype, symmetric, low, high, data):
    qparams = activation_qparams(low, high, dtype, symmetric)
    x = np.float32(data.draw(st.floats(low, high)))
    # Half a step of rounding, and half a step that an end may move when the zero point is rounded.
    assert abs(float(qparams.fake_quantize(x)) - float(x)) <= float(qparams.scale) * 1.001 + 1e-4 * abs(x)


@settings(max_examples=40, deadline=None)
@given(x=moderate)
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int4", "uint4"])
def test_quantizing_twice_equals_quantizing_once(dtype, x):
    qparams = weight_qparams(x, None, dtype, False)
    once = qparams.fake_quantize(x)
    np.testing.assert_array_equal(qparams.fake_quantize(once), once)
    np.testing.assert_array_equal(qparams.dequantize(qparams.quantize(x)), once)


def test_the_known_parameters_of_plain_ranges():
    assert float(activation_qparams(0, 255, "uint8", False).scale) == 1
    assert int(activation_qparams(0, 6, "uint8", False).zero_point) == 0
    assert int(activation_qparams(-6, 0, "uint8", False).zero_point) == 255
    assert int(activation_qparams(0, 6, "uint8", True).zero_point) == 128
    assert int(activation_qparams(-1, 6, "int8", True).zero_point) == 0
    assert float(activation_qparams(-1, 127, "int8", True).scale) == 1
    assert float(activation_qparams(-64, 0, "int8", True, reduce_range=True).scale) == 1
    assert float(activation_qparams(3, 5, "uint8", False).scale) == pytest.approx(5 / 255, rel=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_range_of_nothing_is_usable(dtype):
    qparams = activation_qparams(0, 0, dtype, False)
    assert float(qparams.scale) == 1
    assert float(qparams.fake_quantize(np.float32(0))) == 0


def test_a_channel_of_zeros_takes_the_greatest_scale_of_the_others():
    weight = np.array([[1, -2], [0, 0], [127, 3]], np.float32)
    np.testing.assert_allclose(weight_qparams(weight, 0, "int8", True).scale, [2 / 127, 1, 1], rtol=1e-6)


def test_blocks_have_a_scale_each_and_the_last_may_be_short():
    weight = np.arange(10, dtype=np.float32).reshape(1, 10)
    qparams = weight_qparams(weight, 1, "uint4", False, block_size=4)
    assert qparams.scale.shape == (1, 3)
    np.testing.assert_allclose(qparams.scale, [[3 / 15, 7 / 15, 9 / 15]], rtol=1e-6)
    np.testing.assert_allclose(qparams.fake_quantize(weight), weight, atol=0.31, rtol=0)


@settings(max_examples=30, deadline=None)
@given(weight=hnp.arrays(np.float32, (3, 8), elements=st.floats(-50, 50, width=32)))
def test_blocks_agree_with_quantizing_each_block_alone(weight):
    whole = weight_qparams(weight, 1, "int8", True, block_size=4)
    ranges = np.abs(weight.reshape(3, 2, 4)).max(axis=2)
    alone = range_qparams(-ranges, ranges, "int8", True)
    np.testing.assert_array_equal(whole.scale, alone.scale)


@pytest.mark.parametrize("ends", [(np.nan, 1), (0, np.inf), (2, 1)])
def test_what_is_no_range_is_refused(ends):
    with pytest.raises(CalibrationError, match="not a range"):
        activation_qparams(*ends, "int8", True)
