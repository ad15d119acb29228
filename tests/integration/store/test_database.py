import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from support.clock import ManualClock
from support.postgres import libpq_url

from scheduler import failpoints
from scheduler.errors import (
    AlreadyRunningError,
    BusyError,
    ConfigurationError,
    DamagedStoreError,
    StorageError,
)
from scheduler.model.quantity import DEFAULT_TENANT, PrincipalId, UtcSeconds
from scheduler.settings import StoreSettings
from scheduler.store import tables
from scheduler.store.database import Database, Transaction
from scheduler.store.journal import ChainCheck, verify_audit_chain


def _append(tx: Transaction, object_id: str = "x") -> int:
    return tx.next_revision(
        tenant=DEFAULT_TENANT, kind="test", object_id=object_id, payload={}, at=UtcSeconds(1.0)
    )


def _audit(tx: Transaction, object_id: str = "x") -> None:
    tx.audit(
        tenant=DEFAULT_TENANT,
        principal=PrincipalId("p-1"),
        action="test",
        object_id=object_id,
        outcome="ok",
        detail={"n": 1.5},
        at=UtcSeconds(0.1 + 0.2),
    )


def _revisions(tx: Transaction) -> list[int]:
    columns = tables.journal.c
    return list(
        tx.connection.execute(sa.select(columns.revision).order_by(columns.revision)).scalars()
    )


def _blocked(database: Database) -> tuple[Callable[[], None], threading.Event]:
    """Keep the writer busy until the returned function is called."""
    begun, release = threading.Event(), threading.Event()

    def wait(_: Transaction) -> None:
        begun.set()
        release.wait(30)

    thread = threading.Thread(target=database.write_sync, args=(wait,))
    thread.start()
    begun.wait(30)

    def free() -> None:
        release.set()
        thread.join()

    return free, begun


def test_revisions_are_gapless_when_commands_of_one_commit_fail(database: Database) -> None:
    def fails(tx: Transaction) -> None:
        _append(tx)
        _audit(tx)
        raise ValueError("no")

    async def mixed() -> list[int | BaseException | None]:
        commands: list[Callable[[Transaction], int | None]] = [
            fails if number % 3 == 0 else _append for number in range(30)
        ]
        free, _ = _blocked(database)
        waiting = asyncio.gather(*map(database.write, commands), return_exceptions=True)
        await asyncio.sleep(0)  # all are queued now: they share a commit
        free()
        return await waiting

    answers = asyncio.run(mixed())
    assert [type(answer) for answer in answers] == [
        ValueError if number % 3 == 0 else int for number in range(30)
    ]
    assert [answer for answer in answers if isinstance(answer, int)] == list(range(1, 21))
    assert database.read_sync(_revisions) == list(range(1, 21))
    assert database.read_sync(lambda tx: tx.head_revision) == 20
    assert database.read_sync(lambda tx: verify_audit_chain(tx.connection)) == ChainCheck(0, None)


def test_a_lone_failing_command_leaves_nothing(database: Database) -> None:
    def fails(tx: Transaction) -> None:
        _append(tx)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        database.write_sync(fails)
    assert database.write_sync(_append) == 1


def test_nested_savepoints_undo_their_own_rows_only(database: Database) -> None:
    def command(tx: Transaction) -> None:
        _append(tx, "outer")
        with contextlib.suppress(ValueError), tx.savepoint():
            _append(tx, "inner")
            with tx.savepoint():
                _append(tx, "innermost")
            raise ValueError
        with tx.savepoint():
            _append(tx, "kept")

    database.write_sync(command)
    kept = database.read_sync(
        lambda tx: tx.connection.execute(
            sa.select(tables.journal.c.revision, tables.journal.c.object_id)
        ).all()
    )
    assert [tuple(row) for row in kept] == [(1, "outer"), (2, "kept")]


def test_listeners_hear_of_each_commit_that_moved_the_revision(database: Database) -> None:
    heard: list[int] = []
    database.on_commit(heard.append)
    database.write_sync(_append)
    database.write_sync(lambda tx: tx.head_revision)
    database.write_sync(_append)
    database.close()
    assert heard == [1, 2]


