"""Locations: where a repository is. A folder, a USB stick, an HTTP(S) server, or what fsspec knows.

All are alike to the rest: `open` gives a stream that begins at or before the byte that was asked for. Nothing
that comes out of a location is trusted for where it comes from.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, final

import attrs

from edgeinfer.atomic import open_regular
from edgeinfer.fleet.errors import LocationError, MissingFileError, TooLargeError

__all__ = ["CHUNK_BYTES", "Location", "Opened", "chunks", "open_location", "open_locations", "read_bytes"]

CHUNK_BYTES = 1 << 16
_TIMEOUT_S = 30.0
# A stream that gives less than a chunk in this time is given up, so that it cannot hold a device without end.
PATIENCE_S = 120.0
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)\Z")
_MISSING = frozenset({403, 404, 410})  # object stores answer 403 for what is not there


@final
@attrs.frozen(kw_only=True)
class Opened:
    """A file of a location that is being read.

    Attributes:
        read: Returns at most so many bytes; none at the end.
        offset: The position of the first byte that `read` gives: what was asked for, or 0.
        size: The size of the entire file, if it is known.
        etag: What names this content of the file at this location; empty where there is no such thing.
        close: Ends it.
    """

    read: Callable[[int], bytes]
    offset: int
    size: int | None
    etag: str
    close: Callable[[], object]

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(Exception):  # what was read is judged by its digest
            self.close()


class Location(Protocol):
    """Where the files of a repository are."""

    @property
    def url(self) -> str:
        """What names it to people and in journals."""
        ...

    def open(self, path: str, *, offset: int = 0, etag: str = "") -> Opened:
        """Open a file.

        Args:
            path: Such as `metadata/timestamp.json`.
            offset: The first byte that is needed.
            etag: Of the content that the bytes before `offset` are from, if known. If it has changed, the
                stream begins at 0.

        Raises:
            MissingFileError: There is no such file.
            LocationError: It cannot be read now.
        """
        ...


def open_location(
    source: str | os.PathLike[str] | Location, *, headers: Mapping[str, str] | None = None
) -> Location:
    """Return the location that a path or a URL names.

    Args:
        source: A folder, a `file:`, `http:` or `https:` URL, or one of fsspec's. A folder that
            `edgeinfer fleet init` made stands for the `repository` in it.
        headers: For HTTP: further headers, such as an authorization.

    Raises:
        LocationError: fsspec does not know it, or lacks a package for it.
    """
    if not isinstance(source, (str, os.PathLike)):
        return source
    scheme, colon, _ = os.fspath(source).partition(":")
    if isinstance(source, os.PathLike) or not colon or "/" in scheme:
        return FolderLocation(Path(source))
    if scheme == "file":
        return FolderLocation(Path(urllib.parse.unquote(urllib.parse.urlsplit(source).path)))
    if scheme in ("http", "https"):
        return HttpLocation(source, headers or {})
    return FsspecLocation(source)


def open_locations(sources: Any) -> tuple[Location, ...]:
    """Return the locations of one source, or of several in the order in which they are to be tried."""
    several = isinstance(sources, (list, tuple))
    return tuple(open_location(source) for source in (sources if several else (sources,)))


def chunks(opened: Opened, *, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> Iterator[bytes]:
    """Yield what a stream gives, at most `max_bytes` of it.

    Raises:
        LocationError: It broke off, or is too slow to be worth waiting for.
    """
    left, since, got = max_bytes, clock(), 0
    while left > 0:
        try:
            data = opened.read(min(CHUNK_BYTES, left))
        except Exception as error:  # of urllib3, sockets, files, or a plugin of fsspec
            raise LocationError(f"Reading broke off: {type(error).__name__}: {error}") from error
        if not data:
            return
        left -= len(data)
        got += len(data)
        yield data
        if got >= CHUNK_BYTES:
            since, got = clock(), 0
        elif clock() - since > PATIENCE_S:
            raise LocationError(
                "The location is too slow.", expected=f"{CHUNK_BYTES} bytes in {PATIENCE_S:.0f} s", found=got
            )


def read_bytes(location: Location, path: str, *, max_bytes: int) -> bytes:
    """Return a small file.

    Raises:
        MissingFileError: There is no such file.
        TooLargeError: It is larger than `max_bytes`.
        LocationError: It cannot be read now.
    """
    with location.open(path) as opened:
        data = b"".join(chunks(opened, max_bytes=max_bytes + 1))
    if len(data) > max_bytes:
        raise TooLargeError(
            "A file is larger than it may be.", where=f"{location.url}/{path}", expected=f"{max_bytes} bytes"
        )
    return data


@final
class FolderLocation:
    """A folder of this machine, or of what is mounted on it."""

    def __init__(self, folder: Path) -> None:
        inner = folder / "repository"
        self.folder = (
            inner if (inner / "metadata").is_dir() and not (folder / "metadata").is_dir() else folder
        )
        self.url = str(self.folder)

    def open(self, path: str, *, offset: int = 0, etag: str = "") -> Opened:
        """Open a file; see `Location`."""
        del etag  # a file that is open does not change: the repository replaces files by others
        try:
            file = open_regular(self.folder / path)
            size = os.fstat(file.fileno()).st_size
            start = offset if offset <= size else 0
            file.seek(start)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise _missing(self.url, path, error) from error
        except OSError as error:
            raise LocationError(
                f"A file cannot be read: {error.strerror or error}.", where=f"{self.url}/{path}"
            ) from error
        return Opened(read=file.read, offset=start, size=size, etag="", close=file.close)


@final
class HttpLocation:
    """An HTTP(S) server, or one behind a mirror or a cache."""

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        import urllib3

        self.url = url.rstrip("/")
        self._headers = {"Accept-Encoding": "identity", "User-Agent": "edgeinfer", **headers}
        # The caller retries, with what it knows of the device; redirects are what CDNs do.
        retries = urllib3.Retry(total=3, connect=0, read=0, status=0, other=0, redirect=3)
        self._pool = urllib3.PoolManager(timeout=urllib3.Timeout(_TIMEOUT_S), retries=retries, maxsize=2)

    def open(self, path: str, *, offset: int = 0, etag: str = "") -> Opened:
        """Open a file; see `Location`. Uses Range and If-Range (RFC 9110, 13.1.5 and 14.2)."""
        headers = dict(self._headers)
        if offset:
            headers["Range"] = f"bytes={offset}-"
            if etag and not etag.startswith("W/"):
                headers["If-Range"] = etag
        where = f"{self.url}/{path}"
        try:
            response = self._pool.request(
                "GET", f"{self.url}/{urllib.parse.quote(path)}", headers=headers, preload_content=False
            )
        except Exception as error:  # urllib3 has many, and http.client some of its own
            raise LocationError(
                f"The server cannot be reached: {type(error).__name__}: {error}", where=where
            ) from error
        if response.status == 416 and offset:  # it has no such byte: the file there is another one
            response.close()
            return self.open(path)
        if response.status in (200, 206):
            start, size = _extent(response)
            if start in (0, offset):
                return Opened(
                    read=response.read1,
                    offset=start,
                    size=size,
                    etag=response.headers.get("ETag", ""),
                    close=response.close,
                )
        _give_back(response)
        if response.status in _MISSING:
            raise _missing(self.url, path, f"HTTP {response.status}")
        raise LocationError(
            "The server gave no file.", where=where, expected="HTTP 200 or 206", found=response.status
        )


@final
class FsspecLocation:
    """An object store, or whatever else fsspec reads."""

    def __init__(self, url: str) -> None:
        try:
            import fsspec

            self._files, self._base = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise LocationError(f"That location is not known: {error}.", where=url) from error
        self.url = url.rstrip("/")

    def open(self, path: str, *, offset: int = 0, etag: str = "") -> Opened:
        """Open a file; see `Location`."""
        del etag
        full = f"{self._base.rstrip('/')}/{path}"
        try:
            file = self._files.open(full, "rb")
            size = getattr(file, "size", None)
            start = offset if size is not None and offset <= size else 0
            file.seek(start)
        except FileNotFoundError as error:
            raise _missing(self.url, path, error) from error
        except Exception as error:  # each store has its own
            raise LocationError(
                f"A file cannot be read: {type(error).__name__}: {error}", where=f"{self.url}/{path}"
            ) from error
        return Opened(read=file.read, offset=start, size=size, etag="", close=file.close)


def _give_back(response: Any) -> None:
    """Let the connection serve again: a device asks each time for metadata that is not there yet."""
    length = response.headers.get("Content-Length", "")
    if length.isdigit() and int(length) <= CHUNK_BYTES:
        with contextlib.suppress(Exception):  # of urllib3 and http.client: then it is closed after all
            response.drain_conn()
            response.release_conn()
    response.close()


def _extent(response: Any) -> tuple[int, int | None]:
    """Return the position of a response's first byte, and the size of the entire file."""
    if response.status == 200:
        length = response.headers.get("Content-Length", "")
        return 0, int(length) if length.isdigit() else None
    match = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
    if match is None:
        return -1, None
    return int(match[1]), None if match[2] == "*" else int(match[2])


def _missing(url: str, path: str, reason: object) -> MissingFileError:
    return MissingFileError("A location does not have a file.", where=f"{url}/{path}", found=str(reason))
