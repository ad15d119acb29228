"""Fixtures that several suites share: clocks, ids, and a store on each database."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import make_url
from support.clock import ManualClock
from support.folders import quick_folder
from support.ids import SequentialIds
from support.postgres import NoPostgresError, PostgresServer, postgres_server

from scheduler.settings import StoreSettings
from scheduler.store.database import Database


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def ids() -> SequentialIds:
    return SequentialIds()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """The session's PostgreSQL server; skips without one, fails if one is required."""
    try:
        with postgres_server() as server:
            yield server
    except NoPostgresError as error:
        reason = f"PostgreSQL tests do not run: {error}"
        if os.environ.get("HAVERSACK_REQUIRE_POSTGRES") == "1":
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(scope="session")
def _postgres_template(
    postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Name of a database at the newest schema, to copy from."""
    url = postgres.create_database()
    settings = StoreSettings(data_dir=_private(tmp_path_factory, "template"), database_url=url)
    Database.open(settings, clock=ManualClock()).close()
    yield str(make_url(url).database)
    postgres.drop_database(url)


@pytest.fixture
def postgres_url(postgres: PostgresServer, _postgres_template: str) -> Iterator[str]:
    """URL of a fresh database at the newest schema."""
    url = postgres.create_database(template=_postgres_template)
    yield url
    postgres.drop_database(url)


@pytest.fixture
def empty_postgres_url(postgres: PostgresServer) -> Iterator[str]:
    """URL of a database without any table."""
    url = postgres.create_database()
    yield url
    postgres.drop_database(url)


@pytest.fixture(scope="session")
def _sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database file at the newest schema, to copy from."""
    folder = _private(tmp_path_factory, "template")
    Database.open(StoreSettings(data_dir=folder), clock=ManualClock()).close()
    return folder / "haversack.db"


def _private(factory: pytest.TempPathFactory, name: str) -> Path:
    folder = factory.mktemp(name)
    folder.chmod(0o700)
    return folder


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A private folder for a store."""
    with quick_folder() as folder:
        yield folder


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def store_settings(request: pytest.FixtureRequest, data_dir: Path) -> StoreSettings:
    """Settings of a fresh, migrated store, once on each database."""
    if request.param == "postgresql":
        url: str = request.getfixturevalue("postgres_url")
        return StoreSettings(data_dir=data_dir, database_url=url)
    shutil.copy(request.getfixturevalue("_sqlite_template"), data_dir)
    return StoreSettings(data_dir=data_dir)


@pytest.fixture
def sqlite_settings(data_dir: Path, _sqlite_template: Path) -> StoreSettings:
    """Settings of a fresh, migrated SQLite store."""
    shutil.copy(_sqlite_template, data_dir)
    return StoreSettings(data_dir=data_dir)


@pytest.fixture
def database(store_settings: StoreSettings, clock: ManualClock) -> Iterator[Database]:
    """An open store, once on each database."""
    opened = Database.open(store_settings, clock=clock)
    yield opened
    opened.close()


@pytest.fixture
def sqlite_database(sqlite_settings: StoreSettings, clock: ManualClock) -> Iterator[Database]:
    """An open SQLite store, for tests whose subject is not the database."""
    opened = Database.open(sqlite_settings, clock=clock)
    yield opened
    opened.close()
