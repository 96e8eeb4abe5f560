"""What a report costs the operator, and whether the planner's cost depends on the number of devices.

Usage: python benchmarks/fleet/ingest.py [DEVICES] [--database URL]

Figures are processor time of this process (PostgreSQL's own is beside it); the rates of a shared machine say
nothing. Reports are real: HMAC, canonical JSON, a live rollout with tallies, canary figures, a log.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
import time
from pathlib import Path

from edgeinfer.fleet import FailureRate, Regression, Stage
from edgeinfer.fleet.device.histogram import Histogram
from edgeinfer.fleet.device.phases import Phase
from edgeinfer.fleet.device.reports import Report
from edgeinfer.fleet.operator import commands
from edgeinfer.fleet.operator.controller import Controller
from edgeinfer.fleet.operator.evidence import Cell, Tallies
from edgeinfer.fleet.operator.outcomes import Counts, Motion, Outcome
from edgeinfer.fleet.operator.planner import plan
from edgeinfer.fleet.operator.publisher import Publisher
from edgeinfer.fleet.operator.record import Record, State
from edgeinfer.fleet.operator.simulator.world import MemoryShelf
from edgeinfer.fleet.operator.specification import Specification
from edgeinfer.fleet.operator.store.database import Database
from edgeinfer.fleet.operator.store.ingest import ingest
from edgeinfer.fleet.operator.store.inventory import DeviceRow, add_devices, save_release

KEY, OLD, NEW = b"k" * 32, "a" * 64, "b" * 64
SPECIFICATION = Specification(
    stages=[Stage(count=59, soak="6h"), Stage(percent=100)],
    gates=[FailureRate(max=0.05), Regression("latency_p99", margin=0.05)],
)


def reports(devices, sequence, phase, digest, generation=(0, 0)):
    latency = Histogram(10.0 + number % 7 for number in range(200))
    return [
        Report(
            device=f"d{n}",
            incarnation=1,
            sequence=sequence,
            at=0,
            model="m",
            generation=generation,
            phase=phase,
            digest=digest,
            metrics={"latency_ms": latency},
        ).to_bytes(KEY)
        for n in range(devices)
    ]


def timed(what, count, work):
    began, wall = time.process_time(), time.perf_counter()
    work()
    used, passed = time.process_time() - began, time.perf_counter() - wall
    print(f"{what:55} {1e6 * used / count:8.0f} us processor, {count / passed:8.0f} a second", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("devices", nargs="?", type=int, default=2000)
    parser.add_argument("--database")
    arguments = parser.parse_args()
    count = arguments.devices
    with tempfile.TemporaryDirectory() as folder:
        database = Database(arguments.database or str(Path(folder) / "fleet.db"))
        print(f"{count} devices, {database.url.get_backend_name()}")
        rows = [DeviceRow(device=f"d{n}", device_class="ab"[n % 2], site=f"s{n % 20}", key=KEY, incarnation=1)
                for n in range(count)]  # fmt: skip
        timed("enrol", count, lambda: add_devices(database, rows))
        for digest, version in ((OLD, "1"), (NEW, "2")):
            save_release(database, digest=digest, model="m", version=version)
        first = reports(count, 1, Phase.COMMITTED, OLD)
        timed("report with a histogram, no rollout (batches of 500)", count, lambda: ingest(database, first))
        number = commands.draft(database, model="m", release=NEW, specification=SPECIFICATION)
        timed("start: freeze a device", count, lambda: commands.start(database, number))
        controller = Controller(database, Publisher(MemoryShelf(), lambda _: ()))
        timed("tick: expose and publish a device (unsigned)", 59, controller.tick)
        timed("tick with nothing to do", 1, controller.tick)
        for sequence, phase, digest in ((2, Phase.ACCEPTED, OLD), (3, Phase.COMMITTED, NEW)):
            found = reports(count, sequence, phase, digest, (1, 1))
            timed(f"report in a rollout: {phase.value}", count, lambda found=found: ingest(database, found))
        one = reports(50, 4, Phase.COMMITTED, NEW, (1, 1))
        timed("report, one at a time", 50, lambda: [ingest(database, [data]) for data in one])
        database.close()
    for devices in (10**3, 10**5, 10**7):
        cells = {
            Cell(stage, name, f"s{site}"): Counts({(Outcome.WAITING, Motion.STILL): devices // 80})
            for stage in range(2)
            for name in "ab"
            for site in range(20)
        }
        record = Record(id=1, model="m", release=NEW, specification=SPECIFICATION, state=State.RUNNING)
        work = functools.partial(plan, Tallies(cells=cells), record, 0)
        timed(f"plan, 80 cells, {devices} devices", 20, lambda work=work: [work() for _ in range(20)])


if __name__ == "__main__":
    main()
