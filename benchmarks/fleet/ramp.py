"""A ramp over N devices through the real server, with what may be killed killed at random points.

    python benchmarks/fleet/ramp.py 10000                        # SQLite
    python benchmarks/fleet/ramp.py 10000 --postgres             # a PostgreSQL server of this run's own
    python benchmarks/fleet/ramp.py 500 --kills 20               # kill -9 of the controller
    python benchmarks/fleet/ramp.py 500 --kills 20 --postgres    # and of the database
    python benchmarks/fleet/ramp.py 500 --doorbell --drop 0.12   # a broker that loses 12 % of the rings
    python benchmarks/fleet/ramp.py 500 --bad-network            # delays, cuts and partitions

The server is a process of its own (`edgeinfer fleet serve`), the devices are simulated ones in this process:
20 % are offline for good, and 5 % fail. How many of each stage are online is printed: where too few are, the
stage waits for ever, as it should. First a release that is good enough goes to all; then one that fails on
40 %, until the gate stops it. Devices poll without pause, so delays are those of a fleet at its limit; with
the doorbell once in `--poll-s`, and when it rings (one client of the broker hears for all of them).
After a kill the same cohorts must go on, and nothing may happen twice.
"""

from __future__ import annotations

import argparse
import collections
import math
import random
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from servers import Process, mosquitto, postgres, serve

from edgeinfer.fleet import FailureRate, Rejected, Stage
from edgeinfer.fleet.device.mqtt import QOS, make_client, start
from edgeinfer.fleet.operator.ceremonies import create_repository
from edgeinfer.fleet.operator.opening import open_fleet, open_repository
from edgeinfer.fleet.operator.simulator.faults import Quality
from edgeinfer.fleet.operator.simulator.network import BadNetwork
from edgeinfer.fleet.operator.simulator.served import ServedDevices
from edgeinfer.fleet.operator.store.inventory import DeviceRow, add_devices, save_release
from edgeinfer.fleet.operator.store.schema import audit, members, rollouts, slots

KEY = b"k" * 32
GOOD, BAD = "a" * 64, "b" * 64
QUALITY = {GOOD: Quality(failed=0.05), BAD: Quality(failed=0.40)}
GATES = [FailureRate(max=0.15, min_reached=0.6), Rejected(max=0.15, min_reached=0.6)]
LONGEST_S = 3_000.0


def listen(url: str, devices: ServedDevices, drop: float) -> object:
    """Hear the rings for all devices, but for those that are lost."""
    client = make_client(url, "all-devices")
    client.on_connect = lambda client, *_: client.subscribe("edgeinfer/desired/+", qos=QOS)

    def on_message(_client: object, _data: object, message: Any) -> None:
        if random.random() >= drop:
            devices.ring(message.topic.rpartition("/")[2])

    client.on_message = on_message
    start(client, url)
    return client


