"""Random models through `infer`, `bind` and `stream`, on both CPU runtimes: right, or a typed refusal."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings

import edgeinfer as ei
from edgeinfer.errors import CompileError
from tests.random_models import RandomModel, random_models

# More examples, and others each time, are for looking for faults by hand.
EXAMPLES = int(os.environ.get("EDGEINFER_EXAMPLES", "0"))
SETTINGS = settings(
    max_examples=EXAMPLES or 25,
    deadline=None,
    derandomize=not EXAMPLES,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@pytest.fixture(params=["onnxruntime", "openvino"])
def backend(request) -> str:
    pytest.importorskip(request.param)
    return request.param


def same(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        assert found[name].shape == array.shape, name
        assert found[name].tolist() == array.tolist(), name


def load(model: RandomModel, backend: str) -> ei.Session | None:
    try:
        return ei.load(ei.compile(model.proto, backend))
    except CompileError as error:
        event(f"{backend} refuses: {error.what[:60]}")
        return None


def base(array: np.ndarray) -> np.ndarray:
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


@SETTINGS
@given(model=random_models())
def test_infer(backend, model):
    session = load(model, backend)
    if session is None:
        return
    with session:
        kept = []
        for seed, size in enumerate((2, 2, 3, 0, 2)):
            feed = model.feed(seed, size)
            before = {name: array.copy() for name, array in feed.items()}
            found = session.infer(feed)
            same(found, model.expected(before))
            arrays = [*feed.values(), *found.values()]
            for i, array in enumerate(arrays):
                assert not any(np.shares_memory(array, other) for other in arrays[i + 1 :])
            kept.append((feed, before, found))
        for feed, before, found in kept:  # no later call changed an input or an output of an earlier one
            same(feed, before)
            same(found, model.expected(before))


@SETTINGS
@given(model=random_models())
def test_bind(backend, model):
    session = load(model, backend)
    if session is None:
        return
    with session:
        shapes = {name: array.shape for name, array in model.feed(0, 2).items()}
        with session.bind(shapes) as bound:
            arrays = [*bound.inputs.values(), *bound.outputs.values()]
            for i, array in enumerate(arrays):
                assert not any(np.shares_memory(array, other) for other in arrays[i + 1 :])
            for seed in range(4):
                feed = model.feed(seed, 2)
                for name, array in feed.items():
                    bound.inputs[name][...] = array
                bound.run()
                same(bound.outputs, model.expected(feed))
                same(bound.inputs, feed)


@SETTINGS
@given(model=random_models())
def test_stream_of_one_feed_that_is_filled_again(backend, model):
    session = load(model, backend)
    if session is None:
        return
    feeds = [model.feed(seed, 2) for seed in range(5)]

    def source() -> Iterator[dict[str, np.ndarray]]:
        buffers = {name: array.copy() for name, array in feeds[0].items()}
        for feed in feeds:
            for name, array in feed.items():
                buffers[name][...] = array
            yield buffers

    with session:
        for feed, found in zip(feeds, session.stream(source(), in_flight=3), strict=True):
            same(found, model.expected(feed))
