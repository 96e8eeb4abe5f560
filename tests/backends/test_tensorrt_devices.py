"""Several GPUs in one process, over the FAKES: calls run on their session's GPU and leave the caller's."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

import edgeinfer as ei
from edgeinfer.errors import ArtifactMismatchError, CompileError, InferenceError, InputError
from tests.backends import fake_tensorrt, fake_tensorrt_run

HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'
SCALE = HEAD + "g (float[2,3] x) => (float[2,3] y) <float[3] w = {1, 2, 3}> { y = Mul(x, w) }"
DYNAMIC = HEAD + "g (float[N,3] x) => (float[N,3] y) <float[3] w = {1, 2, 3}> { y = Mul(x, w) }"
NONZERO = HEAD + "g (float[4] x) => (int64[1,K] y) { y = NonZero(x) }"
W = np.float32([1, 2, 3])
X = np.arange(6, dtype=np.float32).reshape(2, 3)
GPUS = (("Fake A", "8.6"), ("Fake B", "8.6"), ("Fake C", "8.6"))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    made = fake_tensorrt.install(monkeypatch, gpus=GPUS)
    yield made
    made.cuda.assert_nothing_left()


def compiled(text: str, device: str, **options: object) -> ei.Artifact:
    return ei.compile(onnx.parser.parse_model(text), "tensorrt", device=device, options=options)


@pytest.mark.parametrize("device", [0, 1, 2])
def test_every_verb_leaves_the_device_that_the_caller_had(fake: SimpleNamespace, device: int) -> None:
    with fake.cuda.used(device):  # checks at its end; here, between any two calls
        for name in ("GPU", "GPU.1"):
            session = ei.load(compiled(DYNAMIC, name, dims={"N": (1, 2, 4)}))
            assert fake.cuda.device == device
            for count in (2, 2, 2, 4):
                x = np.ones((count, 3), np.float32)
                np.testing.assert_array_equal(session.infer({"x": x})["y"], x * W)
                assert fake.cuda.device == device
            bound = session.bind({"x": (2, 3)})
            assert fake.cuda.device == device
            bound.inputs["x"][...] = X
            bound.run()
            assert fake.cuda.device == device
            np.testing.assert_array_equal(bound.outputs["y"], X * W)
            session.execution()
            assert fake.cuda.device == device
            bound.close()
            assert fake.cuda.device == device
            session.close()
            assert fake.cuda.device == device


def test_an_engine_is_built_and_run_on_its_own_gpu(fake: SimpleNamespace) -> None:
    for index, name in enumerate(("GPU", "GPU.1", "GPU.2")):
        with fake.cuda.used(1), ei.load(compiled(SCALE, name)) as session:
            assert fake.builds[-1].device == index
            assert session._runner._engine.device == index
            session.infer({"x": X})
            assert {block.device for block in fake.cuda.memory.values()} == {index}


def test_the_first_gpu_has_two_names(fake: SimpleNamespace) -> None:
    for compiled_for, loaded_on in (("GPU.0", None), ("GPU", "GPU.0"), ("GPU.0", "GPU")):
        with ei.load(compiled(SCALE, compiled_for), device=loaded_on) as session:
            np.testing.assert_array_equal(session.infer({"x": X})["y"], X * W)
    with pytest.raises(ArtifactMismatchError, match="only on the device"):
        ei.load(compiled(SCALE, "GPU.0"), device="GPU.1")


def test_two_gpus_take_turns_in_one_thread_while_others_change_the_device(fake: SimpleNamespace) -> None:
    with ei.load(compiled(SCALE, "GPU")) as first, ei.load(compiled(SCALE, "GPU.1")) as second:
        for turn in range(12):
            fake.cuda.cudaSetDevice(turn % 3)  # torch.cuda.set_device, somewhere
            for scale, session in ((1, first), (10, second)):
                np.testing.assert_array_equal(session.infer({"x": scale * X})["y"], scale * X * W)
                assert fake.cuda.device == turn % 3
        fake.cuda.cudaSetDevice(2)


def test_a_session_is_closed_in_a_thread_that_has_never_run_it(fake: SimpleNamespace) -> None:
    session = ei.load(compiled(SCALE, "GPU.1"))
    session.infer({"x": X})
    errors: list[BaseException] = []

    def close() -> None:
        try:
            session.close()
            assert fake.cuda.device == 0
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=close)
    thread.start()
    thread.join()
    assert not errors


def test_errors_leave_the_callers_device_too(fake: SimpleNamespace) -> None:
    with fake.cuda.used(2):
        bad = HEAD + "g (float[2,2] x) => (float y) { y = Det(x) }"
        with pytest.raises(CompileError):
            compiled(bad, "GPU.1")
        assert fake.cuda.device == 2
        with ei.load(compiled(DYNAMIC, "GPU.1", dims={"N": (1, 2, 4)})) as session:
            with pytest.raises(InputError):
                session.infer({"x": np.zeros((9, 3), np.float32)})
            assert fake.cuda.device == 2
        with ei.load(compiled(NONZERO, "GPU.1")) as session:
            with pytest.raises(InferenceError):
                session.bind()
            assert fake.cuda.device == 2


def test_an_array_on_another_gpu_is_refused(fake: SimpleNamespace) -> None:
    with ei.load(compiled(SCALE, "GPU.1")) as session:
        there = fake_tensorrt_run.DeviceTensor(fake.cuda, X, device=0)
        with pytest.raises(InputError, match="another GPU") as caught:
            session.infer({"x": there})
        assert "GPU.1" in str(caught.value)
        here = fake_tensorrt_run.DeviceTensor(fake.cuda, X, device=1)
        np.testing.assert_array_equal(session.infer({"x": here})["y"], X * W)
        there.free()
        here.free()


def test_a_pointer_that_is_not_on_a_gpu_is_refused(fake: SimpleNamespace) -> None:
    with ei.load(compiled(SCALE, "GPU")) as session:
        interface = {"data": (X.ctypes.data, False), "shape": X.shape, "typestr": "<f4", "version": 3}
        given = SimpleNamespace(__cuda_array_interface__=interface)
        with pytest.raises(InputError, match="not in the memory of a GPU"):
            session.infer({"x": given})


def test_loading_does_not_wait_for_a_build(fake: SimpleNamespace) -> None:
    artifact = compiled(SCALE, "GPU")
    building, go_on = threading.Event(), threading.Event()

    def wait(logger: object) -> None:
        building.set()
        assert go_on.wait(60)

    fake.trt.while_building = wait
    builder = threading.Thread(target=compiled, args=(SCALE, "GPU.1"))
    builder.start()
    assert building.wait(60)
    fake.trt.while_building = None
    loaded = threading.Thread(target=lambda: ei.load(artifact).close(), daemon=True)
    loaded.start()
    loaded.join(30)
    waited = loaded.is_alive()
    go_on.set()
    builder.join()
    loaded.join()
    assert not waited, "load waited for another thread's build"


def test_what_tensorrt_says_reaches_the_build_that_it_is_about(fake: SimpleNamespace) -> None:
    """Messages of the builder's own threads reach all builds under way: nothing tells whose they are."""
    both = threading.Barrier(2)
    found: dict[str, CompileError] = {}

    def complain(logger: object) -> None:
        both.wait(60)
        logger.log(1, f"from {threading.current_thread().name}")
        if threading.current_thread().name == "one":
            worker = threading.Thread(target=logger.log, args=(1, "from a worker"))
            worker.start()
            worker.join()
        both.wait(60)

    def build() -> None:
        try:
            compiled(HEAD + 'g (float[2,2] x) => (float[2,2] y) { y = Einsum<equation="ij->ji">(x) }', "GPU")
        except CompileError as error:
            found[threading.current_thread().name] = error

    fake.trt.while_building = complain
    threads = [threading.Thread(target=build, name=name) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    logs = {name: error.facts["log"] for name, error in found.items()}
    assert "from one" in logs["one"]
    assert "from two" not in logs["one"]
    assert "from two" in logs["two"]
    assert "from one" not in logs["two"]
    assert "from a worker" in logs["two"]
