"""`Rollout`: the operator's handle on one rollout."""

from __future__ import annotations

from typing import Any, final

from edgeinfer.fleet.operator import commands
from edgeinfer.fleet.operator.forecast import Forecast, simulate
from edgeinfer.fleet.operator.record import Record
from edgeinfer.fleet.operator.status import RolloutStatus, status_of
from edgeinfer.fleet.operator.store import rollouts as store
from edgeinfer.fleet.operator.store.database import Database

__all__ = ["Rollout"]


@final
class Rollout:
    """Moving devices to a release, in stages, with gates. Made by `Fleet.rollout`.

    A handle holds no state: any process may have one, and a controller (`Fleet.run`, `edgeinfer fleet run`)
    moves the rollout on.

    Args:
        database: The fleet's store.
        number: The rollout's number.
    """

    def __init__(self, database: Database, number: int) -> None:
        self._database = database
        self.id = number

    @property
    def state(self) -> str:
        """The rollout's state, such as `RUNNING`, `PAUSED` or `COMPLETED`."""
        return self.record.state.value

    @property
    def record(self) -> Record:
        """Where it stands, as the planner sees it."""
        return commands.get(self._database, self.id)

    def simulate(self, **options: Any) -> Forecast:
        """Answer what this rollout would do, before it starts; see `forecast.simulate`."""
        return simulate(self._database, self.record, **options)

    def start(self, *, actor: str = "operator") -> Rollout:
        """Freeze the cohorts and begin.

        Raises:
            FleetError: It has begun before, or another rollout of the model has its devices.
            OptionsError: The fleet is too small for the gates by now.
        """
        commands.start(self._database, self.id, actor=actor)
        return self

    def pause(self, *, reason: str = "", actor: str = "operator") -> Rollout:
        """Give no new documents; what is on its way goes on."""
        commands.pause(self._database, self.id, reason=reason, actor=actor)
        return self

    def hold(self, *, reason: str = "", actor: str = "operator") -> Rollout:
        """Pause, and revoke the documents of devices that have not activated yet."""
        commands.hold(self._database, self.id, reason=reason, actor=actor)
        return self

    def resume(self, *, reason: str = "", actor: str = "operator") -> Rollout:
        """Go on after `pause`, `hold` or a failed gate; after a failed gate a reason is needed."""
        commands.resume(self._database, self.id, reason=reason, actor=actor)
        return self

    def approve(self, *, reason: str = "", actor: str = "operator") -> Rollout:
        """Open the stage that waits for approval."""
        commands.approve(self._database, self.id, reason=reason, actor=actor)
        return self

    def abort(self, *, reason: str, actor: str = "operator") -> Rollout:
        """End it: devices on their way stay with what they have; devices that committed keep the release."""
        commands.abort(self._database, self.id, reason=reason, actor=actor)
        return self

    def rollback(self, *, reason: str, actor: str = "operator") -> Rollout:
        """Take the release back from all devices, as fast as the sites' budgets allow."""
        commands.roll_back(self._database, self.id, reason=reason, actor=actor)
        return self

    def status(self) -> RolloutStatus:
        """Return where it stands: stages, outcomes, and what each gate says."""
        with self._database.reading() as connection:
            return status_of(
                commands.get(self._database, self.id),
                store.load_tallies(connection, self.id),
                tuple(store.audit_of(connection, self.id)),
                self._database.now(connection),
            )

    def __repr__(self) -> str:
        record = self.record
        return f"Rollout({record.id}, {record.model} {record.release_version}, {record.state.value})"

    def _repr_html_(self) -> str:
        return self.status()._repr_html_()
