"""What an operator does to a rollout.

Each command is one transaction, checked against the rollout's state and version, with a line in the audit
log.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs
import sqlalchemy as sa

from edgeinfer.errors import FleetError
from edgeinfer.fleet.operator.cohorts import Candidate, freeze, matches
from edgeinfer.fleet.operator.exclusive import last_of_model, take_over
from edgeinfer.fleet.operator.planner import judge_stage
from edgeinfer.fleet.operator.record import Record, State
from edgeinfer.fleet.operator.specification import Specification, check_cohorts
from edgeinfer.fleet.operator.store import rollouts as store
from edgeinfer.fleet.operator.store.database import Database, next_value, value_of
from edgeinfer.fleet.operator.store.inventory import candidates, withdraw_release
from edgeinfer.fleet.operator.store.schema import rollouts
from edgeinfer.fleet.operator.store.steering import ask_back
from edgeinfer.fleet.operator.verdicts import Verdict, Waiver

__all__ = [
    "abort",
    "approve",
    "cohorts_of",
    "draft",
    "get",
    "hold",
    "pause",
    "quarantine",
    "resume",
    "roll_back",
    "start",
]

_OPEN = (State.RUNNING, State.AWAITING_APPROVAL)
_STOPPED = (State.PAUSED, State.HELD, State.FAILED)


def draft(
    database: Database, *, model: str, release: str, specification: Specification, scope: str = ""
) -> int:
    """Add a rollout that has not begun, and return its number.

    Raises:
        OptionsError: The fleet is too small for the gates, with the number of devices that they need.
    """

    def work(connection: sa.Connection) -> int:
        now = database.now(connection)
        number = store.create(
            connection, model=model, release=release, specification=specification, scope=scope, now=now
        )
        check_cohorts(specification, cohorts_of(connection, _get(connection, number)))
        return number

    return database.retrying(work)


def cohorts_of(connection: sa.Connection, rollout: Record) -> tuple[tuple[Candidate, ...], ...]:
    """Return the devices of each stage, if the rollout began now."""
    statement = sa.select(rollouts.c.scope).where(rollouts.c.id == rollout.id)
    scope = connection.execute(statement).scalar_one()
    found = [c for c in candidates(connection) if not scope or matches(c, scope)]
    return freeze(found, rollout.specification.stages, rollout.salt)


def get(database: Database, number: int) -> Record:
    """Return where a rollout stands.

    Raises:
        FleetError: There is none of that number.
    """
    with database.reading() as connection:
        return _get(connection, number)


def start(database: Database, number: int, *, actor: str = "operator") -> Record:
    """Freeze the cohorts and begin.

    Raises:
        FleetError: It has begun before, or another rollout of the model has its devices.
        OptionsError: The fleet is too small for the gates by now.
    """

    def work(connection: sa.Connection) -> Record:
        next_value(connection, "steps")  # one at a time: two rollouts must not take the same devices
        rollout = _get(connection, number)
        _allow(rollout, "start", State.DRAFT)
        now = database.now(connection)
        cohorts = cohorts_of(connection, rollout)
        check_cohorts(rollout.specification, cohorts)
        take_over(connection, rollout, {c.device for cohort in cohorts for c in cohort}, now, actor)
        store.freeze_members(connection, number, cohorts)
        next_value(connection, f"joined/{number}", value_of(connection, "enrolled"))
        first = rollout.specification.stages[0]
        state = State.AWAITING_APPROVAL if first.needs_approval else State.RUNNING
        stage = -1 if first.needs_approval else 0  # approval opens the next stage
        after = attrs.evolve(rollout, state=state, stage=stage, stage_started_at=now)
        return _save(connection, rollout, after, now, actor, "started")

    return database.retrying(work)


def pause(database: Database, number: int, *, reason: str = "", actor: str = "operator") -> Record:
    """Give no new documents; what is on its way goes on."""
    return _command(
        database, number, "pause", (State.RUNNING, State.AWAITING_APPROVAL), State.PAUSED, reason, actor
    )


def hold(database: Database, number: int, *, reason: str = "", actor: str = "operator") -> Record:
    """Pause, and revoke the documents of devices that have not activated yet."""
    allowed = (State.RUNNING, State.AWAITING_APPROVAL, State.PAUSED, State.FAILED)
    return _command(database, number, "hold", allowed, State.HELD, reason, actor)


def abort(database: Database, number: int, *, reason: str, actor: str = "operator") -> Record:
    """End it: devices on their way stay with what they have; devices that committed keep the release."""
    _need_reason(reason, "abort")
    allowed = (State.DRAFT, State.RUNNING, State.AWAITING_APPROVAL, *_STOPPED, State.ROLLING_BACK)
    return _command(database, number, "abort", allowed, State.ABORTED, reason, actor)


def roll_back(database: Database, number: int, *, reason: str, actor: str = "operator") -> Record:
    """Take the release back from all devices, as fast as the sites' budgets allow.

    A rollout that is rolled back may be again: devices that could not go back are asked once more.
    """
    _need_reason(reason, "rollback")

    def change(connection: sa.Connection, rollout: Record, now: int) -> Record:  # noqa: ARG001
        _allow(
            rollout,
            "rollback",
            State.RUNNING,
            State.AWAITING_APPROVAL,
            *_STOPPED,
            State.ABORTED,
            State.ROLLED_BACK,
            State.COMPLETED,
        )
        last_of_model(connection, rollout)
        return attrs.evolve(rollout, state=State.ROLLING_BACK)

    return _changed(database, number, change, reason, actor)


def approve(database: Database, number: int, *, reason: str = "", actor: str = "operator") -> Record:
    """Open the stage that waits for approval."""

    def change(connection: sa.Connection, rollout: Record, now: int) -> Record:  # noqa: ARG001
        _allow(rollout, "approve", State.AWAITING_APPROVAL)
        return attrs.evolve(
            rollout, state=State.RUNNING, stage=rollout.stage + 1, stage_started_at=now, soak_started_at=None
        )

    return _changed(database, number, change, reason or "approved", actor)


def resume(database: Database, number: int, *, reason: str = "", actor: str = "operator") -> Record:
    """Go on.

    After a failed gate a reason is needed: the operator answers for the failures there are. More of them fail
    it again.
    """

    def change(connection: sa.Connection, rollout: Record, now: int) -> Record:  # noqa: ARG001
        _allow(rollout, "resume", *_STOPPED)
        waivers = list(rollout.waivers)
        tallies = store.load_tallies(connection, number)
        for stage in range(rollout.stage + 1):
            failures = tallies.evidence(stage).counts
            for judgement in judge_stage(tallies, rollout, stage):
                if judgement.verdict is Verdict.FAIL:
                    count = max(1, failures.failures if judgement.gate == "FailureRate" else failures.members)
                    waivers.append(Waiver(stage=stage, gate=judgement.gate, forgiven=count))
        if rollout.state is State.FAILED or len(waivers) > len(rollout.waivers):
            _need_reason(reason, "resume after a failed gate")
        return attrs.evolve(rollout, state=State.RUNNING, waivers=tuple(waivers))

    return _changed(database, number, change, reason or "resumed", actor)


def quarantine(
    database: Database, release: str, *, device_class: str = "*", reason: str, actor: str = "operator"
) -> None:
    """Withdraw a release: no document names it any more, and devices on their way to it are called back.

    Args:
        database: The store.
        release: Its digest.
        device_class: For devices of this class; `*` for all.
        reason: Why, for the audit log.
        actor: Who.
    """
    _need_reason(reason, "quarantine")

    def work(connection: sa.Connection) -> None:
        next_value(connection, "steps")
        now = database.now(connection)
        withdraw_release(connection, release, device_class)
        text = f"{release[:12]} for {device_class}: {reason}"
        store.note(connection, now=now, rollout=None, actor=actor, action="quarantine", reason=text)
        for rollout in store.load_all(connection, rollouts.c.release == release):
            only = None if device_class == "*" else device_class
            ask_back(connection, rollout, activated=True, device_class=only)

    database.retrying(work)


def _command(
    database: Database,
    number: int,
    name: str,
    allowed: tuple[State, ...],
    state: State,
    reason: str,
    actor: str,
) -> Record:
    def change(connection: sa.Connection, rollout: Record, now: int) -> Record:  # noqa: ARG001
        _allow(rollout, name, *allowed)
        return attrs.evolve(rollout, state=state)

    return _changed(database, number, change, reason or name, actor)


def _changed(
    database: Database,
    number: int,
    change: Callable[[sa.Connection, Record, int], Record],
    reason: str,
    actor: str,
) -> Record:
    def work(connection: sa.Connection) -> Record:
        next_value(connection, "steps")
        now = database.now(connection)
        rollout = _get(connection, number)
        return _save(connection, rollout, change(connection, rollout, now), now, actor, reason)

    return database.retrying(work)


def _save(
    connection: sa.Connection, before: Record, after: Record, now: int, actor: str, reason: str
) -> Record:
    if not store.save(connection, before, after):
        raise FleetError("The rollout was changed by another at the same time.", where=f"rollout {before.id}")
    store.enter(connection, before, after, now=now, actor=actor, reason=reason)
    return attrs.evolve(after, version=before.version + 1)


def _get(connection: sa.Connection, number: int) -> Record:
    rollout = store.load(connection, number)
    if rollout is None:
        raise FleetError("There is no such rollout.", found=number)
    return rollout


def _allow(rollout: Record, command: str, *states: State) -> None:
    if rollout.state not in states:
        raise FleetError(
            f"The rollout cannot be changed so: {command}.",
            where=f"rollout {rollout.id} of {rollout.model}",
            expected=f"a rollout that is {' or '.join(state.value for state in states)}",
            found=rollout.state.value,
        )


def _need_reason(reason: str, command: str) -> None:
    if not reason.strip():
        raise FleetError(
            f"A reason is needed to {command}.", expected="reason='…'", hint="It stays in the audit log."
        )
