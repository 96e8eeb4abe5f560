"""Reading a repository as its publishers do: all of it verified, before anything is signed on top."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any, final

from tuf.api import exceptions as tuf_errors
from tuf.api.metadata import Metadata, MetaFile, Root, Signed, Snapshot, Targets

from edgeinfer.fleet.errors import RepositoryError
from edgeinfer.fleet.operator.draft import State, serialized
from edgeinfer.fleet.operator.keys import KeyRing
from edgeinfer.fleet.operator.storage import Storage

__all__ = ["MetadataReader"]

_VERSIONED = re.compile(r"(\d+)\.(.+)\.json\Z")


@final
class MetadataReader:
    """Reads and verifies the newest metadata.

    Args:
        storage: Where it is.
        keys: They hold the root that is trusted.
    """

    def __init__(self, storage: Storage, keys: KeyRing) -> None:
        self._storage = storage
        self._keys = keys

    def state(self) -> State:
        """Read and verify the newest metadata. What is signed next is built on nothing that is not verified.

        Raises:
            RepositoryError: Something is missing, or is not signed by the keys that it must be signed by.
        """
        versions = self.versions()
        root = self.root(versions.get("root", 0))
        snapshot = self._read(root.signed, "snapshot", versions.get("snapshot", 0), Snapshot)
        named = {name.removesuffix(".json"): meta for name, meta in snapshot.signed.meta.items()}
        targets = self._read(root.signed, "targets", named["targets"].version, Targets, named["targets"])
        releases = {
            role: self._read(targets.signed, role, meta.version, Targets, meta)
            for role, meta in named.items()
            if role != "targets"
        }
        return State(root=root, targets=targets, snapshot=snapshot, releases=releases, versions=versions)

    def versions(self) -> dict[str, int]:
        """Return the highest version by role for which there is a file."""
        found: dict[str, int] = {}
        for name in self._storage.names("metadata"):
            match = _VERSIONED.match(name)
            if match is not None:
                found[match[2]] = max(found.get(match[2], 0), int(match[1]))
        return found

    def root(self, newest: int) -> Metadata[Root]:
        """Go from the root that this operator trusts to the newest, each signed by the one before."""
        root: Metadata[Root] = Metadata.from_bytes(self._keys.root)
        first = root.signed.version
        while root.signed.version < newest:
            version = root.signed.version + 1
            data = self._file(f"metadata/{version}.root.json")
            with _not_signed("root", version):
                following: Metadata[Root] = Metadata.from_bytes(data)
                root.signed.verify_delegate("root", following.signed_bytes, following.signatures)
                following.signed.verify_delegate("root", following.signed_bytes, following.signatures)
            root = following
        if root.signed.version > first:
            self._keys.trust(serialized(root))
        return root

    def _read(
        self,
        delegator: Root | Targets,
        role: str,
        version: int,
        kind: type[Signed],
        meta: MetaFile | None = None,
    ) -> Metadata[Any]:
        data = self._file(f"metadata/{version}.{role}.json")
        with _not_signed(role, version):
            if meta is not None:
                meta.verify_length_and_hashes(data)
            metadata: Metadata[Any] = Metadata.from_bytes(data)
            delegator.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
        if not isinstance(metadata.signed, kind) or metadata.signed.version != version:
            raise RepositoryError("Metadata is of another role or version.", where=f"{version}.{role}.json")
        return metadata

    def _file(self, path: str) -> bytes:
        try:
            return self._storage.read(path)
        except FileNotFoundError as error:
            raise RepositoryError(
                "The repository lacks a file.",
                where=f"{self._storage.url}: {path}",
                hint="Make a fleet with `edgeinfer fleet init`, or bring the file back from a mirror.",
            ) from error


@contextlib.contextmanager
def _not_signed(role: str, version: int) -> Iterator[None]:
    try:
        yield
    except tuf_errors.RepositoryError as error:
        raise RepositoryError(
            f"Metadata in the repository is not what its publishers signed: {error}.",
            where=f"{version}.{role}.json",
            hint="Somebody else wrote to the repository; restore it before anything is signed.",
        ) from error
