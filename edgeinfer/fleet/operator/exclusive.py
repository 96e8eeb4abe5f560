"""One live rollout for a model and a device: who has the devices, and who may take them."""

from __future__ import annotations

import attrs
import sqlalchemy as sa

from edgeinfer.errors import FleetError
from edgeinfer.fleet.operator.record import Record, State
from edgeinfer.fleet.operator.store import rollouts as store
from edgeinfer.fleet.operator.store.schema import members, rollouts

__all__ = ["last_of_model", "take_over"]


def last_of_model(connection: sa.Connection, rollout: Record) -> None:
    """See that no later rollout has given the devices something else since."""
    over = [state.value for state in (State.DRAFT, State.ROLLED_BACK, State.ABORTED, State.SUPERSEDED)]
    statement = sa.select(rollouts.c.id).where(
        rollouts.c.model == rollout.model, rollouts.c.id > rollout.id, rollouts.c.state.not_in(over)
    )
    later = connection.execute(statement.limit(1)).scalar()
    if later is not None:
        raise FleetError(
            "A later rollout of this model has the devices.",
            where=f"rollout {later}",
            hint="Roll that one back, or start a rollout of an earlier release.",
            facts={"rollout": later},
        )


def take_over(connection: sa.Connection, rollout: Record, wanted: set[str], now: int, actor: str) -> None:
    """See that no other live rollout of the model has these devices."""
    live = [state.value for state in State if state.live]
    others = store.load_all(
        connection, rollouts.c.model == rollout.model, rollouts.c.id != rollout.id, rollouts.c.state.in_(live)
    )
    for other in others:
        statement = sa.select(members.c.device).where(members.c.rollout == other.id)
        if wanted.isdisjoint(row.device for row in connection.execute(statement)):
            continue
        # What is being taken back is replaced by anything; else the priority decides.
        weaker = other.specification.priority < rollout.specification.priority
        if other.state is not State.ROLLING_BACK and not weaker:
            raise FleetError(
                "Another rollout of this model has some of the devices.",
                where=f"rollout {other.id}, {other.state.value}, priority {other.specification.priority}",
                expected=f"a priority below {rollout.specification.priority}, or an end of it",
                hint="Wait, abort it, or give this one a higher priority.",
                facts={"rollout": other.id},
            )
        store.save(connection, other, attrs.evolve(other, state=State.SUPERSEDED))
        store.note(connection, now=now, rollout=other.id, actor=actor, action=State.SUPERSEDED.value,
                   reason=f"rollout {rollout.id} took its devices")  # fmt: skip
