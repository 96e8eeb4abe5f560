"""The error tree. Everything that edgeinfer raises on purpose is an `EdgeInferError`.

A message says what went wrong, where (node, tensor, file), what was expected, what was found, and
what to do. The same facts are attributes, so that a program can act on them.

    EdgeInferError
    ├── ModelError           ModelLoadError, InvalidModelError, ExternalDataError, UnsupportedModelError
    ├── TransformError       TransformContractError, TransformOptionError, PreconditionError,
    │                        CalibrationError, RecipeError
    ├── BackendError         UnknownBackendError, DuplicateBackendError, BackendUnavailableError,
    │                        BrokenBackendError, DeviceError, OptionsError, CompileError
    ├── ArtifactError        ArtifactFormatError, ArtifactIntegrityError, ArtifactMismatchError,
    │                        ArtifactSaveError, ArtifactTrustError
    ├── SessionError         InputError (FeedsError, a CalibrationError, too), InferenceError,
    │                        GoldenMismatchError, SessionClosedError (ForkedSessionError)
    ├── TargetError          BudgetError
    ├── TuningError
    ├── RemoteError          RemoteConnectionError, RemoteTimeoutError, RemoteStorageError
    ├── FleetError           see edgeinfer.fleet.errors
    └── MissingPackageError
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = [
    "ArtifactError",
    "ArtifactFormatError",
    "ArtifactIntegrityError",
    "ArtifactMismatchError",
    "ArtifactSaveError",
    "ArtifactTrustError",
    "BackendError",
    "BackendUnavailableError",
    "BrokenBackendError",
    "BudgetError",
    "CalibrationError",
    "CompileError",
    "DeviceError",
    "DuplicateBackendError",
    "EdgeInferError",
    "ExternalDataError",
    "FeedsError",
    "FleetError",
    "ForkedSessionError",
    "GoldenMismatchError",
    "InferenceError",
    "InputError",
    "InvalidModelError",
    "MissingPackageError",
    "ModelError",
    "ModelLoadError",
    "OptionsError",
    "PreconditionError",
    "RecipeError",
    "RemoteConnectionError",
    "RemoteError",
    "RemoteStorageError",
    "RemoteTimeoutError",
    "SessionClosedError",
    "SessionError",
    "TargetError",
    "TransformContractError",
    "TransformError",
    "TransformOptionError",
    "TuningError",
    "UnknownBackendError",
    "UnsupportedModelError",
]


class EdgeInferError(Exception):
    """Base of all errors that edgeinfer raises on purpose.

    Args:
        what: One sentence that says what went wrong.
        where: The node, tensor, file or option concerned.
        expected: What was needed.
        found: What was there instead.
        hint: What to do about it.
        facts: Further values for programs, such as `{"mismatches": (...)}`.
    """

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        expected: object = None,
        found: object = None,
        hint: str | None = None,
        facts: Mapping[str, object] | None = None,
    ) -> None:
        self.what = what
        self.where = where
        self.expected = expected
        self.found = found
        self.hint = hint
        self.facts: Mapping[str, object] = dict(facts or {})
        super().__init__(what)

    def __str__(self) -> str:
        lines = [self.what]
        for label, value in (
            ("where", self.where),
            ("expected", self.expected),
            ("found", self.found),
            ("hint", self.hint),
        ):
            if value is not None:
                lines.append(f"  {label}: {value}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.__dict__.copy()))


def _rebuild(cls: type[EdgeInferError], state: dict[str, object]) -> EdgeInferError:
    error = cls.__new__(cls)
    Exception.__init__(error, state["what"])
    error.__dict__.update(state)
    return error


class ModelError(EdgeInferError):
    """Something is wrong with a model."""


class ModelLoadError(ModelError):
    """A model could not be read: no such file, not ONNX, truncated."""


class InvalidModelError(ModelError):
    """A model was read but breaks the ONNX specification."""


class ExternalDataError(ModelError):
    """External tensor data is missing, too short, or not safe to read."""


class UnsupportedModelError(ModelError):
    """A valid model that this operation cannot take, such as one of opset 6."""


class TransformError(EdgeInferError):
    """A transform could not be applied."""


class TransformOptionError(TransformError, ValueError):
    """A transform was made with an option that does not exist, or with a value that it does not take."""


class PreconditionError(TransformError):
    """The model is not in the state that the transform needs."""


class TransformContractError(TransformError):
    """A transform broke its own contract: a defect in the transform, not in the model."""


class CalibrationError(TransformError):
    """Calibration data is missing, empty, or does not fit the model."""


class RecipeError(TransformError):
    """A recipe is damaged, of another version, or for another model."""


class BackendError(EdgeInferError):
    """Something is wrong with a backend."""


class UnknownBackendError(BackendError):
    """No backend of that name is registered."""


class DuplicateBackendError(BackendError):
    """Two installed distributions register one backend name."""


class BackendUnavailableError(BackendError):
    """A known backend whose runtime is not installed or does not work here."""


class BrokenBackendError(BackendError):
    """A registered plugin failed to import or does not follow the Backend contract."""


class DeviceError(BackendError):
    """A device is not there, or no longer supported by the runtime."""


class OptionsError(BackendError):
    """An option is unknown or its value is refused."""


class CompileError(BackendError):
    """The runtime refused to compile the model."""


class ArtifactError(EdgeInferError):
    """Something is wrong with an artifact."""


class ArtifactFormatError(ArtifactError):
    """Not an artifact, or one of an unknown format version."""


class ArtifactIntegrityError(ArtifactError):
    """A file of an artifact is missing or its size or hash is wrong."""


class ArtifactMismatchError(ArtifactError):
    """The artifact was built for another runtime or other hardware."""


class ArtifactSaveError(ArtifactError):
    """An artifact could not be written; nothing was left half-written."""


class ArtifactTrustError(ArtifactError):
    """An artifact asks for what no artifact may: a file outside of it, a library, code."""


class SessionError(EdgeInferError):
    """Something is wrong with a session."""


class InputError(SessionError):
    """The inputs do not fit the model's signature."""


class FeedsError(CalibrationError, InputError):
    """Data given as feeds is of no known form, can be gone through only once, or does not fit the model.

    It is both: the same reader serves calibration and everything that runs a session.
    """


class SessionClosedError(SessionError):
    """The session was used after `close()`."""


class ForkedSessionError(SessionClosedError):
    """The session was loaded before the process forked, and used in the child."""


class InferenceError(SessionError):
    """The runtime failed while running the model."""


class GoldenMismatchError(SessionError):
    """The golden inputs do not give the golden outputs on this device."""


class TargetError(EdgeInferError):
    """An unknown or impossible target."""


class BudgetError(TargetError):
    """A budget that cannot be met or is not a budget."""


class TuningError(EdgeInferError):
    """A tuning run cannot start or go on: its journal is of another run, or nothing could be measured."""


class RemoteError(EdgeInferError):
    """Another device could not do what it was asked, and its own errors do not say it better."""


class RemoteConnectionError(RemoteError):
    """A device cannot be reached, or the connection to it broke."""


class RemoteTimeoutError(RemoteError):
    """A device did not answer in time."""


class RemoteStorageError(RemoteError):
    """A device has no room for what was to be copied to it; nothing was left half-written."""


class FleetError(EdgeInferError):
    """Something went wrong in fleet operations."""


class MissingPackageError(EdgeInferError, ImportError):
    """A function needs a package that is not installed, as on a device that only runs models."""
