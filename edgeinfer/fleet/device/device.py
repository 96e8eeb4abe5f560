"""`Device`: the folder of an agent with all that its state machine works with, and how it notes what it does.

device.json  lock  state.json  spool.db          who it is, one agent at a time, the journal, reports
current -> generations/N  generations/  installed/   what runs (see `generations`)
blobs/  metadata/                                what was downloaded, and whom it trusts
run/  capture/                                   the exchange with applications; what they keep
"""

from __future__ import annotations

import logging
import platform
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias, final

import attrs

from edgeinfer import __version__
from edgeinfer.devices.probe.local import local
from edgeinfer.fleet.device.clock import DeviceClock
from edgeinfer.fleet.device.documents import canonical_json, sha256
from edgeinfer.fleet.device.generations import Generation, Generations
from edgeinfer.fleet.device.identity import Identity
from edgeinfer.fleet.device.journal import Change, Journal, Quarantined, State, Update
from edgeinfer.fleet.device.options import AgentOptions
from edgeinfer.fleet.device.phases import Phase
from edgeinfer.fleet.device.probe import Probe
from edgeinfer.fleet.device.release import DeviceFacts
from edgeinfer.fleet.device.reports import Metric, Report
from edgeinfer.fleet.device.sources import Blobs, Fetcher, Trust
from edgeinfer.fleet.device.spool import Spool
from edgeinfer.fleet.device.staging import Checker
from edgeinfer.fleet.device.transport import Transport
from edgeinfer.fleet.errors import GenerationError

__all__ = ["ByModel", "Device", "Interrupted"]

_LOG = logging.getLogger("edgeinfer.agent")
ByModel: TypeAlias = "Mapping[str, Mapping[str, Metric]]"


class Interrupted(Exception):  # noqa: N818 (no error: it ends a wait)
    """A long wait ends: the agent stops, or the assignment that it waits for is no longer wanted."""


