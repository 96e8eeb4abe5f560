"""What is asked of the builder in each version, over the FAKE of `fake_tensorrt`, and the options."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

import edgeinfer as ei
from edgeinfer.backends.tensorrt_ import flavours as tensorrt_flavours
from edgeinfer.backends.tensorrt_.explain import parse_layers
from edgeinfer.errors import BackendUnavailableError, CompileError, DeviceError, OptionsError
from tests.backends import fake_tensorrt
from tests.backends.small_nets import FLOAT, HEAD, TWO, build, config

HALF = HEAD + "g (float16[1,2] x) => (float16[1,2] y) <float16[2,2] w = {1, 2, 3, 4}> { y = MatMul(x, w) }"
INT8 = (
    HEAD
    + """g (float[1,2] x) => (float[1,2] y)
    <int8[2,2] w = {1, 2, 3, 4}, float s = {0.5}, int8 z = {0}>
    { q = QuantizeLinear(x, s, z)
      d = DequantizeLinear(q, s, z)
      v = DequantizeLinear(w, s, z)
      y = MatMul(d, v) }"""
)
DYNAMIC = (
    HEAD
    + "g (float[N,3,H,W] x, int64[M,L] i) => (float[N,3,H,W] y, int64[M,L] j) { y = Relu(x)\n j = Neg(i) }"
)


@pytest.mark.parametrize("version", ["10.3.0.30", "10.16.0.1", "11.4.0.1"])
def test_from_10_on_the_network_is_strongly_typed_and_no_precision_flag_is_set(
    monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    fake = fake_tensorrt.install(monkeypatch, version)
    for text in (FLOAT, HALF, INT8):
        build(text)
        kinds = fake.trt.NetworkDefinitionCreationFlag
        assert fake.builds[-1].network.flags == 1 << kinds.STRONGLY_TYPED
        assert config(fake).flags == {"not TF32"}


def test_a_version_without_the_creation_flag_is_served_too(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = fake_tensorrt.install(monkeypatch, "11.4.0.1")
    fake.trt.NetworkDefinitionCreationFlag = SimpleNamespace()
    build(FLOAT)
    assert fake.builds[-1].network.flags == 0


@pytest.mark.parametrize("version", ["8.5.2", "8.6.1"])
@pytest.mark.parametrize(("text", "flags"), [(FLOAT, set()), (HALF, {"FP16"}), (INT8, {"INT8"})])
def test_version_8_gets_explicit_batch_and_the_flags_of_what_the_graph_holds(
    monkeypatch: pytest.MonkeyPatch, version: str, text: str, flags: set[str]
) -> None:
    fake = fake_tensorrt.install(monkeypatch, version)
    build(text)
    assert fake.builds[-1].network.flags == 1
    assert config(fake).flags == flags | {"not TF32"}


def test_weak_precisions_are_a_choice_on_8_and_refused_later(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = fake_tensorrt.install(monkeypatch, "8.6.1")
    build(INT8, weak_precisions=("int8", "float16"))
    assert config(fake).flags == {"INT8", "FP16", "not TF32"}
    with pytest.raises(CompileError, match="INT8 flag"):
        build(INT8, weak_precisions=())
    fake_tensorrt.install(monkeypatch, "11.4.0.1")
    with pytest.raises(OptionsError, match="takes precision from the graph") as caught:
        build(FLOAT, weak_precisions=("float16",))
    assert "ToFloat16" in str(caught.value)


@pytest.mark.parametrize(
    ("version", "option", "value"),
    [
        ("8.5.2", "optimization_level", 3),
        ("8.5.2", "version_compatible", True),
        ("8.5.2", "hardware_compatibility", "ampere_plus"),
        ("8.6.1", "strip_plan", True),
        ("8.6.1", "weight_streaming", True),
        ("8.6.1", "cancel", lambda: False),
        ("8.6.1", "progress", True),
        ("11.4.0", "compute_capabilities", ("8.6",)),
    ],
)
def test_what_a_version_cannot_do_is_refused(
    monkeypatch: pytest.MonkeyPatch, version: str, option: str, value: object
) -> None:
    fake_tensorrt.install(monkeypatch, version)
    with pytest.raises(OptionsError) as caught:
        build(FLOAT, **{option: value})
    assert caught.value.where == f"option {option}"


def test_what_tensorrt_rtx_ignores_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tensorrt.install(monkeypatch, "1.7.1", module="tensorrt_rtx")
    for option in ({"optimization_level": 3}, {"version_compatible": True}, {"tactic_sources": ()}):
        with pytest.raises(OptionsError):
            build(FLOAT, **option)


def test_every_option_reaches_the_builder(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = fake_tensorrt.install(monkeypatch)
    build(
        FLOAT,
        memory_pools={"workspace": 1 << 20},
        optimization_level=5,
        tactic_sources=("jit_convolutions",),
        max_aux_streams=0,
        hardware_compatibility="ampere_plus",
        sparse_weights=True,
        refit=True,
        strip_plan=True,
        weight_streaming=True,
        version_compatible=True,
        exclude_lean_runtime=True,
        tf32=True,
    )
    made = config(fake)
    assert made.pools == {"WORKSPACE": 1 << 20}
    assert made.sources == 1 << 1
    assert made.set["builder_optimization_level"] == 5
    assert made.set["max_aux_streams"] == 0
    assert made.set["hardware_compatibility_level"].name == "AMPERE_PLUS"
    assert made.flags == {
        "SPARSE_WEIGHTS",
        "REFIT",
        "STRIP_PLAN",
        "WEIGHT_STREAMING",
        "VERSION_COMPATIBLE",
        "EXCLUDE_LEAN_RUNTIME",
    }


def test_a_version_without_same_compute_capability_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for version in ("10.0.1", "10.3.0"):
        fake_tensorrt.install(monkeypatch, version)
        with pytest.raises(OptionsError, match="has no 'same_compute_capability'") as caught:
            build(FLOAT, hardware_compatibility="same_compute_capability")
        assert caught.value.where == "option hardware_compatibility"
    fake = fake_tensorrt.install(monkeypatch, "10.16.0.1")
    build(FLOAT, hardware_compatibility="same_compute_capability")
    assert config(fake).set["hardware_compatibility_level"].name == "SAME_COMPUTE_CAPABILITY"


def test_sources_of_tactics_that_tensorrt_does_not_take_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = fake_tensorrt.install(monkeypatch, "10.16.0.1")
    build(FLOAT, tactic_sources=("cublas_lt", "jit_convolutions"))
    assert config(fake).sources == 1 << 1 | 1 << 4
    fake_tensorrt.install(monkeypatch, "11.4.0.1")
    with pytest.raises(OptionsError, match="has no 'cublas_lt'"):
        build(FLOAT, tactic_sources=("cublas_lt",))
    with pytest.raises(OptionsError, match="does not take those sources") as caught:
        build(FLOAT, tactic_sources=())
    assert caught.value.where == "option tactic_sources"


def test_float32_is_not_computed_in_tf32_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = fake_tensorrt.install(monkeypatch)
    build(FLOAT)
    assert "not TF32" in config(fake).flags


def test_profiles_come_from_the_names_of_dimensions(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = fake_tensorrt.install(monkeypatch)
    build(DYNAMIC, dims={"N": (1, 4, 16), "L": (8, 8, 8)})
    assert config(fake).profiles == [
        {
            "x": [[1, 3, 32, 32], [4, 3, 224, 224], [16, 3, 512, 512]],
            "i": [[1, 8], [1, 8], [8, 8]],
        }
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dims": {"K": (1, 2, 3)}}, "no symbolic dimension 'K'"),
        ({"dims": {"N": (3, 2, 1)}}, "least, usual, greatest"),
        ({"profiles": [{"x": ((1, 3, 8, 8),) * 3}]}, "does not cover"),
        ({"profiles": [{"x": ((1, 4, 8, 8),) * 3, "i": ((1, 1),) * 3}]}, "does not fit an input"),
        ({"memory_pools": {"heap": 1}}, "memory_pools"),
        ({"compute_capabilities": ("SM86",)}, "compute_capabilities"),
        ({"weak_precisions": ("fp4",)}, "weak_precisions"),
        ({"hardware_compatibility": "all"}, "hardware_compatibility"),
        ({"flavour": "tensorflow"}, "tensorrt or tensorrt-rtx"),
        ({"exclude_lean_runtime": True}, "goes with version_compatible"),
    ],
)
def test_wrong_options_are_refused(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, object], message: str
) -> None:
    fake_tensorrt.install(monkeypatch)
    with pytest.raises(OptionsError, match=message):
        build(DYNAMIC, **options)


def test_progress_is_reported_and_a_build_can_be_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tensorrt.install(monkeypatch)
    steps: list[tuple[str, int, int]] = []
    build(FLOAT, progress=lambda *step: steps.append(step))
    assert steps == [("Building engine", 1, 2), ("Building engine", 2, 2)]
    with pytest.raises(CompileError, match="cancelled"):
        build(FLOAT, cancel=lambda: True)


def test_an_exception_in_the_callers_progress_function_comes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tensorrt.install(monkeypatch)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(FLOAT, progress=interrupt)


def test_dla_builds_report_what_falls_back_to_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = fake_tensorrt.install(monkeypatch, gpus=(("Fake Orin", "8.7"),))
    devices = [device.name for device in ei.backends()["tensorrt"].capabilities().devices]
    assert devices == ["GPU", "DLA", "DLA.1"]
    artifact = build(TWO, device="DLA.1")
    made = config(fake)
    assert made.set["default_device_type"].name == "DLA"
    assert made.set["DLA_core"] == 1
    assert made.flags == {"GPU_FALLBACK", "not TF32"}
    with ei.load(artifact) as session:
        assert session._runner._runtimes[-1].DLA_core == 1
        (note,) = [note for note in session.execution().notes if "fall back" in note]
    assert note.startswith("1 of 2 layers fall back from DLA to the GPU: ")


def test_no_tensorrt_installed_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_flavours.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendUnavailableError, match="TensorRT is not installed") as caught:
        build(FLOAT)
    assert 'pip install "edgeinfer[tensorrt-rtx]"' in str(caught.value)
    found = ei.backends()["tensorrt"].capabilities()
    assert not found.available
    assert "pip install" in found.reason
    assert found.dialect is not None


def test_a_version_that_is_too_old_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tensorrt.install(monkeypatch, "8.4.1")
    with pytest.raises(BackendUnavailableError, match="too old"):
        build(FLOAT)


@pytest.mark.parametrize("device", ["CPU", "GPU.7", "DLA.x"])
def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    fake_tensorrt.install(monkeypatch)
    with pytest.raises(DeviceError):
        build(FLOAT, device=device)


def test_the_inspectors_json_is_read_in_its_several_forms() -> None:
    layers = parse_layers(
        """{"Layers": [
        {"Name": "conv1 + relu1", "LayerType": "CaskConvolution", "TacticName": "sm80_xmma_int8",
         "Inputs": [{"Name": "a", "Format/Datatype": "Thirty-two wide channel vectorized Int8 format"}],
         "Outputs": [{"Name": "b", "Format/Datatype": "Row major linear FP16 format"}], "Metadata": ""},
        {"Name": "fc", "LayerType": "gemm", "Inputs": [{"Name": "a", "Format": "NC", "Datatype": "Half"}],
         "Metadata": "[ONNX Layer: dense/MatMul]\\u001f[ONNX Layer: dense/Add]"},
        {"Name": "conv2", "LayerType": "CaskConvolution", "Weights": {"Type": "Int8", "Count": 162},
         "Inputs": [{"Name": "r", "Format/Datatype": "N/A due to dynamic shapes"}]},
        "bare name"], "Bindings": []}""",
        known=("conv1", "conv"),
    )
    assert [layer.precision for layer in layers] == ["int8", "float16", "int8", "unknown"]
    assert [layer.onnx_nodes for layer in layers] == [("conv1",), ("dense/MatMul", "dense/Add"), (), ()]
    assert layers[0].kernel == "sm80_xmma_int8"
    assert parse_layers("not json") == ()
