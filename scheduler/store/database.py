"""The store's front door: open it once, then `write` and `read` transactions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from scheduler.clock import Clock
from scheduler.errors import ConfigurationError
from scheduler.settings import StoreSettings
from scheduler.store import engines, schema
from scheduler.store.datadir import DataDirectory, refuse_network_filesystem
from scheduler.store.transaction import Transaction
from scheduler.store.writer import Writer

__all__ = ["Database", "Transaction"]

T = TypeVar("T")
_FILE = "haversack.db"


class Database:
    """The engines, the writer thread and the readers of one store. Thread-safe.

    Reads see one consistent state each; they never wait for the writer.
    """

    def __init__(
        self, settings: StoreSettings, directory: DataDirectory, writer: Engine, reader: Engine
    ) -> None:
        """Start the threads; use `open`, which also prepares the schema."""
        self._directory = directory
        self._engines = (reader, writer)  # the writer closes last: it checkpoints
        self._listeners: list[Callable[[int], None]] = []
        self._failure_listeners: list[Callable[[BaseException], None]] = []
        self._reading = ThreadPoolExecutor(settings.readers, thread_name_prefix="store-reader")
        self._writer = Writer(
            writer,
            commands_per_commit_max=settings.commands_per_commit_max,
            queue_max=settings.write_queue_max,
            committed=self._tell_listeners,
            failed=self._tell_failure,
        )
        self._writer.start()

    @classmethod
    def open(cls, settings: StoreSettings, *, clock: Clock) -> Database:
        """Lock the data directory, bring the schema up to date, seed a fresh store.

        Raises:
            AlreadyRunningError: another daemon holds the data directory.
            ConfigurationError: the directory, the server or the schema is refused.
            StorageError: the database cannot be opened or is damaged.
        """
        directory = DataDirectory(settings.data_dir)
        try:
            writer, reader = _engines(settings, directory)
            try:
                _prepare(writer, clock)
            except BaseException:
                writer.dispose()
                raise
        except BaseException:
            directory.close()
            raise
        return cls(settings, directory, writer, reader)

    @property
    def dialect(self) -> str:
        """`sqlite` or `postgresql`."""
        return self._engines[1].dialect.name

    @property
    def trouble(self) -> str:
        """Why the store could not write last time, or "" when it could; for readiness."""
        return self._writer.trouble

    @property
    def writes_waiting(self) -> int:
        """Commands queued for the writer."""
        return self._writer.waiting

    async def write(
        self, command: Callable[[Transaction], T], *, failpoint: str | None = None
    ) -> T:
        """Run `command` on the writer thread; answers after the COMMIT that keeps it.

        Args:
            command: what to do; it may raise, which undoes it alone.
            failpoint: prefix of the failpoints hit right before and after that COMMIT.

        Raises:
            StorageError: the store cannot write; nothing was kept unless the message says that
                this is unknown.
            DamagedStoreError: the disk is in doubt; nothing more is written (see `on_failure`).
            BusyError: too many commands wait.
        """
        return await asyncio.wrap_future(self._writer.submit(command, failpoint))

    def write_sync(self, command: Callable[[Transaction], T], *, failpoint: str | None = None) -> T:
        """As `write`, blocking; never from the writer thread itself."""
        return self._writer.submit(command, failpoint).result()

    async def read(self, query: Callable[[Transaction], T]) -> T:
        """Run `query` on a reader thread, on one consistent state.

        Raises:
            StorageError: the database does not answer.
        """
        return await asyncio.get_running_loop().run_in_executor(
            self._reading, self.read_sync, query
        )

    def read_sync(self, query: Callable[[Transaction], T]) -> T:
        """As `read`, on the calling thread."""
        try:
            with self._engines[0].connect() as connection, connection.begin():
                return query(Transaction(connection))
        except DBAPIError as error:
            told = engines.storage_error(error)
            if told is None:
                raise
            raise told from error

    def on_commit(self, listener: Callable[[int], None]) -> None:
        """Call `listener` on the writer thread with each new head revision; it must not block."""
        self._listeners.append(listener)

    def on_failure(self, listener: Callable[[BaseException], None]) -> None:
        """Call `listener` on the writer thread if the store stops for good (see `Writer`)."""
        self._failure_listeners.append(listener)

    def close(self) -> None:
        """Finish queued commands, close every connection, free the data directory. Idempotent."""
        self._writer.close()
        self._reading.shutdown()
        for engine in self._engines:
            engine.dispose()
        self._directory.close()

    def _tell_listeners(self, revision: int) -> None:
        for listener in tuple(self._listeners):
            listener(revision)

    def _tell_failure(self, error: BaseException) -> None:
        for listener in tuple(self._failure_listeners):
            listener(error)


def _engines(settings: StoreSettings, directory: DataDirectory) -> tuple[Engine, Engine]:
    url = settings.database_url
    if not url:
        refuse_network_filesystem(directory.path)
        return engines.sqlite_engines(directory.path / _FILE, readers=settings.readers)
    if url.split(":", 1)[0].split("+", 1)[0] in ("postgresql", "postgres"):
        return engines.postgres_engines(
            url, readers=settings.readers, lease_ttl_s=settings.lease_ttl_s
        )
    raise ConfigurationError(
        f"the database URL starts with {url.split(':', 1)[0]!r}",
        hint="leave it out for SQLite in the data directory, or use postgresql://…",
    )


def _prepare(writer: Engine, clock: Clock) -> None:
    try:
        with writer.begin() as connection:
            if writer.dialect.name == "sqlite":
                engines.quick_check(connection)
            else:
                engines.check_postgres(connection)
            schema.prepare(connection, now=clock.now())
    except DBAPIError as error:
        told = engines.storage_error(error)
        if told is None:
            raise
        raise told from error
