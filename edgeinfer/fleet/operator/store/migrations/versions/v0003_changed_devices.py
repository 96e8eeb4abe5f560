"""An index of the devices whose documents are to be published: a round must not look at all devices."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_CHANGED = sa.text("wanted != published")


def upgrade() -> None:
    """Create it."""
    op.create_index(
        "devices_changed", "devices", ["device"], sqlite_where=_CHANGED, postgresql_where=_CHANGED
    )


def downgrade() -> None:
    """Drop it."""
    op.drop_index("devices_changed", table_name="devices")
