"""`Trial`: a simulated fleet with one rollout, under the oracle's eyes."""

from __future__ import annotations

from edgeinfer.fleet import FailureRate, Stage
from edgeinfer.fleet.operator import commands
from edgeinfer.fleet.operator.outcomes import Counts
from edgeinfer.fleet.operator.record import State
from edgeinfer.fleet.operator.rollout import Rollout
from edgeinfer.fleet.operator.simulator.faults import Faults, Quality
from edgeinfer.fleet.operator.simulator.oracle import Oracle
from edgeinfer.fleet.operator.simulator.world import World
from edgeinfer.fleet.operator.specification import Specification
from edgeinfer.fleet.operator.store import rollouts as store
from edgeinfer.fleet.operator.store.inventory import DeviceRow, save_release, save_site

OLD, NEW, STONE = "a" * 64, "b" * 64, "c" * 64
HOUR = 3600
ENDED = (State.COMPLETED, State.ROLLED_BACK, State.ABORTED, State.FAILED)


class Trial:
    """A world with one rollout."""

    def __init__(self, devices=40, *, quality=None, faults=None, sites=(), seed=1,
                 heartbeat_s=21_600, **options):  # fmt: skip
        self.world = World(
            seed=seed,
            faults=faults or Faults(),
            release=OLD,
            poll_s=900,
            heartbeat_s=heartbeat_s,
            controller_s=900,
        )
        self.db = self.world.database
        for site in sites:
            save_site(self.db, site)
        self.oracle = Oracle(self.world, {s.name: s.max_in_flight for s in sites if s.max_in_flight})
        save_release(self.db, digest=OLD, model="m", version="1")
        save_release(self.db, digest=NEW, model="m", version="2", requires=options.pop("requires", None),
                     budgets=options.pop("budgets", None))  # fmt: skip
        self.world.quality[NEW] = quality or Quality()
        self.add(devices)
        self.world.run(2 * HOUR)
        options.setdefault("stages", [Stage(count=20, soak="1h"), Stage(percent=100)])
        options.setdefault("gates", [FailureRate(max=0.14)])
        self.number = commands.draft(self.db, model="m", release=NEW, specification=Specification(**options))
        self.rollout = Rollout(self.db, self.number)

    def add(self, count, first=0):
        self.world.add(
            DeviceRow(device=f"d{n}", device_class="ab"[n % 2], site=f"s{n % 3}")
            for n in range(first, first + count)
        )

    def start(self):
        commands.start(self.db, self.number)
        return self

    def until(self, *states, hours=96):
        assert self.world.run_until(lambda: self.state in states, hours * HOUR), self.rollout.status()
        return self

    def run(self, hours):
        self.world.run(round(hours * HOUR))
        return self

    @property
    def state(self):
        return commands.get(self.db, self.number).state

    @property
    def counts(self) -> Counts:
        with self.db.reading() as connection:
            return store.load_tallies(connection, self.number).counts(lambda _: True)

    @property
    def log(self):
        with self.db.reading() as connection:
            return store.audit_of(connection, self.number)

    def running(self, release):
        return sum(device.running == release for device in self.world.devices.values())
