"""The first tables."""

import sqlalchemy as sa
from alembic import op

__all__ = ["downgrade", "upgrade"]

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create them."""
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("at", sa.BigInteger(), server_default="0", autoincrement=False, nullable=False),
        sa.Column("rollout", sa.BigInteger(), nullable=True),
        sa.Column("actor", sa.Text(), server_default="", nullable=False),
        sa.Column("action", sa.Text(), server_default="", nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("audit_of_rollout", "audit", ["rollout", "id"], unique=False)
    op.create_table(
        "cells",
        sa.Column("rollout", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("stage", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("device_class", sa.Text(), nullable=False),
        sa.Column("site", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("motion", sa.Text(), nullable=False),
        sa.Column("devices", sa.BigInteger(), server_default="0", autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("rollout", "stage", "device_class", "site", "outcome", "motion"),
    )
    op.create_index("cells_moving", "cells", ["motion"], unique=False)
    op.create_table(
        "devices",
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("incarnation", sa.BigInteger(), server_default="0", autoincrement=False, nullable=False),
        sa.Column("device_class", sa.Text(), server_default="", nullable=False),
        sa.Column("site", sa.Text(), server_default="", nullable=False),
        sa.Column("labels", sa.Text(), server_default="{}", nullable=False),
        sa.Column("facts", sa.Text(), server_default="{}", nullable=False),
        sa.Column("key", sa.LargeBinary(), nullable=False),
        sa.Column("enrolled_at", sa.BigInteger(), server_default="0", autoincrement=False, nullable=False),
        sa.Column("seen_at", sa.BigInteger(), server_default="0", autoincrement=False, nullable=False),
        sa.Column("deleted_at", sa.BigInteger(), nullable=True),
        sa.Column("flag", sa.Text(), server_default="", nullable=False),
        sa.Column("wanted", sa.BigInteger(), server_default="0", autoincrement=False, nullable=False),
        sa.Column("published", sa.BigInteger(), server_default="0", autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("device"),
    )
    op.create_table(
        "figures",
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("metric", sa.Text(), nullable=False),
        sa.Column("release", sa.Text(), server_default="", nullable=False),
        sa.Column("value", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("device", "model", "metric"),
    )
    op.create_table(
        "member_metrics",
        sa.Column("rollout", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("stage", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("metric", sa.Text(), nullable=False),
        sa.Column("arm", sa.Text(), server_default="", nullable=False),
        sa.Column("device_class", sa.Text(), server_default="", nullable=False),
        sa.Column("before", sa.Float(), nullable=True),
        sa.Column("change", sa.Float(), nullable=True),
        sa.Column("over", sa.Integer(), nullable=True),
        sa.Column("release", sa.Text(), server_default="", nullable=False),
        sa.PrimaryKeyConstraint("rollout", "stage", "device", "metric"),
    )
    op.create_index("member_metrics_of_device", "member_metrics", ["device", "rollout"], unique=False)
    op.create_table(
        "members",
        sa.Column("rollout", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("stage", sa.BigInteger(), server_default="0", autoincrement=False, nullable=False),
        sa.Column("rank", sa.BigInteger(), server_default="0", autoincrement=False, nullable=False),
        sa.Column("device_class", sa.Text(), server_default="", nullable=False),
        sa.Column("site", sa.Text(), server_default="", nullable=False),
        sa.Column("outcome", sa.Text(), server_default="", nullable=False),
        sa.Column("motion", sa.Text(), server_default="", nullable=False),
        sa.Column("epoch", sa.BigInteger(), server_default="0", autoincrement=False, nullable=False),
        sa.Column("number", sa.BigInteger(), server_default="0", autoincrement=False, nullable=False),
        sa.Column("back_epoch", sa.BigInteger(), server_default="0", autoincrement=False, nullable=False),
        sa.Column("back_number", sa.BigInteger(), server_default="0", autoincrement=False, nullable=False),
        sa.Column("target", sa.Text(), server_default="", nullable=False),
        sa.Column("origin", sa.Text(), server_default="", nullable=False),
        sa.Column("start_before", sa.BigInteger(), server_default="0", autoincrement=False, nullable=False),
        sa.Column("exposures", sa.BigInteger(), server_default="0", autoincrement=False, nullable=False),
        sa.Column("attempts", sa.BigInteger(), server_default="0", autoincrement=False, nullable=False),
        sa.Column("heard_at", sa.BigInteger(), server_default="0", autoincrement=False, nullable=False),
        sa.Column("code", sa.Text(), server_default="", nullable=False),
        sa.PrimaryKeyConstraint("rollout", "device"),
    )
    op.create_index(
        "members_next",
        "members",
        ["rollout", "stage", "site", "motion", "outcome", "exposures", "rank"],
        unique=False,
    )
    op.create_index("members_of_device", "members", ["device", "motion"], unique=False)
    op.create_index("members_silent", "members", ["rollout", "motion", "outcome", "heard_at"], unique=False)
    op.create_table(
        "meta",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.BigInteger(), server_default="0", autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "metric_sums",
        sa.Column("rollout", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("stage", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("arm", sa.Text(), nullable=False),
        sa.Column("device_class", sa.Text(), nullable=False),
        sa.Column("metric", sa.Text(), nullable=False),
        sa.Column("devices", sa.BigInteger(), server_default="0", autoincrement=False, nullable=False),
        sa.Column("total", sa.Float(), server_default="0", nullable=False),
        sa.Column("squares", sa.Float(), server_default="0", nullable=False),
        sa.Column("limited", sa.BigInteger(), server_default="0", autoincrement=False, nullable=False),
        sa.Column("over", sa.BigInteger(), server_default="0", autoincrement=False, nullable=False),
        sa.Column("undefined", sa.BigInteger(), server_default="0", autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("rollout", "stage", "arm", "device_class", "metric"),
    )
    op.create_table(
        "releases",
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), server_default="", nullable=False),
        sa.Column("version", sa.Text(), server_default="", nullable=False),
        sa.Column("requires", sa.Text(), nullable=True),
        sa.Column("budgets", sa.Text(), server_default="{}", nullable=False),
        sa.Column("withdrawn", sa.Text(), server_default="[]", nullable=False),
        sa.Column("published_at", sa.BigInteger(), server_default="0", autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("digest"),
    )
    op.create_table(
        "report_log",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("at", sa.BigInteger(), server_default="0", autoincrement=False, nullable=False),
        sa.Column("device", sa.Text(), server_default="", nullable=False),
        sa.Column("model", sa.Text(), server_default="", nullable=False),
        sa.Column("phase", sa.Text(), server_default="", nullable=False),
        sa.Column("code", sa.Text(), server_default="", nullable=False),
        sa.Column("log", sa.Text(), server_default="[]", nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("report_log_by_time", "report_log", ["at"], unique=False)
    op.create_index("report_log_of_device", "report_log", ["device", "at"], unique=False)
    op.create_table(
        "rollouts",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("model", sa.Text(), server_default="", nullable=False),
        sa.Column("release", sa.Text(), server_default="", nullable=False),
        sa.Column("specification", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), server_default="", nullable=False),
        sa.Column("stage", sa.BigInteger(), server_default="0", autoincrement=False, nullable=False),
        sa.Column(
            "stage_started_at", sa.BigInteger(), server_default="0", autoincrement=False, nullable=False
        ),
        sa.Column("soak_started_at", sa.BigInteger(), nullable=True),
        sa.Column("waivers", sa.Text(), server_default="[]", nullable=False),
        sa.Column("version", sa.BigInteger(), server_default="0", autoincrement=False, nullable=False),
        sa.Column("salt", sa.Text(), server_default="", nullable=False),
        sa.Column("scope", sa.Text(), server_default="", nullable=False),
        sa.Column("priority", sa.BigInteger(), server_default="0", autoincrement=False, nullable=False),
        sa.Column("retries", sa.BigInteger(), server_default="0", autoincrement=False, nullable=False),
        sa.Column("created_at", sa.BigInteger(), server_default="0", autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("rollouts_of_model", "rollouts", ["model", "state"], unique=False)
    op.create_table(
        "sites",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("policy", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "slots",
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), server_default="0", autoincrement=False, nullable=False),
        sa.Column("number", sa.BigInteger(), server_default="0", autoincrement=False, nullable=False),
        sa.Column("release", sa.Text(), server_default="", nullable=False),
        sa.Column("version", sa.Text(), server_default="", nullable=False),
        sa.Column("start_before", sa.BigInteger(), server_default="0", autoincrement=False, nullable=False),
        sa.Column("reported_epoch", sa.BigInteger(), server_default="0", autoincrement=False, nullable=False),
        sa.Column(
            "reported_number", sa.BigInteger(), server_default="0", autoincrement=False, nullable=False
        ),
        sa.Column("sequence", sa.BigInteger(), server_default="0", autoincrement=False, nullable=False),
        sa.Column("fingerprint", sa.Text(), server_default="", nullable=False),
        sa.Column("phase", sa.Text(), server_default="", nullable=False),
        sa.Column("code", sa.Text(), server_default="", nullable=False),
        sa.Column("running", sa.Text(), server_default="", nullable=False),
        sa.Column("committed", sa.Text(), server_default="", nullable=False),
        sa.Column("previous", sa.Text(), server_default="", nullable=False),
        sa.Column("reported_at", sa.BigInteger(), server_default="0", autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("device", "model"),
    )


def downgrade() -> None:
    """Drop them."""
    op.drop_table("slots")
    op.drop_table("sites")
    op.drop_index("rollouts_of_model", table_name="rollouts")
    op.drop_table("rollouts")
    op.drop_index("report_log_of_device", table_name="report_log")
    op.drop_index("report_log_by_time", table_name="report_log")
    op.drop_table("report_log")
    op.drop_table("releases")
    op.drop_table("metric_sums")
    op.drop_table("meta")
    op.drop_index("members_silent", table_name="members")
    op.drop_index("members_of_device", table_name="members")
    op.drop_index("members_next", table_name="members")
    op.drop_table("members")
    op.drop_index("member_metrics_of_device", table_name="member_metrics")
    op.drop_table("member_metrics")
    op.drop_table("figures")
    op.drop_table("devices")
    op.drop_index("cells_moving", table_name="cells")
    op.drop_table("cells")
    op.drop_index("audit_of_rollout", table_name="audit")
    op.drop_table("audit")
