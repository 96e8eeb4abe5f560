"""Documents again: for devices that know later ones than this database, and for reflashed ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs
import sqlalchemy as sa

from edgeinfer.fleet.device.phases import Phase
from edgeinfer.fleet.operator.member import Generation, Member
from edgeinfer.fleet.operator.outcomes import Motion, Outcome
from edgeinfer.fleet.operator.record import State
from edgeinfer.fleet.operator.store.database import chunks, one_of, raise_value, value_of
from edgeinfer.fleet.operator.store.members import change_members, load_members
from edgeinfer.fleet.operator.store.schema import devices, members, rollouts
from edgeinfer.fleet.operator.store.slots import Slot, Wanted, issue
from edgeinfer.fleet.operator.store.stepping import first_allowed, is_withdrawn, releases_of, version_of

__all__ = ["answer_again", "let_stay"]


def answer_again(
    connection: sa.Connection,
    ahead: Mapping[tuple[str, str], int],
    slots: Mapping[tuple[str, str], Slot],
    reflashed: Mapping[str, Mapping[str, str]],
    classes: Mapping[str, str],
) -> None:
    """Issue documents again.

    Args:
        connection: Within a transaction; the devices are locked.
        ahead: (device, model) of devices that answered a document which this database does not know to have
            issued -> its epoch. The database was restored from a backup: the epoch rises above all of them.
        slots: (device, model) -> what they are to run.
        reflashed: Devices that began a new life, and need a document for it -> model -> what was committed.
        classes: Device -> hardware class.
    """
    if ahead:
        epoch = value_of(connection, "epoch")
        furthest = max(ahead.values())
        if furthest >= epoch:
            raise_value(connection, "epoch", furthest + 1)
    for model in sorted({model for _, model in ahead}):
        wanted, known = {}, releases_of(connection, model)
        for device, its_model in ahead:
            slot = slots[device, its_model]
            if its_model != model:
                continue
            withdrawn = is_withdrawn(known, slot.running, classes[device])
            if not slot.epoch:  # its documents were forgotten: it is to run what it has
                if slot.phase == Phase.COMMITTED.value and slot.running in known and not withdrawn:
                    wanted[device] = Wanted(release=slot.running, version=version_of(known, slot.running))
            elif is_withdrawn(known, slot.release, classes[device]) and slot.running != slot.release:
                # It has gone on to something else, and stays there.
                wanted[device] = Wanted(release=slot.running, version=version_of(known, slot.running))
            else:
                wanted[device] = Wanted(
                    release=slot.release,
                    version=slot.version,
                    start_before=slot.start_before,
                    shadow=bool(slot.shadow),
                )
        old = {device: slots[device, model].generation for device in wanted}
        _renumber(connection, model, old, issue(connection, model, wanted))
    _begin_again(connection, reflashed, slots, classes)


def let_stay(
    connection: sa.Connection,
    changes: Sequence[tuple[Member, Member]],
    slots: Mapping[tuple[str, str], Slot],
    facts: Mapping[int, sa.RowMapping],
    now: int,
) -> None:
    """Let devices that lost a release after their rollout was over keep what they have gone on to.

    Their document ran out, and nothing will issue another one: they would be taken for wrong for ever. What a
    rollout still wants of them is left to it, with its windows and budgets. The same holds of devices that
    went back in time, were heard of late, and were told to keep the release in between.

    Args:
        connection: Within a transaction; the devices are locked.
        changes: (before, after) of devices in rollouts.
        slots: (device, model) -> what they are to run, and what they run.
        facts: Rollout -> its row.
        now: Seconds since 1970.
    """
    for before, after in changes:
        lost = (before.outcome, after.outcome) == (Outcome.SUCCESS, Outcome.OFFLINE)
        went_back = before.motion is not after.motion and after.motion is Motion.REVERTED
        if not lost and not went_back:
            continue
        row = facts[before.rollout]
        state, model = State(row["state"]), row["model"]
        if state is State.COMPLETED or (lost and state.live and state is not State.ROLLING_BACK):
            continue
        slot, known = slots[before.device, model], releases_of(connection, model)
        ran_out = 0 < slot.start_before <= now and slot.release == before.target
        ours = slot.generation == before.forward or ran_out
        if ours and slot.running and not is_withdrawn(known, slot.running, before.device_class):
            wanted = Wanted(release=slot.running, version=version_of(known, slot.running))
            issue(connection, model, {before.device: wanted})


def _begin_again(
    connection: sa.Connection,
    reflashed: Mapping[str, Mapping[str, str]],
    slots: Mapping[tuple[str, str], Slot],
    classes: Mapping[str, str],
) -> None:
    """Let devices install again what they had; the lease of its document may be long over.

    What they were to run and did not, because they refused it or it came too late, is a rollout's to give.
    """
    for part in chunks(reflashed):
        connection.execute(
            sa.update(devices).where(devices.c.device.in_(part)).values(wanted=devices.c.wanted + 1)
        )
        steered = sa.select(members, rollouts.c.model).where(
            members.c.device.in_(part),
            one_of(members.c.motion, (Motion.FORWARD.value, Motion.BACK.value, Motion.REVERTED.value)),
            rollouts.c.id == members.c.rollout,
        )
        moving, asked = set(), set()
        for row in connection.execute(steered):
            if row.motion == Motion.FORWARD.value:
                moving.add((row.device, row.model))
            else:
                asked.add((row.device, row.model, (row.back_epoch, row.back_number)))
        for (device, model), slot in slots.items():
            # On its way in a rollout it has a place in the site's budget, and gets a new lease there.
            if device not in part or not slot.epoch or (device, model) in moving:
                continue
            known = releases_of(connection, model)
            # Asked back, it needs that to run, however late it answers; it keeps its place until then.
            back = (device, model, slot.generation) in asked
            had = slot.release if back else reflashed[device].get(model) or slot.release
            if is_withdrawn(known, had, classes[device]):
                had = first_allowed(known, classes[device], (slot.previous,), had)
            if had != slot.release or slot.start_before:
                wanted = Wanted(release=had, version=version_of(known, had))
                _renumber(
                    connection,
                    model,
                    {device: slot.generation},
                    issue(connection, model, {device: wanted}),
                )


def _renumber(
    connection: sa.Connection, model: str, old: Mapping[str, Generation], new: Mapping[str, Generation]
) -> None:
    """Let the parts of devices in rollouts wait for the answer to the document that replaced theirs."""
    moving = [Motion.FORWARD.value, Motion.BACK.value]
    changes = []
    for part in chunks(sorted(new)):
        of_model = sa.select(rollouts.c.id).where(rollouts.c.model == model)
        for before in load_members(
            connection,
            members.c.device.in_(part),
            one_of(members.c.motion, moving),
            members.c.rollout.in_(of_model),
        ):
            after = before
            epoch, number = new[before.device]
            if before.motion is Motion.FORWARD and before.forward == old[before.device]:
                after = attrs.evolve(before, epoch=epoch, number=number)
            elif before.motion is Motion.BACK and before.back == old[before.device]:
                after = attrs.evolve(before, back_epoch=epoch, back_number=number)
            changes.append((before, after))
    change_members(connection, changes)
