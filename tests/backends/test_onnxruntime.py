"""ONNX Runtime: options, providers, what really ran, dtypes that numpy does not have."""

from __future__ import annotations

import attrs
import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest

import edgeinfer as ei
from edgeinfer.backends.onnxruntime_ import backend as onnxruntime_
from edgeinfer.backends.onnxruntime_.options import OnnxRuntimeOptions
from edgeinfer.backends.protocol import CompileOptions, LoadOptions
from edgeinfer.backends.registry import get_backend
from edgeinfer.errors import ArtifactTrustError, CompileError, DeviceError, InferenceError, OptionsError

HEADER = '<ir_version: 8, opset_import: ["": 17]>\n'
ADD = HEADER + "add (float[N, 3] x) => (float[N, 3] y) { y = Add(x, x) }"


def model(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(text)


def session(text: str, **options: object) -> ei.Session:
    return ei.load(ei.compile(model(text), "onnxruntime", options=options))


@pytest.mark.parametrize(
    "options",
    [
        {"threads": 1, "inter_threads": 1, "execution_mode": "parallel"},
        {"graph_optimization_level": "disable"},
        {"graph_optimization_level": "layout"},
        {"memory_arena": False, "memory_pattern": False, "allow_spinning": False},
        {"providers": ["CPUExecutionProvider"]},
        {"providers": [("CPUExecutionProvider", {"arena_extend_strategy": "kSameAsRequested"})]},
        {"session_config": {"session.set_denormal_as_zero": "1"}},
    ],
    ids=str,
)
def test_options_survive_the_artifact_and_run(options, tmp_path):
    ei.compile(model(ADD), "onnxruntime", options=options).save(tmp_path / "add.edge")
    with ei.load(tmp_path / "add.edge") as loaded:
        x = np.ones((2, 3), np.float32)
        np.testing.assert_array_equal(loaded.infer(x)["y"], x + x)


def test_options_reach_the_runtime():
    with session(
        ADD,
        threads=1,
        allow_spinning=False,
        graph_optimization_level="basic",
        int8_activations=True,
        session_config={"session.set_denormal_as_zero": 1},
    ) as loaded:
        settings = loaded._runner._session.get_session_options()
        assert settings.intra_op_num_threads == 1
        assert settings.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        assert settings.get_session_config_entry("session.intra_op.allow_spinning") == "0"
        assert settings.get_session_config_entry("session.qdqisint8allowed") == "1"
        assert settings.get_session_config_entry("session.set_denormal_as_zero") == "1"


@pytest.mark.parametrize(
    "options",
    [
        {"threads": -1},
        {"threads": 1.5},
        {"graph_optimization_level": "most"},
        {"execution_mode": "random"},
        {"memory_arena": "yes"},
        {"allow_spinning": 2},
        {"int8_activations": 1},
        {"session_config": 3},
        {"no_such": 1},
        "fast",
    ],
)
def test_wrong_options_are_refused(options):
    with pytest.raises(OptionsError):
        ei.compile(model(ADD), "onnxruntime", options=options)


def test_a_provider_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(DeviceError, match="no execution provider") as caught:
        ei.compile(model(ADD), "onnxruntime", device="CUDA")
    assert "CPU" in str(caught.value.expected)
    with pytest.raises(DeviceError, match="NoSuchProvider"):
        ei.compile(model(ADD), "onnxruntime", options={"providers": ["NoSuchProvider"]})


def test_a_provider_that_does_not_start_is_not_replaced_in_silence(monkeypatch):
    real = onnxruntime_._provider_names(ort)
    monkeypatch.setattr(onnxruntime_, "_provider_names", lambda _: [*real, "CUDAExecutionProvider"])
    with pytest.raises(DeviceError, match="did not start") as caught:
        ei.compile(model(ADD), "onnxruntime", device="CUDA")
    assert caught.value.found == "CPUExecutionProvider"


def test_the_remote_provider_is_no_device():
    names = [device.name for device in get_backend("onnxruntime").capabilities().devices]
    assert names[0] == "CPU"
    assert "AZURE" not in names


def test_a_plugin_library_that_cannot_be_loaded_is_a_device_error(tmp_path):
    (tmp_path / "plugin.so").write_bytes(b"not a library")
    artifact = ei.compile(model(ADD), "onnxruntime")
    with pytest.raises(DeviceError, match="cannot be registered"):
        ei.load(artifact, options={"plugin_libraries": {"mine": str(tmp_path / "plugin.so")}})


def test_an_artifact_keeps_no_code_to_load():
    options = OnnxRuntimeOptions(threads=1, plugin_libraries={"mine": "/tmp/plugin.so"})
    assert options.portable() == {"threads": 1}


def test_an_artifact_that_names_code_is_refused():
    backend = get_backend("onnxruntime")
    payload = backend.compile(ei.Model.load(model(ADD)), CompileOptions())
    edited = attrs.evolve(payload, options={"plugin_libraries": {"mine": "/tmp/plugin.so"}})
    with pytest.raises(ArtifactTrustError, match="plugin_libraries"):
        backend.load(edited, LoadOptions())


def test_a_model_that_the_runtime_refuses_is_a_compile_error():
    text = '<ir_version: 8, opset_import: ["": 17, "com.example": 1]> bad (float[2] x) => (float[2] y)'
    with pytest.raises(CompileError, match="NoSuchOperator") as caught:
        ei.compile(model(text + "{ y = com.example.NoSuchOperator(x) }"), "onnxruntime")
    assert caught.value.__cause__ is not None


# What really ran


@pytest.mark.parametrize("activation", [np.uint8, np.int8])
@pytest.mark.parametrize("options", [{}, {"int8_activations": True}])
def test_a_quantized_convolution_runs_in_int8(activation, options, conv_qdq):
    # On x86, ONNX Runtime turns int8 activations into uint8 first, unless the option allows int8 kernels.
    with ei.load(ei.compile(conv_qdq(activation), "onnxruntime", options=options)) as loaded:
        layers = loaded.execution().layers
    convolution = next(layer for layer in layers if "Conv" in layer.op_type)
    assert convolution.op_type == "QLinearConv"
    assert convolution.precision == "int8"
    assert convolution.device == "CPU"
    assert {layer.precision for layer in layers if layer.op_type.endswith("tizeLinear")} == {"float32"}


def test_a_convolution_that_is_not_fused_with_its_quantizers_is_reported_as_float(conv_qdq):
    # With a ReLU that the range of the quantizer behind it does not imply, ONNX Runtime fuses Conv and ReLU.
    model = conv_qdq(np.uint8, relu=True)
    with ei.load(ei.compile(model, "onnxruntime")) as loaded:
        convolution = next(layer for layer in loaded.execution().layers if "Conv" in layer.op_type)
    assert convolution.op_type == "FusedConv"
    assert convolution.precision == "float32"


def test_fused_operators_are_seen():
    text = HEADER + "c (float[1, 4, 8, 8] x, float[4, 4, 3, 3] w) => (float[1, 4, 6, 6] y) "
    text = text + "{ c = Conv(x, w) y = Relu(c) }"
    with session(text, graph_optimization_level="extended") as loaded:
        assert [layer.op_type for layer in loaded.execution().layers] == ["FusedConv"]
    with session(text, graph_optimization_level="disable") as loaded:
        assert [layer.op_type for layer in loaded.execution().layers] == ["Conv", "Relu"]


def test_float16_and_integers_are_named():
    text = HEADER + "c (float16[4] x, int64[4] i) => (float16[4] y, int64[4] j) { y = Sqrt(x) j = Neg(i) }"
    with session(text, graph_optimization_level="disable") as loaded:
        found = {layer.op_type: layer.precision for layer in loaded.execution().layers}
    assert found["Neg"] == "int64"
    assert "float16" in {*found.values()} or found["Sqrt"] == "float32"  # a CPU may compute it in float32


# Dtypes


@pytest.mark.parametrize("shape", [(3,), (0,), (40_000,)])
@pytest.mark.parametrize("size", ["N", "static"])
def test_bfloat16_goes_in_and_out(shape, size):
    dim = "N" if size == "N" else str(shape[0])
    text = (
        HEADER
        + f"b (bfloat16[{dim}] x) => (bfloat16[{dim}] y) {{ f = Cast<to = 1>(x) y = Cast<to = 16>(f) }}"
    )
    x = (np.arange(shape[0]) % 9).astype(ml_dtypes.bfloat16)
    with session(text) as loaded:
        found = loaded.infer(x)["y"]
        assert found.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(found, x)
        bound = loaded.bind({"x": shape})
        bound.inputs["x"][...] = x
        bound.run()
        np.testing.assert_array_equal(bound.outputs["y"], x)


ODD = {
    "FLOAT8E4M3FN": ml_dtypes.float8_e4m3fn,
    "FLOAT8E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
    "FLOAT8E5M2": ml_dtypes.float8_e5m2,
    "FLOAT8E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
    "INT4": ml_dtypes.int4,
    "UINT4": ml_dtypes.uint4,
}


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("dim", ["N", 5])
def test_dtypes_that_numpy_does_not_have(backend, kind, dim):
    pytest.importorskip(backend)
    dtype, number = ODD[kind], getattr(onnx.TensorProto, kind)
    text = f"""<ir_version: 10, opset_import: ["": 21]>
    c ({kind.lower()}[{dim}] x, float[{dim}] z) => (float[{dim}] y, {kind.lower()}[{dim}] w)
    {{ y = Cast<to = 1>(x) w = Cast<to = {number}>(z) }}"""
    values = np.array([1, 2, 3, 4, 7] if kind[0] == "U" else [1, -2, 3, -4, 7], np.float32)
    feed = {"x": values.astype(dtype), "z": values}
    if backend == "openvino" and kind.endswith("FNUZ"):
        with pytest.raises(CompileError):
            ei.compile(model(text), backend)
        return
    with ei.load(ei.compile(model(text), backend)) as loaded:
        found = loaded.infer(feed)
        assert found["w"].dtype == dtype
        assert found["y"].tolist() == values.astype(dtype).astype(np.float32).tolist()
        assert found["w"].tolist() == values.astype(dtype).tolist()
        with loaded.bind({"x": (5,), "z": (5,)}) as bound:
            for factor in (1, 0):
                bound.inputs["x"][...] = (values * factor).astype(dtype)
                bound.inputs["z"][...] = values * factor
                bound.run()
                assert bound.outputs["y"].tolist() == (values * factor).astype(dtype).tolist()
                assert bound.outputs["w"].tolist() == (values * factor).astype(dtype).tolist()


def test_strings_beside_dtypes_that_numpy_does_not_have_are_refused():
    text = HEADER + "s (string[N] x, bfloat16[N] z) => (string[N] y, float[N] w)"
    text += "{ y = Identity(x) w = Cast<to = 1>(z) }"
    with pytest.raises(CompileError, match="strings beside"):
        session(text)


def test_a_small_session_runs_plainly_once_a_declared_shape_was_wrong():
    text = HEADER + "c (float[4] x, bool[4] c) => (float[4] y) { y = Compress<axis = 0>(x, c) }"
    x, every = np.arange(4, dtype=np.float32), np.ones(4, bool)
    with session(text) as loaded:
        for c in (every, every, np.array([1, 0, 0, 1], bool), every):
            np.testing.assert_array_equal(loaded.infer({"x": x, "c": c})["y"], x[c])


def test_inputs_that_are_divided_by_can_be_bound():
    text = HEADER + "d (int32[4] x, int32[4] z) => (int32[4] y) { y = Div(x, z) }"
    for known in (text, text.replace("[4]", "[N]")):
        with session(known) as loaded, loaded.bind({"x": (4,), "z": (4,)}) as bound:
            bound.inputs["x"][...], bound.inputs["z"][...] = 6, 3
            bound.run()
            assert bound.outputs["y"].tolist() == [2, 2, 2, 2]


@pytest.mark.parametrize(("rows", "accepted"), [(1, True), (0, False)])
def test_values_that_a_model_does_not_take_leave_the_declared_shapes(rows, accepted):
    """Neither 1 nor 0 is an index into an empty table; 0 is one into a table of one row."""
    text = HEADER + "g (float[R, 2] x, int64[4] i) => (float[4, 2] y) { y = Gather(x, i) }"
    shapes = {"x": (rows, 2), "i": (4,)}
    with session(text) as loaded, loaded.bind(shapes) as bound:
        assert bound.outputs["y"].shape == (4, 2)
        if accepted:
            bound.inputs["x"][...] = 3
            bound.run()
            assert bound.outputs["y"].tolist() == [[3, 3]] * 4
    with session(text.replace("[4, 2] y", "[N, 2] y").replace("[4] i", "[N] i")) as loaded:
        if accepted:
            assert loaded.bind(shapes).outputs["y"].shape == (4, 2)
        else:
            with pytest.raises(InferenceError, match="indices"):
                loaded.bind(shapes)


def test_strings():
    text = HEADER + "s (string[N] x) => (string[N] y) { y = Identity(x) }"
    with session(text) as loaded:
        found = loaded.infer(np.array(["edge", "ünïcode", ""]))["y"]
        assert found.tolist() == ["edge", "ünïcode", ""]
        bound = loaded.bind({"x": (2,)})
        bound.inputs["x"][...] = ["a", "bc"]
        bound.run()
        assert bound.outputs["y"].tolist() == ["a", "bc"]


def test_threads_follow_the_affinity(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    assert onnxruntime_._allowed_threads() == 1
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3})
    assert onnxruntime_._allowed_threads() == 0
