"""Bringing a database to the current schema, and the rows that every store starts with."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import (
    Column,
    Connection,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    insert,
    inspect,
    select,
)

from scheduler.errors import ConfigurationError
from scheduler.model.node import PriceClass
from scheduler.model.quantity import (
    DEFAULT_POOL,
    DEFAULT_QUEUE,
    DEFAULT_TENANT,
    SYSTEM_TENANT,
    UtcSeconds,
)
from scheduler.store import tables
from scheduler.store.journal import GENESIS

if TYPE_CHECKING:
    from alembic.config import Config

HEAD = "0005"
"""The newest migration; a test compares it with the scripts."""

_MIGRATIONS = Path(__file__).with_name("migrations")
_ADVISORY_LOCK = 0x68617665  # "have": one migrator at a time on PostgreSQL
_VERSION = Table(
    "alembic_version",
    MetaData(),
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)
"""Alembic's own table: a store that is new, or up to date, needs none of its imports."""


def alembic_config(connection: Connection) -> Config:
    """Alembic's settings for `connection`; there is no alembic.ini."""
    from alembic.config import Config  # noqa: PLC0415 - a tenth of the daemon's start

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def prepare(connection: Connection, *, now: UtcSeconds) -> None:
    """Migrate to `HEAD`, or make and seed a fresh store, inside the caller's transaction.

    A fresh one is made from the tables as they are now; a test compares that with what the
    migrations lead to.

    Raises:
        ConfigurationError: the database was made by a newer version of the program.
    """
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})")
    found = refuse_newer(connection)
    if found is None:
        tables.metadata.create_all(connection)
        _VERSION.create(connection, checkfirst=True)
        connection.execute(insert(_VERSION).values(version_num=HEAD))
    elif found != HEAD:
        from alembic import command  # noqa: PLC0415 - a tenth of the daemon's start

        command.upgrade(alembic_config(connection), "head")
    if connection.execute(select(tables.head.c.id)).first() is None:
        _seed(connection, now)


def refuse_newer(connection: Connection) -> str | None:
    """The schema that the database has; None for an empty one.

    Raises:
        ConfigurationError: the database was made by a newer version of the program.
    """
    found: str | None = None
    if inspect(connection).has_table(_VERSION.name):
        found = connection.execute(select(_VERSION.c.version_num)).scalar_one_or_none()
    if found is not None and found > HEAD:
        raise ConfigurationError(
            f"the database has schema {found}, this program knows up to {HEAD}",
            hint="run the newer version again; going back needs the backup from before it",
        )
    return found


def _seed(connection: Connection, now: UtcSeconds) -> None:
    connection.execute(
        insert(tables.head).values(
            id=1, revision=0, audit_hash=GENESIS, generation=secrets.token_hex(16)
        )
    )
    connection.execute(insert(tables.leader).values(id=1, holder="", epoch=0, expires_at=0.0))
    connection.execute(
        insert(tables.tenants),
        [
            {"id": tenant, "name": tenant, "created_at": now, "revision": 0}
            for tenant in (SYSTEM_TENANT, DEFAULT_TENANT)
        ],
    )
    connection.execute(
        insert(tables.queues).values(
            id=f"q-{DEFAULT_QUEUE}",
            tenant_id=DEFAULT_TENANT,
            name=DEFAULT_QUEUE,
            parent_id=None,
            weight=1.0,
            created_at=now,
        )
    )
    connection.execute(
        insert(tables.pools).values(
            id=DEFAULT_POOL,
            tenant_id=SYSTEM_TENANT,
            price_class=PriceClass.RESERVED,
            created_at=now,
        )
    )
