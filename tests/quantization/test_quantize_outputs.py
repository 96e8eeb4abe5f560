"""Outputs of the model that come out of integer kernels, where the dialect says so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import attrs
import numpy as np
import onnx_ir as ir
import pytest

import edgeinfer as ei
from edgeinfer.measure.speedup import TargetStopwatch
from edgeinfer.model.model import Model
from edgeinfer.quantization.placement.dialects import dialect_of
from edgeinfer.quantization.placement.output_layers import output_layers
from edgeinfer.quantization.qdq.marks import ranges_of
from edgeinfer.quantization.search.layer_gains import LayerGains, layer_gains
from edgeinfer.quantization.search.sensitivity import sensitivity
from edgeinfer.transforms import (
    CorrectBias,
    EqualizeActivations,
    EqualizeWeights,
    Pipeline,
    QuantizeStatic,
    RetargetQDQ,
    RoundWeights,
)
from tests.quantization.qdq_models import CHANNELS, Builder, feeds, sqnr_db

OFF = attrs.evolve(dialect_of("onnxruntime"), costs=None)  # these layers are too small to gain
ON = attrs.evolve(OFF, quantize_outputs=True)
COLOURS = 8


def _tailed(op_type: str | None, **attributes: object) -> Model:
    """Return two convolutions, and an operator between the last one and the model's output."""
    b = Builder(1, 16, 12, 12)
    inner = b.node("Relu", b.conv(b.input, "body", 16, CHANNELS), name="relu")
    value = b.conv(inner, "last", CHANNELS, COLOURS)
    shape = (1, COLOURS, 12, 12)
    if op_type == "Reshape":
        shape = (1, COLOURS, 144)
        value = b.node("Reshape", value, b.weight("shape", np.array(shape)), name="tail")
    elif op_type == "Clip":
        ends = b.weight("low", np.float32(-0.5)), b.weight("high", np.float32(1))
        value = b.node("Clip", value, *ends, name="tail")
    elif op_type is not None:
        value = b.node(op_type, value, name="tail", **attributes)
    if op_type == "Transpose":
        shape = (1, 12, 12, COLOURS)
    elif op_type == "DepthToSpace":
        shape = (1, COLOURS // 4, 24, 24)
    return b.model(value, *shape)


TAILS: dict[str, Callable[[], Model]] = {
    "none": lambda: _tailed(None),
    "Clip": lambda: _tailed("Clip"),
    "DepthToSpace": lambda: _tailed("DepthToSpace", blocksize=2),
    "Identity": lambda: _tailed("Identity"),
    "Relu": lambda: _tailed("Relu"),
    "Reshape": lambda: _tailed("Reshape"),
    "Sigmoid": lambda: _tailed("Sigmoid"),
    "Tanh": lambda: _tailed("Tanh"),
    "Transpose": lambda: _tailed("Transpose", perm=[0, 2, 3, 1]),
}


def _with_outputs(model: Model, *names: str) -> Model:
    """Return the model with other outputs, in this order."""
    changed = model.copy_ir()
    values = {value.name: value for node in changed.graph for value in node.outputs}
    for name in names:
        values[name].dtype = ir.DataType.FLOAT
    changed.graph.outputs.clear()
    changed.graph.outputs.extend(values[name] for name in names)
    return Model.from_ir(changed)


def _autoencoder() -> Model:
    b = Builder(4, 64)
    code = b.node("Relu", b.matmul(b.input, "encode", 64, 16), name="relu")
    weight = b.weight("w", b.rng.standard_normal((16, 64)).astype(np.float32) / 4)
    bias = b.weight("b", b.rng.standard_normal(64).astype(np.float32))
    return b.model(b.node("Gemm", code, weight, bias, name="decode"), 4, 64)


def _unet() -> Model:
    """Return a net that halves the image, doubles it again, and gives 4 classes at full resolution."""
    b = Builder(1, 16, 16, 16)
    fine = b.node("Relu", b.conv(b.input, "down1", 16, CHANNELS), name="fine")
    half = b.node("MaxPool", fine, name="pool", kernel_shape=[2, 2], strides=[2, 2])
    coarse = b.node("Relu", b.conv(half, "down2", CHANNELS, 4 * CHANNELS), name="coarse")
    up = b.node("DepthToSpace", coarse, name="up", blocksize=2)
    both = b.node("Concat", up, fine, name="cat", axis=1)
    merged = b.node("Relu", b.conv(both, "merge", 2 * CHANNELS, CHANNELS), name="merged")
    return b.model(b.conv(merged, "classes", CHANNELS, 4, k=1), 1, 4, 16, 16)


def _quantized(model: Model, target: object = ON, *steps: object, **options: object) -> Model:
    quantize = QuantizeStatic(feeds(model), target=target, method="minmax", **options)  # type: ignore[arg-type]
    return Pipeline((quantize, *steps)).apply(model).model  # type: ignore[arg-type]


def _infer(model: Model, target: str = "onnxruntime") -> list[np.ndarray]:
    with ei.load(ei.compile(model, target)) as session:
        return [array for feed in feeds(model, 3, seed=9) for array in session.infer(feed).values()]


def _kernels(model: Model, folder: Path) -> Counter[str]:
    """Return the operators of the graph that ONNX Runtime makes of the model."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(model.to_bytes(), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in ir.load(folder / "optimized.onnx").graph)


def _assert_close(model: Model, quantized: Model, least_db: float = 28) -> None:
    assert quantized.signature == model.signature
    for expected, got in zip(_infer(model), _infer(quantized), strict=True):
        assert sqnr_db(expected, got) > least_db


@pytest.mark.parametrize("tail", TAILS)
def test_the_last_convolution_runs_in_integers(tail: str, tmp_path: Path) -> None:
    model = TAILS[tail]()
    quantized = _quantized(model)
    _assert_close(model, quantized)
    kernels = _kernels(quantized, tmp_path)
    assert kernels["QLinearConv"] == 2
    assert not kernels.keys() & {"Conv", "FusedConv"}
    assert kernels["QuantizeLinear"] == 1  # at the door; no tensor is quantized anew on the way out
    assert kernels["DequantizeLinear"] == 1
    assert output_layers(model, OFF) == output_layers(model, ON) == {"last"}


@pytest.mark.parametrize("tail", TAILS)
def test_without_the_option_or_by_name_it_stays_float(tail: str) -> None:
    model = TAILS[tail]()
    off, kept = _quantized(model, OFF), _quantized(model, keep_float=output_layers(model, ON))
    for a, b in zip(_infer(off), _infer(kept), strict=True):
        np.testing.assert_array_equal(a, b)
    last = next(node for node in off.ir.graph if node.name == "last")
    assert last.inputs[1].is_initializer()


def test_depth_to_space_moves_bytes(tmp_path: Path) -> None:
    quantized = _quantized(TAILS["DepthToSpace"]())
    _kernels(quantized, tmp_path)
    (shuffle,) = [n for n in ir.load(tmp_path / "optimized.onnx").graph if n.op_type == "DepthToSpace"]
    assert [user.op_type for user in shuffle.outputs[0].consumers()] == ["DequantizeLinear"]


def test_several_outputs_keep_their_names_and_their_order(tmp_path: Path) -> None:
    # Each is read by the next layer, too; `last_out` is an output beside what is computed from it.
    model = _with_outputs(TAILS["Relu"](), "tail_out", "relu_out")
    quantized = _quantized(model)
    assert [spec.name for spec in quantized.signature.outputs] == ["tail_out", "relu_out"]
    _assert_close(model, quantized)
    assert _kernels(quantized, tmp_path)["QLinearConv"] == 2
    assert output_layers(model, ON) == {"body", "last"}
    model = _with_outputs(TAILS["Sigmoid"](), "last_out", "tail_out")
    quantized = _quantized(model)
    _assert_close(model, quantized)
    assert _kernels(quantized, tmp_path)["QLinearConv"] == 2


def test_one_tensor_may_be_an_output_as_it_is_and_moved(tmp_path: Path) -> None:
    for tail in ("Reshape", "Transpose", "DepthToSpace"):
        model = _with_outputs(TAILS[tail](), "tail_out", "last_out")
        quantized = _quantized(model)
        _assert_close(model, quantized)
        first, second = _infer(quantized)[:2]
        np.testing.assert_array_equal(np.unique(first), np.unique(second))
        assert _kernels(quantized, tmp_path)["QLinearConv"] == 2


def test_outputs_that_join_tensors_are_never_made_of_8_bits() -> None:
    b = Builder(1, CHANNELS, 8, 8)
    boxes, scores = b.conv(b.input, "boxes", CHANNELS, 4), b.conv(b.input, "scores", CHANNELS, 8)
    flat = b.weight("flat", np.array([1, -1, 64]))
    moved = [b.node("Reshape", each, flat, name=f"flat{i}") for i, each in enumerate((boxes, scores))]
    model = b.model(b.node("Concat", *moved, name="cat", axis=1), 1, 12, 64)
    report = QuantizeStatic(feeds(model), target=ON).apply(model).report
    reasons = {skipped.node: skipped.reason for skipped in report.skipped}
    assert "beside those of others" in reasons["boxes"]
    assert "beside those of others" in reasons["scores"]
    assert output_layers(model, ON) == frozenset()


def test_a_head_that_is_split_into_outputs(tmp_path: Path) -> None:
    b = Builder(1, CHANNELS, 8, 8)
    head = ir.node("Split", [b.conv(b.input, "head", CHANNELS, 16)], {"axis": 1}, num_outputs=2, name="split")
    scores, boxes = head.outputs
    scores.name, boxes.name = "scores", "boxes"
    b.nodes.append(head)
    b.node("Transpose", boxes, name="moved", perm=[0, 2, 3, 1])
    model = _with_outputs(
        b.model(b.node("Sigmoid", scores, name="gate"), 1, 8, 8, 8), "moved_out", "gate_out", "scores"
    )
    quantized = _quantized(model)
    _assert_close(model, quantized)
    kernels = _kernels(quantized, tmp_path)
    assert kernels["QLinearConv"] == 1
    assert "Conv" not in kernels
    assert output_layers(model, ON) == {"head"}


def test_a_unet(tmp_path: Path) -> None:
    model = _unet()
    quantized = _quantized(model)
    _assert_close(model, quantized)
    kernels = _kernels(quantized, tmp_path)
    assert kernels["QLinearConv"] == 4
    assert not kernels.keys() & {"Conv", "FusedConv"}
    assert output_layers(model, ON) == {"classes"}


def test_products_have_float_outputs_anyway() -> None:
    model = _autoencoder()
    assert output_layers(model, ON) == frozenset()
    for a, b in zip(_infer(_quantized(model)), _infer(_quantized(model, OFF)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("tail", ["none", "Relu", "DepthToSpace"])
def test_what_mends_a_quantized_model_works_on_it(tail: str) -> None:
    model = TAILS[tail]()
    calibration = feeds(model)
    steps = (EqualizeWeights(), EqualizeActivations(calibration=calibration))
    plain = _quantized(model)
    quantize = QuantizeStatic(calibration, target=ON, method="minmax")
    after = (RoundWeights(calibration=calibration), CorrectBias(calibration=calibration))
    result = Pipeline((*steps, quantize, *after)).apply(model)
    mended = result.model
    rounded = {applied.node for step in result.report.steps for applied in step.applied}
    assert "last" in rounded
    before, after_db = (
        np.mean([sqnr_db(a, b) for a, b in zip(_infer(model), _infer(each), strict=True)])
        for each in (plain, mended)
    )
    assert mended.signature == model.signature
    assert after_db > before - 0.5


@pytest.mark.parametrize("target", ["openvino", "tensorrt"])
@pytest.mark.parametrize("tail", ["none", "Relu", "DepthToSpace"])
def test_other_runtimes_get_float_outputs_again(target: str, tail: str) -> None:
    model = TAILS[tail]()
    direct = _quantized(model, target)
    retargeted = _quantized(model, ON, RetargetQDQ(target))
    assert retargeted.signature == model.signature
    # The activations of TensorRT are symmetric, so only the placement is compared there.
    names = [[node.name for node in each.ir.graph] for each in (direct, retargeted)]
    assert sorted(map(str, names[0])) == sorted(map(str, names[1]))
    _assert_close(model, retargeted)


@pytest.mark.parametrize("tail", ["none", "Relu", "DepthToSpace"])
def test_a_model_of_another_runtime_can_get_integer_outputs(tail: str, tmp_path: Path) -> None:
    model = TAILS[tail]()
    retargeted = _quantized(model, "openvino", RetargetQDQ(ON))
    _assert_close(model, retargeted)
    assert _kernels(retargeted, tmp_path)["QLinearConv"] == 2


def test_a_model_without_notes_keeps_float_what_has_no_scale(tmp_path: Path) -> None:
    quantized = _quantized(TAILS["DepthToSpace"](), "openvino").copy_ir()
    quantized.metadata_props.clear()
    retargeted = RetargetQDQ(ON).apply(Model.from_ir(quantized)).model
    assert _kernels(retargeted, tmp_path)["QLinearConv"] == 1
    assert retargeted.signature == TAILS["DepthToSpace"]().signature


def test_a_moved_output_without_a_scale_is_moved_in_float(tmp_path: Path) -> None:
    quantized = _quantized(TAILS["DepthToSpace"](), keep_float={"tail"}).copy_ir()
    quantized.metadata_props.clear()
    retargeted = RetargetQDQ(ON).apply(Model.from_ir(quantized)).model
    assert _kernels(retargeted, tmp_path)["QLinearConv"] == 2
    (shuffle,) = [node for node in retargeted.ir.graph if node.op_type == "DepthToSpace"]
    assert shuffle.outputs[0].is_graph_output()


def test_sensitivity_and_gains_know_the_last_convolution() -> None:
    model = TAILS["Relu"]()
    table = sensitivity(model, feeds(model), target=ON, method="minmax")  # type: ignore[arg-type]
    assert {layer.node for layer in table.layers} == {"body", "last"}
    with TargetStopwatch() as stopwatch:
        gains = layer_gains(model, _quantized(model), feeds(model, 1)[0], stopwatch, ON)
    assert isinstance(gains, LayerGains)
    assert {layer.node for layer in gains.layers} == {"body", "last"}


def test_known_ranges_suffice_to_place_anew() -> None:
    model = TAILS["DepthToSpace"]()
    known = ranges_of(_quantized(model, OFF).ir)
    empty = QuantizeStatic(feeds(model, 1), target=ON, ranges=known).apply(model).model
    for a, b in zip(_infer(empty), _infer(_quantized(model)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_super_resolution(models: Callable[[str], Path], tmp_path: Path) -> None:
    model = Model.load(models("espcn_x3"))
    rng = np.random.default_rng(0)
    images = [{"input": rng.random((1, 1, 24, 24), np.float32).repeat(2, 2)} for _ in range(4)]
    quantize = QuantizeStatic(images, target=attrs.evolve(dialect_of("onnxruntime"), quantize_outputs=True))
    quantized = Pipeline((quantize, RoundWeights(calibration=images))).apply(model).model
    kernels = _kernels(quantized, tmp_path)
    assert kernels["QLinearConv"] == 4
    assert "Conv" not in kernels
    with ei.load(ei.compile(model)) as reference, ei.load(ei.compile(quantized)) as session:
        pair = [each.infer(images[0])["output"] for each in (reference, session)]
    assert sqnr_db(*pair) > 30
