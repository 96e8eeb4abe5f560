"""Releases and rollouts by name, as the facade and the command line need them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from edgeinfer.fleet.device.release import Release
from edgeinfer.fleet.errors import UnknownReleaseError
from edgeinfer.fleet.operator.store.database import Database
from edgeinfer.fleet.operator.store.inventory import save_release
from edgeinfer.fleet.operator.store.schema import releases, rollouts

__all__ = ["complete_digest", "find_release", "list_rollouts", "remember"]


def remember(database: Database, release: Release) -> None:
    """Note a release that was published, with its budgets by hardware class."""
    budgets: dict[str, dict[str, float]] = {}
    for variant in release.variants:
        # Of several variants for one class, the strictest of each limit gates the rollout.
        for name in variant.needs.device_class or ("",):
            limits = budgets.setdefault(name, {})
            for limit, value in variant.budget.limits.items():
                limits[limit] = min(value, limits.get(limit, value))
    save_release(
        database,
        digest=release.digest,
        model=release.model,
        version=release.version,
        requires=release.requires,
        budgets=budgets,
    )


def find_release(database: Database, digest: str) -> Mapping[str, Any] | None:
    """Return a release by its digest."""
    with database.reading() as connection:
        found = connection.execute(sa.select(releases).where(releases.c.digest == digest)).mappings().first()
    return None if found is None else dict(found)


def complete_digest(database: Database, start: str) -> str:
    """Return the digest of the one release that begins so.

    Raises:
        UnknownReleaseError: There is none, or there are several.
    """
    with database.reading() as connection:
        statement = sa.select(releases.c.digest).where(releases.c.digest.startswith(start, autoescape=True))
        found = [row.digest for row in connection.execute(statement.limit(2))]
    if len(found) != 1:
        raise UnknownReleaseError(
            "Several releases begin so." if found else "The store knows no such release.", found=start
        )
    return str(found[0])


def list_rollouts(database: Database) -> list[int]:
    """Return the numbers of all rollouts, the oldest first."""
    with database.reading() as connection:
        return [row.id for row in connection.execute(sa.select(rollouts.c.id).order_by(rollouts.c.id))]
