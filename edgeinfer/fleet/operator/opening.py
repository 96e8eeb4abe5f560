"""`open_repository`: from the location of a fleet to its repository and keys."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from edgeinfer.fleet.errors import RepositoryError
from edgeinfer.fleet.operator.keys import KeyRing, Passphrase, ask_passphrase
from edgeinfer.fleet.operator.repository import Repository
from edgeinfer.fleet.operator.storage import open_storage

__all__ = ["open_repository"]


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
