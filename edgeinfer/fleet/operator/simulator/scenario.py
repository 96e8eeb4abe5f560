"""`run_seed`: one random fleet, one random rollout, everything that can go wrong, and the end of it."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable
from typing import Any, final

from edgeinfer.errors import FleetError
from edgeinfer.fleet.operator import commands
from edgeinfer.fleet.operator.detection import devices_needed
from edgeinfer.fleet.operator.gates import FailureRate
from edgeinfer.fleet.operator.publisher import Publisher
from edgeinfer.fleet.operator.record import State
from edgeinfer.fleet.operator.restoring import recall_withdrawn
from edgeinfer.fleet.operator.simulator.faults import Faults, Quality
from edgeinfer.fleet.operator.simulator.memory import Memory, driver_of
from edgeinfer.fleet.operator.simulator.oracle import InvariantError, Oracle
from edgeinfer.fleet.operator.simulator.rest import ENDED, at_rest, cannot_pass, check_end, stops_again
from edgeinfer.fleet.operator.simulator.world import World
from edgeinfer.fleet.operator.sites import MaintenanceWindow, Site
from edgeinfer.fleet.operator.specification import Specification
from edgeinfer.fleet.operator.stages import Stage
from edgeinfer.fleet.operator.store.inventory import (
    DeviceRow,
    list_devices,
    remove_device,
    save_release,
    save_site,
)

__all__ = ["NEW", "OLD", "Scenario", "play", "run_seed"]

OLD, NEW = "a" * 64, "b" * 64
_HOUR = 3600


@final
class Scenario:
    """A random fleet with a rollout; every method is something that may happen to it.

    Args:
        seed: Of all chance.
        devices: How many devices at least, and at most; five or more.
        pace_s: How often devices poll, and the controller looks.
        memory: Where its store is; None: a place of its own.
    """

    def __init__(
        self, seed: int, devices: tuple[int, int], *, pace_s: int = 900, memory: Memory | None = None
    ) -> None:
        self.random = chance = random.Random(seed)  # noqa: S311 (a simulation)
        faults = Faults(
            offline=chance.choice([0.0, 0.1, 0.3]),
            offline_s=chance.choice([1800, 14_400]),
            delay_s=chance.choice([0, 30, 900]),
            duplicate=chance.choice([0.0, 0.2]),
            lost_answer=chance.choice([0.0, 0.2]),
            lying_clock=chance.choice([0.0, 0.2]),
            slow=chance.choice([0.0, 0.2]),
            reboot=chance.choice([0.0, 0.1]),
        )
        self.world = World(
            seed=seed,
            faults=faults,
            release=OLD,
            poll_s=pace_s,
            heartbeat_s=21_600,
            controller_s=pace_s,
            memory=memory,
        )
        self.sites = [f"s{number}" for number in range(chance.randint(1, 3))]
        self.classes = ["a", "b"][: chance.randint(1, 2)]
        self._added = 0
        budgets = {site: chance.randint(1, 4) for site in self.sites if chance.random() < 0.6}
        for site in self.sites:
            windows = [MaintenanceWindow(start="20:00", end="08:00")] if chance.random() < 0.2 else []
            save_site(
                self.world.database,
                Site(name=site, timezone="Europe/Berlin", windows=windows, max_in_flight=budgets.get(site)),
            )
        self.oracle = Oracle(self.world, budgets)
        for digest, version in ((OLD, "1"), (NEW, "2")):
            save_release(self.world.database, digest=digest, model="m", version=version)
        bad = chance.choice([0.0, 0.0, 0.05, 0.3, 1.0])
        kind = chance.choice(["failed", "rolled_back", "rejected", "silent", "late", "transient"])
        quality = Quality(**{kind: bad})
        self._kind = kind
        self.world.quality[NEW] = {chance.choice(["", *self.classes]): quality, "a": quality}
        self.add(chance.randint(*devices))
        count = len(self.world.devices)
        # A stage must be large enough to see what its gate forbids.
        limit = next(limit for limit in (0.2, 0.3, 0.4, 0.5, 0.6) if devices_needed(limit, 0.95) < count)
        first = devices_needed(limit, 0.95)
        stages = [
            Stage(count=first, soak=chance.choice([0, _HOUR]), timeout="6h"),
            Stage(percent=100, timeout="6h"),
        ]
        if chance.random() < 0.3 and first < int(0.8 * count):
            stages.insert(1, Stage(percent=80, per_hour=chance.choice([None, 6.0]), timeout="6h"))
        specification = Specification(
            stages=stages,
            gates=[FailureRate(max=limit)],
            on_fail=chance.choice(["rollback", "pause"]),
            lease=chance.choice(["2h", "24h"]),
        )
        self.world.run(600)
        self.number = commands.draft(self.world.database, model="m", release=NEW, specification=specification)
        self._backup: sqlite3.Connection | None = None

    def add(self, count: int = 1) -> None:
        """Enrol further devices."""
        chance = self.random
        rows = [
            DeviceRow(
                device=f"d{self._added + number}",
                device_class=chance.choice(self.classes),
                site=chance.choice(self.sites),
            )
            for number in range(count)
        ]
        self._added += count
        self.world.add(rows)

    def start(self) -> None:
        """Begin the rollout."""
        commands.start(self.world.database, self.number)

    def run(self, seconds: int) -> None:
        """Let time pass."""
        self.world.run(seconds)

    @property
    def state(self) -> State:
        """The rollout's state."""
        return commands.get(self.world.database, self.number).state

    def command(self, name: str) -> bool:
        """Let an operator do something; False where the rollout's state does not allow it."""
        command: Callable[..., Any] = getattr(commands, name)
        try:
            command(self.world.database, self.number, reason="by chance")
        except InvariantError:
            raise
        except FleetError:
            return False
        return True

    def quarantine(self) -> None:
        """Withdraw the release for all or for one class."""
        device_class = self.random.choice(["*", *self.classes])
        commands.quarantine(self.world.database, NEW, device_class=device_class, reason="by chance")
        self.oracle.withdrawn.add((NEW, device_class))

    def remove(self) -> None:
        """Remove a device from the inventory, and from the world."""
        name = self.random.choice(sorted(self.world.devices))
        remove_device(self.world.database, name)
        del self.world.devices[name]

    def reflash(self) -> None:
        """Let a device lose its state."""
        self.world.reflash(self.random.choice(sorted(self.world.devices)))

    def clone(self) -> None:
        """Let a second device go by the name of another."""
        self.world.clone(self.random.choice(sorted(self.world.devices)))

    def partition(self) -> None:
        """Cut the operator off, or connect it again."""
        self.world.partitioned = not self.world.partitioned

    def back_up(self) -> None:
        """Copy the database."""
        self._backup = sqlite3.connect(":memory:")
        driver_of(self.world.database).backup(self._backup)

    def restore(self) -> bool:
        """Put the copy in the database's place, and start the controller again; False if there is no copy."""
        if self._backup is None:
            return False
        self._backup.backup(driver_of(self.world.database))
        self.oracle.forget_stages()
        self.oracle.single = False
        recall_withdrawn(self.world.database, self.oracle.withdrawn)  # as signed metadata have it
        Publisher(self.world.shelf, lambda _: ()).notice_restore(self.world.database)
        return True

    def heal(self) -> None:
        """Let nothing go wrong any more, and see that the fleet comes to rest."""
        self.world.heal()
        if self._kind == "silent":  # devices that die for good do not come to rest
            self.world.quality.clear()
        # Operators do their part: what is gone and came back with a backup is removed again, and what is
        # stopped goes on or ends.
        world, number = self.world, self.number
        with world.database.reading() as connection:
            enrolled = {row["device"] for row in list_devices(connection)}
        for name in sorted(enrolled - set(world.devices)):
            remove_device(world.database, name)
        for _ in range(20):
            world.run_until(lambda: at_rest(world, number), 24 * _HOUR)
            state = self.state
            if state is State.DRAFT or (state in ENDED and at_rest(world, number)):
                break
            if state in (State.PAUSED, State.HELD) and not stops_again(world, number):
                self.command("resume")
            elif state in (State.PAUSED, State.HELD, State.FAILED) or (
                state is State.RUNNING and cannot_pass(world, number)
            ):
                self.command("abort")
        check_end(world, number, self.oracle.withdrawn)


