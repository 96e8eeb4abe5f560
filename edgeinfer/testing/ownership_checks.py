"""Checks of the conformance suite on whose memory is whose, and on inputs and outputs of unusual kinds.

A backend may refuse such a model when it compiles, by a BackendError. What it takes must be right.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from edgeinfer.errors import EdgeInferError, InputError
from edgeinfer.runtime.session import Session
from edgeinfer.testing.assertions import (
    Options,
    assert_close,
    assert_own_memory,
    assert_raises,
    open_session,
    open_session_or_none,
)
from edgeinfer.testing.models import (
    ReferenceModel,
    affine_model,
    alias_model,
    cast_model,
    default_input_model,
    double_integers_model,
    label_model,
    positions_model,
    reshape_model,
    words_model,
)

__all__ = ["OWNERSHIP_CHECKS"]


def check_aliases(backend: str, options: Options = None) -> None:
    """An output that is an input passed on, or another output, has memory of its own."""
    reference = alias_model()
    with open_session(backend, reference, options) as session:
        kept = []
        for seed in range(4):
            feed = reference.feed(seed=seed, batch=2 + seed % 2)
            before = {name: array.copy() for name, array in feed.items()}
            outputs = session.infer(feed)
            assert_own_memory([*feed.values(), *outputs.values()], "infer")
            kept.append((feed, before, outputs))
        for feed, before, outputs in kept:
            assert_close(feed, before, "an input, after later calls")
            assert_close(outputs, reference.expected(before), "an output, after later calls")
        for array in kept[0][2].values():
            array[...] = -1
        assert_close(kept[0][0], kept[0][1], "an input, after the caller wrote into outputs")
        with session.bind({"x": (2, 4)}) as bound:
            assert_own_memory([*bound.inputs.values(), *bound.outputs.values()], "bind")
        _run_bound(reference, session, {"x": (2, 4)})


def check_arrays_that_are_filled_again(backend: str, options: Options = None) -> None:
    """A caller may fill one array again and again, for `infer` and for `stream`."""
    reference = affine_model()
    feeds = [reference.feed(seed=seed) for seed in range(12)]
    buffers = {name: array.copy() for name, array in feeds[0].items()}

    def source() -> Iterator[Mapping[str, np.ndarray]]:
        for feed in feeds:
            for name, array in feed.items():
                buffers[name][...] = array
            yield buffers

    with open_session(backend, reference, options) as session:
        outputs = [session.infer(feed) for feed in source()]
        for feed, found in zip(feeds, outputs, strict=True):
            assert_close(found, reference.expected(feed), "infer")
        for feed, found in zip(feeds, session.stream(source(), in_flight=3), strict=True):
            assert_close(found, reference.expected(feed), "stream")


def check_stream_of_a_failing_source(backend: str, options: Options = None) -> None:
    """What was finished is delivered before the error of the source."""
    reference = affine_model()

    def source() -> Iterator[Mapping[str, np.ndarray]]:
        yield from (reference.feed(seed=seed) for seed in range(3))
        raise OSError("the camera was unplugged")

    with open_session(backend, reference, options) as session:
        stream = session.stream(source(), in_flight=3)
        for seed in range(3):
            assert_close(next(stream), reference.expected(reference.feed(seed=seed)), f"output {seed}")
        try:
            next(stream)
        except OSError:
            return
        raise AssertionError("the error of the source was lost")


def check_default_inputs(backend: str, options: Options = None) -> None:
    """An input with a default may be left out, and given where the runner takes it."""
    reference = default_input_model()
    with open_session(backend, reference, options) as session:
        assert [spec.name for spec in session.signature.optional] == ["scale"]
        feed = reference.feed(seed=0, batch=3)
        scale = np.array([5], np.float32)
        assert_close(session.infer(feed), reference.expected(feed), "with the default")
        if not getattr(session._runner, "takes_optional_inputs", False):
            assert_raises(InputError, lambda: session.infer({**feed, "scale": scale}))
            return
        given = {**feed, "scale": scale}
        assert_close(session.infer(given), reference.expected(given), "with another value")
        assert_close(session.infer(feed), reference.expected(feed), "with the default again")
        _run_bound(reference, session, {"x": (3, 4)})
        with session.bind({"x": (3, 4), "scale": (1,)}) as bound:
            for factor in (5, 7):
                given = {**feed, "scale": np.array([factor], np.float32)}
                for name, array in given.items():
                    bound.inputs[name][...] = array
                bound.run()
                assert_close(bound.outputs, reference.expected(given), "bound, with another value")


def check_strings(backend: str, options: Options = None) -> None:
    """Strings are `str` in object arrays, coming and going."""
    for reference in (label_model(), words_model()):
        session = open_session_or_none(backend, reference, options)
        if session is None:
            continue
        with session:
            for seed in range(3):
                feed = reference.feed(seed=seed, batch=2)
                outputs = session.infer(feed)
                assert_close(outputs, reference.expected(feed), f"{reference.name}, infer")
                words = [word for array in outputs.values() for word in array.flat if array.dtype == object]
                assert words
                assert all(type(word) is str for word in words), f"{reference.name}: {words}"
            stream = session.stream([reference.feed(seed=0, batch=2)])
            expected = reference.expected(reference.feed(seed=0, batch=2))
            assert_close(next(stream), expected, f"{reference.name}, stream")
            shapes = {name: array.shape for name, array in reference.feed(seed=0, batch=2).items()}
            _run_bound(reference, session, shapes)


def check_unusual_dtypes(backend: str, options: Options = None) -> None:
    """Dtypes that numpy does not have, and of less than a byte, are right or refused."""
    for kind in ("float16", "bfloat16", "float8e4m3fn", "float8e5m2", "int4", "uint4"):
        for shape in ((4,), ("N",)):
            reference = cast_model(kind, shape)
            session = open_session_or_none(backend, reference, options)
            if session is None:
                continue
            with session:
                feed = reference.feed(seed=0, batch=4)
                assert_close(session.infer(feed), reference.expected(feed), f"{kind}{list(shape)}")
                _run_bound(reference, session, {name: array.shape for name, array in feed.items()})


def check_wide_integers(backend: str, options: Options = None) -> None:
    """Integers of 64 bits are added as such, or refused."""
    reference = double_integers_model()
    session = open_session_or_none(backend, reference, options)
    if session is None:
        return
    with session:
        for value in (1, (1 << 40) + 1):
            feed = {"i": np.array([value, -value], np.int64)}
            try:
                outputs = session.infer(feed)
            except EdgeInferError:
                assert value > np.iinfo(np.int32).max, f"{value} was refused"
                continue
            assert outputs["double"].tolist() == [2 * value, -2 * value]


def check_outputs_whose_shape_depends_on_data(backend: str, options: Options = None) -> None:
    """Such an output is right from `infer`, and right or an error from a bound run: never an old value."""
    reference = positions_model()
    session = open_session_or_none(backend, reference, options)
    if session is None:
        return
    feeds = [{"x": np.array(x, np.float32)} for x in ([0, 1, 0, 1], [1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0])]
    with session:
        for feed in feeds:
            assert_close(session.infer(feed), reference.expected(feed), "infer")
        try:
            bound = session.bind()
        except EdgeInferError:
            return
        with bound:
            for feed in feeds:
                bound.inputs["x"][...] = feed["x"]
                try:
                    bound.run()
                except EdgeInferError:
                    continue
                assert_close(bound.outputs, reference.expected(feed), "bound")


def check_failed_runs(backend: str, options: Options = None) -> None:
    """A run that failed fails again with the same inputs, and a good one after it is right."""
    reference = reshape_model()
    session = open_session_or_none(backend, reference, options)
    if session is None:
        return
    x = np.arange(12, dtype=np.float32).reshape(2, 6)
    good, bad = {"x": x, "shape": np.array([3, 4])}, {"x": x, "shape": np.array([5, 5])}
    with session:
        for _ in range(2):
            assert_close(session.infer(good), reference.expected(good), "a good run")
            for _ in range(2):
                assert_raises(EdgeInferError, lambda: session.infer(bad))
        assert_close(session.infer(good), reference.expected(good), "a good run at the end")


def _run_bound(reference: ReferenceModel, session: Session, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Bind, and run over several values."""
    with session.bind(shapes) as bound:
        for seed in range(3):
            feed = reference.feed(seed=seed, batch=next(iter(shapes.values()))[0])
            for name, array in feed.items():
                bound.inputs[name][...] = array
            bound.run()
            assert_close(bound.outputs, reference.expected(feed), f"{reference.name}, bound run {seed}")
            assert_close(bound.inputs, feed, f"{reference.name}, the inputs of bound run {seed}")


OWNERSHIP_CHECKS = (
    check_aliases,
    check_arrays_that_are_filled_again,
    check_stream_of_a_failing_source,
    check_default_inputs,
    check_strings,
    check_unusual_dtypes,
    check_wide_integers,
    check_outputs_whose_shape_depends_on_data,
    check_failed_runs,
)
