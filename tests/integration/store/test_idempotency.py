from __future__ import annotations

import pytest
from sqlalchemy import select
from support.builders import NOW
from support.clock import ManualClock
from support.usecases import Office

from scheduler.model.quantity import DEFAULT_TENANT, JobId, PrincipalId, UtcSeconds
from scheduler.store import idempotency
from scheduler.store.database import Database
from scheduler.store.idempotency import KeyUse
from scheduler.store.tables import idempotency as table

ANN, BOB = PrincipalId("p-ann"), PrincipalId("p-bob")


@pytest.fixture
def office(database: Database, clock: ManualClock) -> Office:
    return Office(database, clock)


def _use(job: str, body: str = "b") -> KeyUse:
    return KeyUse(JobId(job), DEFAULT_TENANT, body)


def _claim(
    office: Office, key: str, use: KeyUse, who: PrincipalId = ANN, at: float = NOW
) -> KeyUse | None:
    return office.do(idempotency.claim, who, key, use, now=UtcSeconds(at), keep_s=100.0)


def test_the_first_claim_wins_and_later_ones_learn_of_it(office: Office) -> None:
    assert _claim(office, "k", _use("j-1")) is None
    assert _claim(office, "k", _use("j-2", "other")) == _use("j-1")
    assert _claim(office, "k", _use("j-3"), BOB) is None


def test_a_key_is_kept_exactly_as_long_as_promised(office: Office) -> None:
    assert _claim(office, "k", _use("j-1")) is None
    assert _claim(office, "k", _use("j-2"), at=NOW + 100.0) == _use("j-1")
    assert _claim(office, "k", _use("j-2", "c"), at=NOW + 100.5) is None
    assert _claim(office, "k", _use("j-3"), at=NOW + 200.5) == _use("j-2", "c")


def test_purging_is_bounded_and_takes_the_oldest(office: Office) -> None:
    for age in range(6):
        _claim(office, f"k{age}", _use("j"), at=NOW + age)
    gone = office.do(idempotency.purge, before=UtcSeconds(NOW + 4), at_most=3)
    assert gone == 3
    kept = office.read(lambda tx: sorted(tx.connection.scalars(select(table.c.key))))
    assert kept == ["k3", "k4", "k5"]
    assert office.do(idempotency.purge, before=UtcSeconds(NOW + 4), at_most=3) == 1
