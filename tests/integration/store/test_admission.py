from __future__ import annotations

import pytest
from support.builders import job_spec, node
from support.clock import ManualClock
from support.usecases import RED, Office

from scheduler.errors import ConflictError
from scheduler.model.job import JobSpec
from scheduler.model.quantity import DEFAULT_QUEUE, DEFAULT_TENANT, TenantId
from scheduler.store import admission
from scheduler.store.database import Database
from scheduler.store.transaction import Transaction

LIMIT = 5


@pytest.fixture
def office(database: Database, clock: ManualClock) -> Office:
    return Office(database, clock)


def _room(office: Office, tenant: TenantId = DEFAULT_TENANT) -> int:
    return office.do(admission.room, tenant, LIMIT, now=office.now)


def _facts(office: Office, spec: JobSpec | None = None) -> admission.Facts:
    shape = (job_spec() if spec is None else spec).shape
    return office.do(admission.facts, DEFAULT_TENANT, DEFAULT_QUEUE, shape)


def test_room_shrinks_with_each_job_and_never_below_zero(office: Office) -> None:
    seen = []
    for _ in range(LIMIT):
        seen.append(_room(office))
        office.submit()
    assert seen == [5, 4, 3, 2, 1]
    assert _room(office) == 0


def test_tenants_have_rooms_of_their_own(office: Office) -> None:
    office.submit()
    assert (_room(office), _room(office, RED)) == (4, 5)


def test_jobs_that_entered_elsewhere_are_seen_at_the_next_count(
    office: Office, database: Database
) -> None:
    assert _room(office) == 5
    # Another process's connection remembers nothing of ours: a reader stands for one here.
    office.submit()
    elsewhere = database.read_sync(
        lambda tx: admission.room(tx, DEFAULT_TENANT, LIMIT, now=office.now)
    )
    assert elsewhere == 4
    office.submit()
    office.clock.advance(31.0)
    later = database.read_sync(lambda tx: admission.room(tx, DEFAULT_TENANT, LIMIT, now=office.now))
    assert later == 3


def test_a_rolled_back_entry_only_makes_the_bound_tighter_for_a_while(office: Office) -> None:
    assert _room(office) == 5

    def enter_and_fail(tx: Transaction) -> None:
        admission.enter(tx, DEFAULT_TENANT)
        raise ConflictError("on purpose")

    for _ in range(LIMIT):
        with pytest.raises(ConflictError):
            office.write(enter_and_fail)
    # The bound is reached in memory only, so it is counted before anybody is refused.
    assert _room(office) == 5


def test_facts_follow_queues_and_nodes(office: Office) -> None:
    assert _facts(office, job_spec(gpus=8)) == admission.Facts(queue_known=True, never_fits=None)
    office.nodes(node("a", 4))
    assert _facts(office, job_spec(gpus=8)).never_fits is not None
    assert _facts(office, job_spec(gpus=4)).never_fits is None
    office.nodes(node("a", 8))
    assert _facts(office, job_spec(gpus=8)).never_fits is None
    unknown = office.do(admission.facts, RED, DEFAULT_QUEUE, job_spec().shape)
    assert not unknown.queue_known
