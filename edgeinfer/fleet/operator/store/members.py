"""The devices of a rollout, and the cells that count them: both change together or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import attrs
import sqlalchemy as sa

from edgeinfer.fleet.operator.evidence import Cell
from edgeinfer.fleet.operator.member import Member
from edgeinfer.fleet.operator.outcomes import Counts, Motion, Outcome
from edgeinfer.fleet.operator.store.database import add_to, execute_many, one_of
from edgeinfer.fleet.operator.store.schema import cells, members

__all__ = ["add_members", "change_members", "load_cells", "load_members", "members_of", "members_of_devices"]


_FIELDS = tuple(field.name for field in attrs.fields(Member))
_FIXED = ("rollout", "device", "stage", "rank", "device_class", "site")
_CHANGING = tuple(name for name in _FIELDS if name not in _FIXED)
_UPDATE = (
    sa.update(members)
    .where(members.c.rollout == sa.bindparam("its_rollout"), members.c.device == sa.bindparam("its_device"))
    .values({name: sa.bindparam(name) for name in _CHANGING})
)


def _values(member: Member) -> dict[str, Any]:
    return {
        **{name: getattr(member, name) for name in _FIELDS},
        "outcome": member.outcome.value,
        "motion": member.motion.value,
    }


def add_members(connection: sa.Connection, added: Sequence[Member]) -> None:
    """Add devices to rollouts."""
    if added:
        connection.execute(sa.insert(members), [_values(member) for member in added])
        _count(connection, [(None, member) for member in added])


def change_members(connection: sa.Connection, changes: Iterable[tuple[Member, Member]]) -> None:
    """Replace members by what became of them: (before, after)."""
    changed = [(before, after) for before, after in changes if before != after]
    if not changed:
        return
    rows = [
        {
            **{name: getattr(after, name) for name in _CHANGING},
            "outcome": after.outcome.value,
            "motion": after.motion.value,
            "its_rollout": after.rollout,
            "its_device": after.device,
        }
        for _, after in changed
    ]
    execute_many(connection, _UPDATE, rows)
    _count(connection, changed)


def _count(connection: sa.Connection, changes: Iterable[tuple[Member | None, Member]]) -> None:
    deltas: dict[tuple[Any, ...], int] = {}
    for before, after in changes:
        if before is not None:
            deltas[before.cell] = deltas.get(before.cell, 0) - 1
        deltas[after.cell] = deltas.get(after.cell, 0) + 1
    add_to(connection, cells, {key: {"devices": delta} for key, delta in deltas.items() if delta})


def load_members(connection: sa.Connection, *conditions: sa.ColumnElement[bool], limit: int | None = None,
                 order_by: Sequence[sa.ColumnElement[Any]] = ()) -> list[Member]:  # fmt: skip
    """Return members that fulfil conditions."""
    statement = sa.select(members).where(*conditions).order_by(*order_by).limit(limit)
    return members_of(connection.execute(statement))


def members_of(rows: sa.Result[Any]) -> list[Member]:
    """Return the members that a statement selected. Rows as mappings cost several times as much."""
    names = tuple(rows.keys())
    return [Member(**dict(zip(names, row, strict=True))) for row in rows]


_OF_DEVICES = sa.select(members).where(
    members.c.device.in_(sa.bindparam("names", expanding=True)),
    sa.or_(
        members.c.rollout.in_(sa.bindparam("numbers", expanding=True)),
        one_of(members.c.motion, (Motion.FORWARD.value, Motion.BACK.value)),
    ),
)


def members_of_devices(
    connection: sa.Connection, names: Sequence[str], rollouts: Sequence[int]
) -> list[Member]:
    """Return the members of some devices in some rollouts, and those that are on their way in any other."""
    return members_of(connection.execute(_OF_DEVICES, {"names": names, "numbers": rollouts}))


_CELLS = sa.select(
    cells.c.stage, cells.c.device_class, cells.c.site, cells.c.outcome, cells.c.motion, cells.c.devices
).where(cells.c.rollout == sa.bindparam("number"), cells.c.devices != 0)


def load_cells(connection: sa.Connection, rollout: int) -> dict[Cell, Counts]:
    """Return the counts of a rollout."""
    found: dict[Cell, dict[tuple[Outcome, Motion], int]] = {}
    for stage, device_class, site, outcome, motion, count in connection.execute(_CELLS, {"number": rollout}):
        found.setdefault(Cell(stage, device_class, site), {})[Outcome(outcome), Motion(motion)] = count
    return {cell: Counts(states) for cell, states in found.items()}
