from __future__ import annotations

import attrs
import numpy as np
import onnx_ir as ir
import pytest

from edgeinfer.backends.onnxruntime_.backend import DIALECT as ORT
from edgeinfer.model.model import Model
from edgeinfer.quantization.qdq.marks import ranges_of
from edgeinfer.quantization.search.model_runs import run_outputs
from edgeinfer.quantization.search.output_score import output_sqnr_db
from edgeinfer.quantization.search.sensitivity import sensitivity
from edgeinfer.transforms import CorrectBias, QuantizeStatic, RetargetQDQ, RoundWeights
from tests.quantization.qdq_models import CHANNELS, Builder

EAGER = attrs.evolve(ORT, costs=None)  # also layers too small to gain time
# Where a Gemm must have a quantized output, too, nothing is gained by it.
ROUNDING = attrs.evolve(EAGER, needs_output={"Conv", "Gemm"})
CLASSES = 40


def classifier(
    tail: str = "Flatten", *, batch: str | int = "N", opset: int = 17, shared: bool = False
) -> Model:
    """body + relu -> global pool -> 1x1 convolution -> the tail."""
    b = Builder(batch, CHANNELS, 12, 12, opset=opset)  # type: ignore[arg-type]
    body = b.node("Relu", b.conv(b.input, "body", CHANNELS, CHANNELS), name="relu")
    pooled = b.node("GlobalAveragePool", body, name="pool")
    logits = b.conv(pooled, "fc", CHANNELS, CLASSES, k=1)
    if tail == "4-D":
        return b.model(logits, batch, CLASSES, 1, 1)  # type: ignore[arg-type]
    if tail == "gate":
        logits = b.node("HardSigmoid", b.conv(pooled, "gate", CHANNELS, CHANNELS, k=1), name="hard")
        return b.model(b.node("Mul", body, logits, name="product"), batch, CHANNELS, 12, 12)  # type: ignore[arg-type]
    if tail == "HardSwish":
        inner = b.node("HardSwish", logits, name="act")
        logits = b.conv(inner, "last", CLASSES, CLASSES, k=1)
    if tail == "Relu":
        inner = b.node("Relu", logits, name="act")
        logits = b.conv(inner, "last", CLASSES, CLASSES, k=1)
    if shared:
        again = b.node("Conv", pooled, b.nodes[-1].inputs[1], name="twin")  # type: ignore[arg-type]
        logits = b.node("Sub", logits, b.node("Softmax", again, name="other", axis=1), name="both")
    flat = b.node("Flatten", logits, name="flat")
    return b.model(b.node("Softmax", flat, name="probabilities"), batch, CLASSES)  # type: ignore[arg-type]


def calibration(count: int = 12, seed: int = 1) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((1, CHANNELS, 12, 12)).astype(np.float32)} for _ in range(count)]


def quantized(model: Model, **options: object) -> Model:
    step = QuantizeStatic(calibration(), **({"target": EAGER} | options))  # type: ignore[arg-type]
    return step.apply(model).model


def operators(model: Model) -> dict[str, str]:
    return {str(node.name): node.op_type for node in model.ir.graph}


def readers(model: Model, name: str) -> list[str]:
    node = next(node for node in model.ir.graph if node.name == name)
    return [user.op_type for user in node.outputs[0].consumers()]


def closeness(model: Model, other: Model) -> float:
    feeds = calibration(seed=2)
    return output_sqnr_db(run_outputs(model, feeds), run_outputs(other, feeds))


@pytest.mark.parametrize("opset", [13, 17, 21])
@pytest.mark.parametrize("batch", ["N", 1])
def test_a_classifier_runs_as_gemm_with_a_float_output(batch: str | int, opset: int) -> None:
    model = classifier(batch=batch, opset=opset)
    result = quantized(model)
    assert operators(result)["fc"] == "Gemm"
    assert "flat" not in operators(result)
    assert readers(result, "fc") == ["Softmax"]
    assert result.signature == model.signature
    assert closeness(model, result) > 30


