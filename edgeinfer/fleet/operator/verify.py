"""`verify`: look at a repository as a device does, and at every file of it."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from typing import final

import attrs

from edgeinfer.display import Table
from edgeinfer.fleet.device.blobs import blob_path
from edgeinfer.fleet.device.locations import Location, chunks, open_location
from edgeinfer.fleet.device.release import Release
from edgeinfer.fleet.device.trust import TrustedRepository
from edgeinfer.fleet.errors import DigestMismatchError, DownloadError, FleetError, MissingFileError

__all__ = ["Verification", "verify"]


@final
@attrs.frozen(kw_only=True)
class Verification:
    """What was found.

    Attributes:
        versions: The versions of the metadata, by role.
        releases: The releases that can be trusted.
        withdrawn: Pairs of a digest and a device class.
        files: How many files were read.
        size: Their bytes.
        problems: What is wrong, in sentences; empty where nothing is.
    """

    versions: dict[str, int]
    releases: tuple[Release, ...]
    withdrawn: tuple[tuple[str, str], ...]
    files: int
    size: int
    problems: tuple[str, ...]

    def table(self) -> Table:
        """Return one row a release."""
        gone = dict(self.withdrawn)
        rows = [
            (
                f"{release.model} {release.version}",
                release.interface,
                ", ".join(variant.name for variant in release.variants),
                release.digest[:12],
                f"withdrawn from {gone[release.digest]}" if release.digest in gone else "",
            )
            for release in self.releases
        ]
        root, timestamp = self.versions.get("root", 0), self.versions.get("timestamp", 0)
        state = "; ".join(self.problems) or f"all of {self.files} files ({self.size / 1e6:.2f} MB) are right"
        return Table(
            title="Repository",
            columns=("release", "interface", "variants", "digest", ""),
            rows=rows,
            footer=f"root {root}, timestamp {timestamp}; {state}",
        )

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table().to_html()

    def to_dict(self) -> dict[str, object]:
        """Return JSON-compatible values."""
        return {
            "versions": self.versions,
            "releases": [
                {"model": r.model, "version": r.version, "interface": r.interface, "digest": r.digest}
                for r in self.releases
            ],
            "withdrawn": [list(pair) for pair in self.withdrawn],
            "files": self.files,
            "bytes": self.size,
            "problems": list(self.problems),
        }


def verify(
    source: str | os.PathLike[str],
    root: bytes,
    *,
    partial: bool = False,
    clock: Callable[[], float] = time.time,
) -> Verification:
    """Check a repository from its root of trust to the last byte of its files.

    Args:
        source: Any location that a device could be given.
        root: The root of trust.
        partial: Pass over releases that are not there, as on a stick.
        clock: The time in seconds since 1970 UTC.

    Raises:
        TrustError, DownloadError: Its metadata cannot be trusted or read.
    """
    location = open_location(source)
    problems: list[str] = []
    releases: list[Release] = []
    with tempfile.TemporaryDirectory(prefix="edgeinfer-") as scratch:
        trusted = TrustedRepository(scratch, location, root=root, clock=clock)
        trusted.refresh()
        for model in trusted.models:
            for version, digest in trusted.versions(model).items():
                try:
                    releases.append(trusted.release(model, version, digest, withdrawn=True))
                except FleetError as error:
                    if partial and isinstance(error, MissingFileError):
                        continue
                    problems.append(f"{model} {version}: {error.what}")
        withdrawn = tuple(sorted(trusted.withdrawn))
        versions = dict(trusted.floors.versions)
    sizes = _sizes(releases)
    for digest, size in sizes.items():
        try:
            _check(location, digest, size)
        except DownloadError as error:
            problems.append(f"{digest}: {error.what}")
    return Verification(
        versions=versions,
        releases=tuple(releases),
        withdrawn=withdrawn,
        files=len(sizes),
        size=sum(sizes.values()),
        problems=tuple(problems),
    )


def _sizes(releases: list[Release]) -> dict[str, int]:
    found: dict[str, int] = {}
    for release in releases:
        blobs = [blob for variant in release.variants for blob in variant.blobs]
        found |= {blob.digest: blob.size for blob in (*blobs, *release.bundle)}
        found |= {delta.digest: delta.size for delta in release.deltas}
    return found


def _check(location: Location, digest: str, size: int) -> None:
    hasher = hashlib.sha256()
    with location.open(f"blobs/{blob_path(digest)}") as opened:
        for data in chunks(opened, max_bytes=size + 1):
            hasher.update(data)
    if hasher.hexdigest() != digest:
        raise DigestMismatchError("A file is damaged.", expected=digest, found=hasher.hexdigest())
