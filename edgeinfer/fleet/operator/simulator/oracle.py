"""`Oracle`: what must hold in a simulated fleet at every step, checked against the devices themselves.

It counts for itself: from the documents that were published, from what the devices do, and from the members
one by one, never from the tallies that the planner reads.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import final

import sqlalchemy as sa

from edgeinfer.errors import FleetError
from edgeinfer.fleet.operator.gates import FailureRate
from edgeinfer.fleet.operator.outcomes import Outcome
from edgeinfer.fleet.operator.record import Record, State
from edgeinfer.fleet.operator.simulator.device import SimulatedDevice
from edgeinfer.fleet.operator.simulator.world import World
from edgeinfer.fleet.operator.store import rollouts as store
from edgeinfer.fleet.operator.store.schema import cells, members

__all__ = ["InvariantError", "Oracle"]


class InvariantError(FleetError):
    """Something that must never happen has happened."""


@final
class Oracle:
    """Watches a world.

    Args:
        world: The world.
        budgets: Site -> how many of its devices may be disturbed at once.
    """

    def __init__(self, world: World, budgets: dict[str, int]) -> None:
        self._world = world
        self._budgets = budgets
        self._generations: dict[tuple[str, str], tuple[int, int]] = {}
        self._named: dict[str, set[str]] = {}  # release -> devices that a document named it for
        self._stages: dict[int, tuple[State, int]] = {}
        self.withdrawn: set[tuple[str, str]] = set()  # (release, class)
        self.most_disturbed: Counter[str] = Counter()
        self.checks = 0
        self._ticks = 0
        world.shelf.on_put = self._on_put
        world.on_step = self._on_step
        world.on_tick = self._on_tick

    def forget_stages(self) -> None:
        """Take note that the database was restored: rollouts are where they were."""
        self._stages.clear()

    def _on_put(self, device: str, document: bytes) -> None:
        for assignment in json.loads(document)["signed"]["assignments"]:
            generation = tuple(assignment["generation"])
            key = (device, assignment["model"])
            before = self._generations.get(key, (0, 0))
            self._hold(generation >= before, "a generation went down", f"{device}: {before} -> {generation}")
            self._generations[key] = generation
            release = assignment["release"]
            its = self._world.devices.get(device)
            if its is not None and generation > before and its.committed != release:
                quarantined = {(release, "*"), (release, its.device_class)} & self.withdrawn
                self._hold(
                    not quarantined, "a document names a withdrawn release", f"{device}: {release[:8]}"
                )
            self._named.setdefault(release, set()).add(device)

    def _on_step(self, device: SimulatedDevice) -> None:
        limit = self._budgets.get(device.site)
        if limit is None:
            return
        single = (d for d in self._world.devices.values() if d.name not in self._world.cloned)
        disturbed = sum(d.disturbed for d in single if d.site == device.site)
        self.most_disturbed[device.site] = max(self.most_disturbed[device.site], disturbed)
        self._hold(
            disturbed <= limit, "a site's budget is exceeded", f"{device.site}: {disturbed} of {limit}"
        )

    def _on_tick(self) -> None:
        self._ticks += 1
        if not self._world.changed and self._ticks % 20:
            return
        with self._world.database.reading() as connection:
            for record in store.load_all(connection):
                self._check_exposure(connection, record)
                self._check_gates(connection, record)
            self._check_cells(connection)

    def _check_exposure(self, connection: sa.Connection, record: Record) -> None:
        """No device has a document of the release before its stage is open."""
        # One that had it by a document that a backup has forgotten can be asked back, and has no other one.
        later = sa.select(members.c.device).where(
            members.c.rollout == record.id, members.c.stage > record.stage, members.c.epoch > 0
        )
        exposed = [row.device for row in connection.execute(later)]
        self._hold(not exposed, "a device of a later stage was exposed", f"{record.id}: {exposed}")
        joined = sa.select(members.c.device).where(members.c.rollout == record.id)
        known = {row.device for row in connection.execute(joined)}
        named = self._named.get(record.release, set())
        if known and record.state is not State.DRAFT and self.single:
            self._hold(named <= known, "a device outside of the rollout got the release", f"{named - known}")

    single = True  # no other rollout, and no restored database, names the same release

    def _check_gates(self, connection: sa.Connection, record: Record) -> None:
        """A stage was left only with its failure rate kept, on enough devices."""
        state, stage = self._stages.get(record.id, (State.DRAFT, 0))
        self._stages[record.id] = (record.state, record.stage)
        passed = record.stage > stage or (record.state is State.COMPLETED and state is not State.COMPLETED)
        if not passed or state is State.DRAFT or stage < 0:
            return
        counted = sa.select(members.c.outcome, sa.func.count()).where(
            members.c.rollout == record.id, members.c.stage == stage
        )
        if record.withdrawn:  # devices of these classes that wait are never exposed, so nobody waits for them
            of_class = sa.true() if "*" in record.withdrawn else members.c.device_class.in_(record.withdrawn)
            counted = counted.where(sa.not_(of_class & (members.c.outcome == Outcome.WAITING.value)))
        rows = connection.execute(counted.group_by(members.c.outcome))
        outcomes = {Outcome(name): int(count) for name, count in rows}
        total = sum(outcomes.values())
        decided = sum(count for outcome, count in outcomes.items() if outcome.decided)
        reached = decided - outcomes.get(Outcome.WITHDRAWN, 0)
        failed = sum(count for outcome, count in outcomes.items() if outcome.failed)
        gate = next(g for g in record.specification.gates if isinstance(g, FailureRate))
        self._hold(
            reached >= gate.min_reached * total - 1e-9, "a stage passed unseen", f"{record.id}: {outcomes}"
        )
        rate = failed / max(1, decided - outcomes.get(Outcome.REJECTED, 0))
        forgiven = record.forgiven(stage, gate.name)
        # The reports of this very tick may have come after the move: one device is allowed for.
        kept = rate <= gate.max + 1 / max(1, total) or forgiven or total < gate.needs
        self._hold(bool(kept), "a gate was skipped", f"{record.id}, stage {stage + 1}: {outcomes}")

    def _check_cells(self, connection: sa.Connection) -> None:
        """The tallies are what a count of the members gives."""
        keys = [members.c[name] for name in ("rollout", "stage", "device_class", "site", "outcome", "motion")]
        counted = {
            tuple(row[:-1]): row[-1]
            for row in connection.execute(sa.select(*keys, sa.func.count()).group_by(*keys))
        }
        kept = {
            tuple(row[:-1]): row[-1]
            for row in connection.execute(sa.select(cells).where(cells.c.devices != 0))
        }
        self._hold(
            counted == kept,
            "the tallies differ from the members",
            f"{set(counted.items()) ^ set(kept.items())}",
        )

    def _hold(self, condition: bool, what: str, found: str) -> None:
        self.checks += 1
        if not condition:
            raise InvariantError(f"{what}: {found}", where=f"virtual second {self._world.now}")
