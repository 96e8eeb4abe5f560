"""`ingest`: reports of devices into the store, in batches: verified, applied once, in any order.

A report that is refused stops nobody: the rest of the batch goes on, and the refusal is logged.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs
import sqlalchemy as sa

from edgeinfer.errors import FleetError
from edgeinfer.fleet.device.phases import Phase
from edgeinfer.fleet.device.reports import Report, SignedReport
from edgeinfer.fleet.errors import DocumentError
from edgeinfer.fleet.operator.absorb import Heard, absorb, adopt
from edgeinfer.fleet.operator.figures import SERVING, figures_by_model
from edgeinfer.fleet.operator.record import State
from edgeinfer.fleet.operator.store.comparisons import save_figures, update_changes
from edgeinfer.fleet.operator.store.database import (
    Database,
    chunks,
    dumps,
    execute_many,
    value_of,
)
from edgeinfer.fleet.operator.store.enrolment import verify_report
from edgeinfer.fleet.operator.store.ingested import Ingested, Refusal
from edgeinfer.fleet.operator.store.keeping import keep_what_raced
from edgeinfer.fleet.operator.store.members import change_members, members_of_devices
from edgeinfer.fleet.operator.store.reissue import answer_again, let_stay
from edgeinfer.fleet.operator.store.schema import devices, releases, report_log, rollouts
from edgeinfer.fleet.operator.store.slots import Slot, load_slots, lock_devices, save_slots

__all__ = ["ingest"]

_BATCH = 500
_FURTHEST_EPOCH = 1000  # a device that reports an epoch that is this much further is not believed


_TOLD = ("incarnation", "device_class", "facts", "flag", "seen_at")
_TELL = (
    sa.update(devices)
    .where(devices.c.device == sa.bindparam("its_device"))
    .values({name: sa.bindparam(name) for name in _TOLD})
)
_LOG = sa.insert(report_log)
_ROLLOUTS = (
    sa.select(
        rollouts.c.id,
        rollouts.c.model,
        rollouts.c.release,
        rollouts.c.state,
        rollouts.c.stage,
        rollouts.c.retries,
        releases.c.budgets,
    )
    .join(releases, releases.c.digest == rollouts.c.release, isouter=True)
    .where(
        rollouts.c.model.in_(sa.bindparam("models", expanding=True)), rollouts.c.state != State.DRAFT.value
    )
)


def ingest(database: Database, documents: Sequence[bytes]) -> Ingested:
    """Take reports in.

    Args:
        database: The store.
        documents: Reports as devices made them (`Report.to_bytes`), from anyone.
    """
    total = Ingested()
    for part in chunks(enumerate(documents), _BATCH):
        total += database.retrying(functools.partial(_ingest, database, documents=part))
    return total


@attrs.define
class _Batch:
    """What a batch changes; written once at its end."""

    now: int
    rows: dict[str, sa.RowMapping]
    slots: dict[tuple[str, str], Slot]
    heard: dict[tuple[str, str], list[Heard]] = attrs.field(factory=dict)
    values: dict[str, dict[str, tuple[str, dict[str, float]]]] = attrs.field(factory=dict)
    updates: dict[str, dict[str, Any]] = attrs.field(factory=dict)
    log: list[dict[str, Any]] = attrs.field(factory=list)
    ahead: dict[tuple[str, str], int] = attrs.field(factory=dict)  # slot whose device knows more -> its epoch
    again: dict[str, dict[str, str]] = attrs.field(factory=dict)  # reflashed device -> model -> what it had


def _ingest(
    database: Database, connection: sa.Connection, documents: Sequence[tuple[int, bytes]]
) -> Ingested:
    claimed, refused = [], []
    for index, data in documents:
        try:
            claimed.append((index, data, _parsed(data)))
        except FleetError as error:
            refused.append(Refusal(index=index, device="", reason=error.what))
    rows = lock_devices(connection, (signed.device for _, _, signed in claimed))
    reports = []
    now = database.now(connection)
    for index, data, signed in claimed:
        try:
            reports.append((_verified(connection, rows.get(signed.device), signed, now), data))
        except FleetError as error:
            refused.append(Refusal(index=index, device=signed.device, reason=error.what))
    # In the order in which the devices made them, so that a batch that was shuffled tells all that it can.
    reports.sort(key=lambda item: (item[0].device, item[0].incarnation, item[0].sequence))
    names = {report.device for report, _ in reports}
    batch = _Batch(now=now, rows=rows, slots=load_slots(connection, None, sorted(names)))
    epoch = value_of(connection, "epoch")
    applied = sum(_apply(batch, report, data, epoch) for report, data in reports)
    _write(connection, batch)
    return Ingested(applied=applied, ignored=len(reports) - applied, refused=tuple(refused))


def _parsed(data: bytes) -> SignedReport:
    if b"\\u0000" in data:  # no database keeps it
        raise DocumentError("The report has text with a zero character.")
    return SignedReport.parse(data)


def _verified(connection: sa.Connection, row: sa.RowMapping | None, signed: SignedReport, now: int) -> Report:
    if row is None or row["deleted_at"] is not None:
        raise FleetError("The device is not enrolled." if row is None else "The device was removed.")
    return verify_report(connection, row, signed, now)


def _apply(batch: _Batch, report: Report, data: bytes, epoch: int) -> bool:
    """Note what a report tells; return whether it is new."""
    now = batch.now
    device, row = report.device, batch.rows[report.device]
    update = batch.updates.setdefault(device, {"seen_at": now})
    incarnation = update.get("incarnation", row["incarnation"])
    if report.incarnation < incarnation:
        update["flag"] = "clone"  # an earlier life goes on beside the present one
        return False
    if report.incarnation > incarnation:
        _begin_again(batch, report, update)
    key = (device, report.model)
    slot = batch.slots.get(key) or Slot(device=device, model=report.model)
    fingerprint = hashlib.sha256(data).hexdigest()[:16]
    if report.sequence <= slot.sequence:
        if report.sequence == slot.sequence and fingerprint != slot.fingerprint:
            update["flag"] = "clone"  # two devices count with one name
        return False
    if report.generation[0] > epoch + _FURTHEST_EPOCH:
        update["flag"] = "impossible generation"
        return False
    known = update.get("facts", row["facts"])
    facts_changed = bool(report.facts) and _lasting(report.facts) != _lasting(json.loads(known))
    if facts_changed:
        update["facts"] = dumps(dict(report.facts))
        probed = report.facts.get("device_class")
        if isinstance(probed, str) and probed and not row["device_class"]:
            update["device_class"] = probed  # the operator said nothing, so what the device found holds
    generation = tuple(report.generation)
    mistaken = (
        report.phase is Phase.COMMITTED and generation == slot.generation and report.digest != slot.release
    )
    if report.model and (generation > slot.generation or (mistaken and slot.epoch)):
        # The device answers what this database does not know to have said: it was restored from a backup.
        batch.ahead[key] = report.generation[0]
    batch.slots[key] = _told(slot, report, fingerprint, now)
    batch.heard.setdefault(key, []).append(
        Heard(
            generation=report.generation,
            phase=report.phase,
            code=report.code,
            digest=report.digest,
            at=now,
            facts_changed=facts_changed,
        )
    )
    if report.phase in SERVING:
        _note_figures(batch, report)
    if report.log or report.phase.final:
        log = dumps(list(report.log)) if report.log else "[]"
        batch.log.append({"at": now, "device": device, "model": report.model, "phase": report.phase.value,
                          "code": report.code, "log": log})  # fmt: skip
    return True


def _lasting(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts that a refusal can be due to for long; what memory is left changes by the hour."""
    return {name: value for name, value in facts.items() if name != "memory_bytes"}


