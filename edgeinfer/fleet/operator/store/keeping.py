"""Devices that a rollback did not reach: they are asked again, or told that they keep the release."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs
import sqlalchemy as sa

from edgeinfer.fleet.operator.member import Member
from edgeinfer.fleet.operator.outcomes import Motion, Outcome
from edgeinfer.fleet.operator.record import Record, State
from edgeinfer.fleet.operator.store.members import change_members
from edgeinfer.fleet.operator.store.schema import members
from edgeinfer.fleet.operator.store.slots import Wanted, issue, load_slots
from edgeinfer.fleet.operator.store.steering import HAVE_IT, next_members
from edgeinfer.fleet.operator.store.stepping import is_withdrawn, releases_of, version_of

__all__ = ["ask_again", "keep_what_raced", "keeps_it", "let_keep", "tell_to_keep"]

_KEPT = members.c.motion == Motion.KEPT.value


def ask_again(connection: sa.Connection, rollout: Record) -> None:
    """Let the next reverts reach devices that could not go back, too: an operator wants it."""
    changes = []
    for member in next_members(connection, [members.c.rollout == rollout.id, _KEPT], None):
        motion = Motion.STUCK if member.outcome is Outcome.FAILED else Motion.STILL
        changes.append((member, attrs.evolve(member, motion=motion, attempts=0)))
    change_members(connection, changes)


def keeps_it(member: Member, state: State, release: str) -> bool:
    """Whether a device that was asked back has, as far as is known, what it was to give up, and may keep it.

    A rollback asks it again instead, but where it only came to a stepping stone of the release.
    """
    if state in (State.ROLLING_BACK, State.ROLLED_BACK) and member.target == release:
        return False
    if member.motion in (Motion.STUCK, Motion.KEPT):
        return True
    return member.motion is Motion.STILL and member.outcome in (Outcome.SUCCESS, Outcome.WAITING)


def let_keep(connection: sa.Connection, rollout: Record, now: int) -> None:
    """Tell devices that had been asked back, and have the release still, that they keep it.

    Args:
        connection: Within a transaction.
        rollout: A rollout that was being rolled back, and no longer is.
        now: Seconds since 1970.
    """
    asked = [members.c.rollout == rollout.id, members.c.back_epoch > 0, sa.or_(HAVE_IT, _KEPT)]
    tell_to_keep(connection, rollout.model, next_members(connection, asked, None), now)


def keep_what_raced(
    connection: sa.Connection,
    changes: Sequence[tuple[Member, Member]],
    facts: Mapping[int, sa.RowMapping],
    now: int,
) -> None:
    """Let devices that were faster than a hold or an abort, and cannot be stopped any more, keep the release.

    It is what they are to run then, as of the devices that had it before.

    Args:
        connection: Within a transaction; the devices are locked.
        changes: (before, after) of devices in rollouts.
        facts: Rollout -> its row.
        now: Seconds since 1970.
    """
    by_model: dict[str, list[Member]] = {}
    for before, after in changes:
        row = facts.get(before.rollout)
        if row is None or before.motion not in (Motion.BACK, Motion.REVERTED):
            continue
        if keeps_it(after, State(row["state"]), row["release"]):
            by_model.setdefault(row["model"], []).append(after)
    for model, kept in by_model.items():
        tell_to_keep(connection, model, kept, now)


def tell_to_keep(connection: sa.Connection, model: str, kept: Sequence[Member], now: int) -> None:
    """Issue the release again to devices whose last document asked them back.

    Nobody may begin with it: a device that did go back, and is not heard of yet, would move once more,
    with no place in its site's budget. It only says what the device is to run.

    Args:
        connection: Within a transaction; the devices are locked.
        model: The model.
        kept: The devices. Those that were told something else since are left out, and those for which the
            release is withdrawn: they go back by themselves.
        now: Seconds since 1970.
    """
    if not kept:
        return
    have = load_slots(connection, model, [member.device for member in kept])
    known = releases_of(connection, model)
    wanted = {}
    for member in kept:
        slot = have.get((member.device, model))
        asked = slot is not None and slot.generation == member.back
        if asked and not is_withdrawn(known, member.target, member.device_class):
            wanted[member.device] = Wanted(
                release=member.target, version=version_of(known, member.target), start_before=now
            )
    issue(connection, model, wanted)
