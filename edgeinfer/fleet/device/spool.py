"""`Spool`: reports that wait for a network, in SQLite. To lose it costs reports and nothing else."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import final

__all__ = ["Spool"]

_SCHEMA = "CREATE TABLE IF NOT EXISTS reports (sequence INTEGER PRIMARY KEY, data BLOB NOT NULL) STRICT"
# STRICT came with SQLite 3.37; older ones read the same table without it.
_PLAIN_SCHEMA = _SCHEMA.removesuffix(" STRICT")


@final
class Spool:
    """Reports in the order of their sequence.

    Args:
        path: The database.
        max_reports: How many are kept; the oldest go first.
    """

    def __init__(self, path: Path, *, max_reports: int = 2_000) -> None:
        self._path = path
        self._max_reports = max_reports
        self._connection: sqlite3.Connection | None = None
        self.lost = 0  # how often the database was damaged and begun again

    def add(self, sequence: int, data: bytes) -> None:
        """Keep a report.

        Raises:
            sqlite3.Error: The disk is full or broken.
        """
        with self._opened() as database:
            database.execute("INSERT OR REPLACE INTO reports VALUES (?, ?)", (sequence, data))
            database.execute(
                "DELETE FROM reports WHERE sequence <= (SELECT MAX(sequence) FROM reports) - ?",
                (self._max_reports,),
            )

    def first(self, count: int) -> Sequence[tuple[int, bytes]]:
        """Return the oldest reports."""
        with self._opened() as database:
            query = "SELECT sequence, data FROM reports ORDER BY sequence LIMIT ?"
            return [(int(sequence), bytes(data)) for sequence, data in database.execute(query, (count,))]

    def remove(self, up_to: int) -> None:
        """Forget the reports up to a sequence: they were accepted."""
        with self._opened() as database:
            database.execute("DELETE FROM reports WHERE sequence <= ?", (up_to,))

    def close(self) -> None:
        """Close the database."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @contextlib.contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        if self._connection is None:
            self._connection = self._connect()
        try:
            with self._connection:
                yield self._connection
        except sqlite3.OperationalError:  # a full disk; the database is not to blame
            raise
        except sqlite3.DatabaseError:
            self.close()
            self._discard()
            raise

    def _connect(self) -> sqlite3.Connection:
        try:
            return self._connect_once()
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError:  # no database: power loss or a bad disk
            self._discard()
            return self._connect_once()

    def _connect_once(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=5.0, check_same_thread=False)
        try:
            # The agent alone opens it, so that no shared memory is needed. A power loss may cost the last
            # reports, never the database; the next start reports where the device stands.
            connection.execute("PRAGMA locking_mode=EXCLUSIVE")
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            strict = sqlite3.sqlite_version_info >= (3, 37)
            connection.execute(_SCHEMA if strict else _PLAIN_SCHEMA)
            connection.commit()
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def _discard(self) -> None:
        self.lost += 1
        for suffix in ("", "-wal", "-journal"):
            self._path.with_name(f"{self._path.name}{suffix}").unlink(missing_ok=True)
