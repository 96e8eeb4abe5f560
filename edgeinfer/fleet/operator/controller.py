"""`Controller`: the thin loop around `plan`. Two at once are safe; one that is killed is replaced by another.

Level-triggered: each tick looks at what is and does what is missing; nothing depends on having seen a change.
"""

from __future__ import annotations

import functools
import threading
from typing import final

import sqlalchemy as sa

from edgeinfer.fleet.operator.cohorts import matches
from edgeinfer.fleet.operator.outcomes import Motion, Outcome
from edgeinfer.fleet.operator.planner import plan
from edgeinfer.fleet.operator.publisher import Publisher
from edgeinfer.fleet.operator.record import Record, State
from edgeinfer.fleet.operator.store import rollouts as store
from edgeinfer.fleet.operator.store.database import Database, next_value, one_of, values_of
from edgeinfer.fleet.operator.store.inventory import candidates
from edgeinfer.fleet.operator.store.overdue import expire
from edgeinfer.fleet.operator.store.schema import cells, rollouts

__all__ = ["Controller"]

_ACTIVE = [state.value for state in State if state.live or state is State.COMPLETED]
_MOVING = sa.select(cells.c.rollout).where(
    one_of(cells.c.motion, (Motion.FORWARD.value, Motion.BACK.value)), cells.c.devices > 0
)
# A rollback that had ended goes on where a device turns up that has the release.
_HAVING = sa.exists().where(
    cells.c.rollout == rollouts.c.id,
    sa.or_(
        cells.c.motion == Motion.STUCK.value,
        sa.and_(cells.c.motion == Motion.STILL.value, cells.c.outcome == Outcome.SUCCESS.value),
    ),
    cells.c.devices > 0,
)
_TO_DO = (
    sa.select(rollouts.c.id)
    .where(
        sa.or_(
            one_of(rollouts.c.state, _ACTIVE),
            rollouts.c.id.in_(_MOVING),
            sa.and_(rollouts.c.state == State.ROLLED_BACK.value, _HAVING),
        )
    )
    .order_by(rollouts.c.priority.desc(), rollouts.c.id)
)
_NEWER = (
    sa.select(rollouts.c.id)
    .where(
        rollouts.c.model == sa.bindparam("its_model"),
        rollouts.c.id > sa.bindparam("number"),
        one_of(rollouts.c.state, _ACTIVE),
    )
    .limit(1)
)


@final
class Controller:
    """Moves rollouts on.

    Args:
        database: The store.
        publisher: Where signed documents go; None publishes nothing, for another process does.
    """

    def __init__(self, database: Database, publisher: Publisher | None = None) -> None:
        self._database = database
        self._publisher = publisher

    def tick(self) -> int:
        """Do all that is to be done now; return how many rollouts and documents were changed."""
        changed = 0
        with self._database.reading() as connection:
            active = connection.execute(_TO_DO).scalars().all()
        for number in active:
            changed += self._database.retrying(functools.partial(self._step, number=number))
        return changed + self.publish()

    def publish(self) -> int:
        """Publish the documents that changed; return how many."""
        return self._publisher.publish(self._database) if self._publisher is not None else 0

    def run(self, *, interval: float = 5.0, stop: threading.Event | None = None) -> None:
        """Tick until `stop` is set.

        Args:
            interval: Seconds between two ticks.
            stop: Set by another thread; None runs without end.
        """
        stop = stop or threading.Event()
        while not stop.is_set():
            self.tick()
            stop.wait(interval)

    def _step(self, connection: sa.Connection, number: int) -> int:
        # One step at a time in the fleet: the budget of a site is shared by all rollouts.
        next_value(connection, "steps")
        rollout = store.load(connection, number)
        if rollout is None:
            return 0
        now = self._database.now(connection)
        # Devices that were called back are waited for after the end, too: they have places in budgets.
        expired = expire(connection, rollout, now)
        ended = rollout.state in (State.COMPLETED, State.ROLLED_BACK)
        if rollout.state.value not in _ACTIVE and not ended:
            return expired
        joined = self._join(connection, rollout) if rollout.state is not State.ROLLED_BACK else 0
        if ended and _replaced(connection, rollout):
            return expired + joined
        actions = plan(store.load_tallies(connection, number), rollout, now)
        if actions:
            store.apply(connection, rollout, actions, now)
        return expired + joined + len(actions)

    def _join(self, connection: sa.Connection, rollout: Record) -> int:
        """Let devices that were enrolled since go last."""
        name = f"joined/{rollout.id}"
        enrolled, joined = values_of(connection, "enrolled", name)
        if joined == enrolled:
            return 0
        next_value(connection, name, enrolled - joined)
        scope = connection.execute(
            sa.select(rollouts.c.scope).where(rollouts.c.id == rollout.id)
        ).scalar_one()
        found = [c for c in candidates(connection) if not scope or matches(c, scope)]
        return store.join_late(connection, rollout, found)


def _replaced(connection: sa.Connection, rollout: Record) -> bool:
    """Whether a newer rollout of the model has the devices."""
    return connection.execute(_NEWER, {"its_model": rollout.model, "number": rollout.id}).first() is not None