def test_without_the_rounding_of_its_output_it_is_closer_to_float() -> None:
    model = classifier()
    rounded = quantized(model, target=ROUNDING)
    assert operators(rounded)["fc"] == "Conv"
    assert closeness(model, quantized(model)) > closeness(model, rounded)


def test_onnxruntime_runs_it_in_integers(tmp_path: object) -> None:
    import onnx
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = f"{tmp_path}/optimized.onnx"
    ort.InferenceSession(quantized(classifier()).to_bytes(), options, providers=["CPUExecutionProvider"])
    types = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
    assert "QGemm" in types
    assert "DequantizeLinear" not in types


def test_an_output_of_the_model_keeps_its_shape_and_no_longer_keeps_the_layer_in_float() -> None:
    model = classifier("4-D")
    result = quantized(model)
    assert operators(result)["fc"] == "Gemm"
    assert readers(result, "fc") == ["Reshape"]
    assert result.signature == model.signature
    feed = {"x": np.random.default_rng(0).standard_normal((3, CHANNELS, 12, 12)).astype(np.float32)}
    assert run_outputs(result, [feed])[0][0].shape == (3, CLASSES, 1, 1)
    assert closeness(model, result) > 30


def test_a_float_activation_behind_it_reads_a_float_tensor() -> None:
    model = classifier("HardSwish")
    result = quantized(model)
    assert operators(result)["fc"] == operators(result)["last"] == "Gemm"
    assert readers(result, "fc_Reshape") == ["HardSwish"]
    assert closeness(model, result) > 25


def test_a_layer_that_the_next_reads_in_integers_stays_a_convolution() -> None:
    result = quantized(classifier("Relu"))
    assert operators(result)["fc"] == "Conv"
    assert operators(result)["last"] == "Gemm"


def test_gates_and_layers_kept_in_float_stay_convolutions() -> None:
    assert operators(quantized(classifier("gate")))["gate"] == "Conv"
    assert operators(quantized(classifier(), keep_float=["fc"]))["fc"] == "Conv"
    assert operators(quantized(classifier(), target="openvino"))["fc"] == "Conv"


def test_a_shared_weight_keeps_its_shape_for_the_other_reader() -> None:
    model = classifier(shared=True)
    result = quantized(model, keep_float=["twin"])
    assert operators(result)["fc"] == "Gemm"
    assert operators(result)["twin"] == "Conv"
    assert closeness(model, result) > 25


def test_known_ranges_need_no_second_calibration() -> None:
    model = classifier("HardSwish")
    ranges = ranges_of(quantized(model, target=ROUNDING).ir)
    result = quantized(model, ranges=ranges)
    new = ranges_of(result.ir)
    assert new["fc_Flatten_output"] == ranges["pool_out"]


@pytest.mark.parametrize("step", [RoundWeights, CorrectBias])
def test_corrections_find_the_convolution_in_a_reference_that_is_given(
    step: type[RoundWeights] | type[CorrectBias],
) -> None:
    model = classifier()
    whole = quantized(model)
    given = step(calibration(), reference=model).apply(whole)
    kept = step(calibration()).apply(whole)
    assert "fc" in {entry.node for entry in given.report.applied}
    assert given.model.digest == kept.model.digest


def test_sensitivity_and_retargeting_know_the_layer_by_its_name() -> None:
    model = classifier()
    table = sensitivity(model, calibration(), samples=4)
    assert {layer.node for layer in table.layers} == {"body", "fc"}
    there = RetargetQDQ("openvino").apply(quantized(model)).model
    assert closeness(model, there) > 25
    back = RetargetQDQ(EAGER).apply(quantized(model, target="openvino")).model
    assert operators(back)["fc"] == "Gemm"
    assert any(node.op_type == "Gemm" and _reads_integers(node) for node in back.ir.graph)
    assert closeness(model, back) > 25


def _reads_integers(node: ir.Node) -> bool:
    producers = [value.producer() for value in node.inputs[:2] if value is not None]
    return all(producer is not None and producer.op_type == "DequantizeLinear" for producer in producers)
