"""`BlobStore`: the files that a device has, by their digests.

    DIR/sha256/ab/abcd…      verified files
    DIR/partial/abcd…        what of a file has arrived
    DIR/partial/abcd….etag   where from

A file is at its place only after all of it was hashed and synced, by one rename.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol, final

from edgeinfer.atomic import open_regular
from edgeinfer.fleet.device.release import DIGEST
from edgeinfer.fleet.errors import DigestMismatchError

__all__ = ["BlobStore", "Readable", "blob_path", "digest_of", "mismatch", "sync_folder"]

_BLOCK = 1 << 20


def blob_path(digest: str) -> str:
    """Return the path of a blob below a repository or a store."""
    if DIGEST.match(digest) is None:
        raise ValueError(f"{digest!r} is no digest")
    return f"sha256/{digest[:2]}/{digest}"


class Readable(Protocol):
    """What can be read block by block."""

    def read(self, size: int, /) -> bytes:
        """Return a block of about that size; nothing at the end."""
        ...


@final
class BlobStore:
    """Verified files by digest, below one folder. One process writes to it at a time.

    Args:
        folder: Made when it is first needed.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def path(self, digest: str) -> Path:
        """Return where a file is, or would be."""
        return self.folder / blob_path(digest)

    def partial(self, digest: str) -> Path:
        """Return where a file is while it arrives."""
        return self.folder / "partial" / digest

    def has(self, digest: str) -> bool:
        """Whether the file is there. It was verified when it was added; `verify` does it again."""
        return self.path(digest).is_file()

    def open(self, digest: str) -> io.BufferedReader:
        """Open a file for reading.

        Raises:
            OSError: It is not there.
        """
        return open_regular(self.path(digest))

    def verify(self, digest: str) -> bool:
        """Whether the file is there and its contents are what its digest says. It is removed if not."""
        try:
            with self.open(digest) as file:
                found = digest_of(file)
        except FileNotFoundError:
            return False
        if found != digest:
            self.path(digest).unlink()
        return found == digest

    def add(self, digest: str, source: bytes | Readable) -> None:
        """Add a file.

        Raises:
            DigestMismatchError: It is not what the digest says; nothing was added.
            OSError: It cannot be written.
        """
        file: Readable = io.BytesIO(source) if isinstance(source, bytes) else source
        draft = self.partial(digest)
        draft.parent.mkdir(parents=True, exist_ok=True)
        hasher = hashlib.sha256()
        with draft.open("wb") as out:
            while block := file.read(_BLOCK):
                hasher.update(block)
                out.write(block)
        if hasher.hexdigest() != digest:
            draft.unlink()
            raise mismatch(digest, hasher.hexdigest(), "added file")
        self.adopt(digest)

    def adopt(self, digest: str) -> None:
        """Put the complete partial file, which the caller has hashed, at its place: synced, by one rename.

        Raises:
            OSError: It cannot be synced or renamed.
        """
        draft, place = self.partial(digest), self.path(digest)
        descriptor = os.open(draft, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if not place.parent.is_dir():
            place.parent.mkdir(parents=True)
            sync_folder(place.parent.parent)
        draft.replace(place)
        sync_folder(place.parent)
        self.forget(digest)

    def forget(self, digest: str) -> None:
        """Remove what of a file has arrived."""
        self.partial(digest).unlink(missing_ok=True)
        self.origin_file(digest).unlink(missing_ok=True)

    def origin_file(self, digest: str) -> Path:
        """Return the file that says where a partial file comes from."""
        return self.folder / "partial" / f"{digest}.etag"

    def place(self, digest: str, path: Path) -> None:
        """Copy a file to a path, synced. File systems that can share the blocks do (copy_file_range).

        Raises:
            OSError: It cannot be read or written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        with self.open(digest) as source, path.open("wb") as out:
            _copy(source, out)
            out.flush()
            os.fsync(out.fileno())

    def digests(self) -> Iterator[str]:
        """Yield what is there."""
        for entry in sorted(self.folder.glob("sha256/??/*")):
            if DIGEST.match(entry.name):
                yield entry.name

    def collect(self, keep: Iterable[str]) -> int:
        """Remove all files but those to keep, and all partial files but those to keep.

        Returns:
            The bytes that were freed.
        """
        kept, freed = frozenset(keep), 0
        found = [self.path(digest) for digest in self.digests() if digest not in kept]
        found += [path for path in self.folder.glob("partial/*") if path.name.partition(".")[0] not in kept]
        for path in found:
            with contextlib.suppress(FileNotFoundError):
                freed += path.stat().st_size
                path.unlink()
        return freed


def digest_of(file: BinaryIO, *, size: int | None = None) -> str:
    """Return the SHA-256 of a file from its position on, or of its next `size` bytes."""
    hasher, left = hashlib.sha256(), size
    while block := file.read(_BLOCK if left is None else min(_BLOCK, left)):
        hasher.update(block)
        left = None if left is None else left - len(block)
    return hasher.hexdigest()


def mismatch(digest: str, found: str, where: str) -> DigestMismatchError:
    """Return the error for wrong contents."""
    return DigestMismatchError(
        "The contents are not what the digest says.", where=where, expected=digest, found=found
    )


def sync_folder(folder: Path) -> None:
    """Make a rename in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _copy(source: io.BufferedReader, out: BinaryIO) -> None:
    size, done = os.fstat(source.fileno()).st_size, 0
    with contextlib.suppress(OSError, AttributeError):  # another file system, or a kernel without it
        while done < size:
            count = os.copy_file_range(source.fileno(), out.fileno(), size - done, done, done)
            if not count:
                break
            done += count
    if done < size:
        source.seek(done)
        out.seek(done)
        shutil.copyfileobj(source, out, _BLOCK)
