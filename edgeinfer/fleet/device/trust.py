"""`TrustedRepository`: what of a repository a device may trust. A shell around python-tuf's client.

python-tuf checks signatures, thresholds, versions and expiry (https://theupdateframework.github.io/specification).
What it leaves to its caller is here:

- The bytes of the trusted root are kept and given to it every time: a crash while it replaces its own link to
  them would otherwise lose them.
- The versions that were seen are kept as *floors* in a file of their own, synced: it forgets them when its
  cache is damaged, and then takes old metadata for new.
- The time is at least the latest that signed metadata has told, so that a clock which is reset to 1970 does
  not bring expired metadata back to life.
- One process at a time (a lock), several locations in turn, one family of errors.
"""

from __future__ import annotations

import datetime as dt
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

from tuf.api import exceptions as tuf_errors
from tuf.api.metadata import Root, Targets
from tuf.ngclient import Updater
from tuf.ngclient.fetcher import FetcherInterface

from edgeinfer.atomic import write_file
from edgeinfer.fleet.device.assignment import AssignmentKeys
from edgeinfer.fleet.device.documents import sha256
from edgeinfer.fleet.device.floors import Floors, read_floors, write_floors
from edgeinfer.fleet.device.locations import Location, open_locations, read_bytes
from edgeinfer.fleet.device.release import MAX_RELEASE_BYTES, Release
from edgeinfer.fleet.errors import (
    BadSignatureError,
    DownloadError,
    ExpiredMetadataError,
    FleetError,
    LocationError,
    MissingFileError,
    RollbackError,
    StorageError,
    TooLargeError,
    TrustError,
    UnknownReleaseError,
    WithdrawnReleaseError,
)

__all__ = [
    "ASSIGNMENT_KEYS",
    "ISSUED_AT",
    "RELEASE_KEYS",
    "WITHDRAWN",
    "TrustedRepository",
    "release_path",
    "role_of",
]

# Fields of our own in signed metadata. All but the last are in the top-level targets role.
ASSIGNMENT_KEYS = "edgeinfer-assignment-keys"
RELEASE_KEYS = "edgeinfer-release-keys"
WITHDRAWN = "edgeinfer-withdrawn"
ISSUED_AT = "edgeinfer-issued-at"  # of the timestamp role: seconds since 1970 UTC
_ROOT_FILE = "trusted_root.json"
_LAST_SECOND = 253_402_300_799  # of the year 9999, the last one that `datetime` has


def role_of(model: str) -> str:
    """Return the TUF role to which the releases of a model are delegated."""
    return f"models-{model}"


def release_path(model: str, version: str) -> str:
    """Return the path of the TUF target of a release."""
    return f"models/{model}/{version}/release.json"