class Run:
    """A fleet, its server, and devices that never stop."""

    def __init__(self, folder: Path, url: str | None, doorbell: str | None, arguments: Any) -> None:
        count = arguments.devices
        self.count = count
        create_repository(open_repository(folder, passphrase=lambda _: None), encrypt=False)
        self.fleet = open_fleet(folder, passphrase=lambda _: None, database=url)
        rows = [
            DeviceRow(
                device=f"d{n}", device_class=f"class-{n % 4}", site=f"site-{n % 50}", key=KEY, incarnation=1
            )
            for n in range(count)
        ]
        add_devices(self.fleet.database, rows)
        for digest, version in ((GOOD, "1"), (BAD, "2")):
            save_release(self.fleet.database, digest=digest, model="m", version=version)
        self.server, port = serve(folder, url, doorbell)
        online = [(row.device, row.device_class, row.site, KEY) for row in rows if random.random() < 0.8]
        self.online = [name for name, *_ in online]
        self.network = None
        if arguments.bad_network:
            self.network = BadNetwork(port, delay_s=0.02, cut=0.02, partition=0.2, partition_s=2.0)
            port = self.network.__enter__().port
        self.devices = ServedDevices(
            online, host="127.0.0.1", port=port, model="m", release="", quality=QUALITY,
            threads=32,
            poll_s=arguments.poll_s if doorbell else 0.0,
            documents=folder / "repository" / "desired",
        )  # fmt: skip
        self.client = listen(doorbell, self.devices, arguments.drop) if doorbell else None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self.devices.run, args=(self._done.is_set,), daemon=True)
        self._thread.start()

    def state(self, rollout: int) -> str:
        with self.fleet.database.reading() as connection:
            found = connection.execute(sa.select(rollouts.c.state).where(rollouts.c.id == rollout))
            return str(found.scalar_one())

    def roll_out(self, release: str, kill: list[tuple[str, Process]], kills: int) -> tuple[str, float]:
        """Return the state in the end, and when it was first seen (`time.time`)."""
        first = Stage(count=max(30, self.count // 10), quantile=0.6, timeout="1h")
        stages = [first, *(Stage(percent=p, quantile=0.6, timeout="1h") for p in (75, 100))]
        rollout = self.fleet.rollout(release, stages=stages, gates=GATES, on_fail="rollback")
        rollout.start()
        cohorts = self.cohorts(rollout.id)
        self.tell_stages(cohorts)
        end = time.monotonic() + LONGEST_S
        state, seen, killed, waits = "RUNNING", 0.0, collections.Counter(), random.uniform(1, 5)
        next_kill = time.monotonic() + waits
        while time.monotonic() < end:
            try:
                now = self.state(rollout.id)
            except sa.exc.DBAPIError:
                now = state
            if now != state:
                state, seen = now, time.time()
            if state != "RUNNING":
                break
            if killed.total() < kills and time.monotonic() > next_kill:
                name, process = random.choice(kill)
                process.kill()
                killed[name] += 1
                time.sleep(random.uniform(0, 1))
                process.start()
                next_kill = time.monotonic() + random.uniform(1, 5)
            time.sleep(0.02)
        if kills:
            same = self.cohorts(rollout.id) == cohorts
            print(f"  killed: {dict(killed)}; the same cohorts: {same}; {self.twice(rollout.id)}", flush=True)
        return state, seen

    def settle(self) -> None:
        """Wait until every device that is online has done what it was told, and said so."""
        end = time.monotonic() + LONGEST_S
        while time.monotonic() < end and (left := self.devices.busy):
            time.sleep(0.2)
        online = len(self.devices.running)
        have = sum(bool(running) for running in self.devices.running)
        print(f"  {online - left} of {online} devices that are online did what they were told", flush=True)
        print(f"  {have} of them run the release, the others failed", flush=True)

    def tell_stages(self, cohorts: dict[str, int]) -> None:
        """Print how many devices of each stage are online, and how many of it a gate must hear of."""
        sizes = collections.Counter(cohorts.values())
        online = collections.Counter(cohorts[name] for name in self.online)
        needed = GATES[0].min_reached
        print("  online: " + ", ".join(f"{online[n]} of {sizes[n]} (of which the gates need "
              f"{math.ceil(needed * sizes[n] - 1e-9)})" for n in sorted(sizes)), flush=True)  # fmt: skip

    def cohorts(self, rollout: int) -> dict[str, int]:
        with self.fleet.database.reading() as connection:
            found = connection.execute(
                sa.select(members.c.device, members.c.stage).where(members.c.rollout == rollout)
            )
            return {row.device: row.stage for row in found}

    def twice(self, rollout: int) -> str:
        """Say how many devices were exposed twice, and how many moves the audit log has twice."""
        with self.fleet.database.reading() as connection:
            again = sa.select(sa.func.count()).where(members.c.rollout == rollout, members.c.exposures > 1)
            moves = sa.select(audit.c.reason).where(audit.c.rollout == rollout, audit.c.action != "expose")
            repeated = [
                reason for reason, n in collections.Counter(connection.scalars(moves)).items() if n > 1
            ]
            above = sa.select(sa.func.max(slots.c.number))
            return (
                f"{connection.scalar(again)} devices exposed twice, {len(repeated)} moves twice, "
                f"highest generation {connection.scalar(above)}"
            )

    def close(self) -> None:
        self._done.set()
        self._thread.join()
        if self.client is not None:
            self.client.loop_stop()
        if self.network is not None:
            self.network.__exit__()
            print(f"the network: {self.network.cuts} connections cut, {self.network.partitions} partitions")
        self.server.kill()
        self.fleet.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("devices", type=int)
    parser.add_argument("--postgres", action="store_true", help="start a PostgreSQL server for this run")
    parser.add_argument(
        "--kills", type=int, default=0, help="how often something is killed in the first ramp"
    )
    parser.add_argument("--doorbell", action="store_true", help="start a broker that rings at the devices")
    parser.add_argument("--drop", type=float, default=0.0, help="the share of the rings that are lost")
    parser.add_argument("--poll-s", type=float, default=300.0, help="how often devices look without a ring")
    parser.add_argument("--bad-network", action="store_true", help="devices go through a proxy that disturbs")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    with tempfile.TemporaryDirectory(prefix="edgeinfer-ramp-") as scratch:
        Path(scratch).chmod(0o755)
        kill, url, doorbell = [], None, None
        if arguments.postgres:
            database, url = postgres(Path(scratch) / "postgres")
            kill.append(("database", database))
        if arguments.doorbell:
            broker, doorbell = mosquitto(Path(scratch))
            kill.append(("broker", broker))
        began = time.monotonic()
        run = Run(Path(scratch) / "fleet", url, doorbell, arguments)
        kill.append(("controller", run.server))
        where = run.fleet.database.url.get_backend_name()
        print(f"{arguments.devices} devices, {where}, ready in {time.monotonic() - began:.0f} s", flush=True)
        for name, release, kills in (("good", GOOD, arguments.kills), ("bad", BAD, 0)):
            run.server.look()
            before, reports, polls = (
                run.server.cpu_s + run.server.now_s,
                run.devices.answered,
                run.devices.polls,
            )
            run.devices.delays_s.clear()
            run.devices.failed_at.clear()
            began = time.monotonic()
            state, seen = run.roll_out(release, kill, kills)
            took = time.monotonic() - began
            run.server.look()
            if state == "COMPLETED":
                run.settle()
            cpu = run.server.cpu_s + run.server.now_s - before
            reports, polls = run.devices.answered - reports, run.devices.polls - polls
            delays = sorted(run.devices.delays_s) or [float("nan")]
            print(
                f"{name}: {state} after {took:.0f} s; {reports} reports, {reports / took:.0f} a second; "
                f"{polls} polls; publish to device p50 {delays[len(delays) // 2]:.2f} s, "
                f"p99 {delays[int(0.99 * (len(delays) - 1))]:.2f} s; server {cpu:.1f} s of processor time = "
                f"{100 * cpu / took:.0f} %, {run.server.rss / 2**20:.0f} MiB; "
                f"{run.devices.disturbed} requests failed",
                flush=True,
            )
        failed = run.devices.failed_at
        if failed and seen:
            before_end = [at for at in failed if at <= seen]
            print(
                f"the gate stopped it {seen - failed[0]:.2f} s after the first report of a failure, "
                f"and {seen - before_end[-1]:.2f} s after the last before it; {len(before_end)} had come"
            )
        run.close()
        for _, process in kill[:-1]:
            process.kill()


if __name__ == "__main__":
    main()
