"""Puts the files of a release together: from blobs by digest to a folder that a session loads."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from edgeinfer.artifact.artifact import Artifact
from edgeinfer.artifact.decode import DecodeError
from edgeinfer.atomic import draft_folder
from edgeinfer.errors import ArtifactError
from edgeinfer.fleet.device.generations import Pin
from edgeinfer.fleet.device.local_files import fsync_folder, read_bounded
from edgeinfer.fleet.device.release import MAX_RELEASE_BYTES, Release, Variant
from edgeinfer.fleet.device.sources import Blobs
from edgeinfer.fleet.errors import DocumentError, InstallError

__all__ = ["install", "installed_blobs", "installed_folder", "pin_of", "read_installed"]

_CHUNK = 1 << 20


def installed_folder(release: str, variant: str) -> str:
    """Return where a variant of a release is installed, below the device's folder."""
    return f"installed/{release}-{variant}"


def pin_of(release: Release, variant: Variant, assignment: tuple[int, ...]) -> Pin:
    """Return the pin of a variant of a release."""
    return Pin(
        release=release.digest,
        version=release.version,
        interface=release.interface,
        variant=variant.name,
        artifact=variant.artifact_digest,
        folder=installed_folder(release.digest, variant.name),
        assignment=assignment,
    )


def install(root: Path, release: Release, variant: Variant, blobs: Blobs) -> Path:
    """Make the folder of a variant, durably and by one rename; verify every byte of it.

    Args:
        root: The device's folder.
        release: The release.
        variant: Its variant for this device.
        blobs: Where the files are.

    Returns:
        The folder, with `release.json`, `artifact/` and `bundle/`.

    Raises:
        InstallError: A file is not what the release says, or the artifact is another one.
        OSError: The disk is full or broken; nothing was left.
    """
    folder = root / installed_folder(release.digest, variant.name)
    if folder.exists():
        try:
            _check(folder, release, variant)
            return folder
        except InstallError:  # a bad disk: made again from the blobs
            shutil.rmtree(folder)
    folder.parent.mkdir(exist_ok=True)
    with draft_folder(folder.parent, folder.name) as draft:
        draft.chmod(0o755)
        _write(draft / "release.json", release.to_bytes())
        for part, files in (("artifact", variant.blobs), ("bundle", release.bundle_for(variant))):
            (draft / part).mkdir()
            for blob in files:
                blobs.place(blob.digest, draft / part / blob.path)
        for path in [p for p in draft.rglob("*") if p.is_dir()]:
            fsync_folder(path)
        fsync_folder(draft)
        _check(draft, release, variant)
        draft.rename(folder)
    fsync_folder(folder.parent)
    fsync_folder(root)
    return folder


def read_installed(root: Path, release: str, variant: str) -> tuple[Release, Variant]:
    """Return what is installed, by the digest of its release, which makes it as genuine as the digest is.

    Raises:
        InstallError: It is not there, or damaged.
    """
    path = root / installed_folder(release, variant) / "release.json"
    try:
        found = Release.from_bytes(read_bounded(path, MAX_RELEASE_BYTES))
    except (OSError, ValueError, DecodeError, DocumentError) as error:
        raise InstallError("The installed release cannot be read.", where=str(path), found=error) from error
    if found.digest != release:
        raise InstallError(
            "Another release is installed.", where=str(path), expected=release, found=found.digest
        )
    for each in found.variants:
        if each.name == variant:
            return found, each
    raise InstallError("The installed release has no such variant.", where=str(path), found=variant)


def installed_blobs(root: Path, pin: Pin) -> Iterator[tuple[str, Path]]:
    """Yield the digest and the path of each file that is installed for a model: bases for deltas."""
    variant = read_installed(root, pin.release, pin.variant)[1]
    yield from ((blob.digest, root / pin.folder / "artifact" / blob.path) for blob in variant.blobs)


def _check(folder: Path, release: Release, variant: Variant) -> None:
    try:
        found = Artifact.open(folder / "artifact").digest
    except ArtifactError as error:
        raise InstallError(
            "The files of the release are no artifact.", where=variant.name, found=str(error)
        ) from error
    if found != variant.artifact_digest:
        raise InstallError(
            "The files of the release make another artifact.",
            where=f"{release.model} {release.version}, {variant.name}",
            expected=variant.artifact_digest,
            found=found,
        )
    for blob in release.bundle_for(variant):
        digest = hashlib.sha256()
        try:
            with (folder / "bundle" / blob.path).open("rb") as file:
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
        except OSError as error:
            raise InstallError(
                "A file of the bundle cannot be read.", where=blob.path, found=error
            ) from error
        if digest.hexdigest() != blob.digest:
            raise InstallError("A file of the bundle is another one.", where=blob.path)


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