@final
@attrs.define(kw_only=True, eq=False)
class Device:
    """All that the state machine works with.

    Attributes:
        root: The folder.
        identity: Who the device is.
        options: How patient the agent is.
        journal: Of the folder.
        state: What the journal says; changed by `save` alone.
        generations: Of the folder.
        spool: Reports that wait for a network.
        trust: Says which releases are genuine.
        blobs: The files that are here.
        fetcher: Brings others.
        transport: Carries documents.
        checker: Tries models.
        probe: Measures the device.
        clock: Tells the time.
        alive: Called in long waits; what it raises ends them.
        waiting: Why the update does not go on now, in one word; empty where it does.
    """

    root: Path
    identity: Identity
    options: AgentOptions
    journal: Journal
    state: State
    generations: Generations
    spool: Spool
    trust: Trust
    blobs: Blobs
    fetcher: Fetcher
    transport: Transport
    checker: Checker
    probe: Probe
    clock: DeviceClock
    alive: Callable[[], None]
    waiting: str = ""
    _facts: DeviceFacts | None = None
    _running: Generation | None = None  # a number is never given to another generation

    @property
    def run_folder(self) -> Path:
        """The folder of the exchange with applications."""
        return self.root / "run"

    def facts(self) -> DeviceFacts:
        """Return what the device is; found out once, since the runtimes are loaded for it (in a child)."""
        if self._facts is None:
            name = self.identity.device_class or None
            self._facts = DeviceFacts.of(local(), backends=self.checker.facts(), device_class=name)
        return self._facts

    def device_class(self) -> str:
        """Return the class of this device."""
        return self.facts().device_class

    def save(self, state: State) -> None:
        """Make the journal say this, durably; what is in memory follows. Raises OSError."""
        state = attrs.evolve(state, floors=attrs.evolve(state.floors, time=self.clock.floor))
        self.journal.save(state)
        self.state = state

    def enter(
        self,
        update: Update,
        phase: Phase,
        code: str = "",
        detail: str = "",
        *,
        metrics: ByModel | None = None,
        blame: tuple[str, ...] = (),
        state: State | None = None,
        **changes: Any,
    ) -> Update:
        """Go on to a phase: durably, if it is one of those, and with a report for each model.

        Args:
            update: As it is.
            phase: The next phase.
            code: Why, in one word.
            detail: The same for people.
            metrics: What was measured, by model.
            blame: The releases that are quarantined for it.
            state: The journal to note it in; None for the one that is.
            changes: Further fields of the update.
        """
        after = attrs.evolve(update, phase=phase, code=code, detail=detail, since=self.clock.now(), **changes)
        self.waiting = ""
        if not phase.durable:
            self.state = attrs.evolve(self.state, update=after)
            return after
        _LOG.info("%s %s %s", phase.value, code, detail)
        state = state or self.state
        quarantine = dict(state.quarantine)
        quarantine |= {digest: self._quarantined(code) for digest in blame}
        first = self.state.sequence + 1
        self.save(
            attrs.evolve(state, update=after, quarantine=quarantine, sequence=first + len(after.changes) - 1)
        )
        for offset, change in enumerate(after.changes):
            self._spool(first + offset, after, change, (metrics or {}).get(change.model, {}))
        return after

    def wait(self, update: Update, code: str, detail: str) -> Update:
        """Stay in a phase until something is better; the first time it is reported."""
        if update.code == code:
            self.waiting = code
            return update
        _LOG.warning("waiting in %s: %s: %s", update.phase.value, code, detail)
        after = attrs.evolve(update, code=code, detail=detail)
        self.report_again(after)
        self.waiting = code
        return after

    def report_again(self, update: Update, metrics: ByModel | None = None) -> None:
        """Note an update as it is, and report it."""
        self.state = attrs.evolve(self.state, update=update)
        self.report(update, metrics)

    def report(self, update: Update, metrics: ByModel | None = None) -> None:
        """Report an update as it is, for each of its models."""
        first = self.state.sequence + 1
        self.save(attrs.evolve(self.state, sequence=first + len(update.changes) - 1))
        for offset, change in enumerate(update.changes):
            self._spool(first + offset, update, change, (metrics or {}).get(change.model, {}))

    def note(self, code: str, detail: str = "") -> None:
        """Report what is about the device and no update."""
        _LOG.info("%s %s", code, detail)
        sequence = self.state.sequence + 1
        self.save(attrs.evolve(self.state, sequence=sequence))
        self._send_later(self._report(sequence, Phase.IDLE, code, (detail,) if detail else (), {}))

    def quarantined(self, release: str) -> Quarantined | None:
        """Return why a release is not tried here; None where it may be."""
        found = self.state.quarantine.get(release)
        if found is None or found.device_class != self.device_class() or found.facts != self._facts_digest():
            return None
        return found

    def running(self) -> Generation | None:
        """Return the pins of what runs; None where nothing does, or it cannot be read."""
        number = self.generations.current()
        if number == 0:
            return None
        if self._running is None or self._running.number != number:
            try:
                self._running = self.generations.read(number)
            except GenerationError:
                return None
        return self._running

    def committed_number(self) -> int:
        """Return the generation to go back to: the last one that passed its soak, else what runs; or 0."""
        current = number = self.generations.current()
        while number and not self.generations.committed(number):
            try:
                number = self.generations.read(number).previous
            except GenerationError:
                number = 0
        return number or current

    def _quarantined(self, code: str) -> Quarantined:
        return Quarantined(
            device_class=self.device_class(), code=code, at=self.clock.now(), facts=self._facts_digest()
        )

    def _facts_digest(self) -> str:
        # Not the memory: it differs by a little from one kernel to the next.
        return sha256(canonical_json(attrs.asdict(attrs.evolve(self.facts(), memory_bytes=None))))

    def _spool(self, sequence: int, update: Update, change: Change, metrics: Mapping[str, Metric]) -> None:
        log = tuple(filter(None, (update.detail,)))
        report = self._report(sequence, update.phase, update.code, log, metrics)
        running = self.running()
        pin = running.models.get(change.model) if running is not None else None
        self._send_later(
            attrs.evolve(
                report,
                model=change.model,
                generation=(change.generation[0], change.generation[1]),
                digest=pin.release if pin is not None else "",
            )
        )

    def _report(
        self, sequence: int, phase: Phase, code: str, log: tuple[str, ...], metrics: Mapping[str, Metric]
    ) -> Report:
        facts: dict[str, Any] = {"edgeinfer": __version__, "arch": platform.machine()}
        if self._facts is not None:
            facts |= {"backends": dict(self._facts.backends), "device_class": self._facts.device_class}
        return Report(
            device=self.identity.device,
            incarnation=self.identity.incarnation,
            sequence=sequence,
            at=self.clock.now(),
            phase=phase,
            code=code,
            facts=facts,
            metrics=metrics,
            log=log,
        )

    def _send_later(self, report: Report) -> None:
        """Keep a report until it is accepted. A spool that takes none costs the report, never the update."""
        try:
            self.spool.add(report.sequence, report.to_bytes(self.identity.key_bytes))
        except (sqlite3.Error, OSError) as error:
            _LOG.warning("report %d is lost: %s", report.sequence, error)
