"""Removing what nobody asks for any more."""

from __future__ import annotations

import time
from typing import final

import sqlalchemy as sa

from edgeinfer.fleet.operator.store.database import Database
from edgeinfer.fleet.operator.store.schema import audit, cells, report_log

__all__ = ["Retention", "prune"]

_DAY = 86_400


@final
class Retention:
    """Prunes once a day, beside what else a controller does.

    Args:
        database: The store.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._next = time.monotonic()

    def step(self) -> int:
        """Prune if it is time; return how many rows went."""
        if time.monotonic() < self._next:
            return 0
        removed = prune(self._database)
        self._next = time.monotonic() + _DAY
        return removed


def prune(database: Database, *, reports_s: int = 30 * _DAY, audit_s: int = 730 * _DAY) -> int:
    """Remove old lines of the logs, and counts of nothing; return how many rows.

    Rollouts, their members and the inventory stay.

    Args:
        database: The store.
        reports_s: How long devices' own log lines are kept, in seconds.
        audit_s: How long the audit log is kept, in seconds.
    """

    def work(connection: sa.Connection) -> int:
        now = database.now(connection)
        removed = (
            sa.delete(report_log).where(report_log.c.at < now - reports_s),
            sa.delete(audit).where(audit.c.at < now - audit_s),
            sa.delete(cells).where(cells.c.devices == 0),
        )
        return sum(connection.execute(statement).rowcount for statement in removed)

    return database.retrying(work)
