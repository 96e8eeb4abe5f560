"""Tokens of enrolment, and the keys that devices had before."""

from __future__ import annotations

from alembic import op

from edgeinfer.fleet.operator.store.enrolment import earlier_keys, tokens

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create them."""
    for table in (tokens, earlier_keys):
        table.create(op.get_bind(), checkfirst=True)


def downgrade() -> None:
    """Drop them."""
    for table in (tokens, earlier_keys):
        table.drop(op.get_bind())
