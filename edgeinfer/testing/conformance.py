"""The conformance suite for backends, as plain functions.

A backend's author writes one test:

    @pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: check.__name__)
    def test_conformance(check):
        check("my-backend")

Each check loads the backend by its registered name, as an application would, and raises AssertionError with
what it saw. The expected outputs are computed by numpy, not by another runtime. A backend
that needs options to compile on some machine gets them as `check("my-backend", {...})`.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from edgeinfer.artifact.artifact import Artifact
from edgeinfer.backends.protocol import API_VERSION, Backend, Bindable, Explains, Runner
from edgeinfer.backends.registry import backends, get_backend
from edgeinfer.errors import EdgeInferError, InputError, OptionsError, SessionClosedError
from edgeinfer.graph.build import compile_model
from edgeinfer.runtime.open import load
from edgeinfer.testing.assertions import Options, assert_close, assert_raises, open_session
from edgeinfer.testing.models import (
    add_model,
    affine_model,
    classifier_model,
    two_output_model,
)
from edgeinfer.testing.ownership_checks import OWNERSHIP_CHECKS

__all__ = ["CHECKS", "check_backend"]

# The words for a precision that `DeviceInfo.precisions` has.
PRECISIONS = frozenset(
    ["float64", "float32", "float16", "bfloat16", "float8", "float4", "int32", "int16", "int8", "int4"]
)


def check_registration(backend: str, options: Options = None) -> None:  # noqa: ARG001 (one signature)
    """The backend is registered once, loads, and follows the Protocol."""
    assert backend in backends(), f"{backend!r} is not registered; is its distribution installed?"
    entry = backends()[backend]
    assert len(entry.distributions) == 1, f"{backend!r} is registered by {entry.distributions}"
    loaded = get_backend(backend)
    assert isinstance(loaded, Backend)
    assert loaded.name == backend, f"it is registered as {backend!r} but calls itself {loaded.name!r}"
    assert loaded.api_version == API_VERSION


def check_capabilities(backend: str, options: Options = None) -> None:  # noqa: ARG001
    """`capabilities()` answers without raising, and names what it has."""
    found = get_backend(backend).capabilities()
    assert found.available, f"not available here: {found.reason}"
    assert found.version, "no version"
    assert found.devices, "no devices"
    names = [device.name for device in found.devices]
    assert len(set(names)) == len(names), f"two devices have one name: {names}"
    for device in found.devices:
        assert device.precisions, f"{device.name!r} names no precision"
        unknown = sorted(device.precisions - PRECISIONS)
        assert not unknown, f"{device.name!r} names {unknown}; the words are {sorted(PRECISIONS)}"
    assert found.device("") == found.devices[0]


def check_runner_protocol(backend: str, options: Options = None) -> None:
    """`load` gives a Runner, and says whether it is thread-safe."""
    reference = add_model()
    with open_session(backend, reference, options) as session:
        runner = session._runner
        assert isinstance(runner, Runner), "the runner has no run(feeds), close() or thread_safe"
        assert isinstance(runner.thread_safe, bool)
        outputs = runner.run(reference.feed(seed=1))
        assert len(outputs) == len(session.signature.outputs), "one array for each output, in order"
        for spec, array in zip(session.signature.outputs, outputs, strict=True):
            assert isinstance(array, np.ndarray), f"{spec.name} is a {type(array).__name__}"
            assert array.dtype == spec.dtype, f"{spec.name} is {array.dtype}, the signature says {spec.dtype}"


def check_numerics(backend: str, options: Options = None) -> None:
    """Outputs are those of numpy, for several operators, outputs and dtypes."""
    for reference in (add_model(), affine_model(), two_output_model(), classifier_model()):
        with open_session(backend, reference, options) as session:
            for seed in range(3):
                feed = reference.feed(seed=seed)
                assert_close(session.infer(feed), reference.expected(feed), reference.name)


def check_dynamic_shapes(backend: str, options: Options = None) -> None:
    """A symbolic batch takes different sizes, one after the other, in one session."""
    reference = classifier_model()
    with open_session(backend, reference, options) as session:
        for batch in (1, 4, 2, 7):
            feed = reference.feed(seed=batch, batch=batch)
            assert_close(session.infer(feed), reference.expected(feed), f"batch {batch}")


def check_inputs_are_not_changed(backend: str, options: Options = None) -> None:
    """A run leaves the caller's arrays as they were, read-only arrays included."""
    reference = affine_model()
    with open_session(backend, reference, options) as session:
        feed = reference.feed(seed=3)
        before = {name: array.copy() for name, array in feed.items()}
        for array in feed.values():
            array.flags.writeable = False
        session.infer(feed)
        for name, array in feed.items():
            assert np.array_equal(array, before[name]), f"input {name} was changed"


