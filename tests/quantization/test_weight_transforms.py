"""EqualizeWeights, SmoothQuant, RoundWeights, CorrectBias, QuantizeWeights and QuantizeDynamic."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import attrs
import numpy as np
import onnx_ir as ir
import pytest

from edgeinfer.errors import CalibrationError, PreconditionError
from edgeinfer.model.model import Model
from edgeinfer.quantization.methods.quantize_static import QuantizeStatic
from edgeinfer.quantization.placement.dialects import dialect_of
from edgeinfer.quantization.qdq.noted_scale import SCALE_KEY
from edgeinfer.transforms import (
    CorrectBias,
    EqualizeWeights,
    QuantizeDynamic,
    QuantizeWeights,
    RoundWeights,
    SmoothQuant,
)

sys.path.insert(0, str(Path(__file__).parent))
from weight_models import chain, clipped, feeds, make, mlp, run, sqnr_db

# Whatever the CPU: a weight keeps the grid that it has.
WIDE = attrs.evolve(dialect_of("openvino"), pairs_in_int16=False)


def _weight(model: Model, name: str) -> np.ndarray:
    return model.ir.graph.initializers[name].const_value.numpy()


@pytest.mark.parametrize("activation", ["Relu", "LeakyRelu", "Identity"])
def test_equalize_is_exact_and_levels_the_ranges(activation):
    model = chain(activation)
    result = EqualizeWeights().apply(model)
    assert len(result.report.applied) == 2
    given = feeds(model)
    wanted = run(model, given)
    np.testing.assert_allclose(run(result.model, given), wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    first = np.abs(_weight(result.model, "w1")).max(axis=(1, 2, 3))
    second = np.abs(_weight(result.model, "w2")).max(axis=(1, 2, 3))
    third = np.abs(_weight(result.model, "w3")).max(axis=(0, 2, 3))
    np.testing.assert_allclose(first, second, rtol=1e-2)
    np.testing.assert_allclose(second, third, rtol=1e-2)


def test_equalize_twice_is_once():
    once = EqualizeWeights().apply(chain()).model
    again = EqualizeWeights().apply(once)
    assert not again.report.modified
    assert again.model.digest == once.digest
    assert any("already" in reason for _, reason in again.report.skipped)


def test_equalize_leaves_clip_alone_and_says_so():
    model = clipped()
    report = EqualizeWeights().apply(model).report
    assert not report.modified
    assert any("Clip" in reason and "homogeneous" in reason for _, reason in report.skipped)


def test_smooth_quant_is_exact_and_folds_into_layer_normalization():
    model = mlp()
    given = feeds(model)
    result = SmoothQuant(calibration=given).apply(model)
    assert result.report.applied[0].node == model.ir.graph[1].name
    assert len(result.model.ir.graph) == len(model.ir.graph)
    np.testing.assert_allclose(run(result.model, given), run(model, given), rtol=1e-4, atol=1e-4)
    assert not SmoothQuant(calibration=given).apply(result.model).report.modified


def test_smooth_quant_inserts_only_when_asked():
    model = mlp()
    given = feeds(model)
    skipped = SmoothQuant(calibration=given).apply(model).report.skipped
    assert any("Relu" in reason for _, reason in skipped)
    result = SmoothQuant(calibration=given, insert=True).apply(model)
    assert len(result.model.ir.graph) == len(model.ir.graph) + 1
    layers = [node.name for node in model.ir.graph if node.op_type in ("MatMul", "Gemm")]
    assert not SmoothQuant(calibration=given, insert=True, keep_float=layers).apply(model).report.modified
    np.testing.assert_allclose(run(result.model, given), run(model, given), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", [4, 8])
def test_round_weights_on_a_float_graph_beats_nearest(bits):
    model = chain()
    given = feeds(model, count=16)
    result = RoundWeights(calibration=given, bits=bits).apply(model)
    assert len(result.report.applied) == 3
    high = 2 ** (bits - 1) - 1
    nearest = model.copy_ir()
    for name in ("w1", "w2", "w3"):
        facts = json.loads(result.model.ir.graph.initializers[name].const_value.metadata_props[SCALE_KEY])
        scale = np.array(facts["scale"], np.float32).reshape(-1, 1, 1, 1)
        steps = _weight(result.model, name) / scale
        np.testing.assert_allclose(steps, np.rint(steps), atol=1e-3)
        assert np.abs(steps).max() <= high + 1e-3
        rounded = np.clip(np.rint(_weight(model, name) / scale), -high, high) * scale
        nearest.graph.initializers[name].const_value = ir.tensor(rounded.astype(np.float32), name=name)
    wanted = run(model, given)
    assert sqnr_db(wanted, run(result.model, given)) > sqnr_db(wanted, run(Model(nearest), given))
    assert not RoundWeights(calibration=given, bits=bits).apply(result.model).report.modified


@pytest.mark.parametrize("bits", [4, 8])
def test_quantizing_after_rounding_keeps_the_grid(bits):
    model = chain()
    given = feeds(model)
    rounded = RoundWeights(calibration=given, bits=bits).apply(model).model
    stored = Model.load(rounded.to_bytes())  # the scales are in the file, too
    quantized = QuantizeStatic(calibration=given, target=WIDE).apply(stored).model
    for name in ("w1", "w2", "w3"):
        tensor = rounded.ir.graph.initializers[name].const_value
        scale = np.array(json.loads(tensor.metadata_props[SCALE_KEY])["scale"], np.float32)
        np.testing.assert_array_equal(_weight(quantized, f"{name}_scale"), scale)
        integers = _weight(quantized, f"{name}_quantized")
        assert np.abs(integers.astype(int)).max() <= 2 ** (bits - 1) - 1
        restored = integers * scale.reshape(-1, 1, 1, 1)
        np.testing.assert_allclose(restored, tensor.numpy(), rtol=1e-6, atol=0)


def test_a_weight_that_left_its_grid_gets_a_new_one():
    model = chain()
    given = feeds(model)
    rounded = RoundWeights(calibration=given).apply(model).model
    graph = rounded.copy_ir()
    tensor = graph.graph.initializers["w1"].const_value
    moved = ir.tensor(tensor.numpy() * np.float32(1.37), name="w1")
    moved.metadata_props[SCALE_KEY] = tensor.metadata_props[SCALE_KEY]
    graph.graph.initializers["w1"].const_value = moved
    quantized = QuantizeStatic(calibration=given, target=WIDE).apply(Model(graph)).model
    expected = np.abs(moved.numpy()).max(axis=(1, 2, 3)) / 127
    np.testing.assert_allclose(_weight(quantized, "w1_scale"), expected, rtol=1e-6, atol=0)


def _quantized(model: Model, given: list[dict[str, np.ndarray]]) -> Model:
    result = QuantizeStatic(calibration=given).apply(model)
    assert result.report.modified, "the model is too small for QuantizeStatic to gain from"
    return result.model


def _wide() -> Model:
    return make(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 32, 16, 16] x) => (float[N, 64, 16, 16] y) {
            c1 = Conv<pads=[1, 1, 1, 1]>(x, w1, b1)
            a1 = Relu(c1)
            c2 = Conv<pads=[1, 1, 1, 1]>(a1, w2)
            a2 = Relu(c2)
            y = Conv<pads=[1, 1, 1, 1]>(a2, w3, b3)
        }""",
        w1=(64, 32, 3, 3), b1=(64,), w2=(64, 64, 3, 3), w3=(64, 64, 3, 3), b3=(64,),
    )  # fmt: skip


