"""What of the GPU benchmark can be held without a GPU: peers copy what edgeinfer copies, checks run."""

from __future__ import annotations

import gc
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest

import edgeinfer as ei
from edgeinfer.backends.tensorrt_.staging import default_threads
from tests.backends import fake_tensorrt

FOLDER = Path(__file__).parents[2] / "benchmarks" / "gpu"


RELU = "g (float[N,4] x) => (float[N,4] y) { s = Mul(x, x)\n y = Sub(s, x) }"


class FakeTensor:
    """Records copies; `pinned` host memory and the rest, which is called the device's."""

    log: ClassVar[list[tuple[str, str, bool]]] = []

    def __init__(self, name: str, *, pinned: bool = False) -> None:
        self.name, self.pinned = name, pinned
        self.shape, self.dtype = (1,), "float32"

    def pin_memory(self) -> FakeTensor:
        return FakeTensor(self.name, pinned=True)

    def copy_(self, source: FakeTensor, *, non_blocking: bool = False) -> None:
        assert source.pinned != self.pinned, "a copy between the host and the device"
        kind = "in" if source.pinned else "out"
        self.log.append((kind, source.name if kind == "out" else self.name, non_blocking))


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    torch: Any = ModuleType("torch")
    torch.nn = ModuleType("torch.nn")
    torch.nn.functional = ModuleType("torch.nn.functional")
    for name in ("relu", "max_pool2d", "avg_pool2d", "softmax", "pixel_shuffle", "pad", "conv2d"):
        setattr(torch.nn.functional, name, lambda *_, **__: None)
    torch.nn.Module = object
    torch.Tensor = FakeTensor
    torch.dtype, torch.float16, torch.float32 = str, "float16", "float32"
    torch.zeros = lambda shape, dtype: FakeTensor("host")
    for module in (torch, torch.nn, torch.nn.functional):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return load("onnx_torch")


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    made = importlib.util.module_from_spec(spec)
    assert spec.loader is not None
    if str(FOLDER) not in sys.path:  # its scripts import each other
        sys.path.append(str(FOLDER))
    spec.loader.exec_module(made)
    return made


def test_a_round_trip_in_pytorch_copies_inputs_in_and_outputs_back(script: Any) -> None:
    inputs = [FakeTensor("a"), FakeTensor("b")]

    def step() -> list[FakeTensor]:
        FakeTensor.log.append(("run", "", True))
        return [FakeTensor("y"), FakeTensor("z")]

    FakeTensor.log.clear()
    run = script.round_trip(step, inputs)
    assert [kind for kind, *_ in FakeTensor.log] == ["run"]  # to learn the outputs' shapes
    for _ in range(2):
        FakeTensor.log.clear()
        run()
        assert FakeTensor.log == [
            ("in", "a", True),
            ("in", "b", True),
            ("run", "", True),
            ("out", "y", True),
            ("out", "z", True),
        ]


@pytest.mark.slow
def test_the_checks_of_the_copies_on_the_host_run(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = fake_tensorrt.install(monkeypatch)
    assert load("host_copies").check({}) == {"copy_threads": default_threads()}
    gc.collect()
    fake.cuda.assert_nothing_left()


def test_every_way_to_call_infer_is_measured_at_every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = fake_tensorrt.install(monkeypatch)
    script = load("host_copies")
    text = '<ir_version: 8, opset_import: ["" : 15]> g (float[N,3,W] x) => (float[N,3,W] y) { y = Neg(x) }'
    shapes = {"x": (1, 3, 6_000)}
    model = ei.Model.load(onnx.parser.parse_model(text))
    artifact = script.build(model, shapes, "float32", {}, None)
    calls: list[int] = []

    def latency(run: Any, seconds: float, runs: int, before: Any = lambda: None) -> dict[str, float]:
        for _ in range(4):
            before()
            run()
        calls.append(4)
        return {"p50_ms": 1.0, "p99_ms": 1.2}

    for batch in script.BATCHES:
        found = script.measure(artifact, shapes, batch, latency, 0.0)
        assert found["again / bound"] == 1
        assert found["fresh p99 / p50"] == 1.2
        assert found["made / bound"] == 1
        assert found["again aim reached"] is False  # for its tail
    assert len(calls) == 5 * len(script.BATCHES)
    gc.collect()
    fake.cuda.assert_nothing_left()


def test_a_model_of_one_image_gives_the_same_for_several_at_once() -> None:
    text = """<ir_version: 8, opset_import: ["" : 15]> g (float[1,4,3,3] x) => (float[1,4,9] y)
    <int64[5] apart = {1, 2, 2, 3, 3}, int64[3] flat = {1, 4, 9}>
    {
        a = Reshape(x, apart)
        b = Transpose<perm = [0, 2, 1, 3, 4]>(a)
        y = Reshape(b, flat)
    }"""
    proto = onnx.parser.parse_model(text)
    images = np.random.default_rng(0).standard_normal((3, 4, 3, 3)).astype(np.float32)
    with ei.load(ei.compile(ei.Model.load(proto), "onnxruntime")) as session:
        wanted = [session.infer({"x": image[None]})["y"] for image in images]
    with ei.load(ei.compile(load("models").with_open_batch(proto), "onnxruntime")) as session:
        np.testing.assert_array_equal(session.infer({"x": images})["y"], np.concatenate(wanted))


def test_the_check_of_two_gpus_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = fake_tensorrt.install(monkeypatch, gpus=(("FAKE A", "8.7"), ("FAKE B", "8.7")))
    checks = load("checks")
    found = checks.two_gpus(checks.text_model(RELU), {})
    assert "another" in found["refused"]
    gc.collect()
    fake.cuda.assert_nothing_left()
