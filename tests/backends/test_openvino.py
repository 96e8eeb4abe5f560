"""OpenVINO: devices, options, blobs, what really ran, and shapes and dtypes that are easy to get wrong."""

from __future__ import annotations

import attrs
import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import pytest

import edgeinfer as ei
from edgeinfer.artifact.artifact import Artifact, Payload
from edgeinfer.artifact.manifest import encode_manifest
from edgeinfer.backends.protocol import CompileOptions
from edgeinfer.backends.registry import get_backend
from edgeinfer.errors import (
    ArtifactMismatchError,
    CompileError,
    DeviceError,
    InferenceError,
    OptionsError,
)

pytest.importorskip("openvino")
HEADER = '<ir_version: 8, opset_import: ["": 17]>\n'
ADD = HEADER + "add (float[N, 3] x) => (float[N, 3] y) { y = Add(x, x) }"
STATIC = HEADER + "add (float[2, 3] x) => (float[2, 3] y) { y = Add(x, x) }"


def model(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(text)


def session(text: str, **options: object) -> ei.Session:
    return ei.load(ei.compile(model(text), "openvino", options=options))


@pytest.mark.parametrize("device", ["MYRIAD", "myriad", "HETERO:MYRIAD,CPU", "HDDL"])
def test_the_neural_compute_stick_is_refused_with_both_versions_and_the_npu(device):
    installed = get_backend("openvino").capabilities().version
    with pytest.raises(DeviceError) as caught:
        ei.compile(model(ADD), "openvino", device=device)
    message = str(caught.value)
    assert "2022.3 LTS" in message
    assert installed in message
    assert "NPU" in message
    assert "CPU" in message  # what is here


@pytest.mark.parametrize(("device", "word"), [("VPUX", "NPU"), ("GNA", "2023.3 LTS")])
def test_other_retired_devices_are_named(device, word):
    with pytest.raises(DeviceError, match=word):
        ei.compile(model(ADD), "openvino", device=device)


@pytest.mark.parametrize("device", ["GPU.7", "TPU", "AUTO:CPU,GPU.7", "CPU.1"])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(device):
    with pytest.raises(DeviceError, match="sees no device") as caught:
        ei.compile(model(ADD), "openvino", device=device)
    assert "CPU" in str(caught.value.expected)


@pytest.mark.parametrize("device", ["CPU", "cpu", "AUTO", "AUTO:CPU", "MULTI:CPU", "HETERO:CPU"])
def test_devices_run(device):
    with ei.load(ei.compile(model(ADD), "openvino", device=device)) as loaded:
        x = np.arange(6, dtype=np.float32).reshape(2, 3)
        np.testing.assert_array_equal(loaded.infer(x)["y"], x + x)


def test_options_reach_the_runtime():
    options = {
        "threads": 1,
        "num_streams": 1,
        "performance_hint": "throughput",
        "execution_mode": "accuracy",
        "pinning": True,
        "properties": {"ENABLE_HYPER_THREADING": False},
    }
    with session(STATIC, **options) as loaded:
        ask = loaded._runner._engine.current().model.get_property
        assert ask("INFERENCE_NUM_THREADS") == 1
        assert ask("NUM_STREAMS") == 1
        assert str(ask("PERFORMANCE_HINT")).endswith("THROUGHPUT")
        assert str(ask("EXECUTION_MODE_HINT")).endswith("ACCURACY")
        assert ask("ENABLE_CPU_PINNING") is True
        assert ask("ENABLE_HYPER_THREADING") is False


def test_options_may_be_changed_at_load():
    artifact = ei.compile(model(STATIC), "openvino", options={"threads": 2})
    with ei.load(artifact, options={"threads": 1}) as loaded:
        assert loaded._runner._engine.current().model.get_property("INFERENCE_NUM_THREADS") == 1


@pytest.mark.parametrize(
    "options",
    [
        {"performance_hint": "FAST"},
        {"inference_precision": "int4"},
        {"num_streams": 0},
        {"threads": -1},
        {"threads": "two"},
        {"pinning": "yes"},
        {"export": 1},
        {"no_such": 1},
        {"properties": {"NO_SUCH_PROPERTY": 1}},
    ],
)
def test_wrong_options_are_refused(options):
    with pytest.raises(OptionsError):
        ei.compile(model(ADD), "openvino", options=options)


def test_the_precision_is_the_graph_s_unless_the_vendor_is_asked():
    native = "bfloat16" in get_backend("openvino").capabilities().devices[0].precisions
    with session(ADD) as ours, session(ADD, inference_precision="bf16") as low:
        name = "INFERENCE_PRECISION_HINT"
        assert ours._runner._engine.current().model.get_property(name).to_string() == "f32"
        assert low._runner._engine.current().model.get_property(name).to_string() == (
            "bf16" if native else "f32"
        )
        assert ours.execution().notes == ()
        assert bool(low.execution().notes) is not native  # a CPU that has no bfloat16 is told


def test_cache_dir_is_used_and_not_kept(tmp_path):
    artifact = ei.compile(model(ADD), "openvino", cache_dir=tmp_path)
    assert list(tmp_path.iterdir())
    assert "cache_dir" not in artifact.manifest.options


def test_a_model_that_openvino_refuses_is_a_compile_error():
    text = '<ir_version: 8, opset_import: ["": 17, "com.example": 1]> bad (float[2] x) => (float[2] y)'
    text += "{ y = com.example.NoSuchOperator(x) }"
    with pytest.raises(CompileError, match="NoSuchOperator") as caught:
        get_backend("openvino").compile(ei.Model.load(model(text)), CompileOptions())
    assert caught.value.__cause__ is not None


def test_strings_are_refused_because_openvino_frees_them_twice():
    with pytest.raises(CompileError, match="Strings"):
        session(HEADER + "s (string[N] x) => (string[N] y) { y = Identity(x) }")


# Blobs


def test_a_blob_is_device_bound_and_gives_the_same_outputs(tmp_path):
    artifact = ei.compile(model(ADD), "openvino", options={"export": True})
    assert artifact.manifest.kind == "device-bound"
    requires = set(artifact.manifest.requires)
    assert {"openvino_build", "machine", "system"} <= requires
    # OpenVINO before 2026 does not say what a blob for a CPU requires; then its build is all there is.
    told = get_backend("openvino").capabilities().devices[0].facts["runtime_requirements"]
    assert ("runtime_requirements" in requires) == bool(told)
    artifact.save(tmp_path / "add.edge")
    x = np.ones((2, 3), np.float32)
    with ei.load(tmp_path / "add.edge") as loaded:
        np.testing.assert_array_equal(loaded.infer(x)["y"], x + x)
        name = "INFERENCE_PRECISION_HINT"
        assert loaded._runner._engine.current().model.get_property(name).to_string() == "f32"


@pytest.mark.parametrize("fact", ["openvino_build", "machine", "runtime_requirements"])
def test_a_blob_for_another_machine_is_refused_before_the_runtime_sees_it(tmp_path, monkeypatch, fact):
    artifact = ei.compile(model(ADD), "openvino", options={"export": True})
    if fact not in artifact.manifest.requires:
        pytest.skip("this version of OpenVINO does not tell")
    saved = artifact.save(tmp_path / "add.edge")
    requires = {**artifact.manifest.requires, fact: ("something-else",)}
    edited = attrs.evolve(saved.manifest, requires=requires)
    (tmp_path / "add.edge" / "manifest.json").write_bytes(encode_manifest(edited))

    def never(*_: object) -> None:
        raise AssertionError("the runtime was given the blob")

    monkeypatch.setattr(type(get_backend("openvino")), "load", never)
    with pytest.raises(ArtifactMismatchError) as caught:
        ei.load(tmp_path / "add.edge")
    assert "something-else" in str(caught.value.expected)
    assert artifact.manifest.requires[fact][0].split("[")[0] in str(caught.value.found)
    assert "Compile the model" in str(caught.value.hint)


def test_a_damaged_blob_is_a_typed_error():
    artifact = ei.compile(model(ADD), "openvino", options={"export": True})
    broken = attrs.evolve(artifact.payload, files={artifact.payload.entry: b"not a blob at all"})
    with pytest.raises(CompileError, match="import"):
        ei.load(Artifact(artifact.manifest, broken))


def test_a_portable_artifact_carries_the_graph_only():
    artifact = ei.compile(model(ADD), "openvino")
    assert isinstance(artifact.payload, Payload)
    assert artifact.manifest.kind == "portable"
    assert dict(artifact.manifest.requires) == {}
    assert list(artifact.payload.files) == ["model.onnx"]


# What really ran


@pytest.mark.parametrize("activation", [np.uint8, np.int8])
def test_a_quantized_convolution_runs_in_int8(activation, conv_qdq):
    with ei.load(ei.compile(conv_qdq(activation), "openvino")) as loaded:
        report = loaded.execution()
    convolution = next(layer for layer in report.layers if layer.op_type == "Convolution")
    assert convolution.precision == "int8"
    assert "conv" in convolution.onnx_nodes
    assert convolution.kernel


def test_a_float_convolution_runs_in_float32():
    text = HEADER + "c (float[1, 4, 8, 8] x, float[4, 4, 3, 3] w) => (float[1, 4, 6, 6] y) { y = Conv(x, w) }"
    with session(text) as loaded:
        assert {layer.precision for layer in loaded.execution().layers} == {"float32"}


# Shapes and dtypes


def test_an_input_that_nothing_reads_is_accepted():
    text = HEADER + "u (float[2] x, float[3] unused) => (float[2] y) { y = Abs(x) }"
    with session(text) as loaded:
        feed = {"x": -np.ones(2, np.float32), "unused": np.zeros(3, np.float32)}
        np.testing.assert_array_equal(loaded.infer(feed)["y"], np.ones(2))
        bound = loaded.bind()
        bound.inputs["x"][...] = -2
        bound.run()
        assert set(bound.inputs) == {"x", "unused"}
        np.testing.assert_array_equal(bound.outputs["y"], np.full(2, 2))


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("float16", np.float16),
        ("bfloat16", ml_dtypes.bfloat16),
        ("double", np.float64),
        ("int64", np.int64),
        ("int32", np.int32),
    ],
)
@pytest.mark.parametrize("shape", [(2, 3), (0, 3), (300, 300)])
def test_dtypes_and_shapes(backend, kind, dtype, shape):
    if backend == "onnxruntime" and kind == "bfloat16":
        pytest.skip("ONNX Runtime has no bfloat16 addition on CPUs; see test_onnxruntime")
    text = HEADER + f"a ({kind}[N, M] x) => ({kind}[N, M] y) {{ y = Add(x, x) }}"
    x = np.arange(np.prod(shape)).reshape(shape) % 7
    options = {"allow_float64_as_float32": True} if (backend, kind) == ("openvino", "double") else None
    with ei.load(ei.compile(model(text), backend, options=options)) as loaded:
        found = loaded.infer(x.astype(dtype))["y"]
    assert found.dtype == dtype
    np.testing.assert_array_equal(found.astype(np.float64), 2.0 * x)


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("shape", [(), (2, 2)])
def test_scalars_booleans_and_read_only_arrays(backend, shape):
    dims = "" if not shape else "[2, 2]"
    text = (
        HEADER
        + f"a (float{dims} x, bool{dims} b) => (float{dims} y, bool{dims} c) {{ y = Add(x, x) c = Not(b) }}"
    )
    x, b = np.full(shape, 3, np.float32), np.full(shape, True)
    x.flags.writeable = False
    with ei.load(ei.compile(model(text), backend)) as loaded:
        found = loaded.infer({"x": x, "b": b})
    assert found["y"].shape == shape
    np.testing.assert_array_equal(found["y"], 6)
    np.testing.assert_array_equal(found["c"], False)


