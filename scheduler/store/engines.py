"""Connections: how each database is opened, and which of its errors mean that it cannot write."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import psycopg
import sqlalchemy
from sqlalchemy import Connection, Engine, event, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import ConnectionPoolEntry, NullPool

from scheduler.errors import ConfigurationError, DamagedStoreError, StorageError

_POSTGRES_MINIMUM = 150000

_SQLITE_CANNOT = {
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_IOERR: "the disk reports an I/O error",
    sqlite3.SQLITE_READONLY: "the database is read-only",
    sqlite3.SQLITE_CANTOPEN: "the database file cannot be opened",
    sqlite3.SQLITE_BUSY: "the database is locked by another process",
    sqlite3.SQLITE_LOCKED: "the database is locked by another connection",
    sqlite3.SQLITE_NOMEM: "out of memory",
}
_DAMAGE = {
    sqlite3.SQLITE_IOERR_FSYNC: "the disk failed to keep what was written (fsync)",
    sqlite3.SQLITE_IOERR_DIR_FSYNC: "the disk failed to keep a new file (fsync of its folder)",
    sqlite3.SQLITE_CORRUPT: "the database file is damaged; restore a backup",
    sqlite3.SQLITE_NOTADB: "the database file is not a database; restore a backup",
}
"""After these nothing may be written over it: the kernel forgets what it could not write, so a
second fsync that succeeds proves nothing. PostgreSQL sees to its own disk, by the same rule."""
_UNSURE = frozenset({sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM})


def sqlite_engines(path: Path, *, readers: int) -> tuple[Engine, Engine]:
    """The engine of the one writer connection, and that of the read-only readers.

    The writer alone writes and checkpoints: SQLite before 3.51.3 can lose data when two
    connections do. FULL synchronisation makes each commit durable.
    """
    url = sqlalchemy.URL.create("sqlite+pysqlite", database=str(path))
    arguments = {"check_same_thread": False, "timeout": 5.0, "isolation_level": None}
    writer = sqlalchemy.create_engine(url, connect_args=arguments, poolclass=NullPool)
    reader = sqlalchemy.create_engine(
        url,
        connect_args=arguments,
        poolclass=sqlalchemy.QueuePool,
        pool_size=readers,
        max_overflow=0,
    )
    event.listen(writer, "connect", _sqlite_writer_connected)
    event.listen(reader, "connect", _sqlite_reader_connected)
    # Deferred transactions that read and then write fail at once when they meet a writer.
    event.listen(writer, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    event.listen(reader, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    return writer, reader


def _run(connection: DBAPIConnection, *pragmas: str) -> None:
    cursor = connection.cursor()
    for pragma in pragmas:
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _sqlite_writer_connected(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
    _run(
        connection,
        "busy_timeout=5000",
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        "journal_size_limit=67108864",
        "cache_size=-65536",
        "trusted_schema=OFF",
    )


def _sqlite_reader_connected(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
    _run(
        connection,
        "busy_timeout=5000",
        "query_only=ON",
        "wal_autocheckpoint=0",
        "cache_size=-16384",
        "trusted_schema=OFF",
    )


def quick_check(connection: Connection) -> None:
    """Refuse a damaged SQLite file before anything is written to it. O(size of the file).

    Raises:
        StorageError: pages or indexes are damaged.
    """
    findings = connection.exec_driver_sql("PRAGMA quick_check(3)").scalars().all()
    if findings != ["ok"]:
        raise StorageError(
            f"the database file is damaged: {'; '.join(map(str, findings))}",
            hint="restore the last backup into a fresh data directory",
        )


def postgres_engines(url: str, *, readers: int, lease_ttl_s: float) -> tuple[Engine, Engine]:
    """The engine of the one writer connection, and that of the readers.

    Every timeout lies below the lease's time to live: a leader that hangs inside a transaction
    must not keep its successor from taking over.
    """
    target = make_url(url).set(drivername="postgresql+psycopg")
    limit_ms = max(100, int(lease_ttl_s * 500))
    session = (
        f"-c statement_timeout={limit_ms} -c lock_timeout={limit_ms} "
        f"-c idle_in_transaction_session_timeout={limit_ms} -c synchronous_commit=on"
    )
    arguments: dict[str, Any] = {"options": session, "connect_timeout": 5}
    writer = sqlalchemy.create_engine(
        target, connect_args=arguments, poolclass=NullPool, isolation_level="READ COMMITTED"
    )
    reader = sqlalchemy.create_engine(
        target,
        connect_args=arguments,
        pool_size=readers,
        max_overflow=0,
        pool_pre_ping=True,
        isolation_level="REPEATABLE READ",
        execution_options={"postgresql_readonly": True},
    )
    return writer, reader


def check_postgres(connection: Connection) -> None:
    """Refuse servers that are too old.

    Raises:
        ConfigurationError: older than PostgreSQL 15.
    """
    version = int(connection.exec_driver_sql("SHOW server_version_num").scalar_one())
    if version < _POSTGRES_MINIMUM:
        raise ConfigurationError(
            f"PostgreSQL {version // 10000} is too old", hint="use PostgreSQL 15 or newer"
        )


def storage_error(error: DBAPIError, *, committing: bool = False) -> StorageError | None:
    """What `error` means to the caller if the database cannot write now; else None.

    Args:
        error: what SQLAlchemy raised.
        committing: whether it was COMMIT that failed, whose outcome can then be unknown.
    """
    cause = error.orig
    if isinstance(cause, sqlite3.Error):
        whole_code = getattr(cause, "sqlite_errorcode", 0)
        code = whole_code & 0xFF  # the primary code; the rest details it
        if damage := _DAMAGE.get(whole_code) or _DAMAGE.get(code):
            return DamagedStoreError(
                f"{damage}; it is unknown whether the change was kept",
                hint="the daemon ends; look at the disk (dmesg), then start it again",
            )
        if code not in _SQLITE_CANNOT:
            return None
        return _told(_SQLITE_CANNOT[code], unknown=committing and code in _UNSURE)
    if isinstance(cause, psycopg.errors.ReadOnlySqlTransaction):
        return _told("the database server is read-only", unknown=False)
    if isinstance(cause, psycopg.errors.IdleInTransactionSessionTimeout):
        return _told("this daemon paused inside a transaction for too long", unknown=False)
    if isinstance(cause, psycopg.OperationalError):
        told = str(cause).strip().splitlines()
        return _told(
            f"the database server does not answer ({told[0] if told else type(cause).__name__})",
            unknown=committing,
        )
    return None


def _told(what: str, *, unknown: bool) -> StorageError:
    if unknown:
        return StorageError(
            f"{what}; it is unknown whether the change was kept",
            hint="repeat the request with the same Idempotency-Key: it cannot happen twice",
        )
    return StorageError(
        f"{what}; nothing of the request was kept",
        hint="running jobs go on; try again when the database can write",
    )
