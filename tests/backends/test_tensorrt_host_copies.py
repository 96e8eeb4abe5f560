"""Who owns which memory when plain inference copies as little as it can, over the FAKES.

The fake of CUDA copies only when the stream is synchronized, and only from and to memory that is page-locked
then: an input that is not read completely before `infer` returns, or an output that is lent twice, is seen.
"""

from __future__ import annotations

import gc
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edgeinfer.backends.tensorrt_ import input_locks as tensorrt_input_locks
from edgeinfer.backends.tensorrt_ import memory as tensorrt_memory
from edgeinfer.backends.tensorrt_ import staging as tensorrt_staging
from edgeinfer.backends.tensorrt_.cuda import Cuda
from edgeinfer.errors import InferenceError
from tests.backends import fake_tensorrt, fake_tensorrt_run
from tests.backends.wide_rows import WIDE_IN, WIDTH, copies_in, locked, rows, session

# Inputs.


def test_an_input_may_be_changed_as_soon_as_infer_returns(fake: SimpleNamespace) -> None:
    x = rows(0, 2)
    with session() as loaded:
        for value in range(8):  # copied at first, read where it lies later
            x[...] = rows(value, 2)
            found = loaded.infer({"x": x})["y"]
            x[...] = -1
            np.testing.assert_array_equal(found, -rows(value, 2))
    del found


def test_an_array_that_comes_again_is_read_where_it_lies(fake: SimpleNamespace) -> None:
    with session(WIDE_IN) as loaded:
        x = rows(1)
        for _ in range(2):
            loaded.infer({"x": x})
        before = locked(fake)
        for value in range(4):
            x[...] = rows(value)
            np.testing.assert_array_equal(loaded.infer({"x": x})["y"], x.max())
        assert locked(fake) == before + 1
        assert fake.cuda.memory[x.ctypes.data].kind == "registered"
        assert len(fake.cuda.calls("cudaHostUnregister")) == 0
        address = x.ctypes.data
        del x
        assert address not in fake.cuda.memory  # unlocked before the memory went


def test_new_arrays_are_copied_even_where_an_old_one_lay(fake: SimpleNamespace) -> None:
    with session(WIDE_IN) as loaded:
        for value in range(30):
            x = rows(value)
            for _ in range(1 + value % 4):
                np.testing.assert_array_equal(loaded.infer({"x": x})["y"], x.max())
            del x
        assert locked(fake) <= 2


def test_an_array_that_is_locked_cannot_be_moved_by_numpy(fake: SimpleNamespace) -> None:
    with session(WIDE_IN) as loaded:
        x = rows(1)
        for _ in range(4):
            loaded.infer({"x": x})
        with pytest.raises(ValueError, match="cannot resize"):
            x.resize((2, WIDTH), refcheck=False)


def test_what_may_not_be_locked_is_copied(fake: SimpleNamespace, tmp_path: Path) -> None:
    class Mine(np.ndarray):
        pass

    mine = Mine((1, WIDTH), np.float32)
    mine[...] = rows(4)
    parent = np.concatenate([rows(1), rows(2)])
    mapped = np.memmap(tmp_path / "x", np.float32, "w+", shape=(1, WIDTH))
    mapped[...] = rows(3)
    for given_ in (
        parent[1:],
        mine,
        mapped,
        np.frombuffer(rows(5).tobytes(), np.float32)[None],
    ):
        with session(WIDE_IN) as loaded:
            for _ in range(5):
                np.testing.assert_array_equal(loaded.infer({"x": given_})["y"], np.asarray(given_).max())
            assert given_.ctypes.data not in fake.cuda.memory


def test_locks_are_few(fake: SimpleNamespace) -> None:
    arrays = [rows(value) for value in range(20)]
    with session(WIDE_IN) as loaded:
        own = locked(fake)
        for _ in range(6):
            for x in arrays:
                np.testing.assert_array_equal(loaded.infer({"x": x})["y"], x.max())
        assert locked(fake) <= own + 8 + 1
    assert locked(fake) == 0  # closing undoes them


def test_where_nothing_can_be_locked_all_works_and_is_said(fake: SimpleNamespace) -> None:
    fake.cuda.failing.add("cudaHostRegister")
    fake.cuda.allow_pageable = True
    x = rows(1)
    with session(WIDE_IN) as loaded:
        for value in range(6):
            x[...] = rows(value)
            np.testing.assert_array_equal(loaded.infer({"x": x})["y"], x.max())
        assert any("cannot be page-locked" in note for note in loaded.execution().notes)


def test_an_array_that_somebody_else_has_locked_is_copied(fake: SimpleNamespace) -> None:
    x = rows(1)
    with session(WIDE_IN) as loaded:
        fake.cuda.cudaHostRegister(x.ctypes.data - x.ctypes.data % 4096, 4096, 0)
        for _ in range(6):
            np.testing.assert_array_equal(loaded.infer({"x": x})["y"], x.max())
        fake.cuda.cudaHostUnregister(x.ctypes.data - x.ctypes.data % 4096)


