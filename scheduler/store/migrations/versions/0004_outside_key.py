"""What a gang that somebody else made is known by outside: one key, one job."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("outside_key", sa.String(length=255), nullable=True))
    op.create_index(
        "uq_jobs_outside_key",
        "jobs",
        ["outside_key"],
        unique=True,
        sqlite_where=sa.text("outside_key IS NOT NULL"),
        postgresql_where=sa.text("outside_key IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index("uq_jobs_outside_key", table_name="jobs")
    op.drop_column("jobs", "outside_key")
