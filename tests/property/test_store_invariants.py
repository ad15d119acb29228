"""Random lives of a small store: after every step the books must keep the invariants."""

import asyncio
from collections.abc import Coroutine
from contextlib import ExitStack
from typing import Any, TypeVar

import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.builders import NOW, job_spec, node, placement, task_placement
from support.clock import ManualClock
from support.folders import quick_folder
from support.ids import SequentialIds
from support.ledger import leaks, violations
from support.store import commit, exited, insert_job, phase, rows, running
from typing_extensions import override

from scheduler.model.execution import AttemptObservation, IntentKind, Outcome, Phase, Receipt
from scheduler.model.lifecycle import LIVE, EndCause, IllegalMoveError, JobEvent, JobState
from scheduler.model.plan import Eviction, Placement
from scheduler.model.quantity import AttemptId, JobId
from scheduler.model.snapshot import Snapshot
from scheduler.settings import StoreSettings
from scheduler.store import tables
from scheduler.store.attempts import stop_job
from scheduler.store.database import Database, Transaction
from scheduler.store.execution import SqlExecutionStore
from scheduler.store.inventory import sync_nodes
from scheduler.store.lease import acquire
from scheduler.store.snapshot import load_delta
from scheduler.store.transitions import apply_event

T = TypeVar("T")
NODES = (node("n0", gpus=3, cpu_milli=4_000), node("n1", gpus=2, cpu_milli=2_000))
GPUS = [(where, index) for where in NODES for index in range(len(where.gpus))]
BOTH = (IntentKind.LAUNCH, IntentKind.STOP)
PHASES = (Phase.ABSENT, Phase.UNCLAIMED, Phase.STARTING, Phase.VANISHED, Phase.UNKNOWN)


def _observations(attempt_id: str) -> st.SearchStrategy[AttemptObservation]:
    return st.one_of(
        st.sampled_from(PHASES).map(lambda seen: phase(attempt_id, seen)),
        st.just(running(attempt_id)),
        st.builds(
            lambda cause, started: exited(attempt_id, cause, started_at=started),
            st.sampled_from([cause for cause in EndCause if cause is not EndCause.LOST]),
            st.sampled_from([None, float(NOW)]),
        ),
    )


