"""`Memory`: a store in memory for many simulated fleets, one after another."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import final

from edgeinfer.fleet.operator.store.database import Database

__all__ = ["Memory", "driver_of"]


@final
class Memory:
    """A store that begins empty for each fleet, in less time than a new one: its statements are compiled.

    It holds one fleet at a time.
    """

    def __init__(self) -> None:
        self._clock: Callable[[], int] = lambda: 0
        self._database = Database("sqlite://", clock=lambda: self._clock())
        self._empty = sqlite3.connect(":memory:")
        driver_of(self._database).backup(self._empty)

    def anew(self, clock: Callable[[], int]) -> Database:
        """Return the store, empty.

        Args:
            clock: What time it is, in seconds since 1970.
        """
        self._clock = clock
        self._empty.backup(driver_of(self._database))
        return self._database


def driver_of(database: Database) -> sqlite3.Connection:
    """Return the one connection of a database in memory, to copy it."""
    pooled = database.engine.raw_connection()
    try:
        connection = pooled.driver_connection
        assert isinstance(connection, sqlite3.Connection)
        return connection
    finally:
        pooled.close()  # gives it back, no more
