"""A small fleet: a repository with real keys and signatures, whose releases hold any bytes."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuf.api.metadata import TargetFile

from edgeinfer.fleet.device.blobs import blob_path
from edgeinfer.fleet.device.documents import sha256
from edgeinfer.fleet.device.release import Blob, Release, Variant
from edgeinfer.fleet.device.trust import TrustedRepository, release_path
from edgeinfer.fleet.operator.ceremonies import create_repository
from edgeinfer.fleet.operator.draft import Draft
from edgeinfer.fleet.operator.keys import KeyRing
from edgeinfer.fleet.operator.repository import Repository
from edgeinfer.fleet.operator.storage import FolderStorage, Storage

T0 = 1_800_000_000
DAY = 86_400


@functools.cache
def _template() -> Path:
    """A new fleet to copy: making one syncs dozens of files."""
    folder = Path(tempfile.mkdtemp(prefix="edgeinfer-toy-fleet-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    keys = KeyRing(folder / "keys", lambda _: None)
    create_repository(Repository(FolderStorage(folder / "repository"), keys, clock=lambda: T0), encrypt=False)
    return folder


class ToyFleet:
    """A repository below a folder, with unencrypted keys and a clock that is set by hand."""

    def __init__(self, folder: Path, *, storage: Storage | None = None, **creation: Any) -> None:
        self.folder = folder
        self.now = float(T0)
        if storage is None and not folder.joinpath("keys").exists() and not creation:
            shutil.copytree(_template(), folder, dirs_exist_ok=True)
        self.keys = KeyRing(folder / "keys", lambda _: None)
        self.repository = Repository(
            storage or FolderStorage(folder / "repository"), self.keys, clock=lambda: self.now
        )
        if not self.repository.exists:
            create_repository(self.repository, encrypt=False, **creation)
        self.root = self.keys.root

    @property
    def public(self) -> Path:
        return self.folder / "repository"

    def release_of(self, model: str, version: str, files: Mapping[str, bytes], **fields: Any) -> Release:
        blobs = [Blob(path=path, size=len(data), digest=sha256(data)) for path, data in files.items()]
        variant = Variant(name="any", artifact_digest="0" * 64, blobs=blobs)
        values = {"interface": f"{model}/1", "variants": (variant,), "created_at": int(self.now), **fields}
        return Release(model=model, version=version, **values)

    def publish(self, model: str, version: str, files: Mapping[str, bytes] | None = None, **fields: Any):
        files = {"model.bin": f"{model} {version}".encode()} if files is None else files
        release = self.release_of(model, version, files, **fields)
        for data in files.values():
            self.put(f"blobs/{blob_path(sha256(data))}", data)
        self.put(f"targets/models/{model}/{version}/{release.digest}.release.json", release.to_bytes())

        def change(draft: Draft) -> None:
            path = release_path(model, version)
            info = TargetFile(len(release.to_bytes()), {"sha256": release.digest}, path)
            draft.edit_releases(model).targets[path] = info

        assert self.repository.update(change) == {}
        return release

    def put(self, path: str, data: bytes) -> None:
        if not self.repository.storage.exists(path):
            self.repository.storage.create(path, data)

    def device(self, name: str = "device", source: Any = None, **fields: Any) -> TrustedRepository:
        values = {"root": self.root, "clock": lambda: self.now, **fields}
        return TrustedRepository(self.folder / name, self.public if source is None else source, **values)

    def path(self, role: str) -> Path:
        """The newest file of a role."""
        version = self.repository.state().versions[role]
        return self.public / "metadata" / f"{version}.{role}.json"