class StoreLife(RuleBasedStateMachine):
    """Submissions, plans, claims, receipts, observations and user commands in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = ExitStack()
        self.runner = asyncio.Runner()
        self.clock = ManualClock()
        self.ids = SequentialIds()
        data_dir = self.folder.enter_context(quick_folder())
        self.database = Database.open(StoreSettings(data_dir=data_dir), clock=self.clock)
        self.cancelled: set[str] = set()
        self.view = Snapshot()

    @initialize()
    def begin(self) -> None:
        def prepare(tx: Transaction) -> int:
            sync_nodes(tx, NODES, now=NOW)
            return acquire(tx, "me", 60, NOW)

        self.epoch = self.write(prepare)
        self.store = SqlExecutionStore(
            self.database,
            epoch=self.epoch,
            ids=self.ids,
            free_requeues_max=2,
            retry_backoff_max_s=5,
            requeue_backoff_s=1,
            requeue_backoff_max_s=5,
        )

    def write(self, command: Any) -> Any:
        self.clock.advance(10)
        return self.database.write_sync(command)

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        self.clock.advance(10)
        return self.runner.run(call)

    def jobs(self, *states: JobState) -> list[Any]:
        found = self.database.read_sync(lambda tx: rows(tx, tables.jobs))
        return [row for row in found if not states or JobState(row.state) in states]

    def attempts(self) -> list[str]:
        return [row.id for row in self.database.read_sync(lambda tx: rows(tx, tables.attempts))]

    @rule(retries=st.integers(0, 2), tasks=st.integers(1, 2), cpu=st.sampled_from([500, 1_800]))
    def submit(self, retries: int, tasks: int, cpu: int) -> None:
        spec = job_spec(tasks=tasks, max_retries=retries, backoff_s=1.0, cpu_milli=cpu)
        self.write(lambda tx: insert_job(tx, self.ids.new("j"), spec, now=self.clock.now()))

    @precondition(lambda self: self.jobs())
    @rule(data=st.data())
    def plan(self, data: st.DataObject) -> None:
        """Any placements at all: the store must refuse those that do not fit."""

        def tasks_for(job: Any) -> st.SearchStrategy[Placement]:
            return st.lists(st.sampled_from(GPUS), min_size=1, max_size=2).map(
                lambda spots: placement(
                    job.id,
                    *(
                        task_placement(where, (index,), task_index=number, cpu_milli=job.cpu_milli)
                        for number, (where, index) in enumerate(spots)
                    ),
                )
            )

        wanted = data.draw(st.lists(st.sampled_from(self.jobs()).flatmap(tasks_for), max_size=4))
        evicted = data.draw(st.lists(st.sampled_from(self.attempts() or ["a-none"]), max_size=1))
        evictions = tuple(Eviction(AttemptId(each), JobId("j-x"), 1.0) for each in evicted)
        self.write(
            lambda tx: commit(
                tx,
                wanted,
                epoch=self.epoch,
                ids=self.ids,
                now=self.clock.now(),
                evictions=evictions,
            )
        )

    @rule(outcome=st.sampled_from(Outcome), limit=st.integers(1, 3))
    def claim_and_settle(self, outcome: Outcome, limit: int) -> None:
        for intent in self.run(self.store.claim_intents(BOTH, limit, self.clock.now())):
            told = Receipt(outcome, "told")
            self.run(self.store.settle_many([(intent.id, told)], self.clock.now()))

    @rule(outcome=st.sampled_from(Outcome))
    def settle_what_a_crash_left(self, outcome: Outcome) -> None:
        told = [(intent.id, Receipt(outcome)) for intent in self.run(self.store.unsettled())]
        self.run(self.store.settle_many(told, self.clock.now()))

    @precondition(lambda self: self.attempts())
    @rule(data=st.data())
    def observe(self, data: st.DataObject) -> None:
        attempt_id = data.draw(st.sampled_from(self.attempts()[-6:]))
        seen = data.draw(_observations(attempt_id))
        self.run(self.store.record_many([seen], self.clock.now()))
        again = self.run(self.store.record_many([seen], self.clock.now()))
        assert again == (None,), "not idempotent"

    @precondition(lambda self: self.jobs())
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(self.jobs()))
        try:
            self.write(
                lambda tx: stop_job(
                    tx,
                    JobId(job.id),
                    JobEvent.CANCEL,
                    cause=EndCause.CANCELLED,
                    now=self.clock.now(),
                    ids=self.ids,
                    desired="stop",
                )
            )
        except IllegalMoveError:
            assert JobState(job.state).terminal or job.state == JobState.STOPPING
        else:
            self.cancelled.add(job.id)

    @precondition(lambda self: self.jobs())
    @rule(data=st.data(), event=st.sampled_from([JobEvent.HOLD, JobEvent.RELEASE]))
    def hold_or_release(self, data: st.DataObject, event: JobEvent) -> None:
        job = data.draw(st.sampled_from(self.jobs()))
        try:
            self.write(lambda tx: apply_event(tx, JobId(job.id), event, now=self.clock.now()))
        except IllegalMoveError:
            return

    @invariant()
    def the_books_are_sound(self) -> None:
        found = self.database.read_sync(lambda tx: violations(tx.connection) + leaks(tx.connection))
        assert found == []

    @invariant()
    def live_jobs_hold_whole_gangs_and_others_nothing(self) -> None:
        def gpus_held(tx: Transaction) -> dict[str, int]:
            held, of = tables.allocations.c, tables.attempts.c
            return {
                row.job_id: row.n
                for row in tx.connection.execute(
                    sa.select(of.job_id, sa.func.count().label("n"))
                    .join(tables.attempts, of.id == held.attempt_id)
                    .where(held.live, held.gpu_id.is_not(None))
                    .group_by(of.job_id)
                )
            }

        held = self.database.read_sync(gpus_held)
        for job in self.jobs():
            gang = job.tasks_min if JobState(job.state) in LIVE else 0
            assert held.get(job.id, 0) == gang, (job.id, job.state)

    @invariant()
    def the_cancelled_never_run_again(self) -> None:
        for job in self.jobs():
            if job.id in self.cancelled:
                assert JobState(job.state) in (
                    JobState.STOPPING,
                    JobState.CANCELLED,
                    JobState.SUCCEEDED,
                )

    @invariant()
    def following_deltas_equals_reading_all(self) -> None:
        base = self.view.revision
        self.view = self.view.apply(self.database.read_sync(lambda tx: load_delta(tx, base)))
        assert self.view == Snapshot().apply(self.database.read_sync(lambda tx: load_delta(tx, 0)))

    @override
    def teardown(self) -> None:
        self.runner.close()
        self.database.close()
        self.folder.close()


TestStoreLife = StoreLife.TestCase
TestStoreLife.settings = settings(
    max_examples=12,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
