"""The running path, over the FAKES of `fake_tensorrt` and `fake_cuda`: order of calls, ownership, shapes."""

from __future__ import annotations

import gc
import threading
from types import SimpleNamespace

import attrs
import numpy as np
import pytest

import edgeinfer as ei
from edgeinfer.errors import (
    ArtifactTrustError,
    DeviceError,
    InferenceError,
    InputError,
)
from edgeinfer.testing import conformance
from tests.backends import fake_tensorrt, fake_tensorrt_run
from tests.backends.small_nets import HEAD, STATIC, X, Y, model

DYNAMIC = HEAD + "g (float[N,3] x) => (float[N,3] y) <float[3] w = {1, 2, 3}> { s = Mul(x, w)\n y = Relu(s) }"
INTEGERS = HEAD + "g (int64[4] x) => (int64[4] y) { y = Add(x, x) }"
NONZERO = HEAD + "g (float[4] x) => (int64[1,K] y) { y = NonZero(x) }"


def session(text: str, options: object = None, **load: object) -> ei.Session:
    return ei.load(ei.compile(model(text), "tensorrt", options=options), options=load or None)


def after(names: list[str], mark: int) -> list[str]:
    wanted = ("cudaMemcpyAsync", "execute_async_v3", "cudaStreamSynchronize", "cudaGraphLaunch")
    return [name for name in names[mark:] if name in wanted]


def test_the_first_run_copies_in_executes_copies_out_and_waits(fake: SimpleNamespace) -> None:
    with session(STATIC) as loaded:
        mark = len(fake.cuda.events)
        np.testing.assert_array_equal(loaded.infer({"x": X})["y"], Y)
        assert after(fake.cuda.names(), mark) == [
            "cudaMemcpyAsync",
            "execute_async_v3",
            "cudaMemcpyAsync",
            "cudaStreamSynchronize",
        ]


def test_buffers_are_allocated_once_for_a_fixed_shape(fake: SimpleNamespace) -> None:
    with session(STATIC) as loaded:
        loaded.infer({"x": X})
        allocated = fake.cuda.calls("cudaMalloc", "cudaHostRegister")
        assert sorted(allocated) == [("cudaHostRegister", 4096)] * 2 + [("cudaMalloc", 24)] * 2
        for _ in range(5):
            loaded.infer({"x": X})
        assert fake.cuda.calls("cudaMalloc", "cudaHostRegister") == allocated


def test_a_repeated_shape_is_captured_once_and_then_launched_as_a_graph(fake: SimpleNamespace) -> None:
    with session(STATIC) as loaded:
        for run in range(4):
            np.testing.assert_array_equal(loaded.infer({"x": X * (run + 1)})["y"], Y * (run + 1))
        assert len(fake.cuda.calls("cudaStreamBeginCapture")) == 1
        assert len(fake.cuda.calls("cudaGraphLaunch")) == 3
        # One plain run and one that was recorded.
        assert len(fake.cuda.calls("execute_async_v3")) == 2


def test_cuda_graphs_can_be_switched_off(fake: SimpleNamespace) -> None:
    with session(STATIC, cuda_graphs=False) as loaded:
        for _ in range(3):
            loaded.infer({"x": X})
        assert not fake.cuda.calls("cudaStreamBeginCapture")
        assert any("switched off" in note for note in loaded.execution().notes)


def test_a_failing_capture_falls_back_and_is_said(fake: SimpleNamespace) -> None:
    fake.cuda.fail_capture = True
    with session(STATIC) as loaded:
        for _ in range(3):
            np.testing.assert_array_equal(loaded.infer({"x": X})["y"], Y)
        assert len(fake.cuda.calls("cudaStreamBeginCapture")) == 1
        assert any("capture into a CUDA graph failed" in note for note in loaded.execution().notes)


def test_outputs_belong_to_the_caller(fake: SimpleNamespace) -> None:
    with session(STATIC) as loaded:
        first = loaded.infer({"x": X})["y"]
        loaded.infer({"x": -X})
        loaded.infer({"x": -X})
    np.testing.assert_array_equal(first, Y)


