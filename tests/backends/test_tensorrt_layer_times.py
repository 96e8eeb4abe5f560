"""Layers timed by TensorRT's profiler, over the FAKES: a context of its own, named as the model's nodes."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import onnx
import pytest

import edgeinfer as ei
from edgeinfer.backends.tensorrt_.layer_times import LayerClock
from edgeinfer.errors import InferenceError, InputError
from edgeinfer.measure import measure_layers
from tests.backends import fake_tensorrt

NET = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N,3] x) => (float[N,3] y) <float[3] w = {1, 2, 3}> { [scale] s = Mul(x, w)\n [cut] y = Relu(s) }"""
X = np.array([[1, -2, 3], [4, 5, -6]], np.float32)
Y = np.array([[1, 0, 9], [4, 10, 0]], np.float32)


def compiled() -> ei.Artifact:
    return ei.compile(onnx.parser.parse_model(NET), "tensorrt")


@pytest.mark.parametrize("version", ["8.5.3.1", "8.6.1", "10.0.1", "11.4.0.1"])
def test_layers_are_timed_beside_what_runs(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    fake = fake_tensorrt.install(monkeypatch, version)
    with ei.load(compiled()) as session:
        for _ in range(3):  # as a CUDA graph from the second on
            session.infer({"x": X})
        times = session.profile({"x": X}, runs=4)
        assert [(time.name, time.onnx_names, time.kernel) for time in times] == [
            ("scale", ("scale",), "fake_kernel"),
            ("cut", ("cut",), "fake_kernel"),
        ]
        assert [time.us for time in times] == pytest.approx([1.0, 2.0])
        np.testing.assert_array_equal(session.infer({"x": X})["y"], Y)
        assert [time.us for time in session.profile({"x": X[:1]}, runs=1)] == pytest.approx([1.0, 2.0])
    fake.cuda.assert_nothing_left()


def test_measure_layers_has_the_names_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tensorrt.install(monkeypatch)
    found = measure_layers(onnx.parser.parse_model(NET), {"x": X}, target="tensorrt", runs=2)
    assert found.by_node == pytest.approx({"scale": 1.0, "cut": 2.0})
    assert not [note for note in found.notes if "no profiler" in note]


def test_wrong_inputs_and_failures_leave_the_session_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = fake_tensorrt.install(monkeypatch, "8.5.3.1")
    with ei.load(compiled()) as session:
        with pytest.raises(InputError):
            session.profile({"x": X[:, :2]})
        fake.cuda.failing.add("cudaStreamSynchronize")
        with pytest.raises(InferenceError):
            session.profile({"x": X})
        fake.cuda.failing.clear()
        np.testing.assert_array_equal(session.infer({"x": X})["y"], Y)
    fake.cuda.assert_nothing_left()


def test_a_runtime_without_an_inspector_names_layers_by_their_parts() -> None:
    trt = SimpleNamespace(IProfiler=type("IProfiler", (), {}))
    clock, context = LayerClock(trt), SimpleNamespace()
    clock.listen(context)
    context.profiler.report_layer_time("before any run", 1.0)
    for slow in (9.0, 0.001, 0.002):
        clock.start_run()
        context.profiler.report_layer_time("conv1 + relu1", slow)
        context.profiler.report_layer_time("looped", 0.001)
        context.profiler.report_layer_time("looped", 0.002)
    fused, looped = clock.layers(())
    assert fused.onnx_names == ("conv1", "relu1")
    assert (fused.us, looped.us) == pytest.approx((1.0, 3.0))
