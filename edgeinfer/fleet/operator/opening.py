"""`open_fleet` and `open_repository`: from the location of a fleet to its repository, keys and store."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from edgeinfer.fleet.errors import RepositoryError
from edgeinfer.fleet.operator.ceremonies import create_repository
from edgeinfer.fleet.operator.fleet import Fleet
from edgeinfer.fleet.operator.keys import PASSPHRASE_VARIABLE, KeyRing, Passphrase, ask_passphrase
from edgeinfer.fleet.operator.repository import Repository
from edgeinfer.fleet.operator.storage import open_storage

__all__ = ["open_fleet", "open_repository"]

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
    database: str | None = None,
) -> Fleet:
    """Open a fleet; one is made where there is none.

    Its keys are encrypted if the environment has a passphrase (`EDGEINFER_FLEET_PASSPHRASE`). If not, a
    warning is logged: for more than a trial, make the fleet with `edgeinfer fleet init`.

    Args:
        location: As for `open_repository`.
        keys: Likewise.
        passphrase: Likewise.
        clock: Likewise.
        database: Where rollouts and reports are kept: a path of an SQLite file, or a URL of SQLAlchemy such
            as `postgresql+psycopg://host/fleet`. None: `fleet.db` in the fleet's folder.
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
    if database is None:
        if "://" in os.fspath(location):
            raise RepositoryError(
                "Where is the fleet's database?",
                where=os.fspath(location),
                hint="Give a path or a URL of SQLAlchemy: database=…",
            )
        database = str(Path(location) / "fleet.db")
    return Fleet(repository, database)
