"""`Publisher`: signed documents to where devices fetch them, for each device whose document changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, final

import sqlalchemy as sa

from edgeinfer.fleet.device.assignment import Assignment, Signature, SignedAssignments
from edgeinfer.fleet.operator.store.database import Database, next_value, raise_value, value_of
from edgeinfer.fleet.operator.store.schema import devices, members, slots
from edgeinfer.fleet.operator.store.stepping import withdrawn_of

__all__ = ["Publisher", "Shelf", "document_of"]

_BATCH = 500
_PUBLICATIONS = 2**40  # more than there ever are in an epoch
_CHANGED = (
    sa.select(devices)
    .where(devices.c.wanted != devices.c.published, devices.c.deleted_at.is_(None))
    .order_by(devices.c.device)
    .limit(_BATCH)
)


class Shelf(Protocol):
    """Where documents lie."""

    def put(self, device: str, document: bytes) -> None:
        """Replace the document of a device, atomically."""
        ...

    def anchor(self) -> int:
        """Return the number that `set_anchor` kept last; 0 before the first."""
        ...

    def set_anchor(self, number: int) -> None:
        """Keep a number outside the database, so that a restored database is noticed."""
        ...


@final
class Publisher:
    """Signs and publishes documents.

    Args:
        shelf: Where they go.
        sign: What makes the signatures of a document's payload.
    """

    def __init__(self, shelf: Shelf, sign: Callable[[bytes], tuple[Signature, ...]]) -> None:
        self._shelf = shelf
        self._sign = sign

    def publish(self, database: Database) -> int:
        """Publish the documents of all devices that changed; return how many.

        The devices stay locked while their documents are written, so that of two publishers the later
        document is the one that stays. One that is killed in between leaves them to be published again.
        """
        total = 0
        while count := database.retrying(lambda connection: self._batch(database, connection)):
            total += count
        return total

    def is_behind(self, database: Database) -> bool:
        """Whether the database knows less than was published: it came from a backup."""
        with database.reading() as connection:
            return self._shelf.anchor() > _anchor(connection)

    def notice_restore(self, database: Database) -> bool:
        """Raise the epoch if the database knows less than was published: it came from a backup.

        All documents are then published again, but those of releases that were withdrawn.
        """

        def work(connection: sa.Connection) -> bool:
            if self._shelf.anchor() <= _anchor(connection):
                return False
            highest, published = divmod(self._shelf.anchor(), _PUBLICATIONS)
            raise_value(connection, "published", published)
            # Above the epoch that was published last, too: the same backup may have been restored before.
            highest = max(1, highest, value_of(connection, "epoch"))
            epoch = raise_value(connection, "epoch", highest + 1)
            # The same again, above all that was issued since the backup; but what was withdrawn stays an old
            # document, which a device that has gone on does not take up.
            its_class = sa.select(devices.c.device_class).where(devices.c.device == slots.c.device)
            for column, withdrawn in (
                (slots.c.epoch, withdrawn_of(connection, slots.c.release, its_class.scalar_subquery())),
                (members.c.epoch, withdrawn_of(connection, members.c.target, members.c.device_class)),
                (members.c.back_epoch, sa.false()),
            ):
                raised = sa.update(column.table).where(column > 0, sa.not_(withdrawn))
                connection.execute(raised.values({column: epoch}))
            old = sa.select(slots.c.device).where(slots.c.epoch > 0, slots.c.epoch < epoch)
            again = sa.update(devices).where(devices.c.device.not_in(old))
            connection.execute(again.values(wanted=devices.c.wanted + 1))
            return True

        return database.retrying(work)

    def _batch(self, database: Database, connection: sa.Connection) -> int:
        statement = _CHANGED if database.is_sqlite else _CHANGED.with_for_update(skip_locked=True)
        rows = connection.execute(statement).mappings().all()
        if not rows:
            return 0
        now = database.now(connection)
        names = [row["device"] for row in rows]
        found = connection.execute(
            sa.select(slots).where(slots.c.device.in_(names), slots.c.epoch > 0).order_by(slots.c.model)
        ).mappings()
        by_device: dict[str, list[sa.RowMapping]] = {}
        for slot in found:
            by_device.setdefault(slot["device"], []).append(slot)
        for row in rows:
            document = document_of(row, by_device.get(row["device"], []), now)
            self._shelf.put(row["device"], document.to_bytes(self._sign(document.payload())))
        connection.execute(
            sa.update(devices).where(devices.c.device.in_(names)).values(published=devices.c.wanted)
        )
        next_value(connection, "published")
        self._shelf.set_anchor(_anchor(connection))
        return len(rows)


def _anchor(connection: sa.Connection) -> int:
    """Return the number that grows with each publication, and with the epoch."""
    return value_of(connection, "epoch") * _PUBLICATIONS + value_of(connection, "published")


def document_of(row: sa.RowMapping, found: list[sa.RowMapping], now: int) -> SignedAssignments:
    """Return what a device is to run, not yet signed."""
    device, incarnation = row["device"], row["incarnation"]
    return SignedAssignments(
        device=device,
        incarnation=incarnation,
        issued_at=now,
        assignments=[
            Assignment(
                device=device,
                incarnation=incarnation,
                model=slot["model"],
                generation=(slot["epoch"], slot["number"]),
                release=slot["release"],
                version=slot["version"],
                start_before=slot["start_before"],
                stage="shadow" if slot["shadow"] else None,
            )
            for slot in found
        ],
    )
