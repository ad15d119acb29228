"""Which GPUs changed is read every cycle, from among all there are."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(op.f("ix_gpus_revision"), "gpus", ["revision"], unique=False)


def downgrade() -> None:
    op.drop_index(op.f("ix_gpus_revision"), table_name="gpus")
