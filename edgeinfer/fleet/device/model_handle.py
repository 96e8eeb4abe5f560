"""`ModelHandle` and `PinnedModel`: one model of an application, and one request to it."""

from __future__ import annotations

import contextvars
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Protocol, final

import numpy as np

from edgeinfer.artifact.signature import Signature
from edgeinfer.errors import InferenceError
from edgeinfer.fleet.device.capture import Observed, SampleWriter
from edgeinfer.fleet.device.model_set import LoadedModel, ModelSet
from edgeinfer.fleet.device.patience import Patience
from edgeinfer.runtime.session import Session

__all__ = ["ModelHandle", "PinnedModel", "Request"]


class Connection(Protocol):
    """What a handle needs of its application."""

    samples: SampleWriter
    patience: Patience

    def pin(self) -> ModelSet:
        """Return the active set, pinned."""
        ...

    def model(self, name: str, accepts: str = "") -> ModelHandle:
        """Load a model."""
        ...


# A request inside a request, of another model too, sees the same set.
_PINNED: contextvars.ContextVar[tuple[Connection, ModelSet] | None] = contextvars.ContextVar(
    "edgeinfer_pinned", default=None
)


@final
class ModelHandle:
    """One model, whatever release of it is installed. Made by `Application.model`."""

    def __init__(self, connection: Connection, name: str, deadline_ms: float | None) -> None:
        self._connection = connection
        self.name = name
        self.deadline_ms = deadline_ms

    def request(self) -> Request:
        """Return a context in which one set of models answers, whatever the agent does meanwhile.

        A request inside of it, to another model of the same application, sees the same set.
        """
        return Request(self._connection, self)

    def observe(self, *, confidence: float | None = None, label: str | None = None) -> None:
        """Count what became of an answer: distributions that show drift.

        Args:
            confidence: Of the model in its answer.
            label: What it answered, or what a person said.
        """
        with self.request() as session:
            session.observe(confidence=confidence, label=label)


@final
class Request:
    """One request; a context manager. It gives a `PinnedModel`."""

    def __init__(self, connection: Connection, handle: ModelHandle) -> None:
        self._connection = connection
        self._handle = handle
        self._token: contextvars.Token[tuple[Connection, ModelSet] | None] | None = None
        self._set: ModelSet | None = None

    def __enter__(self) -> PinnedModel:
        outer = _PINNED.get()
        if outer is not None and outer[0] is self._connection and outer[1].pin():
            self._set = outer[1]
        else:
            self._set = self._connection.pin()
        self._token = _PINNED.set((self._connection, self._set))
        handle = self._handle
        try:
            loaded = self._set.models.get(handle.name) or self._set.add(handle.name, "")
        except BaseException:
            self._leave()
            raise
        return PinnedModel(self._set, loaded, handle, self._connection)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def _leave(self) -> None:
        if self._token is not None:
            _PINNED.reset(self._token)
            self._token = None
        if self._set is not None:
            self._set.unpin()
            self._set = None


