"""Who leads, as a replica that stands by sees it."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa
from support.clock import ManualClock
from support.postgres import PostgresServer

from scheduler.errors import ConfigurationError, NotLeaderError, StorageError
from scheduler.settings import StoreSettings
from scheduler.store import lease
from scheduler.store.database import Database
from scheduler.store.onlooker import Lead, Onlooker

pytestmark = pytest.mark.postgres
TTL_S = 60.0


def settings(folder: Path, url: str) -> StoreSettings:
    return StoreSettings(data_dir=folder / "data", database_url=url)


def test_it_sees_who_leads_until_the_lease_is_given_back(
    tmp_path: Path, postgres_url: str, clock: ManualClock
) -> None:
    store = settings(tmp_path, postgres_url)
    database = Database.open(store, clock=clock)
    with Onlooker(store) as onlooker:
        assert onlooker.look() is None
        epoch = database.write_sync(lambda tx: lease.acquire(tx, "one", TTL_S, clock.now()))
        seen = onlooker.look()
        assert isinstance(seen, Lead)
        assert (seen.holder, seen.epoch) == ("one", epoch)
        assert TTL_S / 2 < seen.left_s <= TTL_S
        with pytest.raises(NotLeaderError):
            database.write_sync(lambda tx: lease.acquire(tx, "two", TTL_S, clock.now()))
        database.write_sync(lambda tx: lease.release(tx, "one", epoch, clock.now()))
        assert onlooker.look() is None
    database.close()


def test_an_empty_database_is_led_by_nobody_and_stays_empty(
    tmp_path: Path, empty_postgres_url: str
) -> None:
    with Onlooker(settings(tmp_path, empty_postgres_url)) as onlooker:
        assert onlooker.look() is None
    engine = sa.create_engine(empty_postgres_url)
    assert sa.inspect(engine).get_table_names() == []
    engine.dispose()


def test_a_database_of_a_newer_version_is_refused_at_once(
    tmp_path: Path, postgres_url: str
) -> None:
    engine = sa.create_engine(postgres_url)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    engine.dispose()
    with (
        Onlooker(settings(tmp_path, postgres_url)) as onlooker,
        pytest.raises(ConfigurationError, match="schema 9999"),
    ):
        onlooker.look()


def test_a_database_that_does_not_answer_is_told_of(
    tmp_path: Path, postgres: PostgresServer
) -> None:
    url = postgres.create_database()
    postgres.drop_database(url)
    with (
        Onlooker(settings(tmp_path, url)) as onlooker,
        pytest.raises(StorageError, match="does not answer"),
    ):
        onlooker.look()
