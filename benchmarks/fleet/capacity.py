"""Reports of N devices through HTTP into the store: processor time a report, and reports a second.

    python benchmarks/fleet/capacity.py 2000                                    # SQLite
    python benchmarks/fleet/capacity.py 10000 postgresql+psycopg://host/fleet   # an empty database

The server is a process of its own, like `edgeinfer fleet serve --no-controller`. Each device sends its
report over a connection that stays open, one a request; then a gateway sends as many, 500 a request. A live
rollout has all devices as members, so that each report is judged and counted. Trust the processor times;
rates depend on how many cores are free.
"""

from __future__ import annotations

import argparse
import http.client
import multiprocessing
import os
import random
import sys
import tempfile
import threading
import time
from pathlib import Path

from edgeinfer.fleet.device.histogram import Histogram
from edgeinfer.fleet.device.phases import Phase
from edgeinfer.fleet.device.reports import Report
from edgeinfer.fleet.operator import commands
from edgeinfer.fleet.operator.ceremonies import create_repository
from edgeinfer.fleet.operator.fleet import Fleet
from edgeinfer.fleet.operator.gates import FailureRate
from edgeinfer.fleet.operator.opening import open_fleet, open_repository
from edgeinfer.fleet.operator.server.options import ServerOptions
from edgeinfer.fleet.operator.server.running import serve
from edgeinfer.fleet.operator.specification import Specification
from edgeinfer.fleet.operator.stages import Stage
from edgeinfer.fleet.operator.store.inventory import DeviceRow, add_devices, save_release

KEY = b"k" * 32
OLD, NEW = "a" * 64, "b" * 64
GATEWAY = 500


def make(folder: Path, url: str | None, count: int) -> None:
    """Make a fleet of `count` devices with a live rollout."""
    create_repository(open_repository(folder, passphrase=lambda _: None), encrypt=False)
    with open_fleet(folder, passphrase=lambda _: None, database=url) as fleet:
        database = fleet.database
        add_devices(database, [DeviceRow(device=f"d{n}", device_class=f"class-{n % 4}", site=f"site-{n % 50}",
                                         key=KEY, incarnation=1) for n in range(count)])  # fmt: skip
        save_release(database, digest=NEW, model="m", version="2")
        specification = Specification(
            stages=[Stage(percent=50), Stage(percent=100)], gates=[FailureRate(max=0.1)]
        )
        number = commands.draft(database, model="m", release=NEW, specification=specification)
        commands.start(database, number)


def run_server(folder: Path, url: str | None, port: int) -> None:
    fleet: Fleet = open_fleet(folder, passphrase=lambda _: None, database=url)
    serve(fleet, ServerOptions(controller=False), port=port)


def reports(count: int, sequence: int) -> list[bytes]:
    rng = random.Random(sequence)
    found = []
    for n in range(count):
        latency = Histogram()
        for _ in range(50):
            latency.add(rng.lognormvariate(1.0, 0.2))
        report = Report(device=f"d{n}", incarnation=1, sequence=sequence, at=1_800_000_000, model="m",
                        generation=(1, 1), phase=Phase.COMMITTED, code="serving", digest=OLD,
                        metrics={"latency_ms": latency, "temperature_c": 51.5, "errors": 0.0})  # fmt: skip
        found.append(report.to_bytes(KEY))
    rng.shuffle(found)
    return found


def send(port: int, bodies: list[bytes], clients: int) -> list[float]:
    """Send bodies from several threads; return the seconds until each was answered."""
    took: list[float] = []

    def work(own: list[bytes]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        for body in own:
            begun = time.perf_counter()
            connection.request("POST", "/reports", body)
            response = connection.getresponse()
            answer = response.read()
            assert response.status == 200, answer
            assert b'"refused": []' in answer, answer
            took.append(time.perf_counter() - begun)
        connection.close()

    threads = [threading.Thread(target=work, args=(bodies[k::clients],)) for k in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(took)


def cpu_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("devices", type=int)
    parser.add_argument("database", nargs="?", help="a URL of SQLAlchemy; SQLite without it")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--port", type=int, default=18_080)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="edgeinfer-capacity-")) / "fleet"
    make(folder, arguments.database, arguments.devices)
    server = multiprocessing.get_context("spawn").Process(
        target=run_server, args=(folder, arguments.database, arguments.port), daemon=True
    )
    server.start()
    while True:
        try:
            http.client.HTTPConnection("127.0.0.1", arguments.port).request("GET", "/healthz")
            break
        except OSError:
            time.sleep(0.1)
    where = "SQLite" if arguments.database is None else "PostgreSQL"
    python = sys.version.split()[0]
    print(f"{arguments.devices} devices, {where}, {arguments.clients} connections, Python {python}")
    single = reports(arguments.devices, 1)
    many = reports(arguments.devices, 2)
    batches = [b"\n".join(many[k : k + GATEWAY]) for k in range(0, len(many), GATEWAY)]
    nothing = [b""] * arguments.devices
    for name, bodies in (
        ("HTTP alone, no report", nothing),
        ("one report a request", single),
        (f"{GATEWAY} reports a request", batches),
    ):
        before, own, begun = cpu_of(server.pid), time.process_time(), time.perf_counter()
        took = send(arguments.port, bodies, min(arguments.clients, len(bodies)))
        seconds = time.perf_counter() - begun
        used, client = cpu_of(server.pid) - before, time.process_time() - own
        count = arguments.devices
        print(
            f"{name:>24}: server {1e6 * used / count:6.0f} µs of processor time a report, "
            f"client {1e6 * client / count:5.0f} µs, {count / seconds:7.0f} reports/s, "
            f"p50 {1e3 * took[len(took) // 2]:.0f} ms, p99 {1e3 * took[int(0.99 * (len(took) - 1))]:.0f} ms"
        )
    print(f"memory of the server: {rss_of(server.pid) / 2**20:.0f} MiB; "
          f"a report has {sum(map(len, single)) / len(single):.0f} bytes")  # fmt: skip
    server.terminate()
    server.join()


if __name__ == "__main__":
    main()
