"""Writing many placements or stops together leaves the rows that writing them singly leaves."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.builders import NOW, job_spec, node, placement, task_placement
from support.ids import SequentialIds
from support.ledger import violations
from support.store import commit, insert_job, job_row

from scheduler.model.execution import IntentKind
from scheduler.model.lifecycle import EndCause, JobEvent
from scheduler.model.plan import Placement
from scheduler.model.quantity import DecisionId, JobId
from scheduler.store import tables
from scheduler.store.attempts import live_attempt, stop_job, stop_jobs
from scheduler.store.database import Database, Transaction
from scheduler.store.execution import claim
from scheduler.store.inventory import sync_nodes
from scheduler.store.journal import Journal
from scheduler.store.lease import acquire
from scheduler.store.placing import Books, Placed, place, place_one_by_one, read_books
from scheduler.store.transitions import apply_event

NODES = (node("n0", gpus=3, cpu_milli=4_000), node("n1", gpus=2, cpu_milli=2_500))
SPOTS = [(where, index) for where in NODES for index in range(len(where.gpus))]
JOBS = [f"j-{number}" for number in range(8)]
LIVE = ("j-0", "j-1", "j-2")
UNREADABLE = ("j-6", "j-7")
Rows = dict[str, list[dict[str, Any]]]


class IdsByPrefix:
    """Ids that do not depend on the order in which different kinds are made."""

    def __init__(self) -> None:
        self._sources: dict[str, SequentialIds] = {}

    def new(self, prefix: str) -> str:
        return self._sources.setdefault(prefix, SequentialIds()).new(f"x{prefix}")


@pytest.fixture
def epoch(database: Database) -> int:
    """A store with three live attempts, one launched, four waiting jobs, and one held."""

    def prepare(tx: Transaction) -> int:
        sync_nodes(tx, NODES, now=NOW)
        epoch = acquire(tx, "me", 60, NOW)
        ids = SequentialIds()
        for number, job_id in enumerate(JOBS):
            spec = job_spec(job_id, tasks=1 + number % 2, cpu_milli=500 + 400 * (number % 3))
            insert_job(tx, job_id, spec)
        commit(
            tx,
            [
                placement("j-0", task_placement(NODES[0], (0,))),
                placement(
                    "j-1",
                    task_placement(NODES[0], (1,)),
                    task_placement(NODES[1], (0,), task_index=1),
                ),
            ],
            epoch=epoch,
            ids=ids,
        )
        assert len(claim(tx, (IntentKind.LAUNCH,), 1, epoch=epoch, now=NOW, ids=ids)) == 1
        commit(tx, [placement("j-2", task_placement(NODES[0], (2,)))], epoch=epoch, ids=ids)
        apply_event(tx, JobId("j-5"), JobEvent.HOLD, now=NOW)
        tx.connection.execute(
            sa.update(tables.jobs).where(tables.jobs.c.id.in_(UNREADABLE)).values(document="{}")
        )
        return epoch

    return database.write_sync(prepare)


class _UndoneError(Exception):
    """Ends a transaction without a trace."""


def _rows_after(database: Database, command: Callable[[Transaction], object]) -> tuple[Any, Rows]:
    """What `command` returns and all rows it leaves, journal and head included; then undo it."""
    seen: list[tuple[Any, Rows]] = []

    def look(tx: Transaction) -> None:
        journal = Journal(tx.connection)
        inner = Transaction(tx.connection, journal)
        result = command(inner)
        journal.flush()
        assert violations(tx.connection) == []
        seen.append((result, _rows(tx.connection)))
        raise _UndoneError

    with pytest.raises(_UndoneError):
        database.write_sync(look)
    return seen[0]


def _rows(connection: sa.Connection) -> Rows:
    found: Rows = {}
    for table in tables.metadata.sorted_tables:
        key = [column for column in table.primary_key if table is not tables.allocations]
        rows = connection.execute(sa.select(table).order_by(*key)).mappings()
        # Numbers that a rolled back transaction drew stay drawn on PostgreSQL.
        dropped = {"id"} if table is tables.allocations else set()
        found[table.name] = [
            {name: value for name, value in row.items() if name not in dropped} for row in rows
        ]
    found["allocations"].sort(key=repr)
    return found


def _placements(job_id: str) -> st.SearchStrategy[Placement]:
    def at(spots: Sequence[tuple[Any, int]], cpu: int) -> Placement:
        tasks = (
            task_placement(where, (index,), task_index=number, cpu_milli=cpu)
            for number, (where, index) in enumerate(spots)
        )
        return placement(job_id, *tasks)

    return st.builds(
        at,
        st.lists(st.sampled_from(SPOTS), min_size=1, max_size=2),
        st.sampled_from([0, 700, 1_600]),
    )


BOTH_WAYS = settings(
    max_examples=25,
    deadline=None,
    # Each example is rolled back, so the next finds the store as the fixture left it.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@BOTH_WAYS
@given(
    freed=st.booleans(),
    wanted=st.lists(st.sampled_from(JOBS).flatmap(_placements), max_size=8),
)
def test_placing_together_is_placing_one_by_one(
    database: Database, epoch: int, *, freed: bool, wanted: list[Placement]
) -> None:
    def placed_by(
        way: Callable[[Books, Sequence[Placement]], Placed],
    ) -> Callable[[Transaction], Placed]:
        def command(tx: Transaction) -> Placed:
            ids = IdsByPrefix()
            if freed:
                _stop_all(tx, ids, ("j-0", "j-2"))
            decision = DecisionId(ids.new("d"))
            books = read_books(tx, wanted, decision, epoch=epoch, now=NOW, ids=ids)
            return way(books, wanted)

        return command

    together = _rows_after(database, placed_by(place))
    singly = _rows_after(database, placed_by(place_one_by_one))
    assert together == singly
    outcome, rows = together
    assert len(outcome.placed) + len(outcome.refused) == len(wanted)
    states = {row["id"]: row["state"] for row in rows["jobs"]}
    assert all(states[job_id] == "ASSIGNED" for job_id in outcome.placed)
    set_aside = {job_id for job_id in UNREADABLE if states[job_id] == "QUARANTINED"}
    assert {job_id for job_id, why in outcome.refused if "cannot read" in why} == set_aside


def _stop_all(tx: Transaction, ids: IdsByPrefix, job_ids: Sequence[str]) -> None:
    for job_id in job_ids:
        stop_job(
            tx,
            JobId(job_id),
            JobEvent.PREEMPT,
            cause=EndCause.PREEMPTED,
            now=NOW,
            ids=ids,
            message="make room",
        )


@BOTH_WAYS
@given(stopped=st.permutations(LIVE), number=st.integers(0, 3))
def test_stopping_together_is_stopping_one_by_one(
    database: Database, epoch: int, stopped: list[str], number: int
) -> None:
    del epoch
    wanted = stopped[:number]

    def together(tx: Transaction) -> None:
        stop_jobs(
            tx,
            [(job_row(tx, job_id), live_attempt(tx, JobId(job_id))) for job_id in wanted],
            JobEvent.PREEMPT,
            cause=EndCause.PREEMPTED,
            now=NOW,
            ids=IdsByPrefix(),
            message="make room",
        )

    def singly(tx: Transaction) -> None:
        _stop_all(tx, IdsByPrefix(), wanted)

    assert _rows_after(database, together) == _rows_after(database, singly)
