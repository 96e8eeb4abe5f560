"""`expire`: what only time tells of the devices of a rollout."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import attrs
import sqlalchemy as sa

from edgeinfer.fleet.device.phases import Phase
from edgeinfer.fleet.operator.member import GRACE_S, Member
from edgeinfer.fleet.operator.outcomes import Motion, Outcome
from edgeinfer.fleet.operator.record import Record
from edgeinfer.fleet.operator.store.database import one_of
from edgeinfer.fleet.operator.store.keeping import keeps_it, tell_to_keep
from edgeinfer.fleet.operator.store.members import change_members, members_of
from edgeinfer.fleet.operator.store.schema import members
from edgeinfer.fleet.operator.store.slots import Slot, load_slots
from edgeinfer.fleet.operator.store.steering import locked_members

__all__ = ["expire"]

_UNANSWERED = (Outcome.WAITING.value, Outcome.OFFLINE.value)
# Of devices that were asked back: what accepted may be switching, however long it takes.
_AT_REST = tuple(outcome.value for outcome in Outcome if outcome not in (Outcome.ACCEPTED, Outcome.TIMED_OUT))


@functools.lru_cache(maxsize=256)
def _overdue(timeouts: tuple[int, ...]) -> sa.CompoundSelect[Any]:
    """Return the statement that selects silent devices, and those whose document ran out.

    Args:
        timeouts: Of each stage, in seconds.
    """
    now: sa.BindParameter[int] = sa.bindparam("its_now", type_=sa.BigInteger)
    of_rollout = sa.select(members).where(members.c.rollout == sa.bindparam("number"))
    silent = of_rollout.where(
        members.c.motion == Motion.FORWARD.value,
        members.c.outcome == Outcome.ACCEPTED.value,
        members.c.heard_at < now - min(timeouts),  # for the index; the next line decides
        sa.or_(
            *(sa.and_(members.c.stage == n, members.c.heard_at < now - t) for n, t in enumerate(timeouts))
        ),
    )
    ran_out = of_rollout.where(
        sa.or_(
            sa.and_(members.c.motion == Motion.FORWARD.value, one_of(members.c.outcome, _UNANSWERED)),
            sa.and_(members.c.motion == Motion.BACK.value, one_of(members.c.outcome, _AT_REST)),
        ),
        members.c.start_before < now - GRACE_S,
    )
    return sa.union_all(silent, ran_out)


def expire(connection: sa.Connection, rollout: Record, now: int) -> int:
    """Take note of what only time tells: silence, and documents that ran out. Return how many changed."""
    statement = _overdue(tuple(stage.timeout for stage in rollout.specification.stages))
    values = {"number": rollout.id, "its_now": now}
    overdue = locked_members(connection, lambda: members_of(connection.execute(statement, values)))
    changes, reverts = [], []
    for member in overdue:
        if member.outcome is Outcome.ACCEPTED:
            # It stays in flight: nobody knows that it works.
            changes.append((member, attrs.evolve(member, outcome=Outcome.TIMED_OUT, code="silent")))
        elif member.motion is Motion.BACK:
            reverts.append(member)
        else:
            changes.append((member, attrs.evolve(member, motion=Motion.STILL)))
    change_members(connection, changes)
    return len(changes) + _end_reverts(connection, rollout, reverts, now)


def _end_reverts(connection: sa.Connection, rollout: Record, overdue: Sequence[Member], now: int) -> int:
    """End the reverts whose documents ran out; return how many.

    Args:
        connection: Within a transaction; the devices are locked.
        rollout: The rollout. While it is rolled back it asks again; else the devices keep the release, and
            are told so.
        overdue: Devices that were asked back.
        now: Seconds since 1970.
    """
    if not overdue:
        return 0
    have = load_slots(connection, rollout.model, [member.device for member in overdue])
    changes = []
    for member in overdue:
        slot = have.get((member.device, rollout.model)) or Slot(device=member.device, model=rollout.model)
        if slot.generation == member.back and not slot.start_before:
            continue  # it was called back on its way, which always holds
        changes.append((member, _ended(member, slot, rollout.release)))
    change_members(connection, changes)
    kept = [after for _, after in changes if keeps_it(after, rollout.state, rollout.release)]
    tell_to_keep(connection, rollout.model, kept, now)
    return len(changes)


def _ended(member: Member, slot: Slot, release: str) -> Member:
    """Return what a device is whose document ran out that asked it back, as far as is known."""
    runs_it = bool(member.target) and slot.running == member.target
    if member.outcome.decided:
        stuck = member.outcome is not Outcome.SUCCESS and runs_it
        return attrs.evolve(member, motion=Motion.STUCK if stuck else Motion.STILL)
    # It never accepted its last document, but may have the release by an earlier one.
    if runs_it and slot.phase == Phase.DEGRADED.value:
        return attrs.evolve(member, outcome=Outcome.FAILED, motion=Motion.STUCK, code=slot.code)
    if runs_it and slot.phase == Phase.COMMITTED.value:
        outcome = Outcome.SUCCESS if member.target == release else Outcome.WAITING
        return attrs.evolve(member, outcome=outcome, motion=Motion.STILL)
    return attrs.evolve(member, motion=Motion.REVERTED)
