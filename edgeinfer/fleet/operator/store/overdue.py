"""`expire`: what only time tells of the devices of a rollout."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import attrs
import sqlalchemy as sa

from edgeinfer.fleet.operator.member import GRACE_S, Member
from edgeinfer.fleet.operator.outcomes import Motion, Outcome
from edgeinfer.fleet.operator.record import Record, State
from edgeinfer.fleet.operator.store.database import one_of
from edgeinfer.fleet.operator.store.keeping import tell_to_keep
from edgeinfer.fleet.operator.store.members import change_members, members_of
from edgeinfer.fleet.operator.store.schema import members
from edgeinfer.fleet.operator.store.slots import Slot, load_slots
from edgeinfer.fleet.operator.store.steering import locked_members

__all__ = ["expire"]

_UNANSWERED = (Outcome.WAITING.value, Outcome.OFFLINE.value)
# Of devices that were asked back: what is ACCEPTED may be switching, however long it takes.
_AT_REST = tuple(outcome.value for outcome in Outcome if outcome is not Outcome.ACCEPTED)


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
        elif member.motion is Motion.BACK and member.outcome.decided:
            reverts.append(member)
        else:
            motion = Motion.REVERTED if member.motion is Motion.BACK else Motion.STILL
            changes.append((member, attrs.evolve(member, motion=motion)))
    change_members(connection, changes)
    return len(changes) + _end_reverts(connection, rollout, reverts)


def _end_reverts(connection: sa.Connection, rollout: Record, overdue: Sequence[Member]) -> int:
    """End the reverts whose documents ran out; return how many.

    Args:
        connection: Within a transaction; the devices are locked.
        rollout: The rollout. While it is rolled back it asks again; else the devices keep the release, and
            are told so.
        overdue: Devices that have the release, or failed with it, and were asked back.
    """
    if not overdue:
        return 0
    have = load_slots(connection, rollout.model, [member.device for member in overdue])
    changes = []
    for member in overdue:
        slot = have.get((member.device, rollout.model)) or Slot(device=member.device, model=rollout.model)
        if slot.generation == member.back and not slot.start_before:
            continue  # it was called back on its way, which holds for ever
        stuck = member.outcome is not Outcome.SUCCESS and slot.running == member.target
        changes.append((member, attrs.evolve(member, motion=Motion.STUCK if stuck else Motion.STILL)))
    change_members(connection, changes)
    if rollout.state is not State.ROLLING_BACK:
        kept = [
            after for _, after in changes if after.outcome is Outcome.SUCCESS or after.motion is Motion.STUCK
        ]
        tell_to_keep(connection, rollout, kept)
    return len(changes)
