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

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

from tuf.api.metadata import Targets
from tuf.ngclient import Updater

from edgeinfer.atomic import write_file
from edgeinfer.fleet.device.assignment import AssignmentKeys
from edgeinfer.fleet.device.documents import sha256
from edgeinfer.fleet.device.floors import Floors, read_floors, write_floors
from edgeinfer.fleet.device.locations import Location, open_locations, read_bytes
from edgeinfer.fleet.device.release import MAX_RELEASE_BYTES, Release
from edgeinfer.fleet.device.tuf_client import our_errors, updated
from edgeinfer.fleet.errors import (
    DownloadError,
    FleetError,
    LocationError,
    StorageError,
    TrustError,
    UnknownReleaseError,
    WithdrawnReleaseError,
)

__all__ = [
    "ASSIGNMENT_KEYS",
    "RELEASE_KEYS",
    "WITHDRAWN",
    "TrustedRepository",
    "release_path",
    "role_of",
]

# Fields of our own in the top-level targets role.
ASSIGNMENT_KEYS = "edgeinfer-assignment-keys"
RELEASE_KEYS = "edgeinfer-release-keys"
WITHDRAWN = "edgeinfer-withdrawn"
_ROOT_FILE = "trusted_root.json"


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
        with our_errors(str(self._dir)):
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
                with our_errors(location.url), self._locked():
                    updater, seen = updated(self._dir, location, self._root, self._floors, self._clock)
                    self._floors = self._floors.checked(seen, where=location.url)
                    write_floors(self._dir, self._floors)
                self._updater, self._location = updater, location
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
        with our_errors(self._location.url), self._locked():
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
        with our_errors(self._location.url), self._locked():
            updater.get_targetinfo(release_path(model, "-"))  # loads the role
        signed = updater._trusted_set.get(role)  # python-tuf 7 lists no targets
        targets = signed.targets if isinstance(signed, Targets) else {}
        parts = {path: path.split("/") for path in targets}
        return {
            part[2]: targets[path].hashes.get("sha256", "")
            for path, part in parts.items()
            if len(part) == 4 and release_path(model, part[2]) == path
        }

    @property
    def withdrawn(self) -> frozenset[tuple[str, str]]:
        """Pairs of a release's digest and the device class that it was withdrawn from, `*` for all.

        Raises:
            TrustError: The metadata says it in another way than this version reads.
        """
        found = self._targets().unrecognized_fields.get(WITHDRAWN, [])
        try:
            return frozenset((str(digest), str(device_class)) for digest, device_class in found)
        except (TypeError, ValueError) as error:
            raise TrustError("What is withdrawn cannot be read.", found=str(error)) from error

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

    def _release_bytes(self, model: str, version: str, digest: str, size: int) -> bytes:
        kept = self._dir / "releases" / f"{digest}.json"
        if kept.is_file():
            data = kept.read_bytes()
            if sha256(data) == digest:
                return data
        path = f"targets/models/{model}/{version}/{digest}.release.json"
        failures: list[FleetError] = []
        for location in self._locations:  # the digest says enough; it may come from anywhere
            try:
                data = read_bytes(location, path, max_bytes=size)
            except DownloadError as error:
                failures.append(error)
                continue
            if sha256(data) == digest:
                kept.parent.mkdir(exist_ok=True)
                write_file(kept, data)
                return data
            failures.append(
                TrustError("A release is not what its digest says.", where=f"{location.url}: {path}")
            )
        transient = [failure for failure in failures if isinstance(failure, LocationError)]
        raise next(iter(transient or failures))

    def _kept_root(self, given: bytes | None) -> bytes:
        file = self._dir / _ROOT_FILE
        if given is None:
            try:
                return file.read_bytes()
            except OSError as error:
                raise TrustError(
                    "There is no root of trust.",
                    where=str(file),
                    hint="Bring the repository's root.json to the device by a way you trust, and give it at "
                    "the first start: --root FILE, or root= with its bytes.",
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
