"""Which release a device is to run next: by stepping stones, and nothing that was withdrawn."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

import sqlalchemy as sa

from edgeinfer.fleet.operator.store.schema import releases
from edgeinfer.fleet.operator.store.slots import Slot

__all__ = [
    "first_allowed",
    "is_withdrawn",
    "next_step",
    "present_release",
    "releases_of",
    "version_of",
    "withdrawn_of",
]


def releases_of(connection: sa.Connection, model: str) -> dict[str, sa.RowMapping]:
    """Return the releases of a model, by digest."""
    statement = sa.select(releases).where(releases.c.model == model)
    return {row["digest"]: row for row in connection.execute(statement).mappings()}


def version_of(known: Mapping[str, sa.RowMapping], digest: str) -> str:
    """Return the version of a release; empty where it is not known."""
    return str(known[digest]["version"]) if digest in known else ""


def is_withdrawn(known: Mapping[str, sa.RowMapping], digest: str, device_class: str) -> bool:
    """Whether devices of a class must not be given a release."""
    classes = json.loads(known[digest]["withdrawn"]) if digest in known else []
    return "*" in classes or device_class in classes


def withdrawn_of(
    connection: sa.Connection, release: sa.ColumnElement[str], device_class: sa.ColumnElement[str]
) -> sa.ColumnElement[bool]:
    """Return the condition that a release is withdrawn for a class of devices; see `is_withdrawn`."""
    statement = sa.select(releases.c.digest, releases.c.withdrawn).where(releases.c.withdrawn != "[]")
    conditions = []
    for digest, text in connection.execute(statement):
        classes = json.loads(text)
        conditions.append((release == digest) & ("*" in classes or device_class.in_(classes)))
    return sa.or_(sa.false(), *conditions)


def present_release(slot: Slot, release: str) -> str:
    """Return what a device has now, as far as is known."""
    return next((digest for digest in (slot.committed, slot.release) if digest and digest != release), "")


def first_allowed(
    known: Mapping[str, sa.RowMapping], device_class: str, digests: Iterable[str], not_this: str
) -> str:
    """Return the first release that may be run; empty where there is none, which takes the model away."""
    for digest in digests:
        if digest and digest != not_this and not is_withdrawn(known, digest, device_class):
            return digest
    return ""


def next_step(known: Mapping[str, sa.RowMapping], release: str, slot: Slot, device_class: str) -> str | None:
    """Return what a device is to install next on its way to a release: a stepping stone, or itself.

    None where a stepping stone is not known here, or withdrawn.
    """
    by_version = {row["version"]: digest for digest, row in known.items()}
    target, seen = release, {release}
    while target in known and (needs := known[target]["requires"]) is not None:
        stone = needs if needs in known else by_version.get(needs)
        if stone is None or stone in seen or is_withdrawn(known, stone, device_class):
            return None
        if slot.committed == target or _passed(known, slot.committed, stone):
            break
        seen.add(stone)
        target = stone
    return None if is_withdrawn(known, target, device_class) else target


def _passed(known: Mapping[str, sa.RowMapping], committed: str, stone: str) -> bool:
    """Whether a device with this release has been at the stepping stone, or is."""
    by_version = {row["version"]: digest for digest, row in known.items()}
    for _ in known:
        if committed == stone:
            return True
        needs = known[committed]["requires"] if committed in known else None
        if needs is None:
            return False
        committed = needs if needs in known else by_version.get(needs, "")
    return False
