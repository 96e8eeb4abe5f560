"""Devices that a rollback did not reach: they are asked again, or told that they keep the release."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import sqlalchemy as sa

from edgeinfer.fleet.operator.member import Member
from edgeinfer.fleet.operator.outcomes import Motion, Outcome
from edgeinfer.fleet.operator.record import Record
from edgeinfer.fleet.operator.store.members import change_members
from edgeinfer.fleet.operator.store.schema import members
from edgeinfer.fleet.operator.store.slots import Wanted, issue, load_slots
from edgeinfer.fleet.operator.store.steering import HAVE_IT, next_members
from edgeinfer.fleet.operator.store.stepping import is_withdrawn, releases_of, version_of

__all__ = ["ask_again", "let_keep", "tell_to_keep"]

_KEPT = members.c.motion == Motion.KEPT.value


def ask_again(connection: sa.Connection, rollout: Record) -> None:
    """Let the next reverts reach devices that could not go back, too: an operator wants it."""
    changes = []
    for member in next_members(connection, [members.c.rollout == rollout.id, _KEPT], None):
        motion = Motion.STUCK if member.outcome is Outcome.FAILED else Motion.STILL
        changes.append((member, attrs.evolve(member, motion=motion, attempts=0)))
    change_members(connection, changes)


def let_keep(connection: sa.Connection, rollout: Record) -> None:
    """Tell devices that had been asked back, and have the release still, that they keep it.

    Args:
        connection: Within a transaction.
        rollout: A rollout that was being rolled back, and no longer is.
    """
    asked = [members.c.rollout == rollout.id, members.c.back_epoch > 0, sa.or_(HAVE_IT, _KEPT)]
    tell_to_keep(connection, rollout, next_members(connection, asked, None))


def tell_to_keep(connection: sa.Connection, rollout: Record, kept: Sequence[Member]) -> None:
    """Issue the release again to devices whose last document asked them back.

    Args:
        connection: Within a transaction; the devices are locked.
        rollout: Their rollout.
        kept: The devices. Those that were told something else since are left out, and those for which the
            release is withdrawn: they go back by themselves.
    """
    if not kept:
        return
    have = load_slots(connection, rollout.model, [member.device for member in kept])
    known = releases_of(connection, rollout.model)
    wanted = {}
    for member in kept:
        slot = have.get((member.device, rollout.model))
        asked = slot is not None and slot.generation == member.back
        if asked and not is_withdrawn(known, member.target, member.device_class):
            wanted[member.device] = Wanted(release=member.target, version=version_of(known, member.target))
    issue(connection, rollout.model, wanted)
