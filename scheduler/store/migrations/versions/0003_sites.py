"""Which nodes a task may sit on, and further resources; both empty for all that was there."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_TEXTS = (
    ("nodes", "labels", "[]"),
    ("nodes", "taints", "[]"),
    ("nodes", "extras", "[]"),
    ("jobs", "site", ""),
    ("jobs", "extras", "[]"),
)


def upgrade() -> None:
    for table, name, empty in _TEXTS:
        op.add_column(table, sa.Column(name, sa.Text(), nullable=False, server_default=empty))
    op.add_column(
        "gpus", sa.Column("external", sa.Boolean(), nullable=False, server_default=sa.false())
    )


def downgrade() -> None:
    op.drop_column("gpus", "external")
    for table, name, _ in reversed(_TEXTS):
        op.drop_column(table, name)
