"""What the page shows, read from the store: aggregates, and few devices where a person looks at devices."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa

from edgeinfer.fleet.operator.evidence import CANARY, CONTROL
from edgeinfer.fleet.operator.outcomes import Outcome
from edgeinfer.fleet.operator.store.schema import (
    audit,
    cells,
    devices,
    member_metrics,
    members,
    report_log,
    slots,
)
from edgeinfer.fleet.operator.store.schema import rollouts as rollout_table

__all__ = [
    "audit_lines",
    "by_class",
    "changes",
    "failures",
    "flagged",
    "last_reports",
    "members_by_class",
    "stamp",
]

FAILED = tuple(outcome.value for outcome in Outcome if outcome.failed or outcome is Outcome.REJECTED)
_MOST = 1_000


def by_class(connection: sa.Connection) -> list[dict[str, Any]]:
    """Return device_class, phase, devices: of all that are enrolled; a phase is that of any of its models."""
    phase = sa.func.coalesce(slots.c.phase, "")
    statement = (
        sa.select(devices.c.device_class, phase.label("phase"), sa.func.count().label("devices"))
        .join(slots, slots.c.device == devices.c.device, isouter=True)
        .where(devices.c.deleted_at.is_(None))
        .group_by(devices.c.device_class, phase)
        .order_by(devices.c.device_class, phase)
    )
    return [dict(row) for row in connection.execute(statement).mappings()]


def flagged(connection: sa.Connection) -> list[dict[str, Any]]:
    """Return device, site, flag of the devices that a person should look at."""
    statement = (
        sa.select(devices.c.device, devices.c.site, devices.c.flag)
        .where(devices.c.flag != "", devices.c.deleted_at.is_(None))
        .order_by(devices.c.flag, devices.c.device)
        .limit(100)
    )
    return [dict(row) for row in connection.execute(statement).mappings()]


def members_by_class(connection: sa.Connection, rollout: int) -> list[dict[str, Any]]:
    """Return device_class, outcome, devices of a rollout."""
    statement = (
        sa.select(cells.c.device_class, cells.c.outcome, sa.func.sum(cells.c.devices).label("devices"))
        .where(cells.c.rollout == rollout, cells.c.devices > 0)
        .group_by(cells.c.device_class, cells.c.outcome)
        .order_by(cells.c.device_class)
    )
    return [dict(row) for row in connection.execute(statement).mappings()]


def failures(connection: sa.Connection, rollout: int, model: str) -> list[dict[str, Any]]:
    """Return code, outcome, devices, and what some of those devices said, the most frequent first."""
    statement = (
        sa.select(members.c.code, members.c.outcome, sa.func.count().label("devices"),
                  sa.func.min(members.c.device).label("example"))
        .where(members.c.rollout == rollout, members.c.outcome.in_(FAILED))
        .group_by(members.c.code, members.c.outcome)
        .order_by(sa.func.count().desc())
        .limit(20)
    )  # fmt: skip
    found = []
    for row in connection.execute(statement).mappings().all():
        said = (
            sa.select(report_log.c.log, report_log.c.phase)
            .where(report_log.c.device == row["example"], report_log.c.model == model,
                   report_log.c.code == row["code"])
            .order_by(report_log.c.id.desc())
            .limit(1)
        )  # fmt: skip
        log = connection.execute(said).first()
        found.append({**row, "log": json.loads(log.log) if log is not None else []})
    return found


def changes(
    connection: sa.Connection, rollout: int, stage: int, metric: str
) -> tuple[list[float], list[float]]:
    """Return the changes of a metric on the canaries of a stage, and on its controls."""
    found: dict[str, list[float]] = {CANARY: [], CONTROL: []}
    for arm, values in found.items():
        statement = (
            sa.select(member_metrics.c.change)
            .where(
                member_metrics.c.rollout == rollout,
                member_metrics.c.stage == stage,
                member_metrics.c.metric == metric,
                member_metrics.c.arm == arm,
                member_metrics.c.change.is_not(None),
            )
            .limit(_MOST)
        )
        values += [float(row.change) for row in connection.execute(statement)]
    return found[CANARY], found[CONTROL]


def last_reports(
    connection: sa.Connection, device: str | None = None, limit: int = 50
) -> list[dict[str, Any]]:
    """Return what devices said last, the newest first; of one device, or of all."""
    statement = sa.select(report_log).order_by(report_log.c.id.desc()).limit(limit)
    if device is not None:
        statement = statement.where(report_log.c.device == device)
    return [{**row, "log": json.loads(row["log"])} for row in connection.execute(statement).mappings()]


def audit_lines(
    connection: sa.Connection, rollout: int | None = None, limit: int = 100
) -> list[dict[str, Any]]:
    """Return lines of the audit log, the newest first; of one rollout, or of all."""
    statement = sa.select(audit).order_by(audit.c.id.desc()).limit(limit)
    if rollout is not None:
        statement = statement.where(audit.c.rollout == rollout)
    return [dict(row) for row in connection.execute(statement).mappings()]


def stamp(connection: sa.Connection) -> str:
    """Return what is another text after every change that the page shows."""
    queries = (
        sa.select(sa.func.max(audit.c.id)),
        sa.select(sa.func.max(report_log.c.id)),
        sa.select(sa.func.sum(rollout_table.c.version)),
        sa.select(sa.func.count()).select_from(rollout_table),
        sa.select(sa.func.count()).select_from(devices),
    )
    return "-".join(str(connection.execute(query).scalar() or 0) for query in queries)
