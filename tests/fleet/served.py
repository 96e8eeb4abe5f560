"""Served fleets, a real MQTT broker, and HTTP requests, for the tests of `test_http_*.py`."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
import urllib3

import edgeinfer as ei
from edgeinfer.fleet.device.phases import Phase
from edgeinfer.fleet.device.reports import Report
from edgeinfer.fleet.operator.fleet import Fleet
from edgeinfer.fleet.operator.server.options import ServerOptions
from edgeinfer.fleet.operator.server.running import background
from edgeinfer.fleet.operator.store.schema import audit, devices, report_log
from tests.fleet.toy_fleet import ToyFleet

TOKEN = "an operator's token"
OPTIONS = ServerOptions(token=TOKEN, interval=0.05)


def report(device, sequence, key, **fields):
    values = {
        "incarnation": 1,
        "at": 1_800_000_000,
        "model": "m",
        "phase": Phase.COMMITTED,
        "digest": "a" * 64,
    }
    return Report(device=device, sequence=sequence, **{**values, **fields}).to_bytes(key)


class Served:
    """A fleet and its server."""

    def __init__(self, fleet: Fleet, url: str) -> None:
        self.fleet, self.url = fleet, url
        self.http = urllib3.PoolManager(retries=False)

    def ask(self, method, path, **options):
        return self.http.request(method, self.url + path, redirect=False, **options)

    def post(self, path, body, **options):
        response = self.ask("POST", path, body=body, **options)
        return response.status, (response.json() if response.data.startswith(b"{") else response.data)

    def row(self, device):
        with self.fleet.database.reading() as connection:
            found = connection.execute(sa.select(devices).where(devices.c.device == device)).mappings()
            return found.first()

    def logged(self, device):
        with self.fleet.database.reading() as connection:
            statement = (
                sa.select(sa.func.count()).select_from(report_log).where(report_log.c.device == device)
            )
            return connection.execute(statement).scalar_one()

    def audit(self):
        with self.fleet.database.reading() as connection:
            return [row.reason for row in connection.execute(sa.select(audit.c.reason).order_by(audit.c.id))]


@contextmanager
def served(folder: Path, options: ServerOptions = OPTIONS) -> Iterator[Served]:
    ToyFleet(folder)
    fleet = ei.fleet.open(folder, passphrase=lambda _: None)
    with fleet, background(fleet, options) as url:
        found = Served(fleet, url)
        yield found
        found.http.clear()


def until(condition, seconds=20.0, *, every=0.01):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(every)
    return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class Broker:
    """mosquitto, as Debian has it."""

    def __init__(self, folder: Path, *, tls: tuple[Path, Path] | None = None) -> None:
        self.port = free_port()
        self._config = folder / "mosquitto.conf"
        lines = [f"listener {self.port} 127.0.0.1", "allow_anonymous true"]
        if os.getuid() == 0:
            lines.append("user root")  # else it becomes a user who cannot read the test's folder
        if tls is not None:
            lines += [f"certfile {tls[0]}", f"keyfile {tls[1]}"]
        self._config.write_text("\n".join(lines) + "\n")
        folder.chmod(0o755)
        self.url = f"mqtt://127.0.0.1:{self.port}"
        self._process = None
        self.start()

    def start(self) -> None:
        command = [_mosquitto(), "-c", str(self._config)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(self._answers)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1.0).close()
        except OSError:
            return False
        return True


def _mosquitto() -> str:
    found = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if found is None:
        if os.environ.get("CI") == "true":
            pytest.fail("CI needs mosquitto: apt-get install mosquitto")
        pytest.skip("mosquitto is not installed")
    return found


@contextmanager
def broker(folder: Path, **options) -> Iterator[Broker]:
    found = Broker(folder, **options)
    try:
        yield found
    finally:
        found.kill()
