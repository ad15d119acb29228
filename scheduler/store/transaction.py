"""What every store and use-case function works in: one transaction of the store."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol, TypeVar

import psycopg
from sqlalchemy import Connection

from scheduler.model.quantity import PrincipalId, TenantId, UtcSeconds
from scheduler.store.journal import Journal, head_revision

T = TypeVar("T")


class Transaction:
    """One transaction: a connection, and the journal when it may write.

    Attributes:
        connection: the open SQLAlchemy connection; never commit or roll it back yourself.
        dialect: `sqlite` or `postgresql`.
    """

    __slots__ = ("_depth", "_journal", "connection", "dialect")

    def __init__(self, connection: Connection, journal: Journal | None = None) -> None:
        self.connection = connection
        self.dialect: str = connection.dialect.name
        self._journal = journal
        self._depth = 0

    @property
    def head_revision(self) -> int:
        """The journal's revision as this transaction sees it, its own rows counted."""
        if self._journal is not None:
            return self._journal.revision
        return head_revision(self.connection)

    def next_revision(
        self,
        *,
        tenant: TenantId,
        kind: str,
        object_id: str,
        payload: Mapping[str, object],
        at: UtcSeconds,
    ) -> int:
        """Append one journal row and return its revision, gapless over the whole store."""
        return self._writing().append(
            tenant=tenant, kind=kind, object_id=object_id, payload=payload, at=at
        )

    def audit(
        self,
        *,
        tenant: TenantId,
        principal: PrincipalId,
        action: str,
        object_id: str,
        outcome: str,
        detail: Mapping[str, object],
        at: UtcSeconds,
    ) -> None:
        """Append one row to the hash-chained audit log."""
        self._writing().append_audit(
            tenant=tenant,
            principal=principal,
            action=action,
            object_id=object_id,
            outcome=outcome,
            detail=detail,
            at=at,
        )

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Undo the block alone, its journal rows too, when it raises; the exception goes on."""
        journal = self._writing()
        mark = journal.mark()
        self._depth += 1
        name = f"s{self._depth}"
        self.connection.exec_driver_sql(f"SAVEPOINT {name}")
        try:
            yield
        except BaseException:
            journal.return_to(mark)
            if self._open():
                self.connection.exec_driver_sql(f"ROLLBACK TO SAVEPOINT {name}")
                self.connection.exec_driver_sql(f"RELEASE SAVEPOINT {name}")
            raise
        else:
            self.connection.exec_driver_sql(f"RELEASE SAVEPOINT {name}")
        finally:
            self._depth -= 1

    def _open(self) -> bool:
        """Whether the database still has our transaction: a full disk or a lost link ends it."""
        if self.connection.invalidated:
            return False
        driver = self.connection.connection.driver_connection
        if isinstance(driver, sqlite3.Connection):
            return driver.in_transaction
        return isinstance(driver, psycopg.Connection) and not driver.closed

    def _writing(self) -> Journal:
        if self._journal is None:
            raise RuntimeError("this is a read transaction; use Database.write to change anything")
        return self._journal


class Transactions(Protocol):
    """Where transactions run: a `Database`, or a simulated one."""

    async def write(
        self, command: Callable[[Transaction], T], *, failpoint: str | None = None
    ) -> T:
        """Run `command` in a write transaction; answers after the COMMIT that keeps it."""
        ...

    async def read(self, query: Callable[[Transaction], T]) -> T:
        """Run `query` on one consistent state."""
        ...
