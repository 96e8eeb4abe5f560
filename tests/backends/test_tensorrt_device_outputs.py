"""Arrays that stay on the GPU, over a fake TensorRT and a fake CUDA."""

from __future__ import annotations

import gc
from types import SimpleNamespace

import numpy as np
import pytest

from edgeinfer.errors import OptionsError
from tests.backends import fake_tensorrt_run
from tests.backends.wide_rows import HEAD, NONZERO, WIDTH, copies_in, rows, session


def test_outputs_can_stay_on_the_device(fake: SimpleNamespace) -> None:
    with session(outputs="device") as loaded:
        mark = len(fake.cuda.events)
        kept = [loaded.infer({"x": rows(value)})["y"] for value in range(6)]
        assert not [event for event in fake.cuda.events[mark:] if event[:2] == ("cudaMemcpyAsync", "to host")]
        for value, output in enumerate(kept):
            assert output.shape == (1, WIDTH)
            assert output.dtype == np.float32
            assert output.__cuda_array_interface__["data"] == (output.pointer, False)
            np.testing.assert_array_equal(output.to_host(), -rows(value))
            np.testing.assert_array_equal(np.asarray(output), -rows(value))
        assert len({output.pointer for output in kept}) == 6
        assert loaded._runner.device_memory_bytes["outputs"] == 6 * 4 * WIDTH
    np.testing.assert_array_equal(kept[0].to_host(), rows(0) * -1)  # they outlive the session
    del output
    kept.clear()
    assert not fake.cuda.memory


def test_the_output_of_one_session_is_the_input_of_the_next_without_the_host(fake: SimpleNamespace) -> None:
    with session(outputs="device") as first, session() as second:
        for value in range(6):
            mark = len(fake.cuda.events)
            between = first.infer({"x": rows(value)})["y"]
            found = second.infer({"x": between})["y"]
            np.testing.assert_array_equal(found, rows(value))
            kinds = [event[1] for event in fake.cuda.events[mark:] if event[0] == "cudaMemcpyAsync"]
            assert kinds.count("to host") == 1
            del between, found
        # The same addresses came again and again, so both run as graphs.
        assert len(fake.cuda.calls("cudaGraphLaunch")) >= 6


def test_device_outputs_that_are_kept_alternate_between_few_graphs(fake: SimpleNamespace) -> None:
    with session(outputs="device") as loaded:
        previous = loaded.infer({"x": rows(0)})["y"]
        for value in range(1, 12):
            output = loaded.infer({"x": rows(value)})["y"]
            np.testing.assert_array_equal(previous.to_host(), -rows(value - 1))
            np.testing.assert_array_equal(output.to_host(), -rows(value))
            previous = output
        assert 1 <= len(fake.cuda.graphs) <= 4
        assert len(fake.cuda.calls("cudaGraphLaunch")) >= 6
    del output, previous


def test_data_dependent_outputs_stay_on_the_device_too(fake: SimpleNamespace) -> None:
    with session(NONZERO, outputs="device") as loaded:
        x = np.zeros(WIDTH, np.float32)
        x[[3, 5]] = 1
        kept = loaded.infer({"x": x})["y"]
        empty = loaded.infer({"x": 0 * x})["y"]
        loaded.infer({"x": np.ones(WIDTH, np.float32)})
        np.testing.assert_array_equal(kept.to_host(), [[3, 5]])
        assert empty.to_host().shape == (1, 0)
    del kept, empty


def test_outputs_that_are_converted_cannot_stay_on_the_device(fake: SimpleNamespace) -> None:
    text = HEAD + "g (double[3] x) => (double[3] y) { y = Add(x, x) }"
    with pytest.raises(OptionsError, match="cannot stay on the device") as caught:
        session(text, outputs="device")
    assert caught.value.where == "option outputs"


def test_a_slice_of_an_array_on_the_device_is_copied_there_where_it_is_not_aligned(
    fake: SimpleNamespace,
) -> None:
    """TensorRT wants addresses of 256 bytes."""
    parent = fake_tensorrt_run.DeviceTensor(fake.cuda, np.concatenate([rows(1).ravel(), rows(2).ravel()]))
    base = parent.pointer + -parent.pointer % 256
    with session() as loaded:
        for offset in (0, 4, 128, 256):
            sliced = SimpleNamespace(
                __cuda_array_interface__=parent.__cuda_array_interface__
                | {"data": (base + offset, False), "shape": (1, WIDTH)}
            )
            mark = len(fake.cuda.events)
            start = (base + offset - parent.pointer) // 4
            expected = -np.concatenate([rows(1).ravel(), rows(2).ravel()])[start : start + WIDTH]
            np.testing.assert_array_equal(loaded.infer({"x": sliced})["y"][0], expected)
            copies = [
                event for event in fake.cuda.events[mark:] if event[:2] == ("cudaMemcpyAsync", "on device")
            ]
            assert len(copies) == (0 if offset % 256 == 0 else 1)
            assert not copies_in(fake, mark)
    parent.free()


def test_nothing_is_given_back_while_a_graph_is_captured(
    fake: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unlocking an array within a capture would spoil both; only the garbage collector could do it there."""
    enabled: list[bool] = []
    capture = fake.cuda.cudaStreamEndCapture
    monkeypatch.setattr(
        fake.cuda, "cudaStreamEndCapture", lambda stream: (enabled.append(gc.isenabled()), capture(stream))[1]
    )
    with session() as loaded:
        for _ in range(3):
            loaded.infer({"x": rows(1)})
    assert enabled == [False]
    assert gc.isenabled()


def test_a_repeated_array_on_the_device_is_captured_too(fake: SimpleNamespace) -> None:
    x = fake_tensorrt_run.DeviceTensor(fake.cuda, rows(2))
    with session() as loaded:
        for _ in range(5):
            np.testing.assert_array_equal(loaded.infer({"x": x})["y"], -rows(2))
        assert len(fake.cuda.calls("cudaGraphLaunch")) == 4
        np.testing.assert_array_equal(loaded.infer({"x": rows(3)})["y"], -rows(3))
    x.free()
