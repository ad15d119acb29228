"""Alembic's entry: runs inside the transaction that `scheduler.store.schema` opened."""

from __future__ import annotations

from alembic import context

from scheduler.store.tables import metadata

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=metadata,
    # SQLite alters tables by copying them.
    render_as_batch=connection.dialect.name == "sqlite",
)
context.run_migrations()
