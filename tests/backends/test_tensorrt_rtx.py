"""The real TensorRT-RTX parser and builder, which need no GPU: all shared models, and what users are told."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest

import edgeinfer as ei
from edgeinfer.backends.tensorrt_.cuda import find_gpus
from edgeinfer.backends.tensorrt_.record import BuildRecord
from edgeinfer.errors import CompileError, DeviceError, OptionsError
from edgeinfer.quantization.methods.quantize_static import QuantizeStatic
from edgeinfer.transforms import FuseBatchNorm, Simplify, ToFloat16

if importlib.util.find_spec("tensorrt_rtx") is None:
    if os.environ.get("CI") == "true":
        pytest.fail("CI needs tensorrt-rtx-cu13", pytrace=False)
    pytest.skip("tensorrt-rtx-cu13 is not installed", allow_module_level=True)

HEAD = '<ir_version: 8, opset_import: ["" : 17, "com.acme" : 1]>\n'
BOTH = ("8.6", "8.9")
MODELS = (
    "cifar10_resnet20",
    "cifar10_resnet8_mlperf",
    "espcn_x3",
    "kws_dscnn",
    "minilm_l6_fp16w",
    "mnist_cntk",
    "mobilenet_v2_1.0_224",
    "nanodet_m_320",
    "silero_vad_16k",
    "squeezenet1_1",
    "vww_mobilenetv1_025_96",
)
# The big ones are built in one precision and one shape here; `benchmarks/tensorrt_matrix.py` builds all.
QUICK = (
    "cifar10_resnet20",
    "espcn_x3",
    "kws_dscnn",
    "mnist_cntk",
    "silero_vad_16k",
    "vww_mobilenetv1_025_96",
)


def compile_text(text: str, *, prefix: str = "", opset: int = 17, **options: object) -> ei.Artifact:
    model = onnx.parser.parse_model(HEAD.replace("17", str(opset)) + text)
    for index, node in enumerate(model.graph.node):
        node.name = f"{prefix}layer{index}/{node.op_type}"
    return ei.compile(model, "tensorrt", options={"compute_capabilities": BOTH, **options})


def in_precision(model: ei.Model, precision: str, example: Mapping[str, np.ndarray]) -> ei.Model:
    steps: list[object] = [Simplify(), FuseBatchNorm()]
    if precision == "float16":
        steps.append(ToFloat16())
    if precision == "int8":
        rng = np.random.default_rng(0)
        feeds = [
            {
                name: value
                if value.dtype.kind == "i"
                else rng.standard_normal(value.shape).astype(value.dtype)
                for name, value in example.items()
            }
            for _ in range(2)
        ]
        steps.append(QuantizeStatic(calibration=feeds, target="tensorrt"))
    return ei.optimize(model, steps)


@pytest.mark.data
@pytest.mark.parametrize("name", MODELS)
def test_every_shared_model_builds_for_both_gpus(models: Callable[[str], Path], name: str) -> None:
    artifact = ei.compile(models(name), "tensorrt", options={"compute_capabilities": BOTH})
    requires = artifact.manifest.requires
    assert requires["compute_capability"] == BOTH
    assert requires["tensorrt-rtx"] == (ei.backends()["tensorrt"].capabilities().facts["tensorrt-rtx"],)
    assert artifact.manifest.kind == "device-bound"
    # An engine holds at least its weights, in half precision or better.
    assert artifact.disk_bytes > ei.Model.load(models(name)).nbytes / 4


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float16", "int8"])
@pytest.mark.parametrize("name", QUICK)
def test_models_build_in_low_precision(
    models: Callable[[str], Path], baselines: ModuleType, name: str, precision: str
) -> None:
    _, example = baselines.TASKS[name]
    model = in_precision(ei.Model.load(models(name)), precision, example)
    artifact = ei.compile(model, "tensorrt", options={"compute_capabilities": BOTH})
    asked = BuildRecord.decode(artifact.payload.read("build.json")).precisions
    # The LSTM of silero and its neighbours: whatever is left in float is not asked for here.
    assert set(asked.values()) <= {precision}
    if name != "silero_vad_16k":
        assert asked, "nothing was to run in low precision"


@pytest.mark.data
@pytest.mark.parametrize("name", ["kws_dscnn", "espcn_x3"])
def test_fixed_and_dynamic_shapes(models: Callable[[str], Path], baselines: ModuleType, name: str) -> None:
    _, example = baselines.TASKS[name]
    fixed = ei.optimize(
        models(name), [ei.transforms.FixShapes({key: value.shape for key, value in example.items()})]
    )
    options = {"compute_capabilities": ("8.9",)}
    static = ei.compile(fixed, "tensorrt", options=options)
    assert BuildRecord.decode(static.payload.read("build.json")).profiles == ()
    dynamic = ei.compile(models(name), "tensorrt", options=options | {"dims": {"N": (1, 2, 4)}})
    (profile,) = BuildRecord.decode(dynamic.payload.read("build.json")).profiles
    assert [shape[0] for shape in profile["input"]] == [1, 2, 4]


def test_an_unsupported_operator_is_named() -> None:
    with pytest.raises(CompileError) as caught:
        compile_text("g (float[2,2] x) => (float y) { h = Relu(x)\n y = Det(h) }")
    text = str(caught.value)
    assert "cannot take node 'layer1/Det' (Det): TensorRT has no implementation of this operator" in text
    assert caught.value.where == "node 'layer1/Det' (Det)"


def test_an_operator_of_another_domain_is_named() -> None:
    with pytest.raises(CompileError, match=r"layer0/Magic.*no plugin of that name"):
        compile_text("g (float[2,2] x) => (float[2,2] y) { y = com.acme.Magic(x) }")


def test_an_int32_bias_behind_dequantize_is_named_with_what_to_do() -> None:
    with pytest.raises(CompileError) as caught:
        compile_text(
            """g (float[1,4] x) => (float[1,2] y)
            <float[2,4] w = {1, 2, 3, 4, 5, 6, 7, 8}, int32[2] bq = {3, 4}, float s = {0.5}, int32 z = {0}>
            { b = DequantizeLinear(bq, s, z)
              y = Gemm<transB = 1>(x, w, b) }"""
        )
    text = str(caught.value)
    assert "node 'layer0/DequantizeLinear' (DequantizeLinear): an int32 tensor (a bias)" in text
    assert 'RetargetQDQ("tensorrt")' in text


def test_a_zero_point_other_than_0_is_named_with_what_to_do() -> None:
    with pytest.raises(CompileError) as caught:
        compile_text(
            """g (float[1,4] x) => (float[1,4] y) <float s = {0.5}, uint8 z = {3}>
            { q = QuantizeLinear(x, s, z)
              y = DequantizeLinear(q, s, z) }"""
        )
    assert "node 'layer0/QuantizeLinear'" in str(caught.value)
    assert "zero point other than 0" in str(caught.value)
    assert 'RetargetQDQ("tensorrt")' in str(caught.value)


def test_inputs_that_are_packed_are_refused() -> None:
    with pytest.raises(CompileError, match="packs values of INT4") as caught:
        compile_text("g (int4[2,2] x) => (int4[2,2] y) { y = Identity(x) }", opset=23)
    assert caught.value.where == "tensor 'x'"


def test_float64_is_built_as_float32_and_that_is_kept() -> None:
    artifact = compile_text("g (double[2] x) => (double[2] y) { y = Relu(x) }")
    notes = BuildRecord.decode(artifact.payload.read("build.json")).notes
    assert "TensorRT computes float64 in float32: x, y" in notes


def test_a_string_input_is_named() -> None:
    with pytest.raises(CompileError, match="tensor 'x': TensorRT does not have this data type") as caught:
        compile_text("g (string[1,3] x) => (string[1,3] y) { y = Identity(x) }")
    assert caught.value.facts["errors"]


@pytest.mark.parametrize("prefix", ["", "/", "/model.1/"])
def test_a_layer_that_no_kernel_implements_is_named(prefix: str) -> None:
    with pytest.raises(CompileError) as caught:
        compile_text(
            """g (float[1,8,4] boxes, float[1,2,8] scores) => (int64[K,3] y) <int64 n = {3}, float t = {0.5}>
            { y = NonMaxSuppression(boxes, scores, n, t, t) }""",
            prefix=prefix,
        )
    assert caught.value.where == f"node '{prefix}layer0/NonMaxSuppression' (NonMaxSuppression)"


def test_a_gpu_that_rtx_does_not_know_is_refused() -> None:
    with pytest.raises(OptionsError, match=r"compute capability 8\.7") as caught:
        compile_text("g (float[2] x) => (float[2] y) { y = Relu(x) }", compute_capabilities=("8.7",))
    assert "8.6" in str(caught.value)


@pytest.mark.parametrize("option", ["sparse_weights", "weight_streaming"])
def test_builder_flags_are_taken(option: str) -> None:
    artifact = compile_text("g (float[2] x) => (float[2] y) { y = Relu(x) }", **{option: True})
    assert artifact.manifest.options[option] is True


@pytest.mark.parametrize("option", ["refit", "strip_plan"])
def test_engines_without_fixed_weights_need_a_gpu_to_build(
    monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    text = "g (float[2,2] x) => (float[2,2] y) <float[2,2] w = {1, 2, 3, 4}> { y = MatMul(x, w) }"
    monkeypatch.setattr("edgeinfer.backends.tensorrt_.build.find_gpus", lambda: ((), "no GPU was found here"))
    with pytest.raises(OptionsError, match="only on a machine with a GPU") as caught:
        compile_text(text, **{option: True})
    assert caught.value.where == f"option {option}"
    assert "no GPU was found here" in str(caught.value)
    # What the builder itself says, where it is asked although CUDA does not work.
    if not find_gpus()[0]:
        monkeypatch.setattr("edgeinfer.backends.tensorrt_.build.find_gpus", lambda: (("a GPU",), ""))
        with pytest.raises(CompileError, match="called CUDA, which failed") as failed:
            compile_text(text, compute_capabilities=("8.6",), **{option: True})
        assert "nvidia-smi" in str(failed.value)


def test_progress_and_cancelling_reach_the_real_builder() -> None:
    steps: list[str] = []
    text = "g (float[2] x) => (float[2] y) { y = Relu(x) }"
    compile_text(text, progress=lambda phase, step, total: steps.append(phase))
    assert "Building engine" in steps
    with pytest.raises(CompileError, match="cancelled"):
        compile_text(text, cancel=lambda: True)
    compile_text(text)


def test_without_a_gpu_building_for_it_and_loading_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = ((), "no NVIDIA GPU was found here")
    monkeypatch.setattr("edgeinfer.backends.tensorrt_.backend.find_gpus", lambda: gone)
    with pytest.raises(DeviceError, match="builds for the GPU of this machine, and there is none") as caught:
        compile_text("g (float[2] x) => (float[2] y) { y = Relu(x) }", compute_capabilities=())
    assert "compute_capabilities" in str(caught.value)
    artifact = compile_text("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    with pytest.raises(DeviceError, match="no device to run on here"):
        ei.load(artifact)


def test_a_model_with_external_data_is_parsed_from_a_file(
    monkeypatch: pytest.MonkeyPatch, models: Callable[[str], Path]
) -> None:
    # What is beyond a protobuf message is too large for a test: the limit is lowered instead.
    monkeypatch.setattr("edgeinfer.backends.tensorrt_.parse.EXTERNAL_THRESHOLD_BYTES", 1000)
    direct = ei.compile(models("mnist_cntk"), "tensorrt", options={"compute_capabilities": ("8.9",)})
    assert direct.disk_bytes > 20_000
