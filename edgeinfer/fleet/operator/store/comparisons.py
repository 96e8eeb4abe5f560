"""Canaries and controls: what each device's figures were before a stage, and how they changed since.

The sums over devices are kept up with each report, so the planner never reads a device.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import sqlalchemy as sa

from edgeinfer.fleet.operator.canary import Sums
from edgeinfer.fleet.operator.evidence import CANARY, CONTROL, MetricSums
from edgeinfer.fleet.operator.metrics import METRICS
from edgeinfer.fleet.operator.store.database import add_to, chunks, execute_many, upsert
from edgeinfer.fleet.operator.store.schema import figures, member_metrics, members, metric_sums

__all__ = ["add_canaries", "add_controls", "load_metric_sums", "save_figures", "update_changes"]

Budgets: TypeAlias = "Mapping[str, Mapping[str, float]]"
_MAX_CONTROLS = 1000  # more would narrow the interval by little: the canaries are fewer


def save_figures(connection: sa.Connection, rows: Iterable[Mapping[str, Any]]) -> None:
    """Keep the last figures of a model on a device: the "before" of later comparisons."""
    finite = [dict(row) for row in rows if math.isfinite(row["value"])]
    if finite:
        execute_many(connection, upsert(connection.dialect.name, figures, ("release", "value")), finite)


def add_canaries(connection: sa.Connection, rollout: int, model: str, stage: int, release: str,
                 devices: Iterable[tuple[str, str]], metrics: Iterable[str]) -> None:  # fmt: skip
    """Note the figures of devices that are about to get the release.

    Args:
        connection: Within a transaction.
        rollout: The rollout.
        model: Its model.
        stage: The stage of these devices.
        release: The rollout's release.
        devices: (device, class) of each.
        metrics: What the gates compare.
    """
    _add(connection, rollout, model, stage, CANARY, dict(devices), list(metrics), release)


def add_controls(
    connection: sa.Connection, rollout: int, model: str, stage: int, metrics: Iterable[str]
) -> None:
    """Note the figures of devices of later stages, as a stage is opened."""
    wanted = list(metrics)
    if not wanted:
        return
    statement = (
        sa.select(members.c.device, members.c.device_class)
        .where(members.c.rollout == rollout, members.c.stage > stage)
        .order_by(members.c.rank)
        .limit(_MAX_CONTROLS)
    )
    devices = {row.device: row.device_class for row in connection.execute(statement)}
    _add(connection, rollout, model, stage, CONTROL, devices, wanted, None)


def _add(connection: sa.Connection, rollout: int, model: str, stage: int, arm: str,
         devices: Mapping[str, str], metrics: list[str], release: str | None) -> None:  # fmt: skip
    rows = []
    for part in chunks(devices):
        statement = sa.select(figures).where(
            figures.c.model == model, figures.c.device.in_(part), figures.c.metric.in_(metrics)
        )
        known = {(row["device"], row["metric"]): row for row in connection.execute(statement).mappings()}
        for device in part:
            for metric in metrics:
                row = known.get((device, metric))
                before = METRICS[metric].reference
                if before is None and row is not None and row["release"] != release:
                    before = row["value"]
                rows.append(
                    {
                        "rollout": rollout,
                        "stage": stage,
                        "device": device,
                        "metric": metric,
                        "arm": arm,
                        "device_class": devices[device],
                        "before": before,
                        "release": release if release is not None else row["release"] if row else "",
                    }
                )
    if rows:
        connection.execute(upsert(connection.dialect.name, member_metrics, ()), rows)


def update_changes(
    connection: sa.Connection,
    reported: Mapping[str, tuple[str, Mapping[str, float]]],
    open_stages: Mapping[int, tuple[int, Budgets]],
) -> None:
    """Bring the changes of devices up to what they report, and the sums with them.

    Args:
        connection: Within a transaction; the devices are locked.
        reported: Device -> (digest that is loaded, metric -> figure).
        open_stages: Rollout -> (its open stage, limits by class).
    """
    if not reported or not open_stages:
        return
    updates: list[dict[str, Any]] = []
    sums: dict[tuple[Any, ...], dict[str, float]] = {}
    for part in chunks(reported):
        statement = sa.select(member_metrics).where(
            member_metrics.c.device.in_(part), member_metrics.c.rollout.in_(open_stages)
        )
        for row in connection.execute(statement).mappings():
            digest, values = reported[row["device"]]
            stage, budgets = open_stages[row["rollout"]]
            if row["stage"] != stage or row["release"] != digest or row["metric"] not in values:
                continue
            after = _since(row, values[row["metric"]], budgets)
            key = (row["rollout"], row["stage"], row["arm"], row["device_class"], row["metric"])
            delta = sums.setdefault(key, dict.fromkeys(_SUMS, 0.0))
            for name, value in _difference(row, after).items():
                delta[name] += value
            if after["undefined"]:
                delta["undefined"] += 1
            else:
                updates.append(
                    {f"its_{name}": row[name] for name in _MEMBER}
                    | {name: after[name] for name in ("change", "over")}
                )
    if updates:
        execute_many(connection, _UPDATE, updates)
    add_to(connection, metric_sums, sums)


_SUMS = ("devices", "total", "squares", "limited", "over", "undefined")
_MEMBER = ("rollout", "stage", "device", "metric")
_UPDATE = (
    sa.update(member_metrics)
    .where(*(member_metrics.c[name] == sa.bindparam(f"its_{name}") for name in _MEMBER))
    .values(change=sa.bindparam("change"), over=sa.bindparam("over"))
)


def _since(row: sa.RowMapping, value: float, budgets: Budgets) -> dict[str, Any]:
    """Return a device's change of a metric, and whether it exceeds the budget's limit."""
    if not math.isfinite(value):
        return {"undefined": True, "change": row["change"], "over": row["over"]}
    metric = METRICS[row["metric"]]
    change = None if row["before"] is None else metric.change(row["before"], value)
    limits = budgets.get(row["device_class"], budgets.get("", {}))
    limit = limits.get(metric.limit) if metric.limit is not None and row["arm"] == CANARY else None
    return {"undefined": False, "change": change, "over": None if limit is None else int(value > limit)}


def _difference(row: sa.RowMapping, after: Mapping[str, Any]) -> dict[str, float]:
    """Return what the sums gain by a device's new change, less its old one."""
    old, new = row["change"], after["change"]
    return {
        "devices": (new is not None) - (old is not None),
        "total": (new or 0.0) - (old or 0.0),
        "squares": (new or 0.0) ** 2 - (old or 0.0) ** 2,
        "limited": (after["over"] is not None) - (row["over"] is not None),
        "over": (after["over"] or 0) - (row["over"] or 0),
    }


_METRIC_SUMS = sa.select(metric_sums).where(metric_sums.c.rollout == sa.bindparam("number"))


def load_metric_sums(connection: sa.Connection, rollout: int) -> dict[tuple[int, str, str, str], MetricSums]:
    """Return (stage, arm, class, metric) -> sums."""
    found = connection.execute(_METRIC_SUMS, {"number": rollout}).mappings()
    return {
        (row["stage"], row["arm"], row["device_class"], row["metric"]): MetricSums(
            changes=Sums(row["devices"], row["total"], row["squares"]),
            limited=row["limited"],
            over=row["over"],
            undefined=row["undefined"],
        )
        for row in found
    }
