"""The C library that copies large inputs, built here, over the FAKES of TensorRT and CUDA."""

from __future__ import annotations

import ctypes
import ctypes.util
import gc
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

import edgeinfer as ei
from edgeinfer.backends.tensorrt_ import copy_library
from edgeinfer.backends.tensorrt_.copy_library import CopyLibrary, build_copy_library
from edgeinfer.errors import InferenceError, OptionsError
from tests.backends import fake_tensorrt

WIDTH = 262_144  # a row is 1 MiB of float32
NEG = (
    '<ir_version: 8, opset_import: ["" : 17]>\n'
    f"g (float[N,{WIDTH}] x) => (float[N,{WIDTH}] y) {{ y = Neg(x) }}"
)
SEND = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_uint64, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    return build_copy_library(tmp_path_factory.mktemp("library") / "libedgeinfer_copy.so")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    made = fake_tensorrt.install(monkeypatch)

    def send(device: int, host: int, size: int, stream: int) -> int:
        return int(made.cuda.cudaMemcpyAsync(device, host, size, "to device", made.cuda.stream_of(stream))[0])

    driver = SEND(send)
    monkeypatch.setattr(copy_library, "driver_copy", lambda: ctypes.cast(driver, ctypes.c_void_p).value)
    yield made
    gc.collect()
    made.cuda.assert_nothing_left()


def load(library: Path, **options: object) -> ei.Session:
    artifact = ei.compile(onnx.parser.parse_model(NEG), "tensorrt", options={"dims": {"N": (1, 2, 20)}})
    return ei.load(artifact, options={"copy_library": str(library), **options})


def rows(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, WIDTH), np.float32)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_new_arrays_of_any_size_arrive_in_pieces(fake: SimpleNamespace, library: Path, threads: int) -> None:
    with load(library, copy_threads=threads) as session:
        for step in range(12):
            x = rows(step, 1 + step % 4)
            mark = len(fake.cuda.events)
            y = session.infer({"x": x})["y"]
            wanted = -x
            x[...] = 0  # it was read when `infer` returned
            np.testing.assert_array_equal(y, wanted)
            sent = [e[2] for e in fake.cuda.events[mark:] if e[:2] == ("cudaMemcpyAsync", "to device")]
            assert sum(sent) == x.nbytes
            assert len(sent) > 1 or threads > 1  # what others have copied by then goes in one piece


def test_an_array_that_comes_again_is_still_read_where_it_lies(fake: SimpleNamespace, library: Path) -> None:
    with load(library) as session:
        x = rows(0, 3)
        for _ in range(4):
            mark = len(fake.cuda.events)
            np.testing.assert_array_equal(session.infer({"x": x})["y"], -x)
        sent = [e[2] for e in fake.cuda.events[mark:] if e[:2] == ("cudaMemcpyAsync", "to device")]
        assert sent == [x.nbytes]


def test_several_callers_at_once_get_their_own(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: dict[int, list[bytes]] = {}

    @SEND
    def send(device: int, host: int, size: int, stream: int) -> int:
        sent[stream].append(ctypes.string_at(host, size))
        return 0

    monkeypatch.setattr(copy_library, "driver_copy", lambda: ctypes.cast(send, ctypes.c_void_p).value)
    team = CopyLibrary(str(library), 2)

    def copy(number: int) -> None:
        rng = np.random.default_rng(number)
        for _ in range(40):
            source = rng.integers(0, 256, rng.integers(1, 3 << 20), np.uint8)
            host = np.zeros_like(source)
            sent[number] = []
            team.copy(source.ctypes.data, host.ctypes.data, 0, source.nbytes, number)
            if b"".join(sent[number]) != source.tobytes():
                wrong.append(number)

    wrong: list[int] = []
    callers = [threading.Thread(target=copy, args=(number,)) for number in (1, 2, 3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    team.close()
    assert wrong == []


@pytest.mark.parametrize(("threads", "sent"), [(1, 1), (3, 0)])
def test_what_the_driver_refuses_is_an_error(
    fake: SimpleNamespace, library: Path, threads: int, sent: int
) -> None:
    with load(library, copy_threads=threads) as session:
        session.infer({"x": rows(0, 4)})
        fake.cuda.fail_copy_in = sent  # with helpers all pieces may go in one call
        with pytest.raises(InferenceError, match="refuses a copy") as caught:
            session.infer({"x": rows(1, 4)})
        assert caught.value.facts["cuda_error"] == 1
        fake.cuda.fail_copy_in = None
        x = rows(2, 4)
        np.testing.assert_array_equal(session.infer({"x": x})["y"], -x)


def test_a_forked_child_may_close_what_has_threads_in_its_parent(
    library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copy_library, "driver_copy", lambda: 1)
    team = CopyLibrary(str(library), 2)
    child = os.fork()
    if child == 0:
        team.close()
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    team.close()


def test_what_is_not_the_library_is_refused(fake: SimpleNamespace, library: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.so"
    other.write_bytes(b"no library")
    for path in (other, tmp_path / "missing.so", Path(ctypes.util.find_library("c") or "libc.so.6")):
        with pytest.raises(OptionsError, match="not the library"):
            load(path)
    artifact: Any = ei.compile(onnx.parser.parse_model(NEG), "tensorrt")
    with pytest.raises(OptionsError, match="option of loading"):
        ei.compile(onnx.parser.parse_model(NEG), "tensorrt", options={"copy_library": str(library)})
    assert "copy_library" not in artifact.manifest.options


def test_a_compiler_that_fails_is_named(tmp_path: Path) -> None:
    with pytest.raises(OptionsError, match="cannot be built"):
        build_copy_library(tmp_path / "out.so", compiler="no-such-compiler")
    with pytest.raises(OptionsError, match="cannot be built"):
        build_copy_library(tmp_path / "missing" / "out.so", compiler="false")