@final
class PinnedModel:
    """One release of a model for one request. It answers as a session does."""

    def __init__(
        self, models: ModelSet, loaded: LoadedModel, handle: ModelHandle, connection: Connection
    ) -> None:
        self._models = models
        self._loaded = loaded
        self._handle = handle
        self._samples = connection.samples
        self._patience = connection.patience
        self._last: tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]] | None = None

    @property
    def generation(self) -> int:
        """The number of the generation that answers."""
        return self._models.number

    @property
    def version(self) -> str:
        """The version of the release."""
        return self._loaded.pin.version

    @property
    def release(self) -> str:
        """The digest of the release."""
        return self._loaded.pin.release

    @property
    def bundle(self) -> Path:
        """The folder with what belongs to this release: preprocessing, labels, thresholds."""
        return self._loaded.folder / "bundle"

    @property
    def session(self) -> Session:
        """The session itself, for what is not here: binding, streaming. It is not to be closed."""
        return self._loaded.session

    @property
    def signature(self) -> Signature:
        """The inputs and outputs."""
        return self._loaded.session.signature

    def infer(self, inputs: Mapping[str, np.ndarray] | np.ndarray, /) -> dict[str, np.ndarray]:
        """Run once; see `Session.infer`.

        While a new release is in its soak, an inference in which its runtime fails, or does not end, is
        answered by the previous release, which is still loaded. The failure is counted, and the agent takes
        the new release back.

        Raises:
            InputError: The inputs do not fit the signature.
            InferenceError: The runtime failed.
        """
        try:
            outputs, took_ms = self._watched(inputs)
        except InferenceError as error:
            return self._by_previous(inputs, error, hung=False)
        except TimeoutError:
            self._loaded.hung = True
            what = f"The inference had not ended after {self._patience.seconds:g} s."
            return self._by_previous(inputs, InferenceError(what, where=self._handle.name), hung=True)
        deadline = self._handle.deadline_ms
        self._loaded.statistics.served(took_ms, late=deadline is not None and took_ms > deadline)
        wanted, kept = (
            self._samples.wants(self._handle.name, self._models.number),
            self._samples.waits_for_observations,
        )
        if wanted or kept:
            named = inputs if isinstance(inputs, Mapping) else {self.signature.inputs[0].name: inputs}
            if wanted:
                self._samples.offer(self._handle.name, named, outputs)
            if kept:
                # Until it is observed: the caller may change its arrays as soon as it has its answer.
                self._last = ({name: np.array(array) for name, array in named.items()}, outputs)
        return outputs

    def _watched(self, inputs: Mapping[str, np.ndarray] | np.ndarray) -> tuple[dict[str, np.ndarray], float]:
        """Run; where another release could answer instead, do not wait without end."""
        standby = self._models.standby
        if standby is None or self._handle.name not in standby.models:
            return self._timed(inputs)
        if self._loaded.hung:
            raise InferenceError("An earlier inference has not ended.", where=self._handle.name)
        # As long as it runs, its session must not be closed, whoever has stopped waiting.
        self._models.pin()

        def run() -> tuple[dict[str, np.ndarray], float]:
            try:
                return self._timed(inputs)
            finally:
                self._models.unpin()

        return self._patience.call(run)

    def _timed(self, inputs: Mapping[str, np.ndarray] | np.ndarray) -> tuple[dict[str, np.ndarray], float]:
        """Run once; return the outputs, and how long it took in ms."""
        statistics = self._loaded.statistics
        statistics.began()
        started = time.perf_counter_ns()
        try:
            outputs = self._loaded.session.infer(inputs)
            return outputs, (time.perf_counter_ns() - started) / 1e6
        finally:
            statistics.ended()

    def observe(self, *, confidence: float | None = None, label: str | None = None) -> None:
        """Count what became of the answer, for the release that gave it.

        Where the application captures requests by what is observed (`Capture.when`), this decides of the last
        `infer` of this request.
        """
        self._loaded.statistics.observed(confidence, label)
        if self._last is not None:
            seen = Observed(
                model=self._handle.name,
                confidence=1.0 if confidence is None else confidence,
                label=label or "",
            )
            self._samples.observed(seen, *self._last)
            self._last = None

    def _by_previous(
        self, inputs: Mapping[str, np.ndarray] | np.ndarray, error: InferenceError, *, hung: bool
    ) -> dict[str, np.ndarray]:
        """Answer with the previous release, or raise again what the new one raised."""
        standby = self._models.pin_standby()
        previous = standby.models.get(self._handle.name) if standby is not None else None
        self._loaded.statistics.failed(answered_by_previous=previous is not None, hung=hung)
        try:
            if previous is None:
                raise error
            return previous.session.infer(inputs)
        finally:
            if standby is not None:
                standby.unpin()
