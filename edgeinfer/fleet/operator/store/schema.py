"""The tables. Times are seconds since 1970; JSON is text in canonical form."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
)

__all__ = [
    "audit",
    "cells",
    "devices",
    "figures",
    "member_metrics",
    "members",
    "meta",
    "metadata",
    "metric_sums",
    "releases",
    "report_log",
    "rollouts",
    "sites",
    "slots",
]

metadata = MetaData()


def _text(name: str, *, key: bool = False) -> Column[str]:
    return Column(name, Text, primary_key=key, nullable=False, server_default=None if key else "")


def _number(name: str, *, key: bool = False) -> Column[int]:
    # autoincrement=False: a number that is part of a key is given, never made up.
    return Column(
        name,
        BigInteger,
        primary_key=key,
        nullable=False,
        autoincrement=False,
        server_default=None if key else "0",
    )


def _optional(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=True)


# Counters of the fleet: `epoch`, and `published`, which a restore from backup takes back.
meta = Table("meta", metadata, _text("name", key=True), _number("value"))

devices = Table(
    "devices",
    metadata,
    _text("device", key=True),
    _number("incarnation"),
    _text("device_class"),
    _text("site"),
    Column("labels", Text, nullable=False, server_default="{}"),
    Column("facts", Text, nullable=False, server_default="{}"),
    Column("key", LargeBinary, nullable=False),
    _number("enrolled_at"),
    _number("seen_at"),
    _optional("deleted_at"),
    _text("flag"),  # why a person should look at it: `clone`, `reflashed`, `impossible generation`
    _number("wanted"),  # counts changes of what the device is to run
    _number("published"),  # `wanted` when its document was last published
)
# Of the devices whose document is to be published, so that none of the others is looked at.
_CHANGED = devices.c.wanted != devices.c.published
Index("devices_changed", devices.c.device, sqlite_where=_CHANGED, postgresql_where=_CHANGED)

# A model on a device: what it is to run, and what it runs.
slots = Table(
    "slots",
    metadata,
    _text("device", key=True),
    _text("model", key=True),
    _number("epoch"),
    _number("number"),
    _text("release"),
    _text("version"),
    _number("start_before"),
    _number("shadow"),  # 1: it first runs beside the present release
    _number("reported_epoch"),
    _number("reported_number"),
    _number("sequence"),
    _text("fingerprint"),  # of the report with that sequence: another one with it is from a clone
    _text("phase"),
    _text("code"),
    _text("running"),
    _text("committed"),
    _text("previous"),  # what was committed before
    _number("reported_at"),
)

releases = Table(
    "releases",
    metadata,
    _text("digest", key=True),
    _text("model"),
    _text("version"),
    Column("requires", Text, nullable=True),
    Column("budgets", Text, nullable=False, server_default="{}"),  # by class; "" for all others
    Column("withdrawn", Text, nullable=False, server_default="[]"),
    _number("published_at"),
)

sites = Table("sites", metadata, _text("name", key=True), Column("policy", Text, nullable=False))

rollouts = Table(
    "rollouts",
    metadata,
    Column("id", Integer, primary_key=True),
    _text("model"),
    _text("release"),
    Column("specification", Text, nullable=False),
    _text("state"),
    _number("stage"),
    _number("stage_started_at"),
    _optional("soak_started_at"),
    Column("waivers", Text, nullable=False, server_default="[]"),
    _number("version"),
    _text("salt"),
    _text("scope"),  # a group, or empty for all devices
    _number("priority"),
    _number("retries"),
    _number("created_at"),
    Index("rollouts_of_model", "model", "state"),
)

members = Table(
    "members",
    metadata,
    _number("rollout", key=True),
    _text("device", key=True),
    _number("stage"),
    _number("rank"),
    _text("device_class"),
    _text("site"),
    _text("outcome"),
    _text("motion"),
    _number("epoch"),
    _number("number"),
    _number("back_epoch"),
    _number("back_number"),
    _text("target"),  # the release that its document names: a stepping stone, or the rollout's
    _text("origin"),  # what it goes back to
    _number("start_before"),
    _number("exposures"),
    _number("attempts"),
    _number("heard_at"),
    _text("code"),
    Index("members_next", "rollout", "stage", "site", "motion", "outcome", "exposures", "rank"),
    Index("members_silent", "rollout", "motion", "outcome", "heard_at"),
    Index("members_of_device", "device", "motion"),
)

cells = Table(
    "cells",
    metadata,
    _number("rollout", key=True),
    _number("stage", key=True),
    _text("device_class", key=True),
    _text("site", key=True),
    _text("outcome", key=True),
    _text("motion", key=True),
    _number("devices"),
    Index("cells_moving", "motion"),
)

# The last figures of a model on a device, while it ran `release`.
figures = Table(
    "figures",
    metadata,
    _text("device", key=True),
    _text("model", key=True),
    _text("metric", key=True),
    _text("release"),
    Column("value", Float, nullable=False),
)

# Canaries and controls of a stage: their figures before it, and since.
member_metrics = Table(
    "member_metrics",
    metadata,
    _number("rollout", key=True),
    _number("stage", key=True),
    _text("device", key=True),
    _text("metric", key=True),
    _text("arm"),
    _text("device_class"),
    Column("before", Float, nullable=True),
    Column("change", Float, nullable=True),
    Column("over", Integer, nullable=True),  # of the limit: 1, 0, or null where it has none or no figure
    _text("release"),  # the figures of which release count as "since"
    Index("member_metrics_of_device", "device", "rollout"),
)

metric_sums = Table(
    "metric_sums",
    metadata,
    _number("rollout", key=True),
    _number("stage", key=True),
    _text("arm", key=True),
    _text("device_class", key=True),
    _text("metric", key=True),
    _number("devices"),
    Column("total", Float, nullable=False, server_default="0"),
    Column("squares", Float, nullable=False, server_default="0"),
    _number("limited"),
    _number("over"),
    _number("undefined"),
)

# What devices said of themselves, for people; kept for a while.
report_log = Table(
    "report_log",
    metadata,
    Column("id", Integer, primary_key=True),
    _number("at"),
    _text("device"),
    _text("model"),
    _text("phase"),
    _text("code"),
    Column("log", Text, nullable=False, server_default="[]"),
    Index("report_log_of_device", "device", "at"),
    Index("report_log_by_time", "at"),
)

audit = Table(
    "audit",
    metadata,
    Column("id", Integer, primary_key=True),
    _number("at"),
    _optional("rollout"),
    _text("actor"),
    _text("action"),
    _text("reason"),
    Index("audit_of_rollout", "rollout", "id"),
)
