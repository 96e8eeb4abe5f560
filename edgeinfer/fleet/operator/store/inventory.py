"""Devices, sites and releases: what the operator says of them."""

from __future__ import annotations

import functools
import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, final

import attrs
import sqlalchemy as sa

from edgeinfer.fleet.operator.cohorts import Candidate
from edgeinfer.fleet.operator.outcomes import Motion, Outcome
from edgeinfer.fleet.operator.record import State
from edgeinfer.fleet.operator.sites import Site
from edgeinfer.fleet.operator.store.database import Database, chunks, dumps, next_value, upsert
from edgeinfer.fleet.operator.store.members import change_members, load_members
from edgeinfer.fleet.operator.store.schema import devices, members, releases, rollouts, sites, slots
from edgeinfer.fleet.operator.store.slots import lock_devices

__all__ = [
    "DeviceRow",
    "add_devices",
    "candidates",
    "list_devices",
    "load_sites",
    "remove_device",
    "save_release",
    "save_site",
    "withdraw_release",
]

KEY_BYTES = 32


@final
@attrs.frozen(kw_only=True)
class DeviceRow:
    """A device of the inventory.

    Attributes:
        device: Its name.
        device_class: Its hardware class.
        site: Where it stands.
        labels: Further facts, by name.
        key: What its reports are signed with (HMAC-SHA256). None: made up.
        incarnation: Of its life; a reflashed device has a greater one.
    """

    device: str = attrs.field(validator=attrs.validators.min_len(1))
    device_class: str = ""
    site: str = ""
    labels: Mapping[str, str] = attrs.field(factory=dict)
    key: bytes | None = attrs.field(default=None, repr=False)
    incarnation: int = 0


def add_devices(database: Database, added: Iterable[DeviceRow]) -> dict[str, bytes]:
    """Enrol devices, or enrol them again, and return their keys."""
    keys: dict[str, bytes] = {}

    def work(connection: sa.Connection, part: Sequence[DeviceRow]) -> None:
        now = database.now(connection)
        rows = []
        for device in part:
            keys[device.device] = device.key or secrets.token_bytes(KEY_BYTES)
            rows.append(
                {
                    "device": device.device,
                    "device_class": device.device_class,
                    "site": device.site,
                    "labels": dumps(dict(device.labels)),
                    "key": keys[device.device],
                    "incarnation": device.incarnation,
                    "enrolled_at": now,
                    "deleted_at": None,
                    "flag": "",
                }
            )
        columns = tuple(name for name in rows[0] if name != "device")
        connection.execute(upsert(connection.dialect.name, devices, columns), rows)
        next_value(connection, "enrolled")  # rollouts look for late joiners when it has grown

    for part in chunks(added):
        database.retrying(functools.partial(work, part=part))
    return keys


def remove_device(database: Database, device: str) -> bool:
    """Remove a device; what is not decided of it is WITHDRAWN, and stays in the denominators."""

    def work(connection: sa.Connection) -> bool:
        row = lock_devices(connection, [device]).get(device)
        if row is None or row["deleted_at"] is not None:
            return False
        now = database.now(connection)
        connection.execute(sa.update(devices).where(devices.c.device == device).values(deleted_at=now))
        changes = []
        for before in load_members(connection, members.c.device == device):
            outcome = before.outcome if before.outcome.decided else Outcome.WITHDRAWN
            changes.append((before, attrs.evolve(before, outcome=outcome, motion=Motion.STILL)))
        change_members(connection, changes)
        return True

    return database.retrying(work)


def candidates(connection: sa.Connection) -> list[Candidate]:
    """Return all devices that are enrolled, as rollouts see them."""
    statement = sa.select(devices.c.device, devices.c.device_class, devices.c.site, devices.c.labels).where(
        devices.c.deleted_at.is_(None)
    )
    return [
        Candidate(
            device=row.device, device_class=row.device_class, site=row.site, labels=json.loads(row.labels)
        )
        for row in connection.execute(statement)
    ]


