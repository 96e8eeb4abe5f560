"""`World`: devices, network and controller on one virtual clock and one seed."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any, final

from edgeinfer.fleet.operator.controller import Controller
from edgeinfer.fleet.operator.publisher import Publisher
from edgeinfer.fleet.operator.simulator.device import SimulatedDevice
from edgeinfer.fleet.operator.simulator.faults import NO_FAULTS, Faults, Quality
from edgeinfer.fleet.operator.simulator.memory import Memory
from edgeinfer.fleet.operator.store.database import Database
from edgeinfer.fleet.operator.store.ingest import ingest
from edgeinfer.fleet.operator.store.inventory import DeviceRow, add_devices

__all__ = ["START", "MemoryShelf", "World"]

START = 1_800_000_000
_KEY = b"simulated" * 4


@final
class MemoryShelf:
    """Documents in memory; see `publisher.Shelf`."""

    def __init__(self) -> None:
        self.documents: dict[str, bytes] = {}
        self.on_put: Callable[[str, bytes], None] = lambda _device, _document: None
        self._anchor = 0

    def put(self, device: str, document: bytes) -> None:
        """See `Shelf`."""
        self.on_put(device, document)
        self.documents[device] = document

    def anchor(self) -> int:
        """See `Shelf`."""
        return self._anchor

    def set_anchor(self, number: int) -> None:
        """See `Shelf`."""
        self._anchor = number


@final
class World:
    """A fleet in virtual time.

    Args:
        seed: All chance comes from it.
        faults: What goes wrong.
        model: The model that the devices run.
        release: Its digest at first.
        poll_s: How often a device looks for documents, and sends its reports.
        heartbeat_s: How often it reports its figures.
        controller_s: How often the controller ticks.
        database: The store; None: one in memory.
        memory: Where that is; None: a place of its own.
        start: When it begins, in seconds since 1970.
    """

    def __init__(self, *, seed: int, faults: Faults = NO_FAULTS, model: str = "m", release: str = "",
                 poll_s: int = 300, heartbeat_s: int = 3600, controller_s: int = 300,
                 database: Database | None = None, memory: Memory | None = None,
                 start: int = START) -> None:  # fmt: skip
        self.random = random.Random(seed)  # noqa: S311 (a simulation)
        self.now = start
        self.faults = faults
        self.model, self.release = model, release
        self.quality: dict[str, Mapping[str, Quality] | Quality] = {}
        self.devices: dict[str, SimulatedDevice] = {}
        self.clones: list[SimulatedDevice] = []
        self.cloned: set[str] = set()  # names that two devices have or had: what one does is held for both
        self.database = database or (memory or Memory()).anew(lambda: self.now)
        self.shelf = MemoryShelf()
        self.controller = Controller(self.database, Publisher(self.shelf, lambda _: ()))
        self.on_step: Callable[[SimulatedDevice], None] = lambda _device: None
        self.on_tick: Callable[[], None] = lambda: None
        self.changed = 0  # what the last tick changed
        self.partitioned = False  # nothing reaches the operator, and nothing is fetched
        self._poll_s, self._heartbeat_s, self._controller_s = poll_s, heartbeat_s, controller_s
        self._events: list[tuple[int, int, str, Any]] = []
        self._count = 0
        self._inbox: list[bytes] = []
        self._at(self.now, "tick", None)

    def add(self, rows: Iterable[DeviceRow]) -> None:
        """Enrol devices and switch them on."""
        added = list(rows)
        add_devices(
            self.database,
            [
                DeviceRow(
                    device=row.device,
                    device_class=row.device_class,
                    site=row.site,
                    labels=row.labels,
                    key=_KEY,
                    incarnation=1,
                )
                for row in added
            ],
        )
        for row in added:
            device = self._made(row)
            self.devices[row.device] = device
            device.heartbeat(self.now, self.quality)
            self._at(self.now + self.random.randrange(self._poll_s), "poll", device)
            self._at(self.now + self.random.randrange(self._heartbeat_s), "heartbeat", device)

    def clone(self, name: str) -> None:
        """Let a second device go by the name of another."""
        original = self.devices[name]
        twin = self._made(DeviceRow(device=name, device_class=original.device_class, site=original.site))
        twin.floor, twin.sequence, twin.incarnation = original.floor, original.sequence, original.incarnation
        self.clones.append(twin)
        self.cloned.add(name)
        self._at(self.now + self.random.randrange(self._poll_s), "poll", twin)
        self._at(self.now + self.random.randrange(self._heartbeat_s), "heartbeat", twin)

    def run(self, seconds: int) -> None:
        """Let time pass."""
        self.run_until(lambda: False, seconds)

    def run_until(self, done: Callable[[], bool], seconds: int) -> bool:
        """Let time pass until something holds (it is asked at each tick); False if it never did."""
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            at, _, kind, item = heapq.heappop(self._events)
            self.now = max(self.now, at)
            if kind == "tick":
                self.tick()
                self._at(self.now + self._controller_s, "tick", None)
                if done():
                    return True
            elif kind == "deliver":
                self._inbox += item
            else:
                self._act(kind, item)
        self.now = end
        return done()

    def tick(self) -> None:
        """Take reports in, let the controller look once."""
        if not self.partitioned:
            arrived, self._inbox = self._inbox, []
            if arrived:
                ingest(self.database, arrived)
        self.changed = self.controller.tick()
        self.on_tick()

    def heal(self) -> None:
        """Let nothing go wrong from now on."""
        self.faults, self.partitioned = NO_FAULTS, False
        self.clones.clear()
        for device in self.devices.values():
            device.faults, device.offset = NO_FAULTS, 0
            if not device.online:
                device.online = True
            if device.dead:
                device.dead = False
                device.next_at = self.now + 60
            self._plan_step(device)

    def reflash(self, name: str) -> None:
        """Let a device lose all but its name and key."""
        self.devices[name].reflash(self.now)

    def _made(self, row: DeviceRow) -> SimulatedDevice:
        return SimulatedDevice(
            name=row.device,
            device_class=row.device_class,
            site=row.site,
            key=_KEY,
            model=self.model,
            release=self.release,
            random_=random.Random(self.random.random()),  # noqa: S311
            faults=self.faults,
        )

    def _at(self, when: int, kind: str, item: Any) -> None:
        self._count += 1
        heapq.heappush(self._events, (when, self._count, kind, item))

    def _act(self, kind: str, device: SimulatedDevice) -> None:
        if device is not self.devices.get(device.name) and device not in self.clones:
            return  # it was taken away
        if kind == "poll":
            self._poll(device)
        elif kind == "heartbeat":
            device.heartbeat(self.now, self.quality)
            self._at(self.now + self._heartbeat_s, "heartbeat", device)
        elif kind == "step" and device.next_at is not None and device.next_at <= self.now:
            device.step(self.now, self.quality)
            self.on_step(device)
            self._plan_step(device)

    def _poll(self, device: SimulatedDevice) -> None:
        # Offline spells begin at a poll, so that on average the share `offline` of the time is spent in them.
        share, spell = self.faults.offline, self.faults.offline_s
        if not device.online:
            device.online = True
        elif share and self.random.random() < share / (1 - share) * self._poll_s / spell:
            device.online = False
            self._at(self.now + max(1, int(self.random.expovariate(1 / spell))), "poll", device)
            return
        self._at(self.now + self._poll_s, "poll", device)
        if self.partitioned or device.dead:
            return
        device.fetch(self.shelf.documents.get(device.name), self.now)
        self._send(device)
        self._plan_step(device)

    def _send(self, device: SimulatedDevice) -> None:
        for report in device.spool:
            copies = 2 if self.random.random() < self.faults.duplicate else 1
            for _ in range(copies):
                delay = int(self.random.expovariate(1 / self.faults.delay_s)) if self.faults.delay_s else 0
                self._at(self.now + delay, "deliver", [report])
        if self.random.random() >= self.faults.lost_answer:
            device.spool = []

    def _plan_step(self, device: SimulatedDevice) -> None:
        if device.next_at is not None:
            self._at(max(device.next_at, self.now), "step", device)