def test_listeners_hear_late_of_a_commit_that_nobody_told_them_of(
    sqlite_database: Database, sqlite_settings: StoreSettings
) -> None:
    """One whose answer got lost on the way is announced with the next transaction, once."""
    heard: list[int] = []
    sqlite_database.on_commit(heard.append)
    sqlite_database.write_sync(_append)
    with contextlib.closing(sqlite3.connect(sqlite_settings.data_dir / "haversack.db")) as other:
        other.execute("INSERT INTO journal VALUES (2, 'default', 1.0, 'test', 'x', '{}')")
        other.execute("UPDATE journal_head SET revision = 2")
        other.commit()
    sqlite_database.write_sync(lambda tx: tx.head_revision)
    sqlite_database.write_sync(lambda tx: tx.head_revision)
    sqlite_database.close()
    assert heard == [1, 2]


def test_a_failing_listener_stops_neither_writer_nor_caller(sqlite_database: Database) -> None:
    def fail(_: int) -> None:
        raise RuntimeError("listener")

    sqlite_database.on_commit(fail)
    assert sqlite_database.write_sync(_append) == 1
    assert sqlite_database.write_sync(_append) == 2


def test_a_reader_sees_one_consistent_state_and_may_not_write(database: Database) -> None:
    def read_around_a_write(tx: Transaction) -> tuple[int, int]:
        before = tx.head_revision
        database.write_sync(_append)
        return before, tx.head_revision

    assert database.read_sync(read_around_a_write) == (0, 0)
    assert database.read_sync(lambda tx: tx.head_revision) == 1
    with pytest.raises(RuntimeError, match="read transaction"):
        database.read_sync(_append)
    with pytest.raises((sa.exc.DBAPIError, StorageError), match=r"(?i)read-?only"):
        database.read_sync(
            lambda tx: tx.connection.execute(sa.delete(tables.journal).where(sa.true()))
        )


def test_a_full_queue_refuses(sqlite_settings: StoreSettings) -> None:
    settings = sqlite_settings.model_copy(update={"write_queue_max": 3})
    database = Database.open(settings, clock=ManualClock())

    async def crowd() -> list[int | BaseException]:
        free, _ = _blocked(database)
        waiting = asyncio.gather(
            *(database.write(_append) for _ in range(5)), return_exceptions=True
        )
        await asyncio.sleep(0)
        assert database.writes_waiting == 3
        free()
        return await waiting

    answers = asyncio.run(crowd())
    assert [type(answer) for answer in answers] == [int] * 3 + [BusyError] * 2
    database.close()


def test_a_caller_that_gave_up_in_the_queue_leaves_no_trace(sqlite_database: Database) -> None:
    async def give_up() -> None:
        free, _ = _blocked(sqlite_database)
        task = asyncio.create_task(sqlite_database.write(_append))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        free()

    asyncio.run(give_up())
    assert sqlite_database.write_sync(_append) == 1


def test_closing_finishes_what_is_queued_and_refuses_more(sqlite_database: Database) -> None:
    free, _ = _blocked(sqlite_database)
    answers: list[int] = []
    thread = threading.Thread(target=lambda: answers.append(sqlite_database.write_sync(_append)))
    thread.start()
    while not sqlite_database.writes_waiting:
        threading.Event().wait(0.001)
    free()
    sqlite_database.close()
    thread.join()
    assert answers == [1]
    with pytest.raises(StorageError, match="closed"):
        sqlite_database.write_sync(_append)


def test_a_full_disk_refuses_and_recovers_without_restart(sqlite_database: Database) -> None:
    def limit_pages(pages: int) -> None:
        sqlite_database.write_sync(
            lambda tx: tx.connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
        )

    def fill(tx: Transaction) -> int:
        return tx.next_revision(
            tenant=DEFAULT_TENANT,
            kind="test",
            object_id="big",
            payload={"x": "y" * 200_000},
            at=UtcSeconds(1.0),
        )

    async def together() -> list[int | BaseException]:
        free, _ = _blocked(sqlite_database)
        waiting = asyncio.gather(
            *(sqlite_database.write(fill) for _ in range(3)), return_exceptions=True
        )
        await asyncio.sleep(0)
        free()
        return await waiting

    assert sqlite_database.write_sync(_append) == 1
    limit_pages(1)  # SQLite rounds up to what there is
    with pytest.raises(StorageError, match="disk is full"):
        sqlite_database.write_sync(fill)
    answers = asyncio.run(together())
    assert [type(answer) for answer in answers] == [StorageError] * 3
    assert sqlite_database.read_sync(_revisions) == [1]
    limit_pages(1_000_000)
    assert sqlite_database.write_sync(fill) == 2