def list_devices(connection: sa.Connection) -> list[dict[str, Any]]:
    """Return the inventory, one row a device and model: what it is to run and what it runs.

    `recalled` is `withdrawn` or `rolled back` where that became of a release that a device was told to run
    and does not run: it refused it, say, and keeps what it has.
    """
    statement = (
        sa.select(
            devices.c.device,
            devices.c.device_class,
            devices.c.site,
            devices.c.labels,
            devices.c.seen_at,
            devices.c.flag,
            slots.c.model,
            # None where it was never told: a model that a stick brought, or one from before this database.
            sa.case((slots.c.epoch > 0, slots.c.release)).label("wanted"),
            slots.c.version,
            slots.c.running,
            slots.c.phase,
            slots.c.code,
            releases.c.withdrawn,
        )
        .join(slots, slots.c.device == devices.c.device, isouter=True)
        .join(releases, releases.c.digest == slots.c.release, isouter=True)
        .where(devices.c.deleted_at.is_(None))
        .order_by(devices.c.device, slots.c.model)
    )
    # The newest rollout of a release says what became of it.
    newest = sa.select(rollouts.c.model, rollouts.c.release, rollouts.c.state).order_by(rollouts.c.id)
    states = {(model, release): state for model, release, state in connection.execute(newest)}
    found = [dict(row) for row in connection.execute(statement).mappings()]
    for row in found:
        classes = json.loads(row.pop("withdrawn") or "[]")
        row["labels"] = json.loads(row["labels"])
        row["recalled"] = ""
        if row["wanted"] is not None and row["wanted"] != row["running"]:
            if {"*", row["device_class"]} & set(classes):
                row["recalled"] = "withdrawn"
            elif states.get((row["model"], row["wanted"])) == State.ROLLED_BACK.value:
                row["recalled"] = "rolled back"
    return found


def save_site(database: Database, site: Site) -> None:
    """Set a site's windows and budget."""

    def work(connection: sa.Connection) -> None:
        statement = upsert(connection.dialect.name, sites, ("policy",))
        connection.execute(statement, [{"name": site.name, "policy": dumps(site.to_dict())}])

    database.retrying(work)


_SITES = sa.select(sites.c.name, sites.c.policy)


def load_sites(connection: sa.Connection) -> dict[str, Site]:
    """Return the sites that have windows or a budget."""
    return {name: _site(policy) for name, policy in connection.execute(_SITES)}


@functools.lru_cache(maxsize=100_000)
def _site(policy: str) -> Site:
    return Site.from_dict(json.loads(policy))


def save_release(database: Database, *, digest: str, model: str, version: str, requires: str | None = None,
                 budgets: Mapping[str, Mapping[str, float]] | None = None) -> None:  # fmt: skip
    """Note a release that was published, so that rollouts may name it.

    Args:
        database: The store.
        digest: Of its `release.json`.
        model: Its model.
        version: Its version.
        requires: The digest or version that must be committed before; None for none.
        budgets: Limits by hardware class; those of the class "" hold for all others.
    """

    def work(connection: sa.Connection) -> None:
        row = {
            "digest": digest,
            "model": model,
            "version": version,
            "requires": requires,
            "budgets": dumps({name: dict(limits) for name, limits in (budgets or {}).items()}),
            "published_at": database.now(connection),
        }
        connection.execute(upsert(connection.dialect.name, releases, ()), [row])

    database.retrying(work)


def withdraw_release(connection: sa.Connection, digest: str, device_class: str) -> None:
    """Put a release in quarantine for a hardware class, or for all (`*`)."""
    row = connection.execute(database_lock(connection, digest)).mappings().one()
    classes = sorted({*json.loads(row["withdrawn"]), device_class})
    connection.execute(
        sa.update(releases).where(releases.c.digest == digest).values(withdrawn=dumps(classes))
    )


def database_lock(connection: sa.Connection, digest: str) -> sa.Select[Any]:
    """Return the statement that reads a release, locking it where the database has locks."""
    statement = sa.select(releases).where(releases.c.digest == digest)
    return statement if connection.dialect.name == "sqlite" else statement.with_for_update()