def _note_figures(batch: _Batch, report: Report) -> None:
    """Note how the models of a device serve, each under the digest that is really loaded."""
    device = report.device
    for model, figures in figures_by_model(report.model, report.metrics).items():
        # What is known of the device itself holds for all its models.
        models = [model] if model else [its for name, its in batch.slots if name == device and its]
        for name in models:
            slot = batch.slots.get((device, name))
            if slot is None or not slot.running:
                continue
            of_model = batch.values.setdefault(name, {})
            digest, earlier = of_model.get(device, (slot.running, {}))
            of_model[device] = (slot.running, {**(earlier if digest == slot.running else {}), **figures})


def _begin_again(batch: _Batch, report: Report, update: dict[str, Any]) -> None:
    """Take note that a device was reflashed: it counts from one again, and needs a new document."""
    update |= {"incarnation": report.incarnation, "flag": "reflashed"}
    had = batch.again.setdefault(report.device, {})
    for key, slot in list(batch.slots.items()):
        if key[0] == report.device:
            had.setdefault(key[1], slot.committed)
            batch.slots[key] = attrs.evolve(slot, sequence=0, fingerprint="", running="", committed="")


def _told(slot: Slot, report: Report, fingerprint: str, now: int) -> Slot:
    new = report.phase is Phase.COMMITTED and bool(report.digest) and report.digest != slot.committed
    return attrs.evolve(
        slot,
        sequence=report.sequence,
        fingerprint=fingerprint,
        reported_epoch=report.generation[0],
        reported_number=report.generation[1],
        phase=report.phase.value,
        code=report.code,
        running=report.digest,
        committed=report.digest if new else slot.committed,
        previous=slot.committed if new else slot.previous,
        reported_at=now,
    )