def _failures(database: Database) -> list[BaseException]:
    told: list[BaseException] = []
    database.on_failure(told.append)
    return told


def test_a_failed_fsync_ends_the_store_for_good(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = _failures(sqlite_database)
    dialect = sqlite_database._engines[1].dialect

    def lose(_: object) -> None:
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
        raise error

    begun, queued = threading.Event(), threading.Event()

    def first(tx: Transaction) -> int:
        begun.set()
        queued.wait(30)
        monkeypatch.setattr(dialect, "do_commit", lose)
        return _append(tx)

    async def three() -> list[int | BaseException]:
        writing = asyncio.create_task(sqlite_database.write(first))
        await asyncio.to_thread(begun.wait, 30)
        others = [asyncio.create_task(sqlite_database.write(_append)) for _ in range(2)]
        await asyncio.sleep(0)
        queued.set()
        return await asyncio.gather(writing, *others, return_exceptions=True)

    lost, *refused = asyncio.run(three())
    assert isinstance(lost, DamagedStoreError)
    assert "fsync" in str(lost)
    assert "unknown whether" in str(lost)
    assert all("stopped for good" in str(answer) for answer in refused)
    monkeypatch.undo()
    with pytest.raises(StorageError, match="stopped for good"):  # though the disk is well again
        sqlite_database.write_sync(_append)
    sqlite_database.close()
    assert [type(error) for error in told] == [DamagedStoreError]
    assert "stopped for good" in sqlite_database.trouble


def test_a_failure_between_commit_and_answer_ends_the_store(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = _failures(sqlite_database)

    def fail(name: str) -> None:
        if name == "submit-after-commit":
            raise failpoints.FailpointError(name)

    monkeypatch.setattr(failpoints, "hit", fail)
    with pytest.raises(failpoints.FailpointError):
        sqlite_database.write_sync(_append, failpoint="submit")
    assert sqlite_database.read_sync(_revisions) == [1]
    with pytest.raises(StorageError, match="stopped for good"):
        sqlite_database.write_sync(_append)
    sqlite_database.close()
    assert [type(error) for error in told] == [failpoints.FailpointError]


def test_failpoints_frame_the_commit(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, int]] = []

    def note(name: str) -> None:
        seen.append((name, sqlite_database.read_sync(lambda tx: tx.head_revision)))

    monkeypatch.setattr(failpoints, "hit", note)
    sqlite_database.write_sync(_append, failpoint="submit")
    sqlite_database.write_sync(_append, failpoint="cancel")
    sqlite_database.write_sync(_append)
    assert seen == [
        ("submit-before-commit", 0),
        ("submit-after-commit", 1),
        ("cancel-before-commit", 1),
        ("cancel-stored", 2),
    ]


def test_a_second_daemon_is_refused_by_pid(sqlite_settings: StoreSettings) -> None:
    first = Database.open(sqlite_settings, clock=ManualClock())
    pid = (sqlite_settings.data_dir / "lock").read_text().strip()
    with pytest.raises(AlreadyRunningError, match=f"pid {pid}"):
        Database.open(sqlite_settings, clock=ManualClock())
    first.close()
    Database.open(sqlite_settings, clock=ManualClock()).close()


def test_a_directory_open_to_others_is_refused(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o755)
    with pytest.raises(ConfigurationError, match="open to other users"):
        Database.open(StoreSettings(data_dir=shared), clock=ManualClock())


def test_a_damaged_file_is_refused(sqlite_settings: StoreSettings) -> None:
    path = sqlite_settings.data_dir / "haversack.db"
    content = bytearray(path.read_bytes())
    content[100:] = b"\xff" * (len(content) - 100)
    path.write_bytes(content)
    with pytest.raises(StorageError, match="damaged"):
        Database.open(sqlite_settings, clock=ManualClock())


def test_an_unknown_database_is_refused(tmp_path: Path) -> None:
    settings = StoreSettings(data_dir=tmp_path / "d", database_url="mysql://x/y")
    with pytest.raises(ConfigurationError, match="mysql"):
        Database.open(settings, clock=ManualClock())


def test_an_unreachable_server_is_a_storage_error(tmp_path: Path) -> None:
    settings = StoreSettings(
        data_dir=tmp_path / "d", database_url=f"postgresql://x@/y?host={tmp_path}"
    )
    with pytest.raises(StorageError, match="does not answer"):
        Database.open(settings, clock=ManualClock())


@pytest.mark.postgres
def test_a_lost_server_connection_is_told_and_replaced(tmp_path: Path, postgres_url: str) -> None:
    settings = StoreSettings(data_dir=tmp_path / "d", database_url=postgres_url)
    database = Database.open(settings, clock=ManualClock())

    def cut(tx: Transaction) -> None:
        _append(tx)
        tx.connection.exec_driver_sql("SELECT pg_terminate_backend(pg_backend_pid())")

    with pytest.raises(StorageError, match="does not answer"):
        database.write_sync(cut)
    assert database.write_sync(_append) == 1
    database.close()


@pytest.mark.postgres
def test_a_pause_inside_a_transaction_is_told_and_survived(
    tmp_path: Path, postgres_url: str
) -> None:
    settings = StoreSettings(
        data_dir=tmp_path / "d", database_url=postgres_url, lease_ttl_s=0.2
    )  # sessions are ended after 0.1 s idle in a transaction
    database = Database.open(settings, clock=ManualClock())

    def pause(tx: Transaction) -> None:
        _append(tx)
        threading.Event().wait(0.5)
        _append(tx)

    with pytest.raises(StorageError, match=r"paused inside a transaction|does not answer"):
        database.write_sync(pause)
    assert database.write_sync(_append) == 1
    database.close()


@pytest.mark.postgres
def test_a_commit_without_an_answer_is_told_as_unknown(
    tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = StoreSettings(data_dir=tmp_path / "d", database_url=postgres_url)
    database = Database.open(settings, clock=ManualClock())
    other = psycopg.connect(libpq_url(postgres_url), autocommit=True)

    def cut(name: str) -> None:
        if name == "submit-before-commit":
            other.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE state = 'idle in transaction'"
            )

    monkeypatch.setattr(failpoints, "hit", cut)
    with pytest.raises(StorageError, match="unknown whether the change was kept") as told:
        database.write_sync(_append, failpoint="submit")
    assert "Idempotency-Key" in told.value.hint
    assert database.write_sync(_append) == 1
    other.close()
    database.close()


@pytest.mark.postgres
def test_two_writers_on_one_server_share_one_gapless_journal(
    tmp_path: Path, postgres_url: str
) -> None:
    stores = [
        Database.open(
            StoreSettings(data_dir=tmp_path / name, database_url=postgres_url),
            clock=ManualClock(),
        )
        for name in ("one", "two")
    ]

    async def both() -> list[int]:
        return await asyncio.gather(*(stores[number % 2].write(_append) for number in range(100)))

    assert sorted(asyncio.run(both())) == list(range(1, 101))
    for store in stores:
        assert store.read_sync(_revisions) == list(range(1, 101))
        store.close()


def test_the_audit_chain_tells_where_it_was_altered(database: Database) -> None:
    for number in range(5):
        database.write_sync(lambda tx, number=number: _audit(tx, f"o{number}"))  # type: ignore[misc]

    def check(tx: Transaction) -> ChainCheck:
        return verify_audit_chain(tx.connection)

    audit = tables.audit
    assert database.read_sync(check) == ChainCheck(5, None)
    ids = database.read_sync(
        lambda tx: list(tx.connection.execute(sa.select(audit.c.id).order_by(audit.c.id)).scalars())
    )
    database.write_sync(
        lambda tx: tx.connection.execute(
            sa.update(audit).where(audit.c.id == ids[2]).values(outcome="denied")
        )
    )
    assert database.read_sync(check) == ChainCheck(2, ids[2])
    database.write_sync(
        lambda tx: tx.connection.execute(sa.delete(audit).where(audit.c.id >= ids[2]))
    )
    assert database.read_sync(check) == ChainCheck(2, 0)
