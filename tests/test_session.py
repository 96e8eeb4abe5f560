"""What the session promises, for every backend: ownership, bound mode, threads, streams, closing, pinning."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from edgeinfer.errors import (
    ArtifactError,
    DeviceError,
    InputError,
    OptionsError,
    SessionClosedError,
)
from edgeinfer.runtime.affinity import Pins
from tests.session_kit import BACKENDS, DYNAMIC, HEADER, STATIC, feeds, load

LARGE = HEADER + "a (float[100, 300] x) => (float[100, 300] y) { y = Mul(x, x) }"


@pytest.fixture(params=BACKENDS)
def backend(request) -> str:
    pytest.importorskip(request.param)
    return request.param


# infer


@pytest.mark.parametrize("text", [DYNAMIC, LARGE], ids=["dynamic", "large"])
def test_outputs_belong_to_the_caller_and_inputs_stay_as_they_were(backend, text):
    shape = (100, 300) if text == LARGE else (4, 3)
    with load(text, backend) as session:
        x = np.full(shape, 3, np.float32)
        first = session.infer({"x": x})["y"]
        second = session.infer({"x": np.zeros(shape, np.float32)})["y"]
        x[...] = 7
        first_again = first.copy()
        second[...] = -1
        session.infer({"x": x})
        np.testing.assert_array_equal(first, first_again)
        np.testing.assert_array_equal(first, 9)
        np.testing.assert_array_equal(x, 7)
        assert first.flags.writeable
    np.testing.assert_array_equal(first, 9)  # after closing too


def test_several_inputs_and_outputs_keep_their_names(backend):
    with load(STATIC, backend) as session:
        x, z = np.full((2, 3), 5, np.float32), np.full((2, 3), 2, np.float32)
        found = session.infer({"z": z, "x": x})
    assert list(found) == ["y", "w"]
    np.testing.assert_array_equal(found["y"], 7)
    np.testing.assert_array_equal(found["w"], 3)


def test_arrays_that_are_not_contiguous_are_taken(backend):
    with load(DYNAMIC, backend) as session:
        x = np.arange(12, dtype=np.float32).reshape(3, 4).T
        np.testing.assert_array_equal(session.infer(x)["y"], x * x)
    with load(STATIC, backend) as session:
        x = np.arange(6, dtype=np.float32).reshape(3, 2).T
        np.testing.assert_array_equal(session.infer({"x": x, "z": x})["y"], x + x)


def test_a_dtype_in_the_other_byte_order_is_not_taken_for_the_right_one(backend):
    with load(STATIC, backend) as session:
        x = np.ones((2, 3), ">f4")
        with pytest.raises(InputError, match="dtype"):
            session.infer({"x": x, "z": x})


@pytest.mark.parametrize(
    ("inputs", "word"),
    [
        ({"x": np.ones((2, 3), np.float32)}, "missing z"),
        ({"x": np.ones((2, 3), np.float32), "z": np.ones((2, 3), np.float64)}, "dtype"),
        ({"x": np.ones((2, 3), np.float32), "z": np.ones((3, 2), np.float32)}, "transpose"),
        ({"x": np.ones((2, 3), np.float32), "z": np.ones(3, np.float32)}, "rank"),
        (np.ones((2, 3), np.float32), "by name"),
    ],
)
def test_wrong_inputs_are_refused_with_a_reason(backend, inputs, word):
    with load(STATIC, backend) as session:
        with pytest.raises(InputError) as caught:
            session.infer(inputs)
        assert word in str(caught.value)
        good = np.ones((2, 3), np.float32)
        np.testing.assert_array_equal(session.infer({"x": good, "z": good})["y"], 2)  # it still works


def test_latencies_are_recorded(backend):
    with load(DYNAMIC, backend) as session:
        for feed in feeds(8):
            session.infer(feed)
        assert session.latencies_ms.shape == (8,)
        assert (session.latencies_ms > 0).all()
        assert "p50" in str(session.table())


# Bound mode


@pytest.mark.parametrize("text", [STATIC, DYNAMIC, LARGE], ids=["static", "dynamic", "large"])
def test_bound_mode_reuses_its_buffers(backend, text):
    with load(text, backend) as session:
        names = [spec.name for spec in session.signature.inputs]
        bound = session.bind({"x": (4, 3)} if text == DYNAMIC else None)
        arrays = (*bound.inputs.values(), *bound.outputs.values())
        addresses = [array.ctypes.data for array in arrays]
        for value in (1, 2, 3):
            for name in names:
                bound.inputs[name][...] = value
            bound.run()
            expected = session.infer({name: bound.inputs[name] for name in names})
            for name, array in expected.items():
                np.testing.assert_array_equal(bound.outputs[name], array)
        assert addresses == [a.ctypes.data for a in (*bound.inputs.values(), *bound.outputs.values())]


def test_two_bound_modes_do_not_share_buffers(backend):
    with load(DYNAMIC, backend) as session:
        one, two = session.bind({"x": (1, 3)}), session.bind({"x": (2, 3)})
        one.inputs["x"][...], two.inputs["x"][...] = 2, 3
        one.run()
        two.run()
        np.testing.assert_array_equal(one.outputs["y"], np.full((1, 3), 4))
        np.testing.assert_array_equal(two.outputs["y"], np.full((2, 3), 9))


def test_bind_needs_shapes_that_fit(backend):
    with load(DYNAMIC, backend) as session:
        with pytest.raises(InputError, match="bind needs one"):
            session.bind()
        with pytest.raises(InputError, match="axis 1"):
            session.bind({"x": (4, 5)})


def test_bound_mode_after_closing(backend):
    session = load(DYNAMIC, backend)
    bound, other = session.bind({"x": (1, 3)}), session.bind({"x": (1, 3)})
    bound.inputs["x"][...] = 2
    bound.run()
    other.close()
    with pytest.raises(SessionClosedError):
        other.run()
    session.close()
    with pytest.raises(SessionClosedError):
        bound.run()
    np.testing.assert_array_equal(bound.outputs["y"], 4)  # the arrays stay readable
    bound.close()


# Threads and streams


@pytest.mark.parametrize("text", [DYNAMIC, LARGE], ids=["dynamic", "large"])
def test_several_threads_use_one_session(backend, text):
    shape = (100, 300) if text == LARGE else (4, 3)
    with load(text, backend) as session, ThreadPoolExecutor(6) as pool:
        for i, found in enumerate(pool.map(session.infer, feeds(60, shape))):
            np.testing.assert_array_equal(found["y"], i * i)


@pytest.mark.parametrize("in_flight", [1, 3])
def test_a_stream_keeps_the_order_and_does_not_run_ahead(backend, in_flight):
    taken = 0

    def source() -> Iterator[dict[str, np.ndarray]]:
        nonlocal taken
        for feed in feeds(12):
            taken += 1
            yield feed

    with load(DYNAMIC, backend) as session:
        for i, found in enumerate(session.stream(source(), in_flight=in_flight)):
            assert taken <= i + 1 + in_flight
            np.testing.assert_array_equal(found["y"], i * i)
        assert taken == 12


def test_a_stream_raises_when_the_bad_input_is_reached(backend):
    bad = [*feeds(2), {"x": np.ones((4, 3))}, *feeds(2)]
    with load(DYNAMIC, backend) as session:
        stream = session.stream(bad, in_flight=2)
        assert [next(stream)["y"][0, 0], next(stream)["y"][0, 0]] == [0, 1]
        with pytest.raises(InputError, match="dtype"):
            next(stream)


def test_a_stream_may_be_left_early_and_needs_a_request(backend):
    with load(DYNAMIC, backend) as session:
        stream = session.stream(iter(feeds(100)), in_flight=2)
        next(stream)
        stream.close()
        with pytest.raises(OptionsError):
            session.stream([], in_flight=0)


# Closing


def test_use_after_close(backend):
    session = load(DYNAMIC, backend)
    session.close()
    session.close()
    assert session.closed
    for use in (
        lambda: session.infer(feeds(1)[0]),
        lambda: session.bind({"x": (1, 3)}),
        lambda: session.stream(feeds(1)),
        session.execution,
        session.check_golden,
        session.__enter__,
    ):
        with pytest.raises((SessionClosedError, ArtifactError)):
            use()
    assert "closed" in repr(session)


def test_closing_while_other_threads_run(backend):
    session = load(LARGE, backend)
    started = threading.Barrier(4)
    unexpected: list[BaseException] = []

    def work() -> None:
        feed = feeds(1, (100, 300))[0]
        started.wait()
        try:
            for _ in range(2000):
                session.infer(feed)
        except SessionClosedError:
            pass
        except BaseException as error:
            unexpected.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    started.wait()
    session.close()
    for thread in threads:
        thread.join()
    assert unexpected == []


# Pinning


needs_affinity = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")


@needs_affinity
def test_pinning_lasts_until_the_session_closes(backend):
    before = os.sched_getaffinity(0)
    core = min(before)
    session = load(DYNAMIC, backend, pin_cores=core)
    assert os.sched_getaffinity(0) == before  # loading left this thread as it was
    session.infer(feeds(1)[0])
    assert os.sched_getaffinity(0) == {core}
    seen = []
    with ThreadPoolExecutor(1) as pool:
        pool.submit(session.infer, feeds(1)[0]).result()
        seen.append(pool.submit(os.sched_getaffinity, 0).result())
        list(session.stream(feeds(4)))
        session.close()
        seen.append(pool.submit(os.sched_getaffinity, 0).result())
    assert os.sched_getaffinity(0) == before
    assert seen == [{core}, before]
    # Threads that the runtime keeps in the process are free again.
    assert all(_affinity(int(task.name)) == before for task in Path("/proc/self/task").iterdir())


def _affinity(task: int) -> set[int]:
    try:
        return os.sched_getaffinity(task)
    except OSError:
        return os.sched_getaffinity(0)


@needs_affinity
@pytest.mark.parametrize("cores", [(), (100_000,)])
def test_cores_that_are_not_there_are_refused(cores):
    with pytest.raises(DeviceError, match="cores"):
        Pins(cores)
