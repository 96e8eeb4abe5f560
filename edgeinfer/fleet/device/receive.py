"""`Receiver`: one file from one location, resumed where it was cut, hashed as it arrives."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, final

from edgeinfer.fleet.device.blobs import BlobStore, blob_path, mismatch
from edgeinfer.fleet.device.locations import Location, Opened, chunks
from edgeinfer.fleet.errors import DigestMismatchError, LocationError
from edgeinfer.plain_json import parse_json

__all__ = ["Meter", "Receiver"]

_BLOCK = 1 << 20


@final
class Meter:
    """Counts the bytes of a fetch, and holds them to a rate.

    Args:
        rate: The most bytes a second, on average; None for no limit.
        clock: Seconds that only go forward.
        sleep: Waits for seconds.

    Attributes:
        moved: The bytes so far.
    """

    def __init__(
        self, rate: float | None, clock: Callable[[], float], sleep: Callable[[float], object]
    ) -> None:
        self.clock = clock
        self.moved = 0
        self._rate = rate
        self._sleep = sleep
        self._began = clock()

    def count(self, size: int) -> None:
        """Count bytes, and wait until so many may have come."""
        self.moved += size
        if self._rate:
            ahead = self.moved / self._rate - (self.clock() - self._began)
            if ahead > 0:
                self._sleep(ahead)


@final
class Receiver:
    """Brings single files into a store.

    Args:
        store: Where they go.
        meter: Counts their bytes.
        report: Called with how many bytes of the file are there.
    """

    def __init__(self, store: BlobStore, meter: Meter, report: Callable[[int], object]) -> None:
        self._store = store
        self._meter = meter
        self._report = report
        self._kept = 0  # the bytes that had arrived before the attempt, and that it built on

    def receive(self, location: Location, digest: str, size: int) -> None:
        """Bring a file.

        Raises:
            LocationError: The location broke off, or cannot be reached. What has arrived is kept.
            MissingFileError: The location does not have it.
            DigestMismatchError: The location has something else. What had arrived is gone.
            OSError: It cannot be written.
        """
        partial = self._store.partial(digest)
        partial.parent.mkdir(parents=True, exist_ok=True)
        if partial.exists() and partial.stat().st_size > size:
            self._store.forget(digest)
        self._kept = 0
        try:
            self._attempt(location, digest, size)
        except DigestMismatchError:
            if not self._kept:
                raise
            # The prefix may be what was wrong: torn by a power cut, or from another location. Once more.
            self._attempt(location, digest, size)

    def _attempt(self, location: Location, digest: str, size: int) -> None:
        origin = self._store.origin_file(digest)
        with self._store.partial(digest).open("a+b") as file:
            hasher, at = _rehash(file)
            self._kept = at
            if at < size:
                path, etag = f"blobs/{blob_path(digest)}", _etag(origin, location)
                with location.open(path, offset=at, etag=etag) as opened:
                    if opened.size is not None and opened.size != size:
                        raise mismatch(digest, f"a file of {opened.size} bytes", location.url)
                    if opened.offset != at:  # it knows no ranges, or the content there has changed
                        file.truncate(0)
                        hasher, at = hashlib.sha256(), 0
                        self._kept = 0
                    origin.write_text(json.dumps({"url": location.url, "etag": opened.etag}))
                    at = self._append(opened, file, hasher, at, size)
            if at < size:
                raise LocationError(
                    "The location broke off.", where=location.url, expected=f"{size} bytes", found=at
                )
        if hasher.hexdigest() != digest:
            self._store.forget(digest)
            raise mismatch(digest, hasher.hexdigest(), location.url)
        self._store.adopt(digest)

    def _append(self, opened: Opened, file: BinaryIO, hasher: Any, at: int, size: int) -> int:
        for data in chunks(opened, max_bytes=size - at, clock=self._meter.clock):
            hasher.update(data)
            file.write(data)
            file.flush()
            at += len(data)
            self._report(at)
            self._meter.count(len(data))
        return at


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
        found = parse_json(origin.read_text())
        return str(found["etag"]) if found["url"] == location.url else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""  # then the digest of all of it is the only judge
