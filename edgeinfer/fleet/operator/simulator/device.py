"""`SimulatedDevice`: how a device behaves towards documents, as far as the operator's side can notice.

It keeps the rules of the real agent: it never goes back to an older generation, does not activate after the
lease, counts its reports, and keeps them until they were accepted.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from typing import final

from edgeinfer.fleet.device.histogram import Histogram
from edgeinfer.fleet.device.phases import Phase
from edgeinfer.fleet.device.reports import Metric, Report
from edgeinfer.fleet.operator.simulator.faults import Faults, Quality

__all__ = ["SimulatedDevice"]

_DOWNLOAD_S = (60, 600)
_SOAK_S = 600
_LATENCY_SPREAD, _DRIFT = 0.3, 0.03
_BUSY = (Phase.ACTIVATING, Phase.SOAKING)  # it does not do its work, or not for sure


@final
class SimulatedDevice:
    """One device with one model.

    Args:
        name: Its name.
        device_class: Its hardware class.
        site: Where it stands.
        key: Of its reports.
        model: Its model.
        release: What it runs at first.
        random_: Its own source of chance.
        faults: What goes wrong.
    """

    def __init__(self, *, name: str, device_class: str, site: str, key: bytes, model: str, release: str,
                 random_: random.Random, faults: Faults) -> None:  # fmt: skip
        self.name, self.device_class, self.site, self.key, self.model = name, device_class, site, key, model
        self.random = random_
        self.faults = faults
        self.incarnation = 1
        self.floor = (0, 0)
        self.committed = release
        self.running = release
        self.phase = Phase.COMMITTED if release else Phase.IDLE
        self.code = ""
        self.target = release
        self.lease = 0
        self.refused: set[str] = set()
        self.online = True
        self.dead = False
        self.reflashed = False  # and not yet provisioned again: a disturbance of its own
        self.spool: list[bytes] = []
        self.sequence = 0
        self.next_at: int | None = None
        self._latency = 10.0 * math.exp(random_.gauss(0, _LATENCY_SPREAD))
        self._slow = random_.random() < faults.slow
        lies = random_.random() < faults.lying_clock
        self.offset = int(random_.uniform(-faults.clock_s, faults.clock_s)) if lies else 0
        self._known: bytes | None = None  # a document that has nothing new, as the ETag of a real one says
        self._known_time = (0, 0)  # (a time that a signed document told, when that was)

    @property
    def disturbed(self) -> bool:
        """Whether it may not do its work because of an update."""
        return self.phase in _BUSY and not self.reflashed

    @property
    def has_news(self) -> bool:
        """Whether it has more to tell than its figures, which it always has again."""
        return any(b'"metrics":{}' in report for report in self.spool)

    def clock(self, now: int) -> int:
        """Return the time as the device believes it: never before what signed documents told."""
        return max(now + self.offset, self._told(now))

    def _told(self, now: int) -> int:
        told, at = self._known_time
        return told + now - at if told else 0

    def fetch(self, document: bytes | None, now: int) -> None:
        """Look at the document that the operator has for it."""
        if document is None or document is self._known or self.dead:
            return
        signed = json.loads(document)["signed"]
        if (signed["device"], signed["incarnation"]) != (self.name, self.incarnation):
            return
        found = next((a for a in signed["assignments"] if a["model"] == self.model), None)
        if found is None or tuple(found["generation"]) <= self.floor:
            self._known = document
            return
        self._known_time = (max(self._told(now), signed["issued_at"]), now)
        if found["start_before"] and self.clock(now) >= found["start_before"]:
            return
        self._accept(tuple(found["generation"]), found["release"], found["start_before"], now)

    def _accept(self, generation: tuple[int, int], release: str, lease: int, now: int) -> None:
        if self.phase is Phase.SOAKING and release == self.committed:
            lease = 0  # it goes back at once, and does not ask again whether it may
        self.floor, self.target, self.lease, self.code = generation, release, lease, ""
        if release in (self.committed, "") and self.running == self.committed:
            self.committed = self.running = release
            self._report(Phase.COMMITTED if release else Phase.IDLE, now)
            self.next_at = None
            return
        self._report(Phase.ACCEPTED, now)
        download = self.random.uniform(*_DOWNLOAD_S) * (20 if self._slow else 1)
        back = release == self.committed
        self.next_at = now + (30 if back else int(download))

    def step(self, now: int, quality: Mapping[str, Mapping[str, Quality] | Quality]) -> None:
        """Do what is due.

        Args:
            now: The true time.
            quality: Release -> how it fares.
        """
        self.next_at = None
        if self.dead:
            return
        fares = Quality.of(quality.get(self.target, Quality()), self.device_class)
        if self.random.random() < self.faults.reboot and self.phase is not Phase.COMMITTED:
            self.next_at = now + 60
        elif self.phase is Phase.ACCEPTED:
            self._install(fares, now)
        elif self.phase is Phase.ACTIVATING:
            self.running = self.target
            self._report(Phase.SOAKING, now)
            self.next_at = now + _SOAK_S
        elif self.phase is Phase.SOAKING:
            self._finish(fares, now)
        elif self.phase is Phase.COMMITTED and self.code == "doomed":
            self._report(Phase.DEGRADED, now, "late")

    def _install(self, fares: Quality, now: int) -> None:
        if self.lease and self.clock(now) >= self.lease:
            self.end(Phase.REJECTED, now, "lease")
        elif self.target == self.committed:  # back to what was: it works
            self._report(Phase.ACTIVATING, now)
            self.next_at = now + 10
        elif self.random.random() < fares.transient:
            self._report(Phase.FAILED, now, "download")
        elif self.random.random() < fares.silent:
            self.dead = True
        elif self.target in self.refused or self.random.random() < fares.rejected:
            self.refused.add(self.target)
            self._report(Phase.REJECTED, now, "latency_p99_ms")
        elif self.random.random() < fares.failed:
            self._report(Phase.FAILED, now, "golden")
        else:
            self._report(Phase.ACTIVATING, now)
            self.next_at = now + 10

    def end(self, phase: Phase, now: int, code: str) -> None:
        """End the update without having installed it."""
        self.next_at = None
        self._report(phase, now, code)

    def _finish(self, fares: Quality, now: int) -> None:
        if self.target != self.committed and self.random.random() < fares.rolled_back:
            self.running = self.committed
            self._report(Phase.ROLLED_BACK, now, "errors")
            return
        self.committed = self.running = self.target
        self.reflashed = False
        self._report(Phase.COMMITTED, now)
        if self.random.random() < fares.late:
            self.code = "doomed"
            self.next_at = now + int(self.random.uniform(600, 86_400))

    def reflash(self, now: int) -> None:
        """Lose everything but the name and the key."""
        self.incarnation += 1
        self.floor, self.sequence, self.spool, self._known = (0, 0), 0, [], None
        self.committed = self.running = self.target = ""
        self.next_at, self.dead, self.reflashed = None, False, True
        self._report(Phase.IDLE, now)

    def heartbeat(self, now: int, quality: Mapping[str, Mapping[str, Quality] | Quality]) -> None:
        """Report the latency of what runs, and where things stand."""
        if self.dead:
            return
        fares = Quality.of(quality.get(self.running, Quality()), self.device_class)
        latency = self._latency * (1 + fares.slower) * math.exp(self.random.gauss(0, _DRIFT))
        self._report(self.phase, now, self.code if self.code != "doomed" else "", {"latency_p99_ms": latency})

    def _report(
        self, phase: Phase, now: int, code: str = "", metrics: Mapping[str, Histogram | float] | None = None
    ) -> None:
        self.phase = phase
        if self.code != "doomed" or phase is not Phase.COMMITTED:
            self.code = code
        self.sequence += 1
        values: dict[str, Metric] = dict(metrics or {})
        report = Report(
            device=self.name,
            incarnation=self.incarnation,
            sequence=self.sequence,
            at=max(0, self.clock(now)),
            model=self.model,
            generation=self.floor,
            phase=phase,
            code=code,
            digest=self.running,
            metrics=values,
        )
        self.spool.append(report.to_bytes(self.key))
