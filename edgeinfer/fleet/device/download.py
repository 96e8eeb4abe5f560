"""`Downloader`: brings files to the device by digest, over any locations, through any number of cuts.

A file arrives in the store's `partial` folder and is hashed as it does. After a cut or a crash its prefix is
hashed again, and the rest is asked for with Range; If-Range holds the server to the same content. What is
complete and has the right digest gets its place by one rename. Nothing is read beyond the size that the
signed release names.

Where the device has the base of a delta, the cheapest delta is tried first, and the entire file after it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, TypeAlias, final

from edgeinfer.errors import MissingPackageError
from edgeinfer.fleet.device.blobs import BlobStore
from edgeinfer.fleet.device.delta import FORMATS, apply_delta
from edgeinfer.fleet.device.locations import Location
from edgeinfer.fleet.device.receive import Meter, Receiver
from edgeinfer.fleet.device.release import Blob, Delta
from edgeinfer.fleet.device.sources import Fetched
from edgeinfer.fleet.errors import (
    DownloadError,
    LocationError,
    MissingFileError,
    StorageError,
)

__all__ = ["Downloader", "Fetched", "Progress"]

Progress: TypeAlias = "Callable[[int, int], object]"


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
        meter = Meter(self._rate, self._clock, self._sleep)
        run = _Run(self._store, self._locations, meter, progress, dict(bases or {}))
        run.total = sum(blob.size for blob in wanted.values())
        options = [delta for delta in deltas if delta.format in FORMATS]
        try:
            for blob in wanted.values():
                if self._store.has(blob.digest):
                    run.reuse(blob)
                else:
                    run.bring(blob, [delta for delta in options if delta.of == blob.digest])
        except OSError as error:
            raise StorageError(
                f"A file cannot be stored: {error.strerror or error}.",
                where=str(error.filename or self._store.folder),
                hint="Free space on the device, or check its disk.",
            ) from error
        return Fetched(
            moved_bytes=run.meter.moved,
            reused=tuple(run.reused),
            whole=tuple(run.whole),
            by_delta=tuple(run.by_delta),
            notes=tuple(run.notes),
        )


@final
class _Run:
    """One fetch: what it has done so far."""

    def __init__(
        self,
        store: BlobStore,
        locations: tuple[Location, ...],
        meter: Meter,
        progress: Progress | None,
        bases: Mapping[str, Path],
    ) -> None:
        self._store = store
        self._locations = locations
        self._progress = progress
        self._bases = bases
        self._receiver = Receiver(store, meter, self._report)
        self._done = 0
        self.meter = meter
        self.total = 0
        self.reused: list[str] = []
        self.whole: list[str] = []
        self.by_delta: list[str] = []
        self.notes: list[str] = []

    def reuse(self, blob: Blob) -> None:
        """Count a file that was there."""
        self.reused.append(blob.digest)
        self._advance(blob)

    def bring(self, blob: Blob, deltas: list[Delta]) -> None:
        """Bring a file the cheapest way that works."""
        partial = self._store.partial(blob.digest)
        left = blob.size - (partial.stat().st_size if partial.exists() else 0)
        cheaper = sorted((d for d in deltas if d.size < left), key=lambda delta: delta.size)
        if any(self._make(blob, delta) for delta in cheaper):
            self.by_delta.append(blob.digest)
        else:
            self._download(blob.digest, blob.size)
            self.whole.append(blob.digest)
        self._advance(blob)

    def _make(self, blob: Blob, delta: Delta) -> bool:
        """Make a file with a delta; False where that does not work."""
        base, before = self._open_base(delta.base), self.meter.moved
        if base is None:
            return False
        with base:
            try:
                if not self._store.has(delta.digest):
                    self._download(delta.digest, delta.size)
                with self._store.open(delta.digest) as packed:
                    self._store.add(blob.digest, _Blocks(apply_delta(base, packed, size=blob.size)))
            except (DownloadError, MissingPackageError) as error:
                if isinstance(error, LocationError) and self.meter.moved > before:
                    raise  # it goes on where it was cut; the entire file would fare no better
                self.notes.append(f"delta {delta.digest[:12]}: {error.what}")
                return False
            finally:
                self._store.path(delta.digest).unlink(missing_ok=True)
        return True

    def _open_base(self, digest: str) -> BinaryIO | None:
        with contextlib.suppress(OSError):
            return self._store.open(digest)
        with contextlib.suppress(OSError, KeyError):
            return self._bases[digest].open("rb")
        return None

    def _download(self, digest: str, size: int) -> None:
        """Bring a file from the first location that gives it."""
        failures: list[DownloadError] = []
        for location in self._locations:
            try:
                self._receiver.receive(location, digest, size)
            except DownloadError as error:
                failures.append(error)
                self.notes.append(f"{location.url}: {error.what}")
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

    def _advance(self, blob: Blob) -> None:
        self._done += blob.size
        self._report(0)

    def _report(self, at: int) -> None:
        if self._progress is not None:
            self._progress(min(self._done + at, self.total), self.total)


@final
class _Blocks:
    """What an iterator yields, as a file."""

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self._blocks = iter(blocks)

    def read(self, _size: int = -1, /) -> bytes:
        return next(self._blocks, b"")
