"""Where a device keeps the artifacts that were copied to it.

A copy is received into a draft, verified, flushed to disk and then renamed, so that there is never half of
one under its name. The draft of a worker that was killed is removed by the next one.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import final

from edgeinfer.artifact.artifact import Artifact
from edgeinfer.budget import format_bytes
from edgeinfer.devices.remote.messages import Message
from edgeinfer.errors import RemoteError, RemoteStorageError

__all__ = ["Store", "artifact_key", "default_folder"]

_DRAFT = re.compile(r"\.draft-(\d+)-")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*\Z")
# No room, no quota left, or over the limit of a file's size.
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def default_folder() -> Path:
    """Return the folder of this user's copies."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "edgeinfer" / "remote"


def artifact_key(folder: Path) -> str:
    """Return the SHA-256 of an artifact's manifest, which names the hash of every file."""
    return hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()


@final
class Store:
    """The artifacts of one folder, by key."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, key: str) -> Path | None:
        """Return where the artifact is, or None when it is not here."""
        path = self._folder / f"{_checked(key)}.edge"
        return path if path.is_dir() else None

    def put(self, key: str, message: Message) -> Path:
        """Receive an artifact: the blobs of a message are its files.

        Raises:
            RemoteStorageError: There is no room; nothing is left of it.
            ArtifactError: What arrived is not what was sent.
        """
        final = self._folder / f"{_checked(key)}.edge"
        needed = sum(message.sizes.values())
        with _storage_errors(self._folder, needed):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._reap()
            if shutil.disk_usage(self._folder).free < needed:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            draft = Path(tempfile.mkdtemp(prefix=f".draft-{os.getpid()}-", dir=self._folder))
            try:
                for name in message.sizes:
                    _receive(draft, name, message)
                _flush(draft)
                Artifact.open(draft)  # verifies every file
                if artifact_key(draft) != key:
                    raise RemoteError("Another artifact arrived than was announced.", where=key)
                if not final.is_dir():
                    draft.rename(final)
                _flush(self._folder)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
        return final

    def clear(self) -> int:
        """Remove all artifacts, and return how many there were."""
        found = list(self._folder.glob("*.edge")) if self._folder.is_dir() else []
        for path in found:
            shutil.rmtree(path, ignore_errors=True)
        return len(found)

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """Give a folder for the time of a measurement."""
        with _storage_errors(self._folder, 0):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._reap()
            draft = Path(tempfile.mkdtemp(prefix=f".draft-{os.getpid()}-", dir=self._folder))
        try:
            with _storage_errors(self._folder, 0):
                yield draft
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _reap(self) -> None:
        for path in self._folder.iterdir():
            match = _DRAFT.match(path.name)
            if match is not None and not _alive(int(match[1])):
                shutil.rmtree(path, ignore_errors=True)


def _receive(draft: Path, name: str, message: Message) -> None:
    if not _NAME.match(name):
        raise RemoteError("That is no file of an artifact.", where=name)
    with (draft / name).open("wb") as file:
        for chunk in message.chunks(name):
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def _storage_errors(folder: Path, needed: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in _FULL
        there = next((path for path in (folder, *folder.parents) if path.exists()), folder)
        free = format_bytes(shutil.disk_usage(there).free)
        raise RemoteStorageError(
            "There is no room for the copy." if full else f"The copy cannot be written: {error.strerror}.",
            where=str(folder),
            expected=f"{format_bytes(needed)} free" if needed else None,
            found=f"{free} free; {error.strerror}",
            hint="Clear the device's copies with RemoteDevice.clear(), or name another folder."
            if full
            else "Name a folder that can be written: connect(..., folder=...).",
        ) from error


def _checked(key: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", key):
        raise RemoteError("That is no key of an artifact.", found=key)
    return key


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