def test_a_large_read_only_input_is_taken():
    x = np.ones((200, 300), np.float32)
    x.flags.writeable = False
    with session(HEADER + "a (float[200, 300] x) => (float[200, 300] y) { y = Add(x, x) }") as loaded:
        first = loaded.infer(x)["y"]
        second = loaded.infer(np.zeros_like(x))["y"]
    np.testing.assert_array_equal(first, 2)
    np.testing.assert_array_equal(second, 0)


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_an_output_whose_shape_depends_on_the_data_cannot_be_bound(backend):
    text = HEADER + "n (float[4] x) => (int64[1, M] y) { y = NonZero(x) }"
    with ei.load(ei.compile(model(text), backend)) as loaded:
        np.testing.assert_array_equal(loaded.infer(np.array([0, 1, 0, 1], np.float32))["y"], [[1, 3]])
        bound = loaded.bind()
        bound.inputs["x"][...] = 0, 1, 1, 1
        with pytest.raises(InferenceError):
            bound.run()


def test_no_telemetry_is_started_by_what_we_call(monkeypatch):
    telemetry = pytest.importorskip(
        "openvino_telemetry"
    )  # OpenVINO imports it, and starts it in its converter

    def never(*_: object, **__: object) -> None:
        raise AssertionError("telemetry was started")

    monkeypatch.setattr(telemetry.Telemetry, "__init__", never)
    monkeypatch.setattr(telemetry.Telemetry, "send_event", never)
    with session(ADD) as loaded:
        loaded.infer(np.ones((1, 3), np.float32))
        assert loaded.execution().layers
