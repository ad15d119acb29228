from __future__ import annotations

import pytest
from support.clock import ManualClock
from support.usecases import Office

from scheduler.store.database import Database


@pytest.fixture
def office(database: Database, clock: ManualClock) -> Office:
    """The use cases over a fresh store, once on each database."""
    return Office(database, clock)


@pytest.fixture
def sqlite_office(sqlite_database: Database, clock: ManualClock) -> Office:
    """The use cases over SQLite, for tests whose subject is not the database."""
    return Office(sqlite_database, clock)
