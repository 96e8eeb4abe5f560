"""`Fleet`: the operator's handle on a fleet."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, final

from edgeinfer.budget import Budget
from edgeinfer.feeds.preprocessing import Preprocessing
from edgeinfer.fleet.device.predicate import Predicate
from edgeinfer.fleet.device.release import Release
from edgeinfer.fleet.errors import PublishError, RepositoryError
from edgeinfer.fleet.operator.ceremonies import create_repository, withdraw
from edgeinfer.fleet.operator.keys import PASSPHRASE_VARIABLE, KeyRing, Passphrase, ask_passphrase
from edgeinfer.fleet.operator.publishing import Lines, publish, published_releases
from edgeinfer.fleet.operator.repository import Repository
from edgeinfer.fleet.operator.storage import open_storage
from edgeinfer.fleet.operator.variants import Artifacts, Tolerance

__all__ = ["Fleet", "open_fleet", "open_repository"]

_LOG = logging.getLogger(__name__)


def open_repository(
    location: str | os.PathLike[str],
    *,
    keys: str | os.PathLike[str] | None = None,
    passphrase: Passphrase = ask_passphrase,
    clock: Callable[[], float] = time.time,
) -> Repository:
    """Return the repository of a fleet, for those who publish to it; it need not exist yet.

    Args:
        location: The fleet's folder, which holds `repository/` (what devices see) and `keys/` (what nobody
            else may see); or the repository itself, as a folder or one of fsspec's URLs, with `keys`.
        keys: The folder of the keys.
        passphrase: Asked when a key must be decrypted.
        clock: The time in seconds since 1970 UTC.

    Raises:
        RepositoryError: It is an HTTP URL, or a URL without `keys`.
    """
    if "://" in os.fspath(location):
        if keys is None:
            raise RepositoryError(
                "Where are the keys?", where=os.fspath(location), hint="Give the folder of the keys: keys=…"
            )
        return Repository(open_storage(location), KeyRing(keys, passphrase), clock=clock)
    folder = Path(location)
    if keys is None or not (folder / "metadata").is_dir():
        folder, keys = folder / "repository", keys or folder / "keys"
    return Repository(open_storage(folder), KeyRing(keys, passphrase), clock=clock)


def open_fleet(
    location: str | os.PathLike[str],
    *,
    keys: str | os.PathLike[str] | None = None,
    passphrase: Passphrase = ask_passphrase,
    clock: Callable[[], float] = time.time,
) -> Fleet:
    """Open a fleet; one is made where there is none.

    Its keys are encrypted if the environment has a passphrase (`EDGEINFER_FLEET_PASSPHRASE`). If not, a
    warning is logged: for more than a trial, make the fleet with `edgeinfer fleet init`.

    Args:
        location: As for `open_repository`.
        keys: Likewise.
        passphrase: Likewise.
        clock: Likewise.
    """
    repository = open_repository(location, keys=keys, passphrase=passphrase, clock=clock)
    if not repository.exists:
        encrypt = bool(os.environ.get(PASSPHRASE_VARIABLE)) or passphrase is not ask_passphrase
        create_repository(repository, encrypt=encrypt)
        if not encrypt:
            _LOG.warning(
                "The keys of the new fleet in %s are not encrypted: %s is not set.",
                repository.keys.folder,
                PASSPHRASE_VARIABLE,
            )
    return Fleet(repository)


@final
class Fleet:
    """The operator's handle on a fleet. Made by `edgeinfer.fleet.open`."""

    def __init__(self, repository: Repository) -> None:
        self.repository = repository

    @property
    def root(self) -> bytes:
        """The `root.json` that devices are given when they are made: their root of trust."""
        return self.repository.keys.root

    @property
    def source(self) -> str:
        """The location that devices can be given."""
        return self.repository.storage.url

    def releases(self, model: str) -> list[Release]:
        """Return the releases of a model, the oldest first."""
        return published_releases(self.repository, self.repository.state(), model)

    def publish(
        self,
        model: str,
        artifacts: Artifacts,
        *,
        golden: Any = None,
        interface: str | None = None,
        budget: Budget | None = None,
        version: str | None = None,
        needs: Mapping[str, Predicate] | None = None,
        preprocessing: Preprocessing | None = None,
        labels: Lines | None = None,
        thresholds: Mapping[str, float] | None = None,
        requires: str | None = None,
        tolerance: Tolerance | None = None,
    ) -> Release:
        """Publish one version of a model; see `edgeinfer.fleet.operator.publishing.publish`.

        Raises:
            PublishError: It waits for further signatures, or as there.
        """
        published = publish(
            self.repository,
            model,
            artifacts,
            golden=golden,
            interface=interface,
            budget=budget,
            version=version,
            needs=needs,
            preprocessing=preprocessing,
            labels=labels,
            thresholds=thresholds,
            requires=requires,
            tolerance=tolerance,
        )
        for note in published.notes:
            _LOG.info("%s", note)
        if published.missing:
            raise PublishError(
                "The release waits for further signatures.",
                where=f"{model} {published.release.version}",
                found=", ".join(f"{role}: {count} missing" for role, count in published.missing.items()),
                hint="Sign it where the keys are: edgeinfer fleet sign.",
                facts={"missing": dict(published.missing), "digest": published.release.digest},
            )
        return published.release

    def withdraw(self, release: Release | str, *, device_class: str = "*") -> None:
        """Withdraw a release from a class of devices, or from all.

        Args:
            release: The release, or its digest.
            device_class: The class; `*` for all.
        """
        digest = release.digest if isinstance(release, Release) else release
        missing = withdraw(self.repository, digest, device_class=device_class)
        if missing:
            raise PublishError("The withdrawal waits for further signatures.", facts={"missing": missing})