def _write(connection: sa.Connection, batch: _Batch) -> None:
    save_slots(connection, [batch.slots[key] for key in batch.heard])
    _update_devices(connection, batch.updates, batch.rows)
    models = {model for _, model in batch.heard}
    facts = _rollouts(connection, models)
    _change_members(connection, batch, facts)
    for model, reported in batch.values.items():
        open_stages = {
            row["id"]: (row["stage"], json.loads(row["budgets"] or "{}"))
            for row in facts.values()
            if row["model"] == model and State(row["state"]).live
        }
        update_changes(connection, reported, open_stages)
        save_figures(
            connection,
            (
                {"device": device, "model": model, "metric": metric, "release": digest, "value": value}
                for device, (digest, values) in reported.items()
                for metric, value in values.items()
            ),
        )
    if batch.log:
        execute_many(connection, _LOG, batch.log)
    classes = {device: row["device_class"] for device, row in batch.rows.items()}
    answer_again(connection, batch.ahead, batch.slots, batch.again, classes)


def _update_devices(
    connection: sa.Connection, updates: Mapping[str, Mapping[str, Any]], rows: Mapping[str, sa.RowMapping]
) -> None:
    values = [
        {"its_device": device, **{name: update.get(name, rows[device][name]) for name in _TOLD}}
        for device, update in updates.items()
    ]
    if values:
        execute_many(connection, _TELL, values)


def _rollouts(connection: sa.Connection, models: Iterable[str]) -> dict[int, sa.RowMapping]:
    """Return the rollouts of models, with what is needed to understand a report."""
    found = connection.execute(_ROLLOUTS, {"models": sorted(models)}).mappings()
    return {row["id"]: row for row in found}


def _change_members(connection: sa.Connection, batch: _Batch, facts: Mapping[int, sa.RowMapping]) -> None:
    of_interest = [number for number, row in facts.items() if State(row["state"]) is not State.SUPERSEDED]
    changes = []
    for part in chunks(sorted({device for device, _ in batch.heard})):
        for before in members_of_devices(connection, part, of_interest):
            row = facts.get(before.rollout)
            key = (before.device, "" if row is None else row["model"])
            told = batch.heard.get(key, ())
            after = before
            if row is None or not told:  # whatever a device says, it is not silent
                after = attrs.evolve(before, heard_at=batch.now) if before.motion.in_flight else before
            elif key not in batch.ahead:
                for heard in told:
                    after = absorb(after, heard, release=row["release"], retries=row["retries"])
            elif not batch.slots[key].epoch:  # the database forgot its documents
                after = adopt(before, told[-1], release=row["release"])
            changes.append((before, after))
    change_members(connection, changes)
    let_stay(connection, changes, batch.slots, facts, batch.now)
    keep_what_raced(connection, changes, facts, batch.now)