def check_outputs_belong_to_the_caller(backend: str, options: Options = None) -> None:
    """Later calls do not change earlier outputs; writing into inputs or outputs changes no later call."""
    reference = affine_model()
    with open_session(backend, reference, options) as session:
        feed = {name: array.copy() for name, array in reference.feed(seed=4).items()}
        expected = reference.expected(feed)
        first = session.infer(feed)
        kept = {name: array.copy() for name, array in first.items()}
        for array in feed.values():
            array += 1
        for seed in range(5):
            session.infer(reference.feed(seed=seed))
        for name, array in first.items():
            assert np.array_equal(array, kept[name]), f"output {name} changed after the call"
            array[...] = 0
            assert array.flags.writeable
        assert_close(session.infer(reference.feed(seed=4)), expected, "after the caller wrote into outputs")


def check_layouts(backend: str, options: Options = None) -> None:
    """Arrays that are not contiguous, or views, give the same result."""
    reference = affine_model()
    with open_session(backend, reference, options) as session:
        feed = reference.feed(seed=5)
        expected = reference.expected(feed)
        odd = {name: np.asfortranarray(array) for name, array in feed.items()}
        assert_close(session.infer(odd), expected, "Fortran order")
        sliced = {name: np.repeat(array, 2, axis=-1)[..., ::2] for name, array in feed.items()}
        assert_close(session.infer(sliced), expected, "strided view")


def check_bad_inputs(backend: str, options: Options = None) -> None:
    """Wrong names, dtypes and shapes are InputErrors; the session works afterwards."""
    reference = affine_model()
    with open_session(backend, reference, options) as session:
        feed = reference.feed(seed=6)
        name, array = next(iter(feed.items()))
        for bad in (
            {},
            {**feed, "no such input": array},
            {name: array.astype(np.float64)},
            {name: array[..., :-1]},
            {name: array[None]},
        ):
            assert_raises(InputError, lambda bad=bad: session.infer(bad))  # type: ignore[misc]
        assert_close(session.infer(feed), reference.expected(feed), "after bad inputs")


def check_bound_mode(backend: str, options: Options = None) -> None:
    """Bound buffers are read and overwritten in place."""
    reference = affine_model()
    with open_session(backend, reference, options) as session, session.bind() as bound:
        addresses = {name: array.ctypes.data for name, array in bound.outputs.items()}
        for seed in range(3):
            feed = reference.feed(seed=seed)
            for name, array in feed.items():
                bound.inputs[name][...] = array
            bound.run()
            assert_close(bound.outputs, reference.expected(feed), f"bound run {seed}")
        after = {name: array.ctypes.data for name, array in bound.outputs.items()}
        assert addresses == after, "the output buffers moved"


def check_streaming(backend: str, options: Options = None) -> None:
    """A stream gives the outputs in the order of the inputs, with several requests in flight."""
    reference = classifier_model()
    feeds = [reference.feed(seed=seed, batch=1 + seed % 3) for seed in range(20)]
    with open_session(backend, reference, options) as session:
        count = 0
        for feed, outputs in zip(feeds, session.stream(feeds, in_flight=3), strict=True):
            assert_close(outputs, reference.expected(feed), f"item {count} of the stream")
            count += 1
        assert count == len(feeds)


def check_threads(backend: str, options: Options = None) -> None:
    """Several threads share one session."""
    reference = affine_model()
    with open_session(backend, reference, options) as session:
        barrier = threading.Barrier(4)

        def work(thread: int) -> None:
            barrier.wait()
            for step in range(10):
                feed = reference.feed(seed=100 * thread + step)
                assert_close(session.infer(feed), reference.expected(feed), f"thread {thread}")

        with ThreadPoolExecutor(4) as pool:
            for future in [pool.submit(work, thread) for thread in range(4)]:
                future.result()


