"""python-tuf's client, as a device uses it: over any location, at a time that it is told, with our errors."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

from tuf.api import exceptions as tuf_errors
from tuf.api.metadata import Root
from tuf.ngclient import Updater
from tuf.ngclient.fetcher import FetcherInterface

from edgeinfer.fleet.device.floors import Floors
from edgeinfer.fleet.device.locations import Location, read_bytes
from edgeinfer.fleet.device.release import MAX_RELEASE_BYTES
from edgeinfer.fleet.errors import (
    BadSignatureError,
    DownloadError,
    ExpiredMetadataError,
    LocationError,
    MissingFileError,
    RollbackError,
    StorageError,
    TooLargeError,
    TrustError,
)

__all__ = ["ISSUED_AT", "our_errors", "updated"]

# A field of our own in the signed timestamp: seconds since 1970 UTC.
ISSUED_AT = "edgeinfer-issued-at"
_LAST_SECOND = 253_402_300_799  # of the year 9999, the last one that `datetime` has


def updated(
    folder: Path, location: Location, root: bytes, floors: Floors, clock: Callable[[], float]
) -> tuple[Updater, Floors]:
    """Bring metadata up to date.

    Args:
        folder: Where python-tuf keeps it.
        location: Where it comes from.
        root: The root of trust.
        floors: What was seen before; of them, only the time is used here.
        clock: The time in seconds since 1970 UTC.

    Returns:
        The client with the verified metadata, and what was seen in it.

    Raises:
        RepositoryError, DownloadError: Of python-tuf; see `our_errors`.
    """
    for stray in folder.glob("tmp*"):  # of python-tuf, when it was killed
        stray.unlink(missing_ok=True)
    updater = Updater(
        str(folder), "metadata/", target_base_url="targets/", fetcher=_Fetcher(location), bootstrap=root
    )
    # Private in python-tuf 7.0.1: the time may be told only when it is known whose time it is.
    updater._load_root()
    trusted = updater._trusted_set
    rotated = floors.rotated(_online_keys(trusted.root), trusted.root.version)
    now = clock() if rotated else max(clock(), floors.time)
    trusted.reference_time = dt.datetime.fromtimestamp(max(0, min(now, _LAST_SECOND)), dt.timezone.utc)
    updater.refresh()
    versions = {
        "root": trusted.root.version,
        "timestamp": trusted.timestamp.version,
        "snapshot": trusted.snapshot.version,
        **{name.removesuffix(".json"): meta.version for name, meta in trusted.snapshot.meta.items()},
    }
    told = _told_time(trusted.timestamp.unrecognized_fields.get(ISSUED_AT), trusted.root)
    return updater, Floors(versions=versions, time=told, online=_online_keys(trusted.root))


@final
class _Fetcher(FetcherInterface):
    """Lets python-tuf read from any location."""

    def __init__(self, location: Location) -> None:
        self._location = location
        self._missing: set[str] = set()  # the next root is asked for twice, and mostly there is none

    def download_bytes(self, url: str, max_length: int) -> bytes:
        """Return a file of at most `max_length` bytes. Raises the errors that python-tuf knows."""
        if url in self._missing:
            raise tuf_errors.DownloadHTTPError(url, 404)
        try:
            return read_bytes(self._location, url, max_bytes=max_length)
        except MissingFileError as error:
            self._missing.add(url)
            raise tuf_errors.DownloadHTTPError(str(error), 404) from error
        except TooLargeError as error:
            raise tuf_errors.DownloadLengthMismatchError(str(error)) from error
        except DownloadError as error:
            raise tuf_errors.DownloadError(str(error)) from error

    def _fetch(self, url: str) -> Iterator[bytes]:
        yield self.download_bytes(url, MAX_RELEASE_BYTES)


@contextmanager
def our_errors(where: str) -> Iterator[None]:
    """Turn the errors of python-tuf into ours."""
    try:
        yield
    except tuf_errors.ExpiredMetadataError as error:
        raise ExpiredMetadataError(
            f"Metadata has expired: {error}.",
            where=where,
            hint="What runs goes on. Sign the repository again (edgeinfer fleet sign), or check the clock.",
        ) from error
    except tuf_errors.BadVersionNumberError as error:
        raise RollbackError(f"Metadata has the wrong version: {error}.", where=where) from error
    except tuf_errors.UnsignedMetadataError as error:
        raise BadSignatureError(f"Metadata is not signed as it must be: {error}.", where=where) from error
    except (tuf_errors.RepositoryError, tuf_errors.DownloadLengthMismatchError) as error:
        raise TrustError(f"Metadata cannot be trusted: {error}.", where=where) from error
    except tuf_errors.DownloadError as error:
        raise LocationError(f"Metadata cannot be read: {error}", where=where) from error
    except OSError as error:
        raise StorageError(
            f"Metadata cannot be kept: {error.strerror or error}.", where=str(error.filename or where)
        ) from error


def _online_keys(root: Root) -> tuple[str, ...]:
    keys = (key for role in ("timestamp", "snapshot") for key in root.roles[role].keyids)
    return tuple(sorted(set(keys)))


def _told_time(issued_at: Any, root: Root) -> int:
    """Return the time that the timestamp tells. An online key cannot move it beyond what the root allows."""
    latest = int(root.expires.timestamp())
    return min(issued_at, latest) if type(issued_at) is int and issued_at > 0 else 0
