"""`SqlExecutionStore` on both databases: what each observation does to a job and its books."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa
from support.builders import NOW, job_spec, placement, task_placement
from support.clock import ManualClock
from support.ids import SequentialIds
from support.one_job import BOTH, DONE, NODE, OneJob, later
from support.store import (
    commit,
    exited,
    insert_job,
    phase,
    running,
)

from scheduler.errors import ConflictError, FencedError
from scheduler.model.execution import (
    AttemptObservation,
    IntentKind,
    LaunchOrder,
    Outcome,
    Phase,
    Receipt,
    StopOrder,
)
from scheduler.model.lifecycle import EndCause, JobEvent, JobState
from scheduler.model.ports import Sees
from scheduler.model.quantity import AttemptId, IntentId, JobId
from scheduler.model.snapshot import Snapshot
from scheduler.store import tables
from scheduler.store.database import Database, Transaction
from scheduler.store.execution import SqlExecutionStore, launched_members
from scheduler.store.inventory import sync_nodes
from scheduler.store.lease import acquire
from scheduler.store.snapshot import load_delta
from scheduler.store.transitions import apply_event


@pytest.fixture
def make(database: Database, ids: SequentialIds, clock: ManualClock) -> Callable[..., OneJob]:
    def build(**spec: Any) -> OneJob:
        def prepare(tx: Transaction) -> int:
            sync_nodes(tx, [NODE], now=clock.now())
            insert_job(tx, "j-0", job_spec(**spec))
            return acquire(tx, "me", 60, clock.now())

        epoch = database.write_sync(prepare)
        store = SqlExecutionStore(
            database,
            epoch=epoch,
            ids=ids,
            free_requeues_max=3,
            retry_backoff_max_s=100,
            requeue_backoff_s=4,
            requeue_backoff_max_s=7,
        )
        return OneJob(database, store, epoch, ids)

    return build


Make = Callable[..., OneJob]


def test_a_job_runs_to_its_end(make: Make) -> None:
    world = make()
    attempt = world.place()
    (expected,) = world.run(world.store.expected())
    assert (expected.attempt_id, expected.state, expected.launch_claimed) == (
        attempt,
        "ASSIGNED",
        False,
    )
    (intent,) = world.claim()
    assert isinstance(intent.order, LaunchOrder)
    assert world.claim() == []
    assert world.job.state == "LAUNCHING"
    assert list(world.run(world.store.unsettled())) == [intent]
    world.settle(intent)
    world.settle(intent)
    assert list(world.run(world.store.unsettled())) == []
    assert world.run(world.store.expected())[0].launch_claimed
    assert world.record(phase(attempt, Phase.STARTING)) is None
    assert world.record(running(attempt, NOW + 3)) is JobState.RUNNING
    assert world.record(running(attempt, NOW + 3)) is None
    assert (world.job.started_at, world.attempt.started_at) == (NOW + 3, NOW + 3)
    assert world.record(exited(attempt)) is JobState.SUCCEEDED
    assert world.record(exited(attempt)) is None
    assert world.record(running(attempt)) is None
    assert world.history == ["submit", "place", "claim", "start", "exit-ok"]
    job = world.job
    assert (job.end_cause, job.exit_code, job.finished_at) == ("completed", 0, NOW + 20)
    assert (world.attempt.end_cause, world.attempt.ended_at) == ("completed", NOW + 10)
    assert world.run(world.store.expected()) == ()
    world.assert_all_free()


def test_an_end_seen_first_tells_of_the_start_too(make: Make) -> None:
    world = make()
    assert world.record(exited(world.launch())) is JobState.SUCCEEDED
    assert world.history[-2:] == ["start", "exit-ok"]
    assert world.job.started_at == NOW
    world.assert_all_free()


def test_what_runs_without_a_stored_claim_is_adopted(make: Make) -> None:
    world = make()
    attempt = world.place()
    assert world.record(running(attempt)) is JobState.RUNNING
    assert world.claim() == []
    assert world.record(exited(attempt)) is JobState.SUCCEEDED
    world.assert_all_free()


def test_the_users_failures_spend_retries_with_backoff(make: Make) -> None:
    world = make(max_retries=3, backoff_s=30.0)
    waits = []
    for _ in range(3):
        seen = exited(world.start(), EndCause.USER, exit_code=3)
        assert world.record(seen) is JobState.PENDING
        waits.append(world.job.eligible_at - later(20))
        world.assert_all_free()
    assert waits == [30, 60, 100]
    assert world.record(exited(world.start(), EndCause.USER, exit_code=3)) is JobState.FAILED
    job = world.job
    assert (job.retries_used, job.attempts, job.end_cause, job.exit_code) == (3, 4, "user", 3)
    assert job.message == "rank 0 ended with exit code 3"
    world.assert_all_free()


def test_a_snapshot_tells_what_a_job_has_run_and_may_run(make: Make, database: Database) -> None:
    view = Snapshot()

    def seen_by(sees: Sees) -> Snapshot:
        nonlocal view
        view = view.apply(database.read_sync(lambda tx: load_delta(tx, view.revision)))
        whole = Snapshot().apply(database.read_sync(lambda tx: load_delta(tx, 0)))
        assert view == whole
        return Snapshot().apply(database.read_sync(lambda tx: load_delta(tx, 0, sees)))

    world = make(max_retries=4, max_runtime_s=600.0)
    job_id = JobId("j-0")
    assert seen_by(Sees.NOTHING).waiting[job_id].runtime_s is None
    backwards = NOW + 99
    for attained_s, started_at in (
        (0.0, NOW),
        (10.0, None),
        (10.0, backwards),
        (10.0, NOW + 6),
        (14.0, NOW),
    ):
        job = seen_by(Sees.LIMITS).waiting[job_id]
        assert (job.attained_s, job.runtime_s) == (attained_s, 600.0)
        attempt = world.place()
        live = seen_by(Sees.LIMITS).live[AttemptId(attempt)].job
        assert (live.attained_s, live.runtime_s) == (attained_s, 600.0)
        world.record(exited(attempt, EndCause.USER, started_at=started_at, exit_code=3))


def test_a_command_that_never_started_fails_as_the_users(make: Make) -> None:
    world = make()
    seen = exited(world.launch(), EndCause.USER, started_at=None, exit_code=127)
    assert world.record(seen) is JobState.FAILED
    world.assert_all_free()


@pytest.mark.parametrize(
    ("seen", "cause"),
    [
        (lambda attempt: phase(attempt, Phase.VANISHED), "lost"),
        (lambda attempt: phase(attempt, Phase.ABSENT), "lost"),
        (
            lambda attempt: exited(attempt, EndCause.INFRASTRUCTURE, started_at=None),
            "infrastructure",
        ),
    ],
)
def test_infrastructure_requeues_for_free_then_quarantines(
    make: Make, seen: Callable[[str], AttemptObservation], cause: str
) -> None:
    world = make()
    for backoff_s in (4, 7):  # doubled, and capped
        assert world.record(seen(world.launch())) is JobState.PENDING
        assert world.job.end_cause == cause
        assert world.job.eligible_at == later(20 + backoff_s)
        world.assert_all_free()
    assert world.record(seen(world.start())) is JobState.QUARANTINED
    assert (world.job.free_requeues, world.job.retries_used) == (3, 0)
    world.assert_all_free()
    world.database.write_sync(
        lambda tx: apply_event(tx, JobId("j-0"), JobEvent.RELEASE, now=later(30))
    )
    assert world.job.free_requeues == 0
    assert world.record(seen(world.launch())) is JobState.PENDING


def test_silence_holds_everything_until_it_is_explained(make: Make) -> None:
    world = make()
    attempt = world.start()
    assert world.record(phase(attempt, Phase.UNKNOWN)) is JobState.SUSPECT
    assert world.record(phase(attempt, Phase.UNKNOWN)) is None
    assert world.attempt.live
    assert world.record(running(attempt)) is JobState.RUNNING
    assert world.record(phase(attempt, Phase.UNKNOWN)) is JobState.SUSPECT
    assert world.record(phase(attempt, Phase.VANISHED)) is JobState.PENDING
    assert world.history[-3:] == ["silence", "prove-death", "requeue"]
    world.assert_all_free()


def test_an_exit_after_silence_counts(make: Make) -> None:
    world = make()
    attempt = world.start()
    world.record(phase(attempt, Phase.UNKNOWN))
    assert world.record(exited(attempt)) is JobState.SUCCEEDED
    world.assert_all_free()


def test_absence_before_the_launch_is_no_news(make: Make) -> None:
    world = make()
    attempt = world.place()
    for seen in (Phase.ABSENT, Phase.UNCLAIMED, Phase.VANISHED, Phase.UNKNOWN):
        assert world.record(phase(attempt, seen)) is None
    assert world.job.state == "ASSIGNED"
    assert world.record(phase("a-unknown", Phase.VANISHED)) is None


def test_a_time_limit_ends_the_job_at_once(make: Make) -> None:
    world = make(max_runtime_s=5.0, max_retries=3)
    seen = exited(world.start(), EndCause.TIMED_OUT, exit_code=143)
    assert world.record(seen) is JobState.FAILED
    assert world.history[-2:] == ["time-out", "stopped-timed-out"]
    assert world.job.end_cause == "timed_out"
    assert world.claim() == []
    world.assert_all_free()


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize(
    "seen",
    [
        lambda attempt: exited(attempt, EndCause.CANCELLED, exit_code=143),
        lambda attempt: exited(attempt, EndCause.USER, exit_code=1),
        lambda attempt: exited(attempt, EndCause.INFRASTRUCTURE),
        lambda attempt: exited(attempt, EndCause.TIMED_OUT),
        lambda attempt: phase(attempt, Phase.VANISHED),
        lambda attempt: phase(attempt, Phase.ABSENT),
    ],
)
def test_a_cancelled_job_never_starts_again(
    make: Make, seen: Callable[[str], AttemptObservation], *, started: bool
) -> None:
    world = make(max_retries=5)
    attempt = world.start() if started else world.launch()
    world.cancel()
    assert world.job.state == "STOPPING"
    (expected,) = world.run(world.store.expected())
    assert expected.stop_cause is EndCause.CANCELLED
    assert expected.stop_grace_s == job_spec().checkpoint.grace_s
    (intent,) = world.claim()
    assert isinstance(intent.order, StopOrder)
    assert (intent.order.attempt_id, intent.order.grace_s) == (attempt, 30.0)
    world.settle(intent)
    assert world.record(phase(attempt, Phase.UNKNOWN)) is None
    assert world.record(running(attempt)) is None
    assert world.record(seen(attempt)) is JobState.CANCELLED
    assert world.job.end_cause == "cancelled"
    world.assert_all_free()


def test_work_finished_before_the_stop_reached_it_succeeded(make: Make) -> None:
    world = make()
    attempt = world.start()
    world.cancel()
    assert world.record(exited(attempt)) is JobState.SUCCEEDED
    world.assert_all_free()


def test_cancel_before_the_launch_withdraws_it(make: Make) -> None:
    world = make()
    world.place()
    world.cancel()
    assert (world.job.state, world.job.end_cause) == ("CANCELLED", "cancelled")
    assert world.claim() == []
    world.assert_all_free()


def test_a_launch_whose_job_wants_to_stop_is_voided(make: Make) -> None:
    world = make()
    world.place()
    world.database.write_sync(
        lambda tx: tx.connection.exec_driver_sql("UPDATE jobs SET desired = 'stop'")
    )
    assert world.claim() == []
    assert world.job.state == "CANCELLED"
    world.assert_all_free()


def test_a_preempted_job_waits_again(make: Make) -> None:
    world = make()
    attempt = world.start()
    world.stop(JobEvent.PREEMPT, EndCause.PREEMPTED)
    (intent,) = world.claim(IntentKind.STOP)
    world.settle(intent)
    assert world.record(exited(attempt, EndCause.PREEMPTED, exit_code=143)) is JobState.PENDING
    job = world.job
    assert (job.end_cause, job.retries_used, job.free_requeues) == ("preempted", 0, 0)
    world.assert_all_free()
    world.start()


def test_a_cancel_while_it_is_being_preempted_wins(make: Make) -> None:
    world = make()
    attempt = world.start()
    world.stop(JobEvent.PREEMPT, EndCause.PREEMPTED)
    world.database.write_sync(
        lambda tx: tx.connection.exec_driver_sql("UPDATE jobs SET desired = 'stop'")
    )
    assert world.record(exited(attempt, EndCause.PREEMPTED)) is JobState.CANCELLED
    world.assert_all_free()


def test_a_refused_launch_goes_back_to_the_queue(make: Make) -> None:
    world = make()
    world.place()
    (intent,) = world.claim()
    world.settle(intent, Receipt(Outcome.UNKNOWN, "timeout"))
    assert list(world.run(world.store.unsettled())) == [intent]
    world.settle(intent, Receipt(Outcome.REFUSED, "no such user"))
    assert (world.job.state, world.job.message) == ("PENDING", "launch refused: no such user")
    world.settle(intent, Receipt(Outcome.REFUSED, "no such user"))
    world.assert_all_free()


def test_a_launch_refused_because_a_stop_overtook_it_ends_the_job(make: Make) -> None:
    world = make()
    world.place()
    (intent,) = world.claim()
    world.cancel()
    world.settle(intent, Receipt(Outcome.REFUSED, "a tombstone stands"))
    assert world.job.state == "CANCELLED"
    world.assert_all_free()


def test_orders_carry_the_epoch_of_the_present_leader(make: Make, ids: SequentialIds) -> None:
    world = make()
    world.place()
    (intent,) = world.claim()
    epoch = world.database.write_sync(lambda tx: acquire(tx, "me", 60, later(0)))
    heir = SqlExecutionStore(
        world.database,
        epoch=epoch,
        ids=ids,
        free_requeues_max=3,
        retry_backoff_max_s=1,
        requeue_backoff_s=1,
        requeue_backoff_max_s=1,
    )
    assert heir.epoch == epoch
    (found,) = asyncio.run(heir.unsettled())
    assert found == replace(intent, order=replace(intent.order, epoch=epoch))


def test_a_fenced_store_changes_nothing(make: Make) -> None:
    world = make()
    attempt = world.launch()
    world.database.write_sync(lambda tx: acquire(tx, "me", 60, later(0)))
    before = world.database.read_sync(lambda tx: tx.head_revision)
    for call in (
        world.claim,
        lambda: world.record(exited(attempt)),
        lambda: world.run(world.store.settle_many([(IntentId("i-x"), DONE)], later(0))),
    ):
        with pytest.raises(FencedError):
            call()
    assert world.database.read_sync(lambda tx: tx.head_revision) == before


def test_claims_come_oldest_first_and_bounded(make: Make, clock: ManualClock) -> None:
    world = make()

    def two(tx: Transaction) -> None:
        insert_job(tx, "j-1")
        for job, gpu, wait in (("j-1", 1, 0), ("j-0", 0, 5)):
            commit(
                tx,
                [placement(job, task_placement(NODE, (gpu,)))],
                epoch=world.epoch,
                ids=world.ids,
                now=later(wait),
            )

    world.database.write_sync(two)
    claimed = [
        intent.order.job_id
        for _ in range(3)
        for intent in world.run(world.store.claim_intents(BOTH, 1, later(9)))
        if isinstance(intent.order, LaunchOrder)
    ]
    assert claimed == ["j-1", "j-0"]


def test_a_move_against_a_changed_row_is_a_conflict(make: Make) -> None:
    world = make()
    stale = world.job
    world.database.write_sync(lambda tx: apply_event(tx, JobId("j-0"), JobEvent.HOLD, now=later(1)))
    with pytest.raises(ConflictError, match="changed meanwhile"):
        world.database.write_sync(lambda tx: apply_event(tx, stale, JobEvent.CANCEL, now=later(2)))
    held = world.database.read_sync(
        lambda tx: tx.connection.execute(sa.select(tables.jobs.c.state)).scalars().all()
    )
    assert held == ["HELD"]
    world.assert_sound()


def test_attempt_ids_are_never_reused(make: Make) -> None:
    world = make()
    first = AttemptId(world.launch())
    world.record(phase(first, Phase.VANISHED))
    second = world.launch()
    assert first != second
    assert world.record(exited(first)) is None
    assert world.job.state == "LAUNCHING"


def test_what_was_launched_is_known_after_its_end_and_nothing_else_is(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scheduler.store.execution._CHUNK", 2)
    world = make()
    attempt = AttemptId(world.start())
    assert world.record(exited(attempt)) is JobState.SUCCEEDED
    asked = [AttemptId(f"a-made-up-{number}") for number in range(4)] + [attempt]
    found = world.database.read_sync(lambda tx: launched_members(tx, asked))
    assert found == {attempt: frozenset({""})}
