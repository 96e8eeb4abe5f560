"""`Session`: a loaded artifact, ready to run.

The session owns everything that does not depend on the runtime: checking of inputs, naming of outputs,
closing, thread-safety, timing, pinning to cores, wrapping of foreign exceptions.

Ownership: the arrays that `infer` returns belong to the caller; no later call changes them. The arrays of a
`BoundSession` belong to the session: each `run` overwrites the outputs.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from time import perf_counter_ns
from types import TracebackType
from typing import TYPE_CHECKING, final

import numpy as np

from edgeinfer.artifact.golden import compare_golden
from edgeinfer.artifact.inputs import InputValidator
from edgeinfer.artifact.manifest import Manifest
from edgeinfer.artifact.signature import Signature
from edgeinfer.backends.protocol import Bindable, Binding, Explains, Profiles, Runner
from edgeinfer.backends.reports import ExecutionReport, LayerTime
from edgeinfer.budget import Budget, Violation
from edgeinfer.errors import ArtifactError, EdgeInferError, InputError, OptionsError, SessionClosedError
from edgeinfer.forking import abandon_in_children, keep_forever
from edgeinfer.numerics.packing import is_packed
from edgeinfer.runtime.affinity import Pins
from edgeinfer.runtime.bound import BoundSession, CopyingBinding, forked_session_error
from edgeinfer.runtime.bound_shapes import empty_feeds, resolve_shapes
from edgeinfer.runtime.deadlines import Deadline
from edgeinfer.runtime.foreign_errors import wrapped
from edgeinfer.runtime.session_options import SessionOptions
from edgeinfer.runtime.steady import Measure, ProcessHold
from edgeinfer.runtime.streaming import stream_in_order
from edgeinfer.runtime.thread_hold import ThreadHold

if TYPE_CHECKING:
    from edgeinfer.display import Table

__all__ = ["BoundSession", "Session", "SessionOptions"]

_REMEMBERED = 10_000  # latencies


@final
class Session:
    """Runs a loaded artifact. Made by `edgeinfer.load`; a context manager.

    Several threads may use one session.
    """

    def __init__(
        self,
        runner: Runner,
        manifest: Manifest,
        *,
        device: str = "",
        options: SessionOptions | None = None,
        holds: Sequence[ThreadHold] | None = None,
        steady: Sequence[Measure] = (),
        process: ProcessHold | None = None,
    ) -> None:
        options = options or SessionOptions()
        if holds is None:
            holds = [Pins(options.pin_cores)] if options.pin_cores else []
        self._runner = runner
        self._run = runner.run
        self._manifest = manifest
        self._device = device or manifest.device
        self._takes_optional = bool(getattr(runner, "takes_optional_inputs", False))
        validator = InputValidator(
            manifest.signature,
            device_arrays=getattr(runner, "takes_device_arrays", False),
            optional=self._takes_optional,
        )
        self._validate = validator.check
        self._output_names = tuple(spec.name for spec in manifest.signature.outputs)
        self._only_output = self._output_names[0] if len(self._output_names) == 1 else None
        self._latencies: deque[int] = deque(maxlen=_REMEMBERED)
        self._record = self._latencies.append
        self._closed = self._forked = False
        self._lock: contextlib.AbstractContextManager[object] | None = (
            None if getattr(runner, "thread_safe", False) else threading.RLock()
        )
        self._holds = tuple(holds)
        self._process = process
        self._steady = (*steady, *(process.measures if process is not None else ()))
        self._deadline = (
            Deadline(options.deadline_ms, options.on_miss) if options.deadline_ms is not None else None
        )
        # Whether `infer` must look at more than the inputs: then it takes the longer way.
        self._guarded = self._lock is not None or bool(self._holds) or self._deadline is not None
        self._bound: weakref.WeakSet[BoundSession] = weakref.WeakSet()
        abandon_in_children(self)

    @property
    def signature(self) -> Signature:
        """The inputs and outputs."""
        return self._manifest.signature

    @property
    def manifest(self) -> Manifest:
        """The manifest of the artifact that is loaded."""
        return self._manifest

    @property
    def backend(self) -> str:
        """The name of the backend."""
        return self._manifest.backend

    @property
    def device(self) -> str:
        """The device name within the backend."""
        return self._device

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    @property
    def latencies_ms(self) -> np.ndarray:
        """The last latencies of `infer` in ms, oldest first: the runtime's part, without the checks."""
        return np.array(self._latencies, np.float64) / 1e6

    @property
    def deadline_misses(self) -> int:
        """How many calls of `infer` took longer than `deadline_ms`, since the session was loaded."""
        return self._deadline.misses if self._deadline is not None else 0

    @property
    def steady(self) -> tuple[Measure, ...]:
        """What `steady=` asked for: what of it holds, and why the rest does not."""
        return self._steady

    def check(self, budget: Budget) -> tuple[Violation, ...]:
        """Return the limits that the last latencies break, and those that a session does not measure.

        Args:
            budget: The limits. Latencies are those of `latencies_ms`, none before the first `infer`.
        """
        taken = self.latencies_ms
        names = ("latency_p50_ms", "latency_p99_ms")
        found = dict(zip(names, np.percentile(taken, (50, 99)), strict=True)) if len(taken) else {}
        return budget.check(found)

    def infer(self, inputs: Mapping[str, np.ndarray] | np.ndarray, /) -> dict[str, np.ndarray]:
        """Run once.

        Args:
            inputs: Every input by name, or one array for a model with one input; those of
                `signature.optional` may be left out. Dtypes must be the signature's; nothing is converted.
                Strings are `str`, in object arrays or numpy's string dtypes. Arrays that are not contiguous
                are copied.

        Returns:
            The outputs by name. They belong to the caller. Strings are object arrays of `str`.

        Raises:
            InputError: The inputs do not fit the signature.
            InferenceError: The runtime failed.
            SessionClosedError: The session is closed, or this process is a fork of the one that loaded it.
        """
        # This is written for speed: on a small model each line here is seen in the latency.
        feeds = self._validate(inputs)
        if self._guarded:
            outputs = self._run_guarded(feeds)
        else:
            started = perf_counter_ns()
            try:
                outputs = self._run(feeds)
            except Exception as error:
                raise self._wrapped(error) from error
            self._record(perf_counter_ns() - started)
        if self._only_output is not None:
            return {self._only_output: outputs[0]}
        return dict(zip(self._output_names, outputs))  # noqa: B905 (checked by the conformance suite)

    def _infer_checked(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(self._output_names, self._run_guarded(feeds), strict=True))

    def _run_guarded(self, feeds: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
        self._check_open()
        for hold in self._holds:
            hold.take_this_thread()
        with self._lock or contextlib.nullcontext():
            started = perf_counter_ns()
            try:
                outputs = self._run(feeds)
            except Exception as error:
                raise self._wrapped(error) from error
            took = perf_counter_ns() - started
        self._record(took)
        if self._deadline is not None:
            self._deadline.check(took)
        return outputs

    def bind(self, shapes: Mapping[str, Sequence[int]] | None = None) -> BoundSession:
        """Return a bound mode: buffers allocated once, no checks on each run, and copies only where needed.

        Binding may run the model once over made-up values, which tells the shapes of the outputs.

        Args:
            shapes: The shape of each input whose signature is not static, and of each optional input that is
                to have a buffer.

        Raises:
            InputError: A shape is missing or does not fit the signature.
            InferenceError: The runtime failed over them, and the outputs' shapes are not known otherwise.
        """
        self._check_open()
        optional = self.signature.optional if self._takes_optional else ()
        resolved = resolve_shapes(self.signature.inputs, optional, shapes or {})
        self._validate(empty_feeds((*self.signature.inputs, *optional), resolved))
        with self._wrapping():
            # Neither strings nor values of less than a byte have buffers that numpy can look into.
            unbound = any(
                spec.dtype == object or is_packed(spec.dtype)
                for spec in (*self.signature.inputs, *self.signature.outputs, *self.signature.optional)
            )
            if isinstance(self._runner, Bindable) and not unbound:
                binding: Binding = self._runner.bind(resolved)
            else:
                binding = CopyingBinding(self._runner, self.signature, resolved)
            for hold in self._holds:
                hold.take_this_thread()
            bound = BoundSession(
                binding, self.signature, resolved, guard=self._lock, wrap_error=self._wrapped
            )
        self._bound.add(bound)
        return bound

    def stream(
        self, feeds: Iterable[Mapping[str, np.ndarray] | np.ndarray], *, in_flight: int = 2
    ) -> Iterator[dict[str, np.ndarray]]:
        """Run over a stream of inputs with several requests in flight; outputs come in the inputs' order.

        At most `in_flight` inputs are taken ahead of the output that was consumed last. Each is checked and
        copied when it is taken, so that a source may fill one array again and again; only arrays in device
        memory are read where they lie, and must be left alone until their output is there.

        Args:
            feeds: Inputs as for `infer`. When taking one fails, the outputs of those before it come first,
                then the error.
            in_flight: How many requests may be under way at once, at least 1.

        Raises:
            OptionsError: `in_flight` is not a number of at least 1.
            InputError: The feeds cannot be iterated over; or as `infer`, when the input concerned is reached.
        """
        if not isinstance(in_flight, int) or in_flight < 1:
            raise OptionsError("A stream needs at least one request in flight.", found=in_flight)
        self._check_open()
        try:
            source = iter(feeds)
        except TypeError as error:
            raise InputError(
                "That is no stream of inputs.", expected="an iterable of feeds", found=type(feeds).__name__
            ) from error
        return stream_in_order(
            source, self._taken, self._infer_checked, in_flight=in_flight, check=self._check_not_forked
        )

    def _taken(self, feed: Mapping[str, np.ndarray] | np.ndarray) -> dict[str, np.ndarray]:
        """Return a checked copy of a feed."""
        checked = self._validate(feed)
        return {n: array.copy() if type(array) is np.ndarray else array for n, array in checked.items()}

    def execution(self) -> ExecutionReport:
        """Return what really ran: each layer's device and precision, by the runtime's own account."""
        self._check_open()
        if not isinstance(self._runner, Explains):
            return ExecutionReport(
                backend=self.backend, layers=(), notes=("this backend does not tell what really ran",)
            )
        with self._wrapping():
            return self._runner.execution()

    def profile(
        self, inputs: Mapping[str, np.ndarray] | np.ndarray, /, *, runs: int = 20
    ) -> tuple[LayerTime, ...]:
        """Return the time of each layer by the runtime's own profiler; `measure_layers` makes a table of it.

        Args:
            inputs: As for `infer`.
            runs: How many inferences to time.

        Returns:
            The layers in execution order; none where the backend has no profiler.

        Raises:
            InputError: The inputs do not fit the signature.
            InferenceError: The runtime failed.
            SessionClosedError: The session is closed.
        """
        self._check_open()
        feeds = self._validate(inputs)
        if not isinstance(self._runner, Profiles):
            return ()
        with self._wrapping():
            return tuple(self._runner.profile(feeds, max(1, runs)))

    def check_golden(self) -> None:
        """Run the artifact's golden inputs, and compare with its golden outputs as `numpy.allclose` does.

        Raises:
            GoldenMismatchError: An output differs by more than the tolerances, or in shape or dtype.
            ArtifactError: The artifact has no golden inputs.
        """
        golden = self._manifest.golden
        if golden is None or not golden.inputs:
            raise ArtifactError(
                "The artifact has no golden inputs.",
                hint="Add them with artifact.with_golden(inputs, outputs, rtol=..., atol=...) before saving.",
            )
        compare_golden(golden, self.infer(golden.inputs))

    def close(self) -> None:
        """Free everything, bound modes included. Closing twice is allowed.

        Calls that run in other threads end with their result or with SessionClosedError.
        """
        if self._closed:
            return
        self._closed = self._guarded = True
        with self._lock or contextlib.nullcontext():
            for bound in tuple(self._bound):
                bound.close()
            self._runner.close()
        for hold in self._holds:
            hold.release()
        if self._process is not None:
            self._process.release()

    def table(self) -> Table:
        """Return an overview."""
        from edgeinfer.runtime.session_table import session_table

        return session_table(
            self._manifest,
            device=self.device,
            closed=self._closed,
            steady=self._steady,
            deadline=self._deadline,
            latencies_ms=self.latencies_ms,
        )

    def __enter__(self) -> Session:
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return f"<Session {self.backend}:{self.device} {state}, {self.signature.describe()}>"

    def _repr_html_(self) -> str:
        return self.table().to_html()

    def _after_fork(self) -> None:
        """Give the runner up in a forked child; see `edgeinfer.forking`."""
        keep_forever(self._runner)
        if self._closed:
            return
        self._forked = self._closed = self._guarded = True
        for bound in tuple(self._bound):
            bound._after_fork()

    def _check_not_forked(self) -> None:
        if self._forked:
            raise forked_session_error()

    def _check_open(self) -> None:
        self._check_not_forked()
        if self._closed:
            raise SessionClosedError("The session is closed.", hint="Load the artifact again.")

    @contextlib.contextmanager
    def _wrapping(self) -> Iterator[None]:
        try:
            yield
        except EdgeInferError:
            raise
        except Exception as error:
            raise self._wrapped(error) from error

    def _wrapped(self, error: Exception) -> EdgeInferError:
        if self._closed:
            return SessionClosedError("The session was closed while it ran.", hint="Load the artifact again.")
        return wrapped(error, backend=self.backend, device=self.device)