@final
class TrustedRepository:
    """The signed metadata of a repository, as far as this device trusts it.

    Args:
        cache_dir: Where metadata and floors are kept; made when it is not there.
        locations: One, or several that are tried in turn: a path, a URL, or a Location.
        root: The bytes of a `root.json` that came with the device. None: the one that was given before.
        clock: The time in seconds since 1970 UTC.

    Raises:
        TrustError: No root was ever given, or it is none.
        StorageError: The cache cannot be written.
    """

    def __init__(
        self,
        cache_dir: str | os.PathLike[str],
        locations: Any,
        *,
        root: bytes | None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._dir = Path(cache_dir)
        self._locations = open_locations(locations)
        self._clock = clock
        self._updater: Updater | None = None
        self._location: Location | None = None
        self._dir.mkdir(parents=True, exist_ok=True)
        self._root = self._kept_root(root)
        self._floors = read_floors(self._dir)

    @property
    def floors(self) -> Floors:
        """The least versions and time that are believed; what an agent may keep in its journal, too."""
        return self._floors

    def raise_floors(self, floors: Floors) -> None:
        """Take floors that were kept elsewhere into account: the higher ones hold."""
        self._floors = self._floors.raised(floors)

    def now(self) -> float:
        """Return the time: the clock's, but not before what signed metadata has told."""
        return max(self._clock(), self._floors.time)

    def refresh(self) -> None:
        """Bring the metadata up to date, from the first location that gives what can be trusted.

        Raises:
            ExpiredMetadataError: Nothing new may be installed until there is newer metadata.
            RollbackError: The location gave older metadata than was seen before.
            BadSignatureError: Too few keys have signed.
            TrustError: The metadata is not consistent, too large, or none.
            LocationError: No location can be reached.
            StorageError: The cache cannot be written.
        """
        failures: list[FleetError] = []
        for location in self._locations:
            try:
                with _our_errors(location.url), self._locked():
                    self._refresh_from(location)
            except (TrustError, DownloadError) as error:
                if isinstance(error, StorageError):
                    raise
                failures.append(error)
            else:
                return
        if not failures:
            raise LocationError("The repository has no location.", hint="Give a folder or a URL.")
        # Distrust weighs more than a network that is down.
        raise next((error for error in failures if isinstance(error, TrustError)), failures[0])

    @property
    def models(self) -> tuple[str, ...]:
        """The models that have releases."""
        names = sorted(self._fresh()._trusted_set.snapshot.meta)
        prefix = role_of("")
        return tuple(n[len(prefix) :].removesuffix(".json") for n in names if n.startswith(prefix))

    def release(self, model: str, version: str, digest: str, *, withdrawn: bool = False) -> Release:
        """Return a release that the metadata names, and that was not withdrawn from every device.

        Args:
            model: The model's name.
            version: The release's version.
            digest: The digest of its `release.json`.
            withdrawn: Return it also if it was withdrawn.

        Raises:
            UnknownReleaseError: The metadata does not name it.
            WithdrawnReleaseError: It was withdrawn.
            TrustError, DownloadError: As `refresh`.
            DocumentError: It needs a newer version of edgeinfer.
        """
        path = release_path(model, version)
        updater = self._fresh()
        assert self._location is not None
        with _our_errors(self._location.url), self._locked():
            info = updater.get_targetinfo(path)
            found = info.hashes.get("sha256") if info is not None else None
            if info is None or found != digest:
                raise UnknownReleaseError(
                    "The repository has no such release.",
                    where=f"{self._location.url}: {path}",
                    expected=digest,
                    found=found or "nothing",
                )
            if not withdrawn and (digest, "*") in self.withdrawn:
                raise WithdrawnReleaseError("The release was withdrawn.", where=f"{model} {version}")
            data = self._release_bytes(model, version, digest, min(info.length, MAX_RELEASE_BYTES))
        release = Release.from_bytes(data)
        if (release.model, release.version) != (model, version):
            raise TrustError(
                "A release is at the place of another.",
                expected=f"{model} {version}",
                found=f"{release.model} {release.version}",
            )
        return release

    def versions(self, model: str) -> Mapping[str, str]:
        """Return the digests of the releases of a model, by version. Raises as `refresh`."""
        updater, role = self._fresh(), role_of(model)
        assert self._location is not None
        with _our_errors(self._location.url), self._locked():
            updater.get_targetinfo(release_path(model, "-"))  # loads the role
        signed = updater._trusted_set.get(role)  # python-tuf 7 lists no targets
        targets = signed.targets if isinstance(signed, Targets) else {}
        return {path.split("/")[2]: info.hashes["sha256"] for path, info in targets.items()}

    @property
    def withdrawn(self) -> frozenset[tuple[str, str]]:
        """Pairs of a release's digest and the device class that it was withdrawn from, `*` for all."""
        found = self._targets().unrecognized_fields.get(WITHDRAWN, [])
        return frozenset((str(digest), str(device_class)) for digest, device_class in found)

    @property
    def assignment_keys(self) -> AssignmentKeys:
        """Who may sign assignments.

        Raises:
            TrustError: The metadata does not say it.
        """
        try:
            return AssignmentKeys.from_dict(self._targets().unrecognized_fields[ASSIGNMENT_KEYS])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise TrustError(
                "The metadata does not say who may sign assignments.",
                found=f"{type(error).__name__}: {error}",
            ) from error

    def _fresh(self) -> Updater:
        if self._updater is None:
            self.refresh()
        assert self._updater is not None
        return self._updater

    def _targets(self) -> Targets:
        return self._fresh()._trusted_set.targets

    def _refresh_from(self, location: Location) -> None:
        for stray in self._dir.glob("tmp*"):  # of python-tuf, when it was killed
            stray.unlink(missing_ok=True)
        updater = Updater(
            str(self._dir),
            "metadata/",
            target_base_url="targets/",
            fetcher=_Fetcher(location),
            bootstrap=self._root,
        )
        # Private in python-tuf 7.0.1: the time may be told only when it is known whose time it is.
        updater._load_root()
        trusted = updater._trusted_set
        rotated = self._floors.rotated(_online_keys(trusted.root), trusted.root.version)
        now = min(self._clock() if rotated else self.now(), _LAST_SECOND)
        trusted.reference_time = dt.datetime.fromtimestamp(now, dt.timezone.utc)
        updater.refresh()
        floors = Floors(
            versions={
                "root": trusted.root.version,
                "timestamp": trusted.timestamp.version,
                "snapshot": trusted.snapshot.version,
                **{name.removesuffix(".json"): meta.version for name, meta in trusted.snapshot.meta.items()},
            },
            time=_told_time(trusted.timestamp.unrecognized_fields.get(ISSUED_AT), trusted.root),
            online=_online_keys(trusted.root),
        )
        self._floors = self._floors.checked(floors, where=location.url)
        write_floors(self._dir, self._floors)
        self._updater, self._location = updater, location

    def _release_bytes(self, model: str, version: str, digest: str, size: int) -> bytes:
        kept = self._dir / "releases" / f"{digest}.json"
        if kept.is_file():
            data = kept.read_bytes()
            if sha256(data) == digest:
                return data
        assert self._location is not None
        path = f"targets/models/{model}/{version}/{digest}.release.json"
        data = read_bytes(self._location, path, max_bytes=size)
        if sha256(data) != digest:
            raise TrustError("A release is not what its digest says.", where=path, expected=digest)
        kept.parent.mkdir(exist_ok=True)
        write_file(kept, data)
        return data

    def _kept_root(self, given: bytes | None) -> bytes:
        file = self._dir / _ROOT_FILE
        if given is None:
            try:
                return file.read_bytes()
            except OSError as error:
                raise TrustError(
                    "There is no root of trust.",
                    where=str(file),
                    hint="Give the bytes of the repository's root.json, brought to the device by a way you "
                    "trust.",
                ) from error
        if not file.is_file() or file.read_bytes() != given:
            write_file(file, given)
        return given

    @contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = os.open(self._dir / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


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
def _our_errors(where: str) -> Iterator[None]:
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
