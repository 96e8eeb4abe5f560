"""A repository on a USB stick, for devices that have no network.

It is a repository like any other, with a timestamp of its own: a higher version, good for longer. (Clients
refuse the same version with another expiry.) The network's next timestamp has a version that is higher still,
so that a device may go back and forth.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import final

import attrs

from edgeinfer.fleet.device.blobs import blob_path
from edgeinfer.fleet.device.documents import sha256
from edgeinfer.fleet.device.release import Release
from edgeinfer.fleet.device.trust import release_path
from edgeinfer.fleet.errors import RepositoryError
from edgeinfer.fleet.operator.draft import DAY_S, State
from edgeinfer.fleet.operator.publishing import published_releases
from edgeinfer.fleet.operator.repository import Repository
from edgeinfer.fleet.operator.storage import FolderStorage

__all__ = ["UsbBundle", "export_usb"]


@final
@attrs.frozen(kw_only=True)
class UsbBundle:
    """What was written.

    Attributes:
        folder: Where; devices take it as their `source`.
        releases: The releases whose files are there.
        devices: The devices whose assignments are there.
        expires_at: From when on devices refuse it, in seconds since 1970 UTC.
        size: The bytes of all its files.
    """

    folder: str
    releases: tuple[Release, ...]
    devices: tuple[str, ...]
    expires_at: int
    size: int


def export_usb(
    repository: Repository,
    folder: str | os.PathLike[str],
    *,
    days: float = 30,
    releases: Iterable[tuple[str, str]] | None = None,
) -> UsbBundle:
    """Write what devices need to update without a network.

    Args:
        repository: The repository.
        folder: A folder, or the mounted stick. What an earlier export left there is kept up to date.
        days: How long devices accept it.
        releases: Models and versions. None: the newest of each model, and those that assignments name.

    Returns:
        What was written.

    Raises:
        RepositoryError: A release is not there, a file is missing, or offline metadata expires before that.
        KeyFileError: The online keys are not here.
    """
    stick = FolderStorage(Path(folder))
    state = repository.state()
    until = repository.clock() + days * DAY_S
    if state.snapshot.signed.expires.timestamp() <= until:
        repository.update(lambda _: None)  # signs a new snapshot
        state = repository.state()
    _check_expiry(state, until)
    documents = {
        name: repository.storage.read(f"desired/{name}")
        for name in repository.storage.names("desired")
        if name.endswith(".json") and not name.startswith(".")
    }
    chosen = _chosen(repository, state, releases, b"".join(documents.values()))
    size = 0
    for release in chosen:
        data = release.to_bytes()
        place = release_path(release.model, release.version).rpartition("/")[0]
        size += _put(stick, f"targets/{place}/{release.digest}.release.json", data)
        for digest in sorted({b.digest for v in release.variants for b in release.blobs_for(v)}):
            size += _put(stick, f"blobs/{blob_path(digest)}", _blob(repository, digest))
    for version in range(1, state.root.signed.version + 1):
        size += _put(stick, *_metadata(repository, f"{version}.root.json"))
    named = {"snapshot.json": state.snapshot.signed.version} | {
        name: meta.version for name, meta in state.snapshot.signed.meta.items()
    }
    for name, version in named.items():
        size += _put(stick, *_metadata(repository, f"{version}.{name}"))
    for name, data in documents.items():
        stick.replace(f"desired/{name}", data)
        size += len(data)
    timestamp = repository.stamp(lifetime_s=days * DAY_S)
    repository.stamp()  # the network goes on above it
    stick.replace("metadata/timestamp.json", timestamp)  # last: until now the stick was as it was
    return UsbBundle(
        folder=stick.url,
        releases=tuple(chosen),
        devices=tuple(name.removesuffix(".json") for name in documents),
        expires_at=int(until),
        size=size + len(timestamp),
    )


def _check_expiry(state: State, until: float) -> None:
    signed = {role: metadata.signed for role, metadata in state.releases.items()}
    ends = {"root": state.root.signed.expires, "targets": state.targets.signed.expires}
    ends |= {role: targets.expires for role, targets in signed.items()}
    early = [role for role, end in ends.items() if end.timestamp() <= until]
    if early:
        raise RepositoryError(
            "Offline metadata expires before the stick does.",
            where=", ".join(early),
            hint="Sign it again first (edgeinfer fleet rotate ROLE), or give fewer days.",
        )


def _chosen(
    repository: Repository, state: State, wanted: Iterable[tuple[str, str]] | None, assignments: bytes
) -> list[Release]:
    models = sorted(role.removeprefix("models-") for role in state.releases)
    known = {model: published_releases(repository, state, model) for model in models}
    if wanted is None:
        return [
            release
            for found in known.values()
            for release in found
            if release is found[-1] or release.digest.encode() in assignments
        ]
    by_name = {(release.model, release.version): release for found in known.values() for release in found}
    pairs = list(dict.fromkeys(wanted))
    missing = [f"{model} {version}" for model, version in pairs if (model, version) not in by_name]
    if missing:
        raise RepositoryError("The repository has no such release.", found=", ".join(missing))
    return [by_name[pair] for pair in pairs]


def _blob(repository: Repository, digest: str) -> bytes:
    try:
        data = repository.storage.read(f"blobs/{blob_path(digest)}")
    except FileNotFoundError as error:
        raise RepositoryError("The repository lacks a file.", where=digest) from error
    if sha256(data) != digest:
        raise RepositoryError("A file of the repository is damaged.", where=digest, found=sha256(data))
    return data


def _metadata(repository: Repository, name: str) -> tuple[str, bytes]:
    return f"metadata/{name}", repository.storage.read(f"metadata/{name}")


def _put(stick: FolderStorage, path: str, data: bytes) -> int:
    """Write a file whose content its name decides, unless it is there in full."""
    try:
        there = stick.read(path) == data
    except FileNotFoundError:
        there = False
    if not there:
        stick.replace(path, data)
    return len(data)