def check_sessions_are_independent(backend: str, options: Options = None) -> None:
    """Closing one session does not disturb another of the same artifact."""
    reference = affine_model()
    artifact = compile_model(reference.model, backend, options=options)
    feed = reference.feed(seed=8)
    first, second = load(artifact), load(artifact)
    first.close()
    with second:
        assert_close(second.infer(feed), reference.expected(feed), "after the other session closed")


def check_closing(backend: str, options: Options = None) -> None:
    """A closed session says so; closing twice is allowed."""
    reference = add_model()
    session = open_session(backend, reference, options)
    session.close()
    session.close()
    assert_raises(SessionClosedError, lambda: session.infer(reference.feed(seed=0)))
    assert_raises(SessionClosedError, session.bind)
    assert_raises(SessionClosedError, session.execution)


def check_unknown_option(backend: str, options: Options = None) -> None:
    """An unknown option is refused at compile time and at load time."""
    reference = add_model()
    bad = {"no_such_option_42": 1}
    assert_raises(
        OptionsError, lambda: compile_model(reference.model, backend, options={**(options or {}), **bad})
    )
    artifact = compile_model(reference.model, backend, options=options)
    assert_raises(OptionsError, lambda: load(artifact, options=bad))


def check_unknown_device(backend: str, options: Options = None) -> None:
    """A device that is not there is one of our errors, at compile time or at load time."""
    reference = add_model()
    assert_raises(
        EdgeInferError,
        lambda: load(compile_model(reference.model, backend, device="NO_SUCH_DEVICE", options=options)),
    )


def check_artifact_round_trip(backend: str, options: Options = None) -> None:
    """A saved artifact opens with the same manifest and gives the same outputs."""
    reference = classifier_model()
    artifact = compile_model(reference.model, backend, options=options)
    assert artifact.manifest.backend == backend
    assert artifact.manifest.device, "the payload does not name its device"
    feed = reference.feed(seed=9)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.edge"
        saved = artifact.save(path)
        opened = Artifact.open(path)
        assert opened.digest == saved.digest
        with load(path) as session:
            assert_close(session.infer(feed), reference.expected(feed), "from disk")


def check_model_is_not_changed(backend: str, options: Options = None) -> None:
    """Compiling leaves the model as it was."""
    reference = classifier_model()
    before = reference.model.to_bytes()
    compile_model(reference.model, backend, options=options)
    assert reference.model.to_bytes() == before


def check_execution_report(backend: str, options: Options = None) -> None:
    """What the backend says that it ran is not empty, or it says that it does not tell."""
    reference = classifier_model()
    with open_session(backend, reference, options) as session:
        report = session.execution()
        if isinstance(session._runner, Explains):
            assert report.backend == backend
            assert report.layers, "a backend that explains must name layers"
            assert all(layer.precision for layer in report.layers), "a layer without precision"
        else:
            assert report.notes


def check_binding_protocol(backend: str, options: Options = None) -> None:
    """A runner with a bound mode gives numpy buffers of the right dtype and shape."""
    reference = affine_model()
    with open_session(backend, reference, options) as session:
        if not isinstance(session._runner, Bindable):
            return
        with session.bind() as bound:
            for spec in (*session.signature.inputs, *session.signature.outputs):
                array = (bound.inputs if spec in session.signature.inputs else bound.outputs)[spec.name]
                assert array.dtype == spec.dtype
                assert array.shape == spec.shape


CHECKS: tuple[Callable[..., None], ...] = (
    check_registration,
    check_capabilities,
    check_runner_protocol,
    check_numerics,
    check_dynamic_shapes,
    check_inputs_are_not_changed,
    check_outputs_belong_to_the_caller,
    check_layouts,
    check_bad_inputs,
    check_bound_mode,
    check_streaming,
    check_threads,
    check_sessions_are_independent,
    check_closing,
    check_unknown_option,
    check_unknown_device,
    check_artifact_round_trip,
    check_model_is_not_changed,
    check_execution_report,
    check_binding_protocol,
    *OWNERSHIP_CHECKS,
)


def check_backend(backend: str, options: Options = None) -> None:
    """Run every check; for use outside pytest."""
    for check in CHECKS:
        check(backend, options)
