"""Where a repository is written: a folder, or what fsspec knows.

Two ways to write are enough: `create`, which fails if the file is there, and `replace`. All that is signed is
created under a name with its version, so that of two publishers who write at once one fails and sees the
other's work. Only the pointers `timestamp.json` and `root.json` are replaced.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, final

from edgeinfer.atomic import write_file
from edgeinfer.fleet.errors import RepositoryError

__all__ = ["FolderStorage", "FsspecStorage", "Storage", "open_storage"]


class Storage(Protocol):
    """Where a repository is written."""

    @property
    def url(self) -> str:
        """What names it."""
        ...

    def read(self, path: str) -> bytes:
        """Return a file. Raises FileNotFoundError."""
        ...

    def exists(self, path: str) -> bool:
        """Whether there is a file."""
        ...

    def create(self, path: str, content: bytes | Path) -> None:
        """Write a new file, all of it or nothing. Raises FileExistsError."""
        ...

    def replace(self, path: str, content: bytes) -> None:
        """Write a file, all of it or nothing."""
        ...

    def remove(self, path: str) -> None:
        """Remove a file, if it is there."""
        ...

    def names(self, folder: str) -> list[str]:
        """Return the names of the files in a folder."""
        ...

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Hold others off while this is entered, where that is possible."""
        ...


def open_storage(location: str | os.PathLike[str]) -> Storage:
    """Return the storage that a path or one of fsspec's URLs names.

    Raises:
        RepositoryError: It is an HTTP URL, which is only read, or fsspec does not know it.
    """
    text = os.fspath(location)
    scheme, separator, _ = text.partition("://")
    if not separator:
        return FolderStorage(Path(text))
    if scheme in ("file", "local"):
        return FolderStorage(Path(urllib.parse.unquote(urllib.parse.urlsplit(text).path)))
    if scheme in ("http", "https"):
        raise RepositoryError(
            "A repository is not written over HTTP.",
            where=text,
            expected="a folder, or a URL of fsspec such as s3://bucket/fleet",
            hint="Publish to the folder or the store that the server serves.",
        )
    return FsspecStorage(text)


@final
class FolderStorage:
    """A folder of a local file system."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = str(folder)

    def read(self, path: str) -> bytes:
        """Return a file. Raises FileNotFoundError."""
        return (self.folder / path).read_bytes()

    def exists(self, path: str) -> bool:
        """Whether there is a file."""
        return (self.folder / path).is_file()

    def create(self, path: str, content: bytes | Path) -> None:
        """Write a new file: a draft first, which gets the name by a hard link. Raises FileExistsError."""
        place = self.folder / path
        if place.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(place))
        place.parent.mkdir(parents=True, exist_ok=True)
        draft = place.with_name(f".{place.name}.{secrets.token_hex(6)}.draft")
        try:
            with draft.open("xb") as file:
                if isinstance(content, Path):
                    with content.open("rb") as source:
                        shutil.copyfileobj(source, file, 1 << 20)
                else:
                    file.write(content)
                file.flush()
                os.fsync(file.fileno())
            try:
                place.hardlink_to(draft)
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP):
                    raise
                draft.rename(place)  # a USB stick with FAT has no links, and no second publisher
        finally:
            draft.unlink(missing_ok=True)
        _sync(place.parent)

    def replace(self, path: str, content: bytes) -> None:
        """Write a file, all of it or nothing."""
        place = self.folder / path
        drafts = self.folder / ".drafts"  # not among the documents of 100,000 devices
        for folder in (place.parent, drafts):
            folder.mkdir(parents=True, exist_ok=True)
        write_file(place, content, drafts=drafts)

    def remove(self, path: str) -> None:
        """Remove a file, if it is there."""
        (self.folder / path).unlink(missing_ok=True)

    def names(self, folder: str) -> list[str]:
        """Return the names of the files in a folder."""
        try:
            return sorted(entry.name for entry in (self.folder / folder).iterdir())
        except FileNotFoundError:
            return []

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold other publishers of this folder off (flock)."""
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.folder / ".publishing", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


@final
class FsspecStorage:
    """An object store. `create` is as exclusive as its `mode="create"` (S3: If-None-Match)."""

    def __init__(self, url: str) -> None:
        try:
            import fsspec

            self._files, self._base = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise RepositoryError(f"That location is not known: {error}.", where=url) from error
        self.url = url

    def read(self, path: str) -> bytes:
        """Return a file. Raises FileNotFoundError."""
        data: bytes = self._files.cat_file(self._path(path))
        return data

    def exists(self, path: str) -> bool:
        """Whether there is a file."""
        return bool(self._files.isfile(self._path(path)))

    def create(self, path: str, content: bytes | Path) -> None:
        """Write a new file. Raises FileExistsError."""
        full = self._path(path)
        self._files.makedirs(full.rpartition("/")[0], exist_ok=True)
        data = content.read_bytes() if isinstance(content, Path) else content
        self._files.pipe_file(full, data, mode="create")

    def replace(self, path: str, content: bytes) -> None:
        """Write a file; stores do it all or not at all."""
        self._files.pipe_file(self._path(path), content)

    def remove(self, path: str) -> None:
        """Remove a file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._files.rm_file(self._path(path))

    def names(self, folder: str) -> list[str]:
        """Return the names of the files in a folder."""
        try:
            self._files.invalidate_cache()
            found: list[Any] = self._files.ls(self._path(folder), detail=False)
        except FileNotFoundError:
            return []
        return sorted(str(name).rstrip("/").rpartition("/")[2] for name in found)

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Hold nobody off: the versions do it."""
        return contextlib.nullcontext()

    def _path(self, path: str) -> str:
        return f"{self._base.rstrip('/')}/{path}"


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
