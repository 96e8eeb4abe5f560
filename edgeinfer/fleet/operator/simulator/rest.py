"""Whether a simulated fleet has come to rest, and what must hold when it has."""

from __future__ import annotations

import json
from collections.abc import Set

import attrs

from edgeinfer.fleet.operator import commands
from edgeinfer.fleet.operator.planner import Move, judge_stage, plan
from edgeinfer.fleet.operator.record import State
from edgeinfer.fleet.operator.simulator.device import SimulatedDevice
from edgeinfer.fleet.operator.simulator.oracle import InvariantError
from edgeinfer.fleet.operator.simulator.world import World
from edgeinfer.fleet.operator.store.inventory import list_devices
from edgeinfer.fleet.operator.store.rollouts import load_tallies
from edgeinfer.fleet.operator.verdicts import Verdict

__all__ = ["ENDED", "at_rest", "cannot_pass", "check_end", "stops_again"]

ENDED = (State.COMPLETED, State.ROLLED_BACK, State.ABORTED)
_STAYED = ("rejected", "failed", "rolled_back", "degraded")  # with what it had, and it says so


def at_rest(world: World, number: int) -> bool:
    """Whether nothing is on its way, and nobody waits for what the controller could give.

    Args:
        world: The world.
        number: Of its rollout.
    """
    for device in world.devices.values():
        if device.next_at is not None or device.has_news or not _knows(world, device):
            return False
    record = commands.get(world.database, number)
    if record.state not in (*ENDED, State.PAUSED, State.HELD, State.FAILED):
        return False
    with world.database.reading() as connection:
        tallies = load_tallies(connection, number)
    # Who is eligible gets the release also after the end, but for classes that it is withdrawn for.
    allowed = tallies.counts(lambda cell: not {cell.device_class, "*"} & record.withdrawn)
    waits = record.state is State.COMPLETED and allowed.eligible
    return not tallies.counts(lambda _: True).in_flight and not waits


def _knows(world: World, device: SimulatedDevice) -> bool:
    document = world.shelf.documents.get(device.name)
    if document is None:
        return True
    # A document that has run out is never taken over.
    return all(
        tuple(assignment["generation"]) == device.floor or 0 < assignment["start_before"] <= world.now
        for assignment in json.loads(document)["signed"]["assignments"]
    )


def cannot_pass(world: World, number: int) -> bool:
    """Whether the open stage waits for what will not come: no data is no reason to go on."""
    record = commands.get(world.database, number)
    with world.database.reading() as connection:
        tallies = load_tallies(connection, number)
    counts = tallies.evidence(record.stage).counts
    judgements = judge_stage(tallies, record, record.stage)
    unseen = record.soak_started_at is None or any(j.verdict is not Verdict.PASS for j in judgements)
    return not counts.in_flight and unseen


def stops_again(world: World, number: int) -> bool:
    """Whether the rollout would pause again at once: what its stage waits for will not come."""
    record = attrs.evolve(commands.get(world.database, number), state=State.RUNNING)
    with world.database.reading() as connection:
        tallies = load_tallies(connection, number)
    actions = plan(tallies, record, world.now)
    return any(isinstance(action, Move) and action.state is State.PAUSED for action in actions)


def check_end(world: World, number: int, withdrawn: Set[tuple[str, str]]) -> None:
    """See that the fleet has come to rest with what it is to run.

    Args:
        world: The world.
        number: Of its rollout.
        withdrawn: (release, class) of what was withdrawn.

    Raises:
        InvariantError: It has not.
    """
    record = commands.get(world.database, number)
    state = record.state
    if state not in (*ENDED, State.DRAFT):
        raise InvariantError(f"the rollout did not end: {state.value}", where=f"stage {record.stage + 1}")
    if state is not State.DRAFT and not at_rest(world, number):
        raise InvariantError("the fleet does not come to rest", where=state.value)
    with world.database.reading() as connection:
        rows = {row["device"]: row for row in list_devices(connection) if row["model"]}
    for name, device in world.devices.items():
        if name in world.cloned:  # what its clone has answered is not asked again; it is flagged
            continue
        if state is State.ROLLED_BACK and device.running == record.release:
            where = device.phase.value
            raise InvariantError(f"{name} runs the release, and it is rolled back", where=where)
        # Nobody is asked to keep a withdrawn release. A real device goes back from it by itself.
        kept = {(device.running, "*"), (device.running, device.device_class)} & withdrawn
        if name not in rows or kept or device.phase.value in _STAYED:
            continue
        wanted = rows[name]["wanted"]
        if wanted and device.running != wanted:
            raise InvariantError(
                f"{name} runs {device.running[:4]!r} ({device.phase.value}), and is to run {wanted[:4]!r}",
                where=state.value,
            )
