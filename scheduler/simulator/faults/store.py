"""The real tables and the real group commit, on one SQLite database in memory and without threads.

A process keeps one connection; each schedule starts from a copy of one prepared database. Commits
fail on the driver's level, so that all of `scheduler.store` meets the error it would meet.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from contextvars import Context
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

import sqlalchemy
from sqlalchemy import Engine, insert
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import StaticPool
from typing_extensions import override

from scheduler.model.quantity import TenantId, UtcSeconds
from scheduler.simulator.faults.chance import Chance, Fault
from scheduler.simulator.faults.loop import WALL_START_S
from scheduler.store import schema, tables
from scheduler.store.transaction import Transaction
from scheduler.store.writer import Writer

T = TypeVar("T")

OTHER_TENANT = TenantId("other")
COMMANDS_PER_COMMIT_MAX = 8
QUEUE_MAX = 64


class _Verdict(StrEnum):
    """What becomes of a COMMIT."""

    KEPT = "kept"
    FULL = "full"
    FAILED = "failed"
    UNANSWERED = "unanswered"
    DAMAGED_KEPT = "damaged, kept"
    DAMAGED_LOST = "damaged, lost"


_CODES = {
    _Verdict.FULL: sqlite3.SQLITE_FULL,
    _Verdict.FAILED: sqlite3.SQLITE_BUSY,
    _Verdict.UNANSWERED: sqlite3.SQLITE_IOERR,
    _Verdict.DAMAGED_KEPT: sqlite3.SQLITE_IOERR_FSYNC,
    _Verdict.DAMAGED_LOST: sqlite3.SQLITE_IOERR_FSYNC,
}
_STORED = frozenset({_Verdict.KEPT, _Verdict.UNANSWERED, _Verdict.DAMAGED_KEPT})


class _Connection(sqlite3.Connection):
    """A connection whose commits can go wrong.

    Attributes:
        judge: asked what becomes of a commit; None keeps all.
    """

    judge: Callable[[], _Verdict] | None = None

    @override
    def commit(self) -> None:
        verdict = _Verdict.KEPT if self.judge is None else self.judge()
        if verdict in _STORED:
            super().commit()
        elif verdict is not _Verdict.FAILED:
            super().rollback()  # as SQLite does by itself, but for SQLITE_BUSY
        if verdict is not _Verdict.KEPT:
            error = sqlite3.OperationalError(f"simulated: {verdict}")
            error.sqlite_errorcode = _CODES[verdict]
            raise error


class Disk:
    """The one connection of this process, and the database that schedules start from.

    Attributes:
        spoil: statement that damages the schema of every schedule, for planted bugs.
    """

    def __init__(self) -> None:
        """Migrate and seed once."""
        self.driver = sqlite3.connect(
            ":memory:", isolation_level=None, check_same_thread=False, factory=_Connection
        )
        self.engine = self._engine()
        with self.engine.begin() as connection:
            schema.prepare(connection, now=UtcSeconds(WALL_START_S))
            _add_tenant(connection, OTHER_TENANT)
        self.spoil = ""
        self._blank = sqlite3.connect(":memory:", check_same_thread=False)
        self.driver.backup(self._blank)

    def _engine(self) -> Engine:
        engine = sqlalchemy.create_engine(
            "sqlite+pysqlite://", creator=lambda: self.driver, poolclass=StaticPool
        )
        self.driver.execute("PRAGMA foreign_keys=ON")
        # What the writer's engine does by an event, which costs something at each statement.
        setattr(engine.dialect, "do_begin", _begin)  # noqa: B010 - a method, for mypy
        return engine

    def reset(self) -> None:
        """Start afresh from the prepared database. Tens of microseconds."""
        if self.driver.in_transaction:
            self.driver.rollback()
        self.driver.judge = None
        self._blank.backup(self.driver)
        if self.spoil:
            self.driver.execute(self.spoil)
        self.forget_memories()

    def close(self) -> None:
        """Close both databases."""
        self.engine.dispose()
        self.driver.close()
        self._blank.close()

    def forget_memories(self) -> None:
        """Drop what a daemon remembers with its connection: a new daemon opens a new one."""
        with self.engine.connect() as connection:
            connection.info.clear()


def _begin(connection: DBAPIConnection) -> None:
    connection.cursor().execute("BEGIN IMMEDIATE")


def _add_tenant(connection: sqlalchemy.Connection, tenant: TenantId) -> None:
    at = {"created_at": WALL_START_S}
    connection.execute(insert(tables.tenants), {"id": tenant, "name": tenant, "revision": 0, **at})
    connection.execute(
        insert(tables.queues),
        {"id": f"q-{tenant}", "tenant_id": tenant, "name": "default", "weight": 1.0, **at},
    )


@dataclass(slots=True)
class DiskTrouble:
    """What the disk does to commits of all daemons.

    Attributes:
        full: every commit fails.
    """

    chance: Chance
    full: bool = False

    def verdict(self) -> _Verdict:
        """What becomes of the next commit."""
        chance = self.chance
        if self.full:
            return _Verdict.FULL
        if chance.strikes(Fault.COMMIT_FAILS, 0.03):
            return _Verdict.FAILED
        if chance.strikes(Fault.COMMIT_UNKNOWN, 0.04):
            return _Verdict.UNANSWERED
        if chance.strikes(Fault.DISK_DAMAGED, 0.01):
            return chance.pick((_Verdict.DAMAGED_KEPT, _Verdict.DAMAGED_LOST))
        return _Verdict.KEPT


class SimulatedStore:
    """One daemon's door to the disk: `Transactions`, with the real `Writer` behind it.

    Args:
        disk: the database.
        trouble: what goes wrong on it.
        gate: waits while the daemon is frozen; raises when it is dead.
        ready: whether the daemon is neither.
        context: where the writer's work runs.
        served: called after each transaction was tried.
        committed: called with each new head revision.
        failed: called when the writer stops for good.
    """

    def __init__(
        self,
        disk: Disk,
        trouble: DiskTrouble,
        *,
        gate: Callable[[], Awaitable[None]],
        ready: Callable[[], bool],
        context: Context,
        served: Callable[[], None],
        committed: Callable[[int], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._disk = disk
        self._trouble = trouble
        self._gate = gate
        self._ready = ready
        self._context = context
        self._served = served
        self._due = False
        self._answers: dict[asyncio.Future[Any], None] = {}
        self._writer = Writer(
            disk.engine,
            commands_per_commit_max=COMMANDS_PER_COMMIT_MAX,
            queue_max=QUEUE_MAX,
            committed=committed,
            failed=failed,
        )

    @property
    def waiting(self) -> int:
        """Commands in the queue."""
        return self._writer.waiting

    async def write(
        self, command: Callable[[Transaction], T], *, failpoint: str | None = None
    ) -> T:
        """Run `command` in a group commit a little later; as `Database.write`."""
        await self._gate()
        future = self._writer.submit(command, failpoint)
        self.serve_soon()
        answer = asyncio.wrap_future(future)
        self._answers[answer] = None
        try:
            kept = await answer
        except asyncio.CancelledError:
            await self._gate()  # it tells a death from a caller that gave up
            raise
        finally:
            del self._answers[answer]
        await self._gate()
        return kept

    def shut(self) -> None:
        """The daemon is dead: nobody gets an answer any more."""
        for answer in tuple(self._answers):
            answer.cancel()

    async def read(self, query: Callable[[Transaction], T]) -> T:
        """Run `query` on the state as it is; as `Database.read`."""
        await self._gate()
        with self._disk.engine.connect() as connection, connection.begin():
            return query(Transaction(connection))

    def serve_soon(self) -> None:
        """See to it that what is queued gets served."""
        if not self._due:
            self._due = True
            delay_s = self._trouble.chance.between(0.0005, 0.01)
            asyncio.get_running_loop().call_later(delay_s, self._serve, context=self._context)

    def _serve(self) -> None:
        self._due = False
        if not self._ready() or not self._writer.waiting:
            return
        self._disk.driver.judge = self._trouble.verdict
        try:
            self._writer.serve_waiting()
        finally:
            self._disk.driver.judge = None
        self._served()
        if self._writer.waiting:
            self.serve_soon()
