"""What the agent needs of trust and download, as contracts: `trust` and `download` fulfil them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol, final

import attrs

from edgeinfer.fleet.device.assignment import AssignmentKeys
from edgeinfer.fleet.device.floors import Floors
from edgeinfer.fleet.device.release import Blob, Delta, Release

__all__ = ["Blobs", "Fetched", "Fetcher", "Trust"]


class Trust(Protocol):
    """Says which releases are genuine, from signed metadata."""

    def refresh(self) -> None:
        """Bring the metadata up to date.

        Raises:
            TrustError, LocationError: It cannot be, or cannot be trusted.
        """
        ...

    def release(self, model: str, version: str, digest: str) -> Release:
        """Return a release that the metadata names. Raises FleetError."""
        ...

    @property
    def floors(self) -> Floors:
        """The least versions and time that are believed."""
        ...

    def raise_floors(self, floors: Floors) -> None:
        """Take floors into account that were kept elsewhere."""
        ...

    @property
    def withdrawn(self) -> frozenset[tuple[str, str]]:
        """The releases that must not run: digest, and class of devices or `*`."""
        ...

    @property
    def assignment_keys(self) -> AssignmentKeys:
        """Who may sign assignments."""
        ...


class Blobs(Protocol):
    """The files that are on this device, by their digests."""

    def has(self, digest: str) -> bool:
        """Whether a file is there."""
        ...

    def place(self, digest: str, path: Path) -> None:
        """Copy a file to a path, synced."""
        ...

    def verify(self, digest: str) -> bool:
        """Whether a file is there and undamaged; it is removed if it is damaged."""
        ...

    def collect(self, keep: Iterable[str]) -> int:
        """Remove all others; return the bytes that were freed."""
        ...


@final
@attrs.frozen(kw_only=True)
class Fetched:
    """What a fetch did.

    Attributes:
        moved_bytes: What came out of locations, repeated bytes included.
        reused: The digests that were there already.
        whole: Those that were downloaded as they are.
        by_delta: Those that were made with a delta.
        notes: What was tried and failed before it succeeded another way.
    """

    moved_bytes: int = 0
    reused: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()
    by_delta: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Fetcher(Protocol):
    """Brings files to the device."""

    def fetch(
        self,
        blobs: Iterable[Blob],
        deltas: Iterable[Delta] = (),
        progress: Callable[[int, int], object] | None = None,
        *,
        bases: Mapping[str, Path] | None = None,
    ) -> Fetched:
        """Bring all that are not there; what is there in part is continued.

        Raises:
            DownloadError: They cannot be brought.
            StorageError: The disk is full, or fails.
        """
        ...
