from pathlib import Path

import pytest
import sqlalchemy as sa
from support.builders import job_spec, node, placement, task_placement
from support.clock import ManualClock
from support.ids import SequentialIds
from support.store import commit, insert_job

from scheduler.errors import AlreadyRunningError, FencedError
from scheduler.settings import StoreSettings
from scheduler.store import lease, tables
from scheduler.store.database import Database, Transaction
from scheduler.store.inventory import sync_nodes

TTL_S = 60.0
NODE = node("n0", gpus=1)


def test_each_lead_has_the_next_epoch(database: Database, clock: ManualClock) -> None:
    epochs = [
        database.write_sync(lambda tx: lease.acquire(tx, "me", TTL_S, clock.now()))
        for _ in range(3)
    ]
    assert epochs == [1, 2, 3]
    database.write_sync(lambda tx: lease.require(tx, 3))
    for stale in (0, 1, 2, 4):
        with pytest.raises(FencedError):
            database.write_sync(lambda tx, stale=stale: lease.require(tx, stale))  # type: ignore[misc]


def test_a_live_lease_keeps_others_out(database: Database, clock: ManualClock) -> None:
    epoch = database.write_sync(lambda tx: lease.acquire(tx, "one", TTL_S, clock.now()))
    with pytest.raises(AlreadyRunningError, match="one leads"):
        database.write_sync(lambda tx: lease.acquire(tx, "two", TTL_S, clock.now()))
    database.write_sync(lambda tx: lease.release(tx, "one", epoch, clock.now()))
    assert database.write_sync(lambda tx: lease.acquire(tx, "two", TTL_S, clock.now())) == 2
    for call in (
        lambda tx: lease.renew(tx, "one", epoch, TTL_S, clock.now()),
        lambda tx: lease.release(tx, "one", epoch, clock.now()),
        lambda tx: lease.require(tx, epoch),
    ):
        with pytest.raises(FencedError):
            database.write_sync(call)


def test_live_attempts_keep_other_hosts_out(
    sqlite_database: Database, clock: ManualClock, ids: SequentialIds
) -> None:
    database = sqlite_database

    def prepare(tx: Transaction) -> None:
        sync_nodes(tx, [NODE], now=clock.now())
        insert_job(tx, "j-0", job_spec())
        epoch = lease.acquire(tx, "box-a-1", 0.0, clock.now())
        commit(tx, [placement("j-0", task_placement(NODE, (0,)))], epoch=epoch, ids=ids)

    database.write_sync(lambda tx: lease.require_same_host(tx, "box-b-1"))  # nobody led before
    database.write_sync(prepare)
    for holder in ("box-a-1", "box-a-2"):
        database.write_sync(lambda tx, holder=holder: lease.require_same_host(tx, holder))  # type: ignore[misc]
    with pytest.raises(AlreadyRunningError, match="box-a-1 has 1 live attempts on its own host"):
        database.write_sync(lambda tx: lease.require_same_host(tx, "box-b-1"))
    database.write_sync(
        lambda tx: tx.connection.execute(sa.update(tables.attempts).values(live=False))
    )
    database.write_sync(lambda tx: lease.require_same_host(tx, "box-b-1"))


def test_an_expired_lease_may_be_taken(database: Database, clock: ManualClock) -> None:
    database.write_sync(lambda tx: lease.acquire(tx, "one", 0.0, clock.now()))
    clock.advance(1)
    assert database.write_sync(lambda tx: lease.acquire(tx, "two", TTL_S, clock.now())) == 2


def test_renewing_extends_it(sqlite_database: Database, clock: ManualClock) -> None:
    epoch = sqlite_database.write_sync(lambda tx: lease.acquire(tx, "one", 10.0, clock.now()))
    clock.advance(9)
    sqlite_database.write_sync(lambda tx: lease.renew(tx, "one", epoch, 10.0, clock.now()))
    clock.advance(9)
    with pytest.raises(AlreadyRunningError, match="one leads") as refused:
        sqlite_database.write_sync(lambda tx: lease.acquire(tx, "two", 10.0, clock.now()))
    assert "wait 1 s" in refused.value.hint


@pytest.mark.postgres
def test_postgres_judges_expiry_by_its_own_clock(
    tmp_path: Path, postgres_url: str, clock: ManualClock
) -> None:
    one = Database.open(
        StoreSettings(data_dir=tmp_path / "one", database_url=postgres_url), clock=clock
    )
    two = Database.open(
        StoreSettings(data_dir=tmp_path / "two", database_url=postgres_url), clock=clock
    )
    one.write_sync(lambda tx: lease.acquire(tx, "one", TTL_S, clock.now()))
    clock.jump(1e6)
    with pytest.raises(AlreadyRunningError):
        two.write_sync(lambda tx: lease.acquire(tx, "two", TTL_S, clock.now()))
    one.close()
    two.close()


def test_a_database_that_was_restored_does_not_go_back(
    database: Database, clock: ManualClock
) -> None:
    first = database.write_sync(lambda tx: lease.acquire(tx, "me", TTL_S, clock.now(), above=6))
    again = database.write_sync(lambda tx: lease.acquire(tx, "me", TTL_S, clock.now(), above=3))
    assert (first, again) == (7, 8)
