"""Alembic scripts, run by `scheduler.store.schema`."""