def test_new_shapes_are_set_and_the_graph_of_the_old_shape_is_dropped(fake: SimpleNamespace) -> None:
    with session(DYNAMIC, {"dims": {"N": (1, 2, 4)}}) as loaded:
        for count in (2, 2, 2, 4, 4, 1):
            x = np.arange(count * 3, dtype=np.float32).reshape(count, 3)
            np.testing.assert_array_equal(loaded.infer({"x": x})["y"], x * np.float32([1, 2, 3]))
        assert fake.cuda.calls("set_input_shape") == [
            ("set_input_shape", "x", (2, 3)),
            ("set_input_shape", "x", (4, 3)),
            ("set_input_shape", "x", (1, 3)),
        ]
        assert len(fake.cuda.calls("cudaStreamBeginCapture")) == 2


def test_a_shape_outside_of_the_profile_is_refused_with_the_range(fake: SimpleNamespace) -> None:
    with session(DYNAMIC, {"dims": {"N": (1, 2, 4)}}) as loaded:
        with pytest.raises(InputError) as caught:
            loaded.infer({"x": np.zeros((5, 3), np.float32)})
        assert "x (1, 3) to (4, 3)" in str(caught.value)
        assert "dims" in str(caught.value)
        np.testing.assert_array_equal(loaded.infer({"x": X})["y"], Y)


def test_the_profile_that_has_the_shape_is_chosen(fake: SimpleNamespace) -> None:
    profiles = [{"x": ((1, 3), (1, 3), (1, 3))}, {"x": ((2, 3), (8, 3), (16, 3))}]
    with session(DYNAMIC, {"profiles": profiles}) as loaded:
        np.testing.assert_array_equal(loaded.infer({"x": X})["y"], Y)
        loaded.infer({"x": X[:1]})
    chosen = [index for _, index in fake.cuda.calls("set_optimization_profile_async")]
    assert chosen == [1, 0]


@pytest.mark.parametrize("version", ["8.5.3.1", "11.4.0.1"])
def test_data_dependent_outputs_go_through_the_allocator(
    monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    fake = fake_tensorrt.install(monkeypatch, version)
    with session(NONZERO) as loaded:
        for values, expected in (([0, 1, 0, 1], [[1, 3]]), ([1, 1, 1, 1], [[0, 1, 2, 3]]), ([0] * 4, [[]])):
            found = loaded.infer({"x": np.array(values, np.float32)})["y"]
            np.testing.assert_array_equal(found, np.array(expected, np.int64).reshape(1, -1))
        assert not fake.cuda.calls("cudaStreamBeginCapture")
        with pytest.raises(InferenceError, match="depend on data"):
            loaded.bind()


def test_the_bound_mode_runs_over_pinned_memory(fake: SimpleNamespace) -> None:
    with session(STATIC) as loaded, loaded.bind() as bound:
        bound.inputs["x"][...] = X
        mark = len(fake.cuda.events)
        for _ in range(3):
            bound.run()
        np.testing.assert_array_equal(bound.outputs["y"], Y)
        assert not [
            event for event in fake.cuda.events[mark:] if event[0] in ("cudaMalloc", "cudaHostRegister")
        ]
        bound.inputs["x"][...] = 2 * X
        bound.run()
        np.testing.assert_array_equal(bound.outputs["y"], 2 * Y)


def test_closing_the_session_frees_bound_buffers_too(fake: SimpleNamespace) -> None:
    loaded = session(STATIC)
    loaded.bind()
    loaded.close()
    fake.cuda.assert_nothing_left()


def test_streaming_uses_several_streams_and_keeps_the_order(fake: SimpleNamespace) -> None:
    with session(STATIC, max_in_flight=3) as loaded:
        feeds = [{"x": X * scale} for scale in range(1, 20)]
        for scale, outputs in enumerate(loaded.stream(feeds, in_flight=3), 1):
            np.testing.assert_array_equal(outputs["y"], Y * scale)
        assert 1 <= len(fake.cuda.streams) <= 3


def test_many_threads_share_few_slots(fake: SimpleNamespace) -> None:
    wrong: list[int] = []
    with session(STATIC, max_in_flight=2) as loaded:

        def work(scale: int) -> None:
            for _ in range(10):
                if not np.array_equal(loaded.infer({"x": X * scale})["y"], Y * scale):
                    wrong.append(scale)

        threads = [threading.Thread(target=work, args=(scale,)) for scale in range(1, 7)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(fake.cuda.streams) <= 2
    assert not wrong


def test_device_arrays_are_read_where_they_lie(fake: SimpleNamespace) -> None:
    with session(STATIC) as loaded:
        loaded.infer({"x": X})
        given = fake_tensorrt_run.DeviceTensor(fake.cuda, 3 * X, stream=7)
        mark = len(fake.cuda.events)
        np.testing.assert_array_equal(loaded.infer({"x": given})["y"], 3 * Y)
        events = fake.cuda.events[mark:]
        # Its producer's stream is waited for, and nothing is copied to the device.
        assert events[0] == ("cudaStreamSynchronize", 7)
        assert not [event for event in events if event[:2] == ("cudaMemcpyAsync", "to device")]
        given.free()
        for _ in range(3):  # and back to our own buffers
            np.testing.assert_array_equal(loaded.infer({"x": X})["y"], Y)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": (3, 2)}, "wrong shape"),
        ({"typestr": "<f8"}, "wrong dtype"),
        ({"strides": (4, 8)}, "contiguous"),
    ],
)
def test_device_arrays_are_checked(fake: SimpleNamespace, change: dict[str, object], message: str) -> None:
    with session(STATIC) as loaded:
        given = fake_tensorrt_run.DeviceTensor(fake.cuda, X)
        given.__cuda_array_interface__ |= change
        with pytest.raises(InputError, match=message):
            loaded.infer({"x": given})
        given.free()


