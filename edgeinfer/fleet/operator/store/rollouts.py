"""Rollouts in the store: what the planner reads, and carrying out what it answers."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import sqlalchemy as sa

from edgeinfer.fleet.operator.cohorts import Candidate
from edgeinfer.fleet.operator.evidence import Tallies
from edgeinfer.fleet.operator.member import Member
from edgeinfer.fleet.operator.outcomes import Motion, devices_text
from edgeinfer.fleet.operator.planner import Action, Expose, Move, Revert
from edgeinfer.fleet.operator.record import Record, State
from edgeinfer.fleet.operator.specification import Specification
from edgeinfer.fleet.operator.store.comparisons import add_controls, load_metric_sums
from edgeinfer.fleet.operator.store.database import CHUNK, chunks, dumps, one_of
from edgeinfer.fleet.operator.store.inventory import load_sites
from edgeinfer.fleet.operator.store.keeping import ask_again, let_keep
from edgeinfer.fleet.operator.store.members import add_members, load_cells
from edgeinfer.fleet.operator.store.schema import audit, cells, members, releases, rollouts
from edgeinfer.fleet.operator.store.steering import ask_back, compared_metrics, expose, revert
from edgeinfer.fleet.operator.verdicts import Waiver

__all__ = [
    "apply",
    "audit_of",
    "create",
    "enter",
    "freeze_members",
    "join_late",
    "load",
    "load_all",
    "load_tallies",
    "note",
    "save",
]

_MOVING = [Motion.FORWARD.value, Motion.BACK.value]
CONTROLLER = "controller"


def create(connection: sa.Connection, *, model: str, release: str, specification: Specification, scope: str,
           now: int) -> int:  # fmt: skip
    """Add a rollout that has not begun, and return its number."""
    statement = sa.insert(rollouts).values(
        model=model,
        release=release,
        specification=dumps(specification.to_dict()),
        state=State.DRAFT.value,
        scope=scope,
        priority=specification.priority,
        retries=specification.retries,
        created_at=now,
    )
    number = int(connection.execute(statement.returning(rollouts.c.id)).scalar_one())
    # The number makes each rollout's order another one, so that the same devices are not always first.
    connection.execute(sa.update(rollouts).where(rollouts.c.id == number).values(salt=f"{model}/{number}"))
    return number


# Statements that each round of the controller needs are made once: making one costs as much as its execution.
_ALL = (
    sa.select(rollouts, releases.c.version.label("release_version"), releases.c.withdrawn)
    .join(releases, releases.c.digest == rollouts.c.release, isouter=True)
    .order_by(rollouts.c.priority.desc(), rollouts.c.id)
)
_ONE = _ALL.where(rollouts.c.id == sa.bindparam("number"))


def load_all(connection: sa.Connection, *conditions: sa.ColumnElement[bool]) -> list[Record]:
    """Return rollouts, the most important first."""
    return _records(connection, connection.execute(_ALL.where(*conditions) if conditions else _ALL))


def _records(connection: sa.Connection, found: sa.Result[Any]) -> list[Record]:
    rows = found.mappings().all()
    policies = load_sites(connection) if rows else {}
    return [
        Record(
            id=row["id"],
            model=row["model"],
            release=row["release"],
            release_version=row["release_version"] or "",
            specification=_specification(row["specification"]),
            state=State(row["state"]),
            stage=row["stage"],
            stage_started_at=row["stage_started_at"],
            soak_started_at=row["soak_started_at"],
            waivers=tuple(Waiver(**waiver) for waiver in json.loads(row["waivers"])),
            withdrawn=frozenset(json.loads(row["withdrawn"] or "[]")),
            sites=policies,
            version=row["version"],
            salt=row["salt"],
        )
        for row in rows
    ]


@functools.lru_cache(maxsize=256)
def _specification(text: str) -> Specification:
    """Read a specification; the same text is the same frozen value."""
    return Specification.from_dict(json.loads(text))


def load(connection: sa.Connection, number: int) -> Record | None:
    """Return one rollout."""
    return next(iter(_records(connection, connection.execute(_ONE, {"number": number}))), None)


_ELSEWHERE = (
    sa.select(cells.c.site, sa.func.sum(cells.c.devices))
    .where(one_of(cells.c.motion, _MOVING), cells.c.rollout != sa.bindparam("number"))
    .group_by(cells.c.site)
)


def load_tallies(connection: sa.Connection, rollout: int) -> Tallies:
    """Return all that the planner knows of a rollout's devices."""
    elsewhere = connection.execute(_ELSEWHERE, {"number": rollout})
    return Tallies(
        cells=load_cells(connection, rollout),
        metrics=load_metric_sums(connection, rollout),
        elsewhere={site: int(count) for site, count in elsewhere},
    )


def save(connection: sa.Connection, before: Record, after: Record) -> bool:
    """Write where a rollout stands; False where another was faster (compare and swap on the version)."""
    statement = (
        sa.update(rollouts)
        .where(rollouts.c.id == before.id, rollouts.c.version == before.version)
        .values(
            state=after.state.value,
            stage=after.stage,
            stage_started_at=after.stage_started_at,
            soak_started_at=after.soak_started_at,
            waivers=dumps([attrs.asdict(waiver) for waiver in after.waivers]),
            version=before.version + 1,
        )
    )
    return connection.execute(statement).rowcount == 1