def test_nothing_of_the_callers_is_locked_where_that_is_switched_off(fake: SimpleNamespace) -> None:
    x = rows(1)
    with session(pin_memory=False) as loaded:
        kept = [loaded.infer({"x": x})["y"] for _ in range(5)]
        assert locked(fake) == 1  # the slot's own, for what comes out
    assert all(array.flags.owndata for array in kept)


def test_up_to_1_mib_cuda_copies_by_itself(fake: SimpleNamespace) -> None:
    with session(WIDE_IN, pin_memory=False) as loaded:
        for value in range(4):
            x = rows(value)
            mark = len(fake.cuda.events)
            np.testing.assert_array_equal(loaded.infer({"x": x})["y"], x.max())
            assert copies_in(fake, mark) == [x.nbytes]
        assert locked(fake) == 1  # the small output's


@pytest.mark.parametrize(("threads", "pieces"), [(1, 1), (2, 2), (4, 3)])
def test_a_large_input_goes_in_pieces(fake: SimpleNamespace, threads: int, pieces: int) -> None:
    with session(copy_threads=threads) as loaded:
        for value in range(4):
            x = rows(value, 21)  # 5.25 MiB: a piece has 2 MiB about, a thread one piece
            x += np.arange(21, dtype=np.float32)[:, None]
            mark = len(fake.cuda.events)
            np.testing.assert_array_equal(loaded.infer({"x": x})["y"], -x)
            sizes = copies_in(fake, mark)
            assert len(sizes) == pieces
            assert sum(sizes) == x.nbytes
            del x


def test_a_thread_is_woken_only_for_what_is_worth_it(fake: SimpleNamespace) -> None:
    with session(copy_threads=8) as loaded:
        x = rows(1, 8)  # 2 MiB
        np.testing.assert_array_equal(loaded.infer({"x": x})["y"], -x)
        assert not loaded._runner._shared.threads._threads
        x = rows(2, 20)
        np.testing.assert_array_equal(loaded.infer({"x": x})["y"], -x)
        assert loaded._runner._shared.threads._threads


def test_a_piece_that_fails_is_the_error_of_the_call_and_the_next_one_works(fake: SimpleNamespace) -> None:
    with session(copy_threads=3) as loaded:
        for which in range(5):
            fake.cuda.fail_copy_in = which
            x = rows(which, 21)
            try:
                found = loaded.infer({"x": x})["y"]
            except InferenceError as error:
                assert "cudaErrorInvalidValue" in str(error)  # noqa: PT017 (not every position fails)
                assert which < 3
            else:
                np.testing.assert_array_equal(found, -x)
                del found
            fake.cuda.fail_copy_in = None
            np.testing.assert_array_equal(loaded.infer({"x": x})["y"], -x)
            del x


def test_an_interrupted_caller_waits_for_its_helpers(fake: SimpleNamespace) -> None:
    threads = tensorrt_staging.CopyThreads(Cuda(fake.cuda), 2)
    at_work, go_on, done = threading.Event(), threading.Event(), threading.Event()

    def helpers_piece() -> None:
        at_work.set()
        assert go_on.wait(60)
        done.set()

    def callers_piece() -> None:
        assert at_work.wait(60)
        threading.Timer(0.05, go_on.set).start()
        raise KeyboardInterrupt

    def piece() -> None:
        (callers_piece if threading.current_thread() is threading.main_thread() else helpers_piece)()

    with pytest.raises(KeyboardInterrupt):
        threads.run([piece, piece])
    assert done.is_set()
    threads.close()


# Errors.


@pytest.mark.parametrize("call", ["execute_async_v3", "cudaStreamSynchronize"])
def test_an_error_leaves_everything_as_it_was(
    fake: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    x = rows(1, 2)
    with session(max_in_flight=1, cuda_graphs=False) as loaded:
        kept = loaded.infer({"x": x})["y"]
        held = locked(fake)
        for _ in range(5):
            if call == "execute_async_v3":
                monkeypatch.setattr(fake_tensorrt_run.Context, call, lambda *_: False)
            else:
                fake.cuda.failing.add(call)
            with pytest.raises(InferenceError):
                loaded.infer({"x": -x})
            monkeypatch.undo() if call == "execute_async_v3" else fake.cuda.failing.discard(call)
            if call == "execute_async_v3":
                fake_tensorrt.reinstall(monkeypatch, fake)
            np.testing.assert_array_equal(kept, -x)
        np.testing.assert_array_equal(loaded.infer({"x": 2 * x})["y"], -2 * x)
        assert locked(fake) <= held + 2
    del kept


def test_a_forked_child_leaves_cuda_alone(fake: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    x = rows(1)
    with session() as loaded:
        for _ in range(4):
            kept = loaded.infer({"x": x})["y"]
        mark = len(fake.cuda.events)
        here = tensorrt_memory.os.getpid()
        for module in (tensorrt_memory, tensorrt_input_locks):
            monkeypatch.setattr(module.os, "getpid", lambda: here + 1)
        np.testing.assert_array_equal(kept, -x)  # it can be read there
        del kept, x
        gc.collect()
        assert fake.cuda.events[mark:] == []
        monkeypatch.undo()
        fake_tensorrt.reinstall(monkeypatch, fake)
    fake.cuda.memory.clear()  # what only the "child" dropped
