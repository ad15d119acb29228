"""Whether others may be stopped for a job, and whether it is shielded from that itself for now."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "jobs", sa.Column("evicts", sa.Boolean(), nullable=False, server_default=sa.true())
    )
    op.add_column(
        "jobs", sa.Column("shielded", sa.Boolean(), nullable=False, server_default=sa.false())
    )


def downgrade() -> None:
    op.drop_column("jobs", "shielded")
    op.drop_column("jobs", "evicts")