def note(
    connection: sa.Connection, *, now: int, rollout: int | None, actor: str, action: str, reason: str
) -> None:
    """Write a line of the audit log."""
    row = {"at": now, "rollout": rollout, "actor": actor, "action": action, "reason": reason}
    connection.execute(sa.insert(audit), [row])


def freeze_members(connection: sa.Connection, rollout: int, cohorts: Sequence[Sequence[Candidate]]) -> None:
    """Write down which device is in which stage."""
    rows = (
        Member(
            rollout=rollout,
            device=candidate.device,
            stage=stage,
            rank=rank,
            device_class=candidate.device_class,
            site=candidate.site,
        )
        for stage, cohort in enumerate(cohorts)
        for rank, candidate in enumerate(cohort)
    )
    for part in chunks(rows, 10 * CHUNK):
        add_members(connection, part)


def join_late(connection: sa.Connection, rollout: Record, found: Sequence[Candidate]) -> int:
    """Add devices that came after the cohorts were frozen to the end of the last stage."""
    have: set[str] = set()
    for part in chunks([candidate.device for candidate in found]):
        statement = sa.select(members.c.device).where(
            members.c.rollout == rollout.id, members.c.device.in_(part)
        )
        have |= {row.device for row in connection.execute(statement)}
    highest = sa.select(sa.func.max(members.c.rank)).where(members.c.rollout == rollout.id)
    rank = int(connection.execute(highest).scalar() or 0)
    late = [candidate for candidate in found if candidate.device not in have]
    add_members(
        connection,
        [
            Member(
                rollout=rollout.id,
                device=candidate.device,
                stage=rollout.last,
                rank=rank + number,
                device_class=candidate.device_class,
                site=candidate.site,
            )
            for number, candidate in enumerate(late, 1)
        ],
    )
    return len(late)


def apply(connection: sa.Connection, rollout: Record, actions: Sequence[Action], now: int) -> bool:
    """Carry out what the planner answered; False where another was faster, and nothing was done."""
    moved = next((action for action in actions if isinstance(action, Move)), None)
    after = rollout if moved is None else moved_record(rollout, moved, now)
    if not save(connection, rollout, after):
        return False
    if moved is not None:
        enter(connection, rollout, after, now=now, actor=CONTROLLER, reason=moved.reason)
    done: dict[str, int] = {}
    for action in actions:
        if isinstance(action, Expose):
            count = expose(connection, rollout, stage=action.stage, site=action.site, count=action.count,
                           start_before=action.start_before)  # fmt: skip
            done[f"expose: {action.reason}"] = done.get(f"expose: {action.reason}", 0) + count
        elif isinstance(action, Revert):
            count = revert(connection, rollout, site=action.site, count=action.count,
                           start_before=action.start_before, now=now)  # fmt: skip
            done[f"revert: {action.reason}"] = done.get(f"revert: {action.reason}", 0) + count
    for text, count in done.items():
        if count:
            name, _, reason = text.partition(": ")
            note(connection, now=now, rollout=rollout.id, actor=CONTROLLER, action=name,
                 reason=f"{devices_text(count)}: {reason}")  # fmt: skip
    return True


def moved_record(rollout: Record, move: Move, now: int) -> Record:
    """Return a rollout as a move leaves it."""
    opened = move.stage != rollout.stage
    return attrs.evolve(
        rollout,
        state=move.state,
        stage=move.stage,
        stage_started_at=now if opened else rollout.stage_started_at,
        soak_started_at=move.soak_started_at,
    )


def enter(
    connection: sa.Connection, before: Record, after: Record, *, now: int, actor: str, reason: str
) -> None:
    """Do what belongs to a change of state or stage, and write it to the audit log."""
    action = after.state.value if after.state is not before.state else f"stage {after.stage + 1}"
    note(connection, now=now, rollout=after.id, actor=actor, action=action, reason=reason)
    if after.state in (State.ABORTED, State.ROLLING_BACK) and before.state is not after.state:
        ask_back(connection, after, activated=True)
        if before.state is State.ROLLING_BACK:
            let_keep(connection, after, now)
        elif actor != CONTROLLER or before.state is not State.ROLLED_BACK:
            ask_again(connection, after)
    elif after.state is State.HELD and before.state is not State.HELD:
        ask_back(connection, after, activated=False)
    if after.state is State.RUNNING and (before.state is State.DRAFT or after.stage != before.stage):
        metrics = compared_metrics(after.specification)
        add_controls(connection, after.id, after.model, after.stage, metrics)


def audit_of(connection: sa.Connection, rollout: int, limit: int = 100) -> list[Mapping[str, Any]]:
    """Return the last lines of a rollout's audit log, the newest last."""
    statement = sa.select(audit).where(audit.c.rollout == rollout).order_by(audit.c.id.desc()).limit(limit)
    return list(reversed([dict(row) for row in connection.execute(statement).mappings()]))
