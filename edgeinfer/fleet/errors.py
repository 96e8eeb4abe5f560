"""The errors of the fleet, below `FleetError`.

    FleetError
    ├── DocumentError             a document is not of its format, or too large
    ├── ReleaseError              NoVariantError, TiedVariantsError, UnknownReleaseError,
    │                             WithdrawnReleaseError
    ├── TrustError                BadSignatureError, ExpiredMetadataError, RollbackError
    ├── AssignmentError           ReplayedAssignmentError, ForeignAssignmentError, ExpiredLeaseError
    ├── DownloadError             LocationError (transient), MissingFileError, TooLargeError,
    │                             DigestMismatchError, DeltaError, StorageError
    ├── RepositoryError           KeyFileError, PublishError, PublishConflictError
    ├── AgentError                AgentBusyError, JournalError, GenerationError, InstallError
    ├── TransportError
    └── ApplicationError          NoModelError, InterfaceError

An error with `transient` may be gone at the next attempt: the network, not the content, is to blame.
"""

from __future__ import annotations

from typing import ClassVar

from edgeinfer.errors import FleetError

__all__ = [
    "AgentBusyError",
    "AgentError",
    "ApplicationError",
    "AssignmentError",
    "BadSignatureError",
    "DeltaError",
    "DigestMismatchError",
    "DocumentError",
    "DownloadError",
    "ExpiredLeaseError",
    "ExpiredMetadataError",
    "FleetError",
    "ForeignAssignmentError",
    "GenerationError",
    "InstallError",
    "InterfaceError",
    "JournalError",
    "KeyFileError",
    "LocationError",
    "MissingFileError",
    "NoModelError",
    "NoVariantError",
    "PublishConflictError",
    "PublishError",
    "ReleaseError",
    "ReplayedAssignmentError",
    "RepositoryError",
    "RollbackError",
    "StorageError",
    "TiedVariantsError",
    "TooLargeError",
    "TransportError",
    "TrustError",
    "UnknownReleaseError",
    "WithdrawnReleaseError",
]


class DocumentError(FleetError):
    """A document is not of its format, is too large, or has a critical field that is not known here."""


class ReleaseError(FleetError):
    """Something is wrong with a release."""


class NoVariantError(ReleaseError):
    """No variant of the release fits the device."""


class TiedVariantsError(ReleaseError):
    """Two variants could fit one device equally well."""


class UnknownReleaseError(ReleaseError):
    """The repository has no such release."""


class WithdrawnReleaseError(ReleaseError):
    """The release was withdrawn in signed metadata."""


class TrustError(FleetError):
    """What a location gave cannot be trusted."""


class BadSignatureError(TrustError):
    """Too few of the keys that are trusted have signed."""


class ExpiredMetadataError(TrustError):
    """Signed metadata is past its expiry. Nothing new is installed; what runs goes on."""


class RollbackError(TrustError):
    """A location gave older metadata than was seen before."""


class AssignmentError(FleetError):
    """An assignment is refused."""


class ReplayedAssignmentError(AssignmentError):
    """An assignment is older than one that was accepted before."""


class ForeignAssignmentError(AssignmentError):
    """An assignment is for another device, or for an earlier life of this one."""


class ExpiredLeaseError(AssignmentError):
    """An assignment had to be started before a time that has passed."""


class DownloadError(FleetError):
    """A file could not be brought to the device."""

    transient: ClassVar[bool] = False


class LocationError(DownloadError):
    """A location cannot be reached, or broke off. The next attempt may succeed."""

    transient = True


class MissingFileError(DownloadError):
    """A location does not have the file."""


class TooLargeError(DownloadError):
    """A location gives more than a file may have."""


class StorageError(DownloadError):
    """The device has no room for a file, or its disk fails."""


class DigestMismatchError(DownloadError):
    """What a location gave is not what its digest says."""


class DeltaError(DownloadError):
    """A delta does not make the file that it is to make."""


class RepositoryError(FleetError):
    """Something is wrong with a repository that is published to."""


class KeyFileError(RepositoryError):
    """A signing key is missing, cannot be decrypted, or is not the one that is meant."""


class PublishError(RepositoryError):
    """A release cannot be published as it is."""


class PublishConflictError(PublishError):
    """Others published at the same time, again and again; nothing was changed."""


class AgentError(FleetError):
    """The agent of a device cannot do its work."""


class AgentBusyError(AgentError):
    """Another agent works in this folder."""


class JournalError(AgentError):
    """The journal is damaged."""


class GenerationError(AgentError):
    """A generation of models is missing or damaged."""


class InstallError(AgentError):
    """The files of a release do not make what the release says."""


class TransportError(FleetError):
    """An assignment cannot be fetched, or a report cannot be sent, now."""


class ApplicationError(FleetError):
    """An application cannot have what it asked for."""


class NoModelError(ApplicationError):
    """No such model is installed on this device."""


class InterfaceError(ApplicationError):
    """The installed model has an interface that the application does not accept."""