def test_device_memory_is_reported(fake: SimpleNamespace) -> None:
    with session(STATIC) as loaded:
        loaded.infer({"x": X})
        assert any("contexts 0.00 MB, buffers 0.00 MB" in note for note in loaded.execution().notes)
        assert loaded._runner.device_memory_bytes == {"contexts": 1000, "buffers": 48}


def test_running_out_of_device_memory_is_an_inference_error(fake: SimpleNamespace) -> None:
    fake.cuda.device_limit = 10
    with session(STATIC) as loaded, pytest.raises(InferenceError, match="cudaErrorMemoryAllocation"):
        loaded.infer({"x": X})


def test_tensorrt_8_computes_int64_in_int32(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = fake_tensorrt.install(monkeypatch, "8.6.1")
    with session(INTEGERS) as loaded:
        found = loaded.infer({"x": np.arange(4)})["y"]
        assert found.dtype == np.int64
        np.testing.assert_array_equal(found, [0, 2, 4, 6])
        with pytest.raises(InputError, match="does not fit"):
            loaded.infer({"x": np.array([0, 1, 2, 1 << 40])})
        with loaded.bind() as bound:
            bound.inputs["x"][...] = 5
            bound.run()
            assert bound.outputs["y"].tolist() == [10] * 4
    fake.cuda.assert_nothing_left()


def test_float64_is_computed_in_float32_and_that_is_said(fake: SimpleNamespace) -> None:
    text = HEAD + "g (double[3] x) => (double[3] y) { y = Add(x, x) }"
    with session(text) as loaded:
        found = loaded.infer({"x": np.array([1 / 3, np.inf, -np.nan])})["y"]
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, [2 / 3, np.inf, np.nan], rtol=1e-6)
        assert found[0] != 2 / 3
        assert "TensorRT computes float64 in float32: x, y" in loaded.execution().notes
        with pytest.raises(InputError, match="does not fit"):
            loaded.infer({"x": np.array([0, 1e300, 0])})
        with loaded.bind() as bound:
            bound.inputs["x"][...] = 1e300
            with pytest.raises(InputError, match="does not fit"):
                bound.run()