_EVENTS = ("pause", "hold", "resume", "abort", "roll_back", "quarantine", "remove", "add", "reflash", "clone",
           "partition", "back_up", "restore")  # fmt: skip


def run_seed(seed: int, memory: Memory | None = None) -> Scenario:
    """Run one seed to its end: a fleet of 5 to 40 devices, since few find most races and cost less.

    Args:
        seed: Of all chance.
        memory: Where the store is; None: a place of its own.

    Raises:
        InvariantError: Something that must never happen has happened.
    """
    chance = random.Random(seed)  # noqa: S311 (a simulation)
    (devices,) = chance.choices(((5, 14), (15, 28), (29, 40)), (70, 25, 5))
    return play(Scenario(seed, devices, pace_s=chance.choice([900, 1800, 3600]), memory=memory))


def play(scenario: Scenario) -> Scenario:
    """Run a scenario to its end, with random events.

    Raises:
        InvariantError: Something that must never happen has happened.
    """
    chance = scenario.random
    scenario.start()
    for _ in range(chance.randint(0, 4)):
        scenario.run(chance.randint(1, 6) * _HOUR)
        event = chance.choice(_EVENTS)
        if event in ("pause", "hold", "resume", "abort", "roll_back"):
            scenario.command(event)
        else:
            getattr(scenario, event)()
    scenario.run(chance.randint(1, 12) * _HOUR)
    scenario.heal()
    return scenario
