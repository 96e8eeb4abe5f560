"""`ServedDevices`: simulated devices that talk to a real server over HTTP, as many as one process can carry.

The devices are those of the simulator, with its rules; the server, its store and its controller are real, and
so is time, but for what a device takes to download and to soak: that is left out.
"""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import final

import attrs

from edgeinfer.fleet.operator.simulator.device import SimulatedDevice
from edgeinfer.fleet.operator.simulator.faults import NO_FAULTS, Quality

__all__ = ["ServedDevices"]

_TIMEOUT_S = 30.0
_FAILED = (b'"phase":"failed"', b'"phase":"rolled_back"')


@final
@attrs.define
class _Known:
    """What a device remembers of its document."""

    device: SimulatedDevice
    etag: str = ""
    look_at: float = 0.0  # by the monotonic clock


@final
class ServedDevices:
    """Many devices of one fleet.

    Args:
        devices: (name, class, site, key) of each.
        host: The server.
        port: Its port.
        model: The model that they run.
        release: What they run at first.
        quality: Release -> how it fares on them.
        threads: How many connections there are.
        poll_s: How often each device looks for its document when nobody rings; 0: without pause.
        documents: The server's folder of documents, if it is on this machine: to measure by.
        seed: Of all chance.

    Attributes:
        delays_s: For each new document, the seconds from its publication to when the device had it.
        answered: Reports that the server accepted.
        failed_at: When the server had accepted each report of a failure (`time.time`).
        disturbed: Requests that failed: the server was away, or the network broke.
    """

    def __init__(self, devices: Sequence[tuple[str, str, str, bytes]], *, host: str, port: int, model: str,
                 release: str, quality: dict[str, Quality], threads: int = 8, poll_s: float = 0.0,
                 documents: Path | None = None, seed: int = 0) -> None:  # fmt: skip
        chance = random.Random(seed)  # noqa: S311 (a simulation)
        self._known = [
            _Known(
                SimulatedDevice(
                    name=name,
                    device_class=device_class,
                    site=site,
                    key=key,
                    model=model,
                    release=release,
                    random_=random.Random(chance.random()),  # noqa: S311
                    faults=NO_FAULTS,
                )
            )
            for name, device_class, site, key in devices
        ]
        self._address = (host, port)
        self._quality = quality
        self._by_name = {known.device.name: known for known in self._known}
        self._threads = threads
        self._poll_s = poll_s
        for known in self._known:  # they were switched on at some time
            known.look_at = time.monotonic() + chance.random() * poll_s
        self._documents = documents
        self.delays_s: list[float] = []
        self.failed_at: list[float] = []
        self.answered = self.disturbed = self.polls = 0
        self._lock = threading.Lock()

    @property
    def running(self) -> list[str]:
        """What each device runs."""
        return [known.device.running for known in self._known]

    @property
    def busy(self) -> int:
        """How many devices have not heard of a document yet, work on one, or have something to say."""
        found = (known.device for known in self._known)
        return sum(d.floor == (0, 0) or d.next_at is not None or bool(d.spool) for d in found)

    def ring(self, name: str) -> None:
        """Let a device look for its document now. From any thread."""
        if name in self._by_name:
            self._by_name[name].look_at = 0.0

    def run(self, done: Callable[[], bool]) -> None:
        """Let all devices poll, work and report, in turn, until `done` says so; each thread asks it."""
        threads = [
            threading.Thread(target=self._work, args=(self._known[k :: self._threads], done), daemon=True)
            for k in range(self._threads)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _work(self, own: list[_Known], done: Callable[[], bool]) -> None:
        connection = http.client.HTTPConnection(*self._address, timeout=_TIMEOUT_S)
        while not done():
            busy = False
            for known in own:
                if (
                    time.monotonic() < known.look_at
                    and known.device.next_at is None
                    and not known.device.spool
                ):
                    continue
                busy = True
                try:
                    self._turn(connection, known)
                except (OSError, http.client.HTTPException, ValueError, LookupError):  # of cut answers, too
                    # A server closes connections that are idle between two polls: a ring must survive that.
                    known.look_at = 0.0
                    connection.close()
                    with self._lock:
                        self.disturbed += 1
                    time.sleep(0.05)
            if not busy:
                time.sleep(0.01)
        connection.close()

    def _turn(self, connection: http.client.HTTPConnection, known: _Known) -> None:
        """Let one device look for its document, take one step, and send what it has to say."""
        device, now = known.device, int(time.time())
        known.look_at = time.monotonic() + self._poll_s
        headers = {"If-None-Match": known.etag} if known.etag else {}
        connection.request("GET", f"/desired/{device.name}.json", headers=headers)
        response = connection.getresponse()
        document = response.read()
        with self._lock:
            self.polls += 1
        if response.status == 200:
            floor = device.floor
            device.fetch(document, now)
            known.etag = response.headers.get("ETag", "")
            if device.floor > floor:
                self._measure(device, document)
        if device.next_at is not None:
            device.step(now, self._quality)
        if device.spool:
            self._send(connection, device)

    def _send(self, connection: http.client.HTTPConnection, device: SimulatedDevice) -> None:
        connection.request("POST", f"/reports/{device.name}", b"\n".join(device.spool))
        response = connection.getresponse()
        answer = response.read()
        if response.status != 200:
            return  # it keeps them, and comes again
        accepted = json.loads(answer)["accepted"]
        sent, device.spool = device.spool[:accepted], device.spool[accepted:]
        failures = sum(any(phase in report for phase in _FAILED) for report in sent)
        with self._lock:
            self.answered += accepted
            self.failed_at += [time.time()] * failures

    def _measure(self, device: SimulatedDevice, document: bytes) -> None:
        if self._documents is None:
            return
        path = self._documents / f"{device.name}.json"
        if path.read_bytes() == document:  # else it was replaced meanwhile
            delay = time.time() - path.stat().st_mtime
            with self._lock:
                self.delays_s.append(delay)
