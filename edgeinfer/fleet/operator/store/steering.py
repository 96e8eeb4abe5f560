"""Giving devices of a rollout documents: forward to the release, or back from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs
import sqlalchemy as sa

from edgeinfer.fleet.operator.gates import Constraint
from edgeinfer.fleet.operator.member import Member
from edgeinfer.fleet.operator.outcomes import Motion, Outcome
from edgeinfer.fleet.operator.record import Record
from edgeinfer.fleet.operator.regression import Regression
from edgeinfer.fleet.operator.specification import Specification
from edgeinfer.fleet.operator.store.comparisons import add_canaries
from edgeinfer.fleet.operator.store.database import one_of
from edgeinfer.fleet.operator.store.members import change_members, load_members
from edgeinfer.fleet.operator.store.schema import members
from edgeinfer.fleet.operator.store.slots import Slot, Wanted, issue, load_slots, lock_devices
from edgeinfer.fleet.operator.store.stepping import (
    first_allowed,
    next_step,
    present_release,
    releases_of,
    version_of,
)

__all__ = [
    "HAVE_IT",
    "ask_back",
    "compared_metrics",
    "expose",
    "locked_members",
    "next_members",
    "revert",
]

_ACTIVATED = ("activating", "soaking", "committed", "rolling_back")  # applications may have seen the release
_ELIGIBLE = sa.or_(
    members.c.motion == Motion.AGAIN.value,
    sa.and_(
        members.c.motion == Motion.STILL.value,
        one_of(members.c.outcome, (Outcome.WAITING.value, Outcome.OFFLINE.value)),
    ),
    sa.and_(
        members.c.motion == Motion.REVERTED.value,
        one_of(
            members.c.outcome,
            (Outcome.WAITING.value, Outcome.OFFLINE.value, Outcome.ACCEPTED.value, Outcome.SUCCESS.value),
        ),
    ),
)  # `is_eligible`, in SQL; a test holds that they agree


HAVE_IT = sa.or_(
    members.c.motion == Motion.STUCK.value,
    sa.and_(members.c.motion == Motion.STILL.value, members.c.outcome == Outcome.SUCCESS.value),
)


def compared_metrics(specification: Specification) -> list[str]:
    """Return the metrics that the gates need of each device."""
    return sorted({gate.metric for gate in specification.gates if isinstance(gate, (Regression, Constraint))})


def expose(
    connection: sa.Connection, rollout: Record, *, stage: int, site: str, count: int, start_before: int
) -> int:
    """Give the next devices of a stage at a site documents of the release; return how many.

    Args:
        connection: Within a transaction that has changed the rollout's version.
        rollout: The rollout.
        stage: The stage.
        site: The site.
        count: How many at most.
        start_before: When the documents run out.
    """
    if "*" in rollout.withdrawn:
        return 0
    where = [members.c.rollout == rollout.id, members.c.stage == stage, members.c.site == site, _ELIGIBLE]
    if rollout.withdrawn:
        where.append(members.c.device_class.not_in(sorted(rollout.withdrawn)))
    chosen = next_members(connection, where, count)
    if not chosen:
        return 0
    have = load_slots(connection, rollout.model, [member.device for member in chosen])
    known = releases_of(connection, rollout.model)
    wanted, changes = {}, {}
    for member in chosen:
        slot = have.get((member.device, rollout.model)) or Slot(device=member.device, model=rollout.model)
        target = next_step(known, rollout.release, slot, member.device_class)
        if target is None:
            refused = attrs.evolve(
                member, outcome=Outcome.REJECTED, motion=Motion.STILL, code="no_stepping_stone"
            )
            change_members(connection, [(member, refused)])
            continue
        wanted[member.device] = Wanted(
            release=target,
            version=version_of(known, target),
            start_before=start_before,
            shadow=rollout.specification.stages[stage].shadow,
        )
        changes[member.device] = attrs.evolve(
            member,
            outcome=Outcome.OFFLINE,
            motion=Motion.FORWARD,
            target=target,
            origin=member.origin or present_release(slot, rollout.release),
            start_before=start_before,
            exposures=member.exposures + 1,
            back_epoch=0,
            back_number=0,
        )
    generations = issue(connection, rollout.model, wanted)
    changed = []
    for member in chosen:
        if member.device in generations:
            epoch, number = generations[member.device]
            changed.append((member, attrs.evolve(changes[member.device], epoch=epoch, number=number)))
    change_members(connection, changed)
    metrics = compared_metrics(rollout.specification)
    if metrics and stage == rollout.stage:
        devices = [(member.device, member.device_class) for member, _ in changed]
        add_canaries(connection, rollout.id, rollout.model, stage, rollout.release, devices, metrics)
    return len(changed)


def ask_back(
    connection: sa.Connection, rollout: Record, *, activated: bool, device_class: str | None = None
) -> int:
    """Supersede the documents of all devices that are on their way; return how many.

    Args:
        connection: Within a transaction.
        rollout: The rollout.
        activated: Also those that have reported to be activating the release, or further.
        device_class: Only devices of this class.
    """
    # A document that ran out is superseded, too: it must not be what the device is to run.
    ran_out = sa.and_(
        members.c.motion == Motion.STILL.value,
        members.c.outcome == Outcome.OFFLINE.value,
    )
    where = [
        members.c.rollout == rollout.id,
        sa.or_(members.c.motion == Motion.FORWARD.value, ran_out),
    ]
    if device_class is not None:
        where.append(members.c.device_class == device_class)
    moving = next_members(connection, where, None)
    if not activated:
        have = load_slots(connection, rollout.model, [member.device for member in moving])
        moving = [
            member for member in moving if not _is_activated(member, have.get((member.device, rollout.model)))
        ]
    _turn_back(connection, rollout, moving, _recall_lease)
    # What was to be tried again stays where it is.
    again = next_members(
        connection, [members.c.rollout == rollout.id, members.c.motion == Motion.AGAIN.value], None
    )
    change_members(connection, [(m, attrs.evolve(m, motion=Motion.REVERTED)) for m in again])
    return len(moving)


def _recall_lease(member: Member, slot: Slot, origin: str) -> int:
    """Return until when a device on its way may act on the document that calls it back; 0 for ever.

    One that accepted keeps its place in the site's budget until it answers, which may be after years; so does
    one that was reflashed, and needs something to run. One that never accepted gives its place away when its
    lease is over; so nothing may move it after that.
    """
    empty = slot.reported_at > 0 and not slot.running and bool(origin)
    return 0 if empty or member.outcome in (Outcome.ACCEPTED, Outcome.TIMED_OUT) else member.start_before


def revert(
    connection: sa.Connection, rollout: Record, *, site: str, count: int, start_before: int, now: int
) -> int:
    """Ask devices of a site that have the release back; return how many."""
    where = [members.c.rollout == rollout.id, members.c.site == site, HAVE_IT]
    chosen = next_members(connection, where, count)
    rows = lock_devices(connection, (member.device for member in chosen))
    have = load_slots(connection, rollout.model, [member.device for member in chosen])
    asked: list[Member] = []
    gone: list[Member] = []
    taken: list[tuple[Member, Member]] = []
    for member in chosen:
        if _is_taken(member, have.get((member.device, rollout.model))):
            taken.append((member, attrs.evolve(member, motion=Motion.REVERTED)))
        else:
            (asked if rows[member.device]["deleted_at"] is None else gone).append(member)
    change_members(connection, taken)
    _turn_back(connection, rollout, asked, lambda *_: start_before, revert=True)
    # Nobody waits for a device that was removed. Should it come back with the release, it is asked again.
    _turn_back(connection, rollout, gone, lambda *_: now, motion=Motion.REVERTED)
    return len(chosen)


def _is_taken(member: Member, slot: Slot | None) -> bool:
    """Whether another rollout has given a device something else since."""
    later = slot is not None and slot.generation > max(member.forward, member.back)
    return later and slot is not None and slot.release != member.target


def _is_activated(member: Member, slot: Slot | None) -> bool:
    return slot is not None and slot.reported == member.forward and slot.phase in _ACTIVATED


def _turn_back(
    connection: sa.Connection,
    rollout: Record,
    moving: Sequence[Member],
    lease: Callable[[Member, Slot, str], int],
    *,
    motion: Motion = Motion.BACK,
    revert: bool = False,
) -> None:
    """Issue documents that name what the devices had, and note that they are to go back.

    What disturbs a device must have a place in its site's budget for as long as the document holds.

    Args:
        connection: Within a transaction; the devices are locked.
        rollout: Their rollout.
        moving: The devices.
        lease: Member, its slot and the release it had -> when its document runs out; 0 for never.
        motion: What they do then.
        revert: They work with the release, and are disturbed for it.
    """
    if not moving:
        return
    known = releases_of(connection, rollout.model)
    have = load_slots(connection, rollout.model, [member.device for member in moving])
    wanted = {}
    leases = {}
    for member in moving:
        slot = have.get((member.device, rollout.model)) or Slot(device=member.device, model=rollout.model)
        origin = first_allowed(
            known, member.device_class, (member.origin, slot.committed, slot.previous), rollout.release
        )
        leases[member.device] = until = lease(member, slot, origin)
        wanted[member.device] = Wanted(release=origin, version=version_of(known, origin), start_before=until)
    generations = issue(connection, rollout.model, wanted)
    changes = []
    for member in moving:
        epoch, number = generations[member.device]
        after = attrs.evolve(
            member,
            motion=motion,
            back_epoch=epoch,
            back_number=number,
            start_before=leases[member.device] or member.start_before,
            exposures=member.exposures + revert,
        )
        changes.append((member, after))
    change_members(connection, changes)


def next_members(
    connection: sa.Connection, where: Sequence[sa.ColumnElement[bool]], count: int | None
) -> list[Member]:
    """Return the next members that fulfil conditions, their devices locked."""
    ordered = (members.c.exposures, members.c.rank, members.c.device)
    return locked_members(
        connection,
        lambda: load_members(connection, *where, order_by=ordered, limit=count),
        lambda: load_members(connection, *where),
    )


def locked_members(
    connection: sa.Connection,
    select: Callable[[], list[Member]],
    again: Callable[[], list[Member]] | None = None,
) -> list[Member]:
    """Return members of one rollout, their devices locked.

    Args:
        connection: Within a transaction.
        select: What selects them.
        again: The same, where that selects some of many. A report may have come in before the lock: only
            what still fulfils the conditions is returned.
    """
    found = select()
    if connection.dialect.name == "sqlite" or not found:
        return found
    lock_devices(connection, (member.device for member in found))
    now = {member.device: member for member in (again or select)()}
    return [now[member.device] for member in found if member.device in now]