def test_tensorrt_8_runs_one_request_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = fake_tensorrt.install(monkeypatch, "8.5.3")
    with session(DYNAMIC, max_in_flight=4) as loaded:
        outputs = list(loaded.stream([{"x": X}] * 6, in_flight=4))
        assert len(outputs) == 6
        assert len(fake.cuda.streams) == 1
        assert any("one request at a time" in note for note in loaded.execution().notes)


def test_a_binding_takes_the_place_of_the_one_request_of_tensorrt_8(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two contexts with one profile crash the process."""
    fake = fake_tensorrt.install(monkeypatch, "8.5.3")
    with session(DYNAMIC) as loaded:
        expected = loaded.infer({"x": X})
        for _ in range(2):
            with loaded.bind({"x": X.shape}) as bound:
                bound.inputs["x"][...] = X
                bound.run()
                for name, wanted in expected.items():
                    np.testing.assert_array_equal(bound.outputs[name], wanted)
                with pytest.raises(InferenceError, match="a binding has taken its place"):
                    loaded.infer({"x": X})
                with pytest.raises(InferenceError, match="a binding has taken its place"):
                    loaded.bind({"x": X.shape})
            for name, wanted in loaded.infer({"x": X}).items():
                np.testing.assert_array_equal(wanted, expected[name])
        with pytest.raises(InputError):
            loaded.bind({"x": (1, 9_999)})
        loaded.infer({"x": X})
    gc.collect()
    fake.cuda.assert_nothing_left()


def test_what_ran_names_nodes_kernels_and_precisions(fake: SimpleNamespace) -> None:
    with session(STATIC) as loaded:
        report = loaded.execution()
    assert [layer.op_type for layer in report.layers] == ["Mul", "Relu"]
    assert {layer.precision for layer in report.layers} == {"float32"}
    assert report.layers[0].kernel == "fake_kernel"


def test_an_inspector_that_cannot_be_read_is_said(
    fake: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = SimpleNamespace(get_engine_information=lambda _: "{")
    monkeypatch.setattr(fake_tensorrt_run.Engine, "create_engine_inspector", lambda self: answer)
    with session(STATIC) as loaded:
        report = loaded.execution()
    assert report.layers == ()
    assert any("cannot be read" in note for note in report.notes)


def test_a_half_that_ran_in_float_is_said(fake: SimpleNamespace) -> None:
    text = (
        HEAD + "g (float16[1,2] x) => (float16[1,2] y) <float16[2,2] w = {1, 2, 3, 4}> { y = MatMul(x, w) }"
    )
    with session(text) as loaded:
        notes = loaded.execution().notes
    assert any("float16 was asked for and not reached by 1 nodes: " in note for note in notes), notes


@pytest.mark.parametrize("version", ["8.6.1", "11.4.0.1"])
@pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: check.__name__)
def test_conformance_over_the_fake(monkeypatch: pytest.MonkeyPatch, check, version: str) -> None:
    if check.__name__ == "check_failed_runs":
        pytest.skip("the fake does not compute a Reshape whose shape is an input")
    fake = fake_tensorrt.install(monkeypatch, version)
    check("tensorrt")
    fake.cuda.assert_nothing_left()


def test_without_a_gpu_loading_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tensorrt.install(monkeypatch)
    artifact = ei.compile(model(STATIC), "tensorrt")
    fake_tensorrt.install(monkeypatch, gpus=())
    with pytest.raises(DeviceError, match="no device to run on") as caught:
        ei.load(artifact)
    assert "no NVIDIA GPU" in str(caught.value)


@pytest.mark.parametrize("name", ["runtime_cache", "engine_host_code_allowed"])
def test_an_artifact_names_no_file_and_does_not_vouch_for_itself(fake: SimpleNamespace, name: str) -> None:
    artifact = ei.compile(model(STATIC), "tensorrt")
    options = {**artifact.payload.options, name: "out" if name == "runtime_cache" else True}
    edited = attrs.evolve(artifact, payload=attrs.evolve(artifact.payload, options=options))
    with pytest.raises(ArtifactTrustError, match=name):
        ei.load(edited)
    assert not fake.cuda.calls("deserialize_cuda_engine")
