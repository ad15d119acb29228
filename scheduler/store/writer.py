"""Group commit: one thread, one connection, many commands in one durable transaction."""

from __future__ import annotations

import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

import structlog
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from scheduler import failpoints
from scheduler.errors import BusyError, DamagedStoreError, StorageError
from scheduler.store.engines import storage_error
from scheduler.store.journal import Journal
from scheduler.store.transaction import Transaction

T = TypeVar("T")
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Command:
    run: Callable[[Transaction], Any]
    failpoint: str | None
    future: Future[Any] = field(default_factory=Future)


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What a command returned, or why it alone was rolled back."""

    value: Any = None
    error: Exception | None = None


class Writer:
    """Runs queued commands in order; each is answered only after the COMMIT that keeps it.

    While one COMMIT waits for the disk, commands queue up and share the next. In a shared
    transaction each command has a savepoint, so that one that raises undoes only itself; a lone
    command needs none.

    The writer ends for good when the disk may have lost what was committed, or when it failed
    between a COMMIT and the answers: only a fresh start can tell what is stored.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        commands_per_commit_max: int,
        queue_max: int,
        committed: Callable[[int], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        """Take commands from now on; `start` the thread that serves them.

        Args:
            engine: the writer engine; whoever serves is its only user from here on.
            commands_per_commit_max: bound of a shared transaction.
            queue_max: commands that may wait; one more is refused.
            committed: called on the writer thread with each new head revision.
            failed: called on the writer thread when it ends for good.
        """
        self._engine = engine
        self._batch_max = commands_per_commit_max
        self._queue_max = queue_max
        self._committed = committed
        self._failed = failed
        self._queue: deque[_Command] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._ended = "the store is closed; the daemon is shutting down"
        self._connection: Connection | None = None
        self._told: int | None = None
        self.trouble = ""
        """Why the last transaction could not be stored; empty once one was."""
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)

    def start(self) -> None:
        """Serve on a thread of its own until `close`."""
        self._thread.start()

    def submit(self, command: Callable[[Transaction], T], failpoint: str | None) -> Future[T]:
        """Queue `command`; the future answers after its COMMIT.

        Raises:
            BusyError: the queue is full.
            StorageError: the store is closed.
        """
        queued = _Command(command, failpoint)
        with self._wake:
            if self._closing:
                raise StorageError(self._ended)
            if len(self._queue) >= self._queue_max:
                raise BusyError(
                    f"{self._queue_max} changes wait to be stored",
                    hint="try again in a moment",
                )
            self._queue.append(queued)
            self._wake.notify()
        return queued.future

    @property
    def waiting(self) -> int:
        """Commands in the queue."""
        return len(self._queue)

    def close(self) -> None:
        """Carry out what is queued, then end the thread. Idempotent."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._queue and not self._closing:
                    self._wake.wait()
            if not self.serve_waiting():
                self._drop_connection()
                return

    def serve_waiting(self) -> bool:
        """Carry out what waits, up to the bound, in one transaction; False when nothing waits.

        The thread's work. Simulations call it in their own time instead of starting the thread.
        """
        with self._wake:
            size = min(len(self._queue), self._batch_max)
            taken = [self._queue.popleft() for _ in range(size)]
        # A caller that gave up before its turn leaves no trace.
        batch = [each for each in taken if each.future.set_running_or_notify_cancel()]
        if batch:
            self._serve(batch)
        return bool(taken)

    def _serve(self, batch: list[_Command]) -> None:
        try:
            outcomes, revision = self._transact(batch)
        except BaseException as error:  # noqa: BLE001 - every caller is told, the thread lives on
            _refuse(batch, error)
            if isinstance(error, DamagedStoreError):
                self._give_up(error)
            return
        try:
            _hit_points(batch, "after-commit", "stored")
            for command, outcome in zip(batch, outcomes, strict=True):
                if outcome.error is None:
                    command.future.set_result(outcome.value)
                else:
                    command.future.set_exception(outcome.error)
        except BaseException as error:  # noqa: BLE001 - stored, but not everybody knows: start afresh
            _refuse([command for command in batch if not command.future.done()], error)
            self._give_up(error)
            return
        if revision is not None:
            try:
                self._committed(revision)
            except Exception:  # noqa: BLE001 - logged with its trace; the thread must live
                # What is committed stays committed: a listener's fault is not the callers'.
                _log.exception("commit listener failed", revision=revision)

    def _give_up(self, error: BaseException) -> None:
        """Take no more commands, refuse those that wait, and say so."""
        with self._wake:
            self._closing = True
            self._ended = self.trouble = f"the store has stopped for good: {error}"
            waiting = list(self._queue)
            self._queue.clear()
        _log.critical("the store has stopped for good; start the daemon anew", reason=str(error))
        refused = [each for each in waiting if each.future.set_running_or_notify_cancel()]
        _refuse(refused, StorageError(self._ended))
        self._failed(error)

    def _transact(self, batch: list[_Command]) -> tuple[list[_Outcome], int | None]:
        """One transaction; the head revision, or None if listeners know of it."""
        committing = False
        try:
            connection = self._connect()
            with connection.begin() as transaction:
                journal = Journal(connection)
                found = journal.revision
                outcomes = _carry_out(Transaction(connection, journal), batch)
                if all(outcome.error is not None for outcome in outcomes):
                    transaction.rollback()
                    return outcomes, None
                journal.flush()
                _hit_points(batch, "before-commit")
                committing = True
        except DBAPIError as error:
            told = storage_error(error, committing=committing)
            if not isinstance(told, DamagedStoreError):
                self._drop_connection(unless_full=error)
            if told is None:
                raise
            _log.warning("the store cannot write", reason=str(told))
            self.trouble = str(told)
            raise told from error
        self.trouble = ""
        return outcomes, self._news(found, journal.revision)

    def _news(self, found: int, left: int) -> int | None:
        """The head, where it is further than listeners know; None where it is not.

        A commit that was kept although it seemed to fail, or that of another process, was told to
        nobody: whoever waits for it hears of it with the next transaction.
        """
        known = found if self._told is None else self._told
        self._told = left
        return left if left > known else None

    def _connect(self) -> Connection:
        if self._connection is None or self._connection.invalidated:
            self._connection = self._engine.connect()
        return self._connection

    def _drop_connection(self, unless_full: DBAPIError | None = None) -> None:
        """Close the connection: the next batch opens another and reads the log afresh.

        A full disk leaves the connection sound, and reopening would need the disk.
        """
        if unless_full is not None and _is_full(unless_full):
            return
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.close()
            except DBAPIError as error:
                _log.warning("closing the write connection failed", reason=str(error.orig))


def _refuse(commands: Iterable[_Command], error: BaseException) -> None:
    for command in commands:
        command.future.set_exception(error)


def _is_full(error: DBAPIError) -> bool:
    code = getattr(error.orig, "sqlite_errorcode", 0)
    return int(code) & 0xFF == sqlite3.SQLITE_FULL


def _carry_out(tx: Transaction, batch: list[_Command]) -> list[_Outcome]:
    """Run the commands; an error that is the database's ends the whole batch."""
    outcomes = []
    for command in batch:
        try:
            if len(batch) == 1:
                value = command.run(tx)
            else:
                with tx.savepoint():
                    value = command.run(tx)
        except Exception as error:
            if isinstance(error, DBAPIError) and storage_error(error) is not None:
                raise
            outcomes.append(_Outcome(error=error))
        else:
            outcomes.append(_Outcome(value))
    return outcomes


def _hit_points(batch: Iterable[_Command], *moments: str) -> None:
    for prefix in sorted({command.failpoint for command in batch if command.failpoint}):
        for moment in moments:
            name = f"{prefix}-{moment}"
            if name in failpoints.NAMES:
                failpoints.hit(name)
