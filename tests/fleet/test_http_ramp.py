"""A ramp through the real server: on a bad network, and through kill -9 of the controller."""

from __future__ import annotations

import http.server
import subprocess
import sys
import threading
import time

import sqlalchemy as sa

import edgeinfer as ei
from edgeinfer.fleet import FailureRate, Stage
from edgeinfer.fleet.operator.simulator.faults import Quality
from edgeinfer.fleet.operator.simulator.network import BadNetwork
from edgeinfer.fleet.operator.simulator.served import ServedDevices
from edgeinfer.fleet.operator.store.inventory import DeviceRow, add_devices, save_release
from edgeinfer.fleet.operator.store.schema import members
from tests.fleet.served import free_port, served
from tests.fleet.toy_fleet import ToyFleet

KEY, NEW = b"k" * 32, "a" * 64
NAMES = [(f"d{n}", "small", f"s{n % 3}", KEY) for n in range(40)]


def plan(fleet):
    add_devices(fleet.database, [DeviceRow(device=d, device_class=c, site=s, key=k, incarnation=1)
                                 for d, c, s, k in NAMES])  # fmt: skip
    save_release(fleet.database, digest=NEW, model="m", version="1")
    return fleet.rollout(
        NEW, stages=[Stage(count=20), Stage(percent=100)], gates=[FailureRate(max=0.2)]
    ).start()


def devices_at(port, **options):
    return ServedDevices(
        NAMES,
        host="127.0.0.1",
        port=port,
        model="m",
        release="",
        quality={NEW: Quality()},
        threads=4,
        **options,
    )


def cohorts(fleet):
    with fleet.database.reading() as connection:
        rows = connection.execute(sa.select(members.c.device, members.c.stage, members.c.exposures))
        return {row.device: (row.stage, row.exposures) for row in rows}


def run_until_completed(devices, rollout, seconds=240.0):
    end = threading.Timer(seconds, lambda: None)
    end.start()
    devices.run(lambda: not end.is_alive() or rollout.state != "RUNNING")
    end.cancel()
    assert rollout.state == "COMPLETED"


def test_delays_cuts_and_partitions_keep_nothing_from_its_end(tmp_path):
    with served(tmp_path / "fleet") as server:
        rollout = plan(server.fleet)
        port = int(server.url.rpartition(":")[2])
        with BadNetwork(port, delay_s=0.005, cut=0.05, partition=0.3, partition_s=0.3) as network:
            devices = devices_at(network.port)
            run_until_completed(devices, rollout)
            devices.run(lambda: all(running == NEW for running in devices.running))
        assert network.cuts + network.partitions > 0
        assert devices.disturbed > 0
        assert {exposures for _, exposures in cohorts(server.fleet).values()} == {1}


def test_a_controller_that_is_killed_is_replaced_by_the_next(tmp_path):
    ToyFleet(tmp_path)
    port = free_port()
    command = [sys.executable, "-m", "edgeinfer", "fleet", "serve", str(tmp_path), "--port", str(port)]
    command += ["--interval", "0.05"]

    def start():
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    with ei.fleet.open(tmp_path, passphrase=lambda _: None) as fleet:
        rollout = plan(fleet)
        frozen = {device: stage for device, (stage, _) in cohorts(fleet).items()}
        devices = devices_at(port)
        server = start()
        try:
            for answered in (5, 60):  # reports that came before each kill
                devices.run(lambda answered=answered: devices.answered >= answered)
                server.kill()
                server.wait()
                server = start()
            run_until_completed(devices, rollout)
        finally:
            server.kill()
            server.wait()
        found = cohorts(fleet)
        assert {device: stage for device, (stage, _) in found.items()} == frozen
        assert {exposures for _, exposures in found.values()} == {1}
        assert devices.disturbed > 0


def test_a_ring_is_not_lost_with_a_connection_that_the_server_had_closed():
    asked = []

    class Closes(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            asked.append(self.path)
            self.send_response(304)
            self.end_headers()
            self.close_connection = True  # as after a while without requests; nothing tells the client

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Closes) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        devices, done = devices_at(server.server_port, poll_s=36_000.0), threading.Event()
        threading.Thread(target=devices.run, args=(done.is_set,), daemon=True).start()
        try:
            for count in (1, 2, 3):
                devices.ring("d0")
                end = time.monotonic() + 10
                while len(asked) < count and time.monotonic() < end:
                    time.sleep(0.01)
                assert len(asked) == count
        finally:
            done.set()
            server.shutdown()
