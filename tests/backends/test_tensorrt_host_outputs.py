"""Outputs in memory of the host, over a fake TensorRT and a fake CUDA."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeinfer.errors import InferenceError
from tests.backends.wide_rows import NONZERO, SMALL, WIDTH, locked, rows, session

# Outputs.


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["infer", "drop", "slice", "write"]), st.integers(0, 9), st.integers(1, 3)),
        max_size=30,
    ),
    pin=st.booleans(),
)
def test_no_output_that_a_caller_holds_is_ever_overwritten(
    fake: SimpleNamespace, steps: list[tuple[str, int, int]], pin: bool
) -> None:
    held: list[tuple[np.ndarray, np.ndarray]] = []
    with session(pin_memory=pin) as loaded:
        for step, (action, which, count) in enumerate(steps):
            if action == "infer":
                x = rows(step + 1, count)
                held.append((loaded.infer({"x": x})["y"], -x))
            elif held:
                array, expected = held.pop(which % len(held))
                if action == "slice":  # a view alone keeps the memory
                    held.append((array[..., 1:], expected[..., 1:].copy()))
                if action == "write":
                    array[...] = expected[...] = 7
                    held.append((array, expected))
                del array, expected
            for array, expected in held:
                np.testing.assert_array_equal(array, expected)
    for array, expected in held:  # and after the session is closed
        np.testing.assert_array_equal(array, expected)
    array = expected = None
    held.clear()
    assert locked(fake) == 0


def test_large_outputs_come_straight_into_memory_that_is_used_again(fake: SimpleNamespace) -> None:
    with session() as loaded:
        for _ in range(3):
            loaded.infer({"x": rows(1)})
        mark = len(fake.cuda.events)
        for value in range(5):
            found = loaded.infer({"x": rows(value)})["y"]
            np.testing.assert_array_equal(found, -rows(value))
            del found
        assert not [
            event for event in fake.cuda.events[mark:] if event[0] in ("cudaMalloc", "cudaHostRegister")
        ]


def test_a_caller_that_keeps_all_outputs_costs_no_more_than_the_limit(fake: SimpleNamespace) -> None:
    with session(max_in_flight=1) as loaded:
        kept = [loaded.infer({"x": rows(value)})["y"] for value in range(20)]
        # The slot's own memory of the input and of outputs that are copied, and four blocks that are lent.
        assert locked(fake) <= 6
        for value, array in enumerate(kept):
            np.testing.assert_array_equal(array, -rows(value))
    del array
    kept.clear()


def test_small_outputs_are_plain_arrays(fake: SimpleNamespace) -> None:
    with session(SMALL) as loaded:
        assert loaded.infer({"x": np.ones((2, 3), np.float32)})["y"].flags.owndata


def test_outputs_outlive_the_session(fake: SimpleNamespace) -> None:
    loaded = session()
    kept = loaded.infer({"x": rows(3)})["y"]
    loaded.close()
    np.testing.assert_array_equal(kept, -rows(3))
    kept[...] = 1
    assert locked(fake) == 1
    del kept
    assert locked(fake) == 0


def test_bound_arrays_stay_readable_after_closing(fake: SimpleNamespace) -> None:
    with session() as loaded:
        bound = loaded.bind({"x": (2, WIDTH)})
        bound.inputs["x"][...] = rows(5, 2)
        bound.run()
        inputs, outputs = bound.inputs["x"], bound.outputs["y"]
        bound.close()
    np.testing.assert_array_equal(outputs, -rows(5, 2))
    np.testing.assert_array_equal(inputs, rows(5, 2))


def test_large_outputs_whose_shape_depends_on_data(fake: SimpleNamespace) -> None:
    x = np.ones(WIDTH, np.float32)
    with session(NONZERO) as loaded:
        first = loaded.infer({"x": x})["y"]
        x[::2] = 0
        second = loaded.infer({"x": x})["y"]
        empty = loaded.infer({"x": 0 * x})["y"]
    assert first.shape == (1, WIDTH)
    np.testing.assert_array_equal(second[0], np.arange(1, WIDTH, 2))
    assert empty.shape == (1, 0)
    np.testing.assert_array_equal(first[0], np.arange(WIDTH))
    del first, second


def test_room_for_such_an_output_that_is_not_to_be_had_is_an_error(fake: SimpleNamespace) -> None:
    with session(NONZERO) as loaded:
        loaded.infer({"x": np.zeros(WIDTH, np.float32)})
        fake.cuda.device_limit = 4 * WIDTH + 100
        with pytest.raises(InferenceError, match="cudaErrorMemoryAllocation"):
            loaded.infer({"x": np.ones(WIDTH, np.float32)})
        fake.cuda.device_limit = 1 << 40
        assert loaded.infer({"x": np.ones(WIDTH, np.float32)})["y"].shape == (1, WIDTH)