def test_corrections_bring_a_quantized_graph_closer_to_float():
    model = _wide()
    given = feeds(model, count=6)
    quantized = _quantized(model, given)
    wanted = run(model, given)
    rounded = RoundWeights(calibration=given).apply(quantized)
    corrected = CorrectBias(calibration=given).apply(rounded.model)
    assert rounded.report.modified
    assert corrected.report.modified
    assert sqnr_db(wanted, run(corrected.model, given)) > sqnr_db(wanted, run(quantized, given))

    def mean_error(other: Model) -> float:
        return float(np.abs((wanted - run(other, given)).mean(axis=(0, 2, 3))).mean())

    assert mean_error(corrected.model) < mean_error(rounded.model)


@pytest.mark.parametrize("transform", [CorrectBias, RoundWeights])
def test_corrections_take_a_reference_and_refuse_without_one(transform):
    model = _wide()
    given = feeds(model, count=2)
    quantized = _quantized(model, given)
    from_file = Model.load(quantized.to_bytes())
    with pytest.raises(PreconditionError, match="float model") as caught:
        transform(calibration=given).apply(from_file)
    assert "reference=" in str(caught.value)
    assert transform(calibration=given, reference=model).apply(from_file).report.modified
    with pytest.raises(CalibrationError):
        transform(reference=model).apply(from_file)


