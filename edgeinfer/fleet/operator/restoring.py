"""What follows when the database came from a backup: nothing that was withdrawn is given out again."""

from __future__ import annotations

import json
from collections.abc import Iterable

import sqlalchemy as sa

from edgeinfer.fleet.device.trust import WITHDRAWN
from edgeinfer.fleet.operator import commands
from edgeinfer.fleet.operator.publisher import Publisher
from edgeinfer.fleet.operator.repository import Repository
from edgeinfer.fleet.operator.store.database import Database
from edgeinfer.fleet.operator.store.schema import releases

__all__ = ["notice_restore", "recall_withdrawn"]


def notice_restore(database: Database, publisher: Publisher, repository: Repository) -> bool:
    """Bring a database that came from a backup up to what was published since; False if it did not.

    Signed metadata are not in the backup. What they withdraw is withdrawn first, then all documents are
    published again; one that is killed in between is noticed again.
    """
    if not publisher.is_behind(database):
        return False
    pairs = repository.state().targets.signed.unrecognized_fields.get(WITHDRAWN, [])
    recall_withdrawn(database, [(digest, device_class) for digest, device_class in pairs])
    return publisher.notice_restore(database)


def recall_withdrawn(database: Database, withdrawn: Iterable[tuple[str, str]]) -> None:
    """Withdraw releases in rollouts, too, where the database does not know of it.

    Args:
        database: The store.
        withdrawn: (digest, device class) of each; `*` for all classes.
    """
    with database.reading() as connection:
        rows = connection.execute(sa.select(releases.c.digest, releases.c.withdrawn)).all()
    known = {row.digest: json.loads(row.withdrawn) for row in rows}
    for digest, device_class in sorted(withdrawn):
        if digest in known and device_class not in known[digest]:
            reason = "it is withdrawn in signed metadata"
            commands.quarantine(
                database, digest, device_class=device_class, reason=reason, actor="controller"
            )
