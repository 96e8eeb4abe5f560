"""What is wanted of this device: asks for it, verifies it, and begins or ends updates by it."""

from __future__ import annotations

import logging
import time
from typing import final

import attrs

from edgeinfer.fleet.device.assignment import SignedAssignments, verify_assignments
from edgeinfer.fleet.device.device import Device
from edgeinfer.fleet.device.journal import Change, Update
from edgeinfer.fleet.device.phases import Phase
from edgeinfer.fleet.device.selection import pending, revoked, superseded
from edgeinfer.fleet.errors import (
    ExpiredMetadataError,
    FleetError,
    GenerationError,
    LocationError,
    TransportError,
)

__all__ = ["Desire"]

_LOG = logging.getLogger("edgeinfer.agent")
# From here on an update is only ended by its own soak, or by a later assignment of the same model.
_UNDER_WAY = frozenset({Phase.ACTIVATING, Phase.ROLLING_BACK})


@final
class Desire:
    """The newest assignments that could be verified."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._document: SignedAssignments | None = None
        self._etag: str | None = None
        self._asked: float | None = None
        self._noted: set[str] = set()

    def ring(self) -> None:
        """Ask at the next look, whatever was asked before: there may be something new."""
        self._asked = None

    def look(self) -> bool:
        """Ask, if it is time; then begin or end an update by what is known. Return whether one was."""
        update = self._device.state.update
        idle = update is None or update.phase.final
        if idle or self._due():
            self._ask()
        if self._document is not None:
            self._decide(self._document)
        after = self._device.state.update
        return after is not None and (update is None or after.phase is not update.phase)

    def changed(self) -> bool:
        """Ask, if it is time, and tell whether the update that is under way is to end. Changes nothing."""
        if self._due():
            self._ask()
        update, document = self._device.state.update, self._document
        if update is None or update.phase.final or document is None:
            return False
        return superseded(update, document) or (not update.phase.activated and revoked(update, document))

    def _due(self) -> bool:
        return self._asked is None or time.monotonic() - self._asked >= self._device.options.poll_s

    def _ask(self) -> None:
        device = self._device
        try:
            desired = device.transport.desired(self._etag)
            # Withdrawals reach devices that have nothing to install, too.
            device.trust.refresh()
            self._learn()
            if desired is None:
                return
            self._document = self._verified(desired.data)
            self._etag = desired.etag
        except (LocationError, TransportError) as error:
            _LOG.info("no network: %s", error)
        except ExpiredMetadataError as error:
            self._note_once("metadata_expired", error)
        except FleetError as error:
            self._note_once(type(error).__name__, error)
        finally:
            # From its end: over a slow network asking takes longer than the pause, and would never stop.
            self._asked = time.monotonic()

    def _verified(self, data: bytes) -> SignedAssignments:
        device = self._device
        floors = device.state.floors
        document = verify_assignments(
            data,
            device.trust.assignment_keys,
            device=device.identity.device,
            incarnation=device.identity.incarnation,
            floors={model: (g[0], g[1]) for model, g in floors.generations.items()},
            now=device.clock.now(),
        )
        if document.issued_at < floors.issued_at:
            raise FleetError(
                "The assignments are older than others that were verified.",
                expected=f"signed at {floors.issued_at} or later",
                found=document.issued_at,
            )
        return document

    def _learn(self) -> None:
        """Take over what the metadata tells: the time, versions that do not go back, withdrawn releases."""
        device = self._device
        told = device.trust.floors
        device.clock.raise_floor(told.time)
        versions = {**device.state.floors.metadata, **told.versions}
        device.state = attrs.evolve(device.state, floors=attrs.evolve(device.state.floors, metadata=versions))
        self._withdraw()

    def _withdraw(self) -> None:
        """Go back from a release that was withdrawn, if there is one to go back to that was not."""
        device = self._device
        update, withdrawn = device.state.update, device.trust.withdrawn
        if not withdrawn or (update is not None and not update.phase.final):
            return
        running = device.running()
        if running is None:
            return
        bad = {digest for digest, where in withdrawn if where in ("*", device.device_class())}
        hit = {name: pin for name, pin in running.models.items() if pin.release in bad}
        if not hit:
            return
        what = ", ".join(f"{name} {pin.version}" for name, pin in hit.items())
        try:
            previous = device.generations.read(running.previous)
        except GenerationError:
            previous = None
        if previous is None or any(pin.release in bad for pin in previous.models.values()):
            self._note_once(
                "withdrawn_running", FleetError(f"Withdrawn, with nothing to go back to: {what}.")
            )
            return
        changes = tuple(
            Change(
                model=name,
                generation=pin.assignment,
                release=pin.release,
                version=pin.version,
                start_before=0,
            )
            for name, pin in hit.items()
        )
        back = Update(
            phase=Phase.ROLLING_BACK, changes=changes, number=running.number, previous=running.previous
        )
        device.enter(back, Phase.ROLLING_BACK, "withdrawn", what)

    def _decide(self, document: SignedAssignments) -> None:
        device = self._device
        update = device.state.update
        if update is not None and not update.phase.final:
            if update.phase in _UNDER_WAY:
                return
            if superseded(update, document):
                self._supersede(update, document)
            elif not update.phase.activated and revoked(update, document):
                device.enter(update, Phase.SUPERSEDED, "revoked", "the newest assignments do not name it")
            return
        changes = pending(document, device.state.floors.generations, device.clock.now())
        if changes:
            self._accept(changes, document)

    def _supersede(self, update: Update, document: SignedAssignments) -> None:
        device = self._device
        code, what = "superseded", "a later assignment came"
        if update.phase is Phase.SOAKING and self._goes_back(update, document):
            device.enter(update, Phase.ROLLING_BACK, code, what)
        else:
            device.enter(update, Phase.SUPERSEDED, code, what)

    def _goes_back(self, update: Update, document: SignedAssignments) -> bool:
        """Whether what is wanted now is what ran before the update."""
        try:
            previous = self._device.generations.read(update.previous).models
        except GenerationError:
            return False
        wanted = {assignment.model: assignment.release for assignment in document.assignments}
        return all(
            change.model in previous and wanted.get(change.model) == previous[change.model].release
            for change in update.changes
        )

    def _accept(self, changes: tuple[Change, ...], document: SignedAssignments) -> None:
        device = self._device
        state = device.state
        generations = {**state.floors.generations, **{c.model: c.generation for c in changes}}
        floors = attrs.evolve(state.floors, generations=generations, issued_at=document.issued_at)
        update = Update(phase=Phase.ACCEPTED, changes=changes, previous=device.committed_number())
        running = device.running()
        models = running.models if running is not None else {}
        there = all(
            (models[change.model].release if change.model in models else "") == change.release
            for change in changes
        )
        committed = running is not None and device.generations.committed(running.number)
        phase, code = (Phase.COMMITTED, "already") if there and committed else (Phase.ACCEPTED, "")
        number = running.number if running is not None and there and committed else 0
        device.enter(update, phase, code, state=attrs.evolve(state, floors=floors), number=number)

    def _note_once(self, code: str, error: FleetError) -> None:
        """Report a refusal, once for each reason. What was found is left out of it: that may be the time."""
        reason = f"{code}: {error.what} {error.where} {error.expected}"
        if reason not in self._noted:
            _LOG.warning("%s: %s", code, error)
            if len(self._noted) > 100:
                self._noted.clear()
            self._noted.add(reason)
            self._device.note(code, str(error))