def test_correct_bias_skips_every_layer_of_a_float_graph():
    report = CorrectBias(calibration=[]).apply(chain()).report
    assert not report.modified
    assert len(report.skipped) == 3
    assert all("float" in reason for _, reason in report.skipped)


@pytest.mark.parametrize(
    ("options", "ratio", "least_db"),
    [
        ({}, 0.3, 38),
        ({"block_size": 32}, 0.35, 38),
        ({"bits": 4}, 0.2, 15),
        ({"bits": 4, "target": "onnxruntime"}, 0.2, 15),
        ({"dtype": "float8e4m3fn"}, 0.3, 28),
    ],
)
def test_quantize_weights_shrinks_and_stays_close(options, ratio, least_db):
    model = mlp()
    given = feeds(model)
    transform = QuantizeWeights(**options)
    result = transform.apply(model)
    assert len(result.report.applied) == 2
    assert result.model.nbytes < ratio * model.nbytes
    assert sqnr_db(run(model, given), run(result.model, given)) > least_db
    again = transform.apply(result.model)
    assert not again.report.modified
    assert model.digest == result.report.digest_before  # the model given is untouched


def test_quantize_weights_stores_embeddings_in_int8():
    model = make(
        """<ir_version: 8, opset_import: ["": 17]>
        g (int64[N, 5] ids) => (float[N, 5, 16] y) {
            e = Gather(table, ids)
            y = Relu(e)
        }""",
        table=(400, 16),
    )
    result = QuantizeWeights().apply(model)
    assert result.report.applied
    assert result.model.nbytes < 0.3 * model.nbytes
    given = [{"ids": np.arange(20).reshape(4, 5)}]
    assert sqnr_db(run(model, given), run(result.model, given)) > 25


def test_quantize_weights_says_why_not():
    small = QuantizeWeights().apply(chain()).report
    assert not small.modified
    assert all("min_elements" in reason for _, reason in small.skipped)
    conv = QuantizeWeights(target="onnxruntime", min_elements=0).apply(chain()).report
    assert not conv.modified
    assert all("each run" in reason for _, reason in conv.skipped)
    float8 = QuantizeWeights(dtype="float8e4m3fn", target="onnxruntime").apply(mlp()).report
    assert not float8.modified
    assert any("float8" in reason for _, reason in float8.skipped)


def test_quantize_weights_refuses_nonsense():
    with pytest.raises(ValueError, match="bits"):
        QuantizeWeights(bits=5)
    with pytest.raises(ValueError, match="power of two"):
        QuantizeWeights(bits=4, block_size=24)


def test_quantize_dynamic_stays_close():
    model = mlp()
    given = feeds(model)
    result = QuantizeDynamic().apply(model)
    assert len(result.report.applied) == 2
    assert sqnr_db(run(model, given), run(result.model, given)) > 30
    assert not QuantizeDynamic().apply(result.model).report.modified


def test_quantize_dynamic_lstm_is_for_onnxruntime():
    model = make(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[T, 1, 32] x) => (float[T, 1, 1, 32] y) {
            y = LSTM<hidden_size=32>(x, w, r, b)
        }""",
        w=(1, 128, 32), r=(1, 128, 32), b=(1, 256),
    )  # fmt: skip
    anywhere = QuantizeDynamic().apply(model).report
    assert not anywhere.modified
    assert "ONNX Runtime" in anywhere.skipped[0].reason
    result = QuantizeDynamic(target="onnxruntime").apply(model)
    assert len(result.report.applied) == 1
    given = [{"x": np.random.default_rng(0).standard_normal((6, 1, 32)).astype(np.float32)}]
    assert sqnr_db(run(model, given), run(result.model, given)) > 20


def test_quantize_dynamic_skips_by_runtime():
    for target in ("openvino", "tensorrt"):
        report = QuantizeDynamic(target=target).apply(mlp()).report
        assert not report.modified
        assert len(report.skipped) == 2
    convolutions = QuantizeDynamic().apply(chain()).report
    assert all("ConvInteger" in reason for _, reason in convolutions.skipped)
