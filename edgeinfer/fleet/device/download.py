"""`Downloader`: brings files to the device by digest, over any locations, through any number of cuts.

A file arrives in the store's `partial` folder and is hashed as it does. After a cut or a crash its prefix is
hashed again, and the rest is asked for with Range; If-Range holds the server to the same content. What is
complete and has the right digest gets its place by one rename. Nothing is read beyond the size that the
signed release names.

Where the device has the base of a delta, the cheapest delta is tried first, and the entire file after it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, final

import attrs

from edgeinfer.errors import MissingPackageError
from edgeinfer.fleet.device.blobs import BlobStore, blob_path, mismatch
from edgeinfer.fleet.device.delta import FORMATS, apply_delta
from edgeinfer.fleet.device.locations import Location, Opened, chunks
from edgeinfer.fleet.device.release import Blob, Delta
from edgeinfer.fleet.errors import (
    DigestMismatchError,
    DownloadError,
    LocationError,
    MissingFileError,
    StorageError,
)

__all__ = ["Downloader", "Fetched", "Progress"]

Progress: TypeAlias = "Callable[[int, int], object]"
_BLOCK = 1 << 20


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

    moved_bytes: int
    reused: tuple[str, ...]
    whole: tuple[str, ...]
    by_delta: tuple[str, ...]
    notes: tuple[str, ...]


@final
class Downloader:
    """Brings files into a store.

    Args:
        store: Where they go.
        locations: Where they are, in the order in which they are tried for each file.
        rate: The most bytes a second, on average over a fetch; None for no limit.
        clock: Seconds that only go forward.
        sleep: Waits for seconds.
    """

    def __init__(
        self,
        store: BlobStore,
        locations: Sequence[Location],
        *,
        rate: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._store = store
        self._locations = tuple(locations)
        self._rate = rate
        self._clock = clock
        self._sleep = sleep

    def fetch(
        self,
        blobs: Iterable[Blob],
        deltas: Iterable[Delta] = (),
        progress: Progress | None = None,
        *,
        bases: Mapping[str, Path] | None = None,
    ) -> Fetched:
        """Bring files into the store. What is there already is not asked for.

        Args:
            blobs: The files.
            deltas: The deltas that there are; those whose base the device has are considered.
            progress: Called with the bytes that are done and the bytes of all files.
            bases: Files elsewhere on the device that may serve as bases, by digest.

        Raises:
            LocationError: No location could give a file now. What has arrived of it is kept.
            DownloadError: No location has a file, or all that have it give something else.
            StorageError: The disk is full, or fails.
        """
        wanted = {blob.digest: blob for blob in blobs}
        run = _Run(self, wanted, progress, dict(bases or {}))
        options = [delta for delta in deltas if delta.format in FORMATS]
        try:
            for blob in wanted.values():
                if self._store.has(blob.digest):
                    run.reused.append(blob.digest)
                    run.advance(blob.size)
                else:
                    run.bring(blob, [delta for delta in options if delta.of == blob.digest])
        except OSError as error:
            raise StorageError(
                f"A file cannot be stored: {error.strerror or error}.",
                where=str(error.filename or self._store.folder),
                hint="Free space on the device, or check its disk.",
            ) from error
        return Fetched(
            moved_bytes=run.moved,
            reused=tuple(run.reused),
            whole=tuple(run.whole),
            by_delta=tuple(run.by_delta),
            notes=tuple(run.notes),
        )

    def open_base(self, digest: str, bases: Mapping[str, Path]) -> BinaryIO | None:
        """Open a file that the device has, wherever it is; None where it is not."""
        with contextlib.suppress(OSError):
            return self._store.open(digest)
        with contextlib.suppress(OSError, KeyError):
            return bases[digest].open("rb")
        return None

    def download(self, digest: str, size: int, run: _Run) -> None:
        """Bring one file from the first location that gives it."""
        failures: list[DownloadError] = []
        for location in self._locations:
            try:
                self._download_from(location, digest, size, run)
            except DownloadError as error:
                failures.append(error)
                run.notes.append(f"{location.url}: {error.what}")
            else:
                return
        transient = [failure for failure in failures if isinstance(failure, LocationError)]
        worst = next(iter(transient or failures[::-1]), None)
        raise (MissingFileError if worst is None else type(worst))(
            "No location gave the file.",
            where=digest,
            expected=f"{size} bytes from one of {', '.join(loc.url for loc in self._locations) or 'none'}",
            found="; ".join(str(failure).replace("\n", " ") for failure in failures),
        ) from worst

    def _download_from(self, location: Location, digest: str, size: int, run: _Run) -> None:
        partial = self._store.partial(digest)
        partial.parent.mkdir(parents=True, exist_ok=True)
        resumed = partial.stat().st_size if partial.exists() else 0
        if resumed > size:
            self._store.forget(digest)
            resumed = 0
        try:
            self._receive(location, digest, size, run)
        except DigestMismatchError:
            if not resumed:
                raise
            # The prefix may be what was wrong: torn by a power cut, or from another location. Once more.
            self._receive(location, digest, size, run)

    def _receive(self, location: Location, digest: str, size: int, run: _Run) -> None:
        partial, origin = self._store.partial(digest), self._store.origin_file(digest)
        with partial.open("a+b") as file:
            hasher, at = _rehash(file)
            if at < size:
                with location.open(
                    f"blobs/{blob_path(digest)}", offset=at, etag=_etag(origin, location)
                ) as opened:
                    if opened.size is not None and opened.size != size:
                        raise mismatch(digest, f"a file of {opened.size} bytes", location.url)
                    if opened.offset != at:  # it knows no ranges, or the content there has changed
                        file.truncate(0)
                        hasher, at = hashlib.sha256(), 0
                    origin.write_text(json.dumps({"url": location.url, "etag": opened.etag}))
                    at = self._append(opened, file, hasher, at, size, run)
            if at < size:
                raise LocationError(
                    "The location broke off.", where=location.url, expected=f"{size} bytes", found=at
                )
        if hasher.hexdigest() != digest:
            self._store.forget(digest)
            raise mismatch(digest, hasher.hexdigest(), location.url)
        self._store.adopt(digest)

    def _append(self, opened: Opened, file: BinaryIO, hasher: Any, at: int, size: int, run: _Run) -> int:
        for data in chunks(opened, max_bytes=size - at, clock=self._clock):
            run.moved += len(data)
            hasher.update(data)
            file.write(data)
            file.flush()
            at += len(data)
            run.report(at)
            self._throttle(run)
        return at

    def _throttle(self, run: _Run) -> None:
        if self._rate:
            ahead = run.moved / self._rate - (self._clock() - run.began)
            if ahead > 0:
                self._sleep(ahead)

    @property
    def store(self) -> BlobStore:
        """Where the files go."""
        return self._store

    @property
    def clock(self) -> Callable[[], float]:
        """Seconds that only go forward."""
        return self._clock


@final
class _Run:
    """One fetch: what it has done so far."""

    def __init__(
        self,
        downloader: Downloader,
        wanted: Mapping[str, Blob],
        progress: Progress | None,
        bases: Mapping[str, Path],
    ) -> None:
        self._downloader = downloader
        self._bases = bases
        self._progress = progress
        self._total = sum(blob.size for blob in wanted.values())
        self._done = 0
        self.began = downloader.clock()
        self.moved = 0
        self.reused: list[str] = []
        self.whole: list[str] = []
        self.by_delta: list[str] = []
        self.notes: list[str] = []

    def bring(self, blob: Blob, deltas: list[Delta]) -> None:
        """Bring one file the cheapest way that works."""
        left = blob.size - self._arrived(blob.digest)
        for delta in sorted(deltas, key=lambda delta: delta.size):
            if delta.size < left and self._by_delta(blob, delta):
                self.by_delta.append(blob.digest)
                break
        else:
            self._downloader.download(blob.digest, blob.size, self)
            self.whole.append(blob.digest)
        self.advance(blob.size)

    def advance(self, size: int) -> None:
        """Count a file as done."""
        self._done += size
        self.report(0)

    def report(self, at: int) -> None:
        """Tell the caller how far it is."""
        if self._progress is not None:
            self._progress(min(self._done + at, self._total), self._total)

    def _arrived(self, digest: str) -> int:
        partial = self._downloader.store.partial(digest)
        return partial.stat().st_size if partial.exists() else 0

    def _by_delta(self, blob: Blob, delta: Delta) -> bool:
        before = self.moved
        base = self._downloader.open_base(delta.base, self._bases)
        if base is None:
            return False
        store = self._downloader.store
        with base:
            try:
                if not store.has(delta.digest):
                    self._downloader.download(delta.digest, delta.size, self)
                with store.open(delta.digest) as packed:
                    store.add(blob.digest, _Stream(apply_delta(base, packed, size=blob.size)))
            except (DownloadError, MissingPackageError) as error:
                if isinstance(error, LocationError) and self.moved > before:
                    raise  # it goes on where it was cut; the entire file would fare no better
                self.notes.append(f"delta {delta.digest[:12]}: {error.what}")
                return False
            finally:
                store.path(delta.digest).unlink(missing_ok=True)
        return True


@final
class _Stream:
    """What an iterator yields, as a file."""

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self._blocks = iter(blocks)

    def read(self, _size: int = -1) -> bytes:
        return next(self._blocks, b"")


def _rehash(file: BinaryIO) -> tuple[Any, int]:
    hasher, at = hashlib.sha256(), 0
    file.seek(0)
    while block := file.read(_BLOCK):
        hasher.update(block)
        at += len(block)
    return hasher, at


def _etag(origin: Path, location: Location) -> str:
    """Return what named the content that the prefix is from, if it is from this location."""
    try:
        found = json.loads(origin.read_text())
        return str(found["etag"]) if found["url"] == location.url else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""  # then the digest of all of it is the only judge
