import orjson
import pytest
import sqlalchemy as sa
from support.builders import NOW, job_spec, node, placement, task_placement, virtual_node
from support.clock import ManualClock
from support.ids import SequentialIds
from support.ledger import violations
from support.store import (
    attempt_rows,
    commit,
    history_of,
    insert_job,
    job_row,
    rows,
)

from scheduler.errors import FencedError
from scheduler.model.execution import IntentKind
from scheduler.model.lifecycle import EndCause, JobEvent
from scheduler.model.plan import Eviction, Reason, ReasonCode, SolverReport, Waiting
from scheduler.model.ports import CommitReport
from scheduler.model.quantity import AttemptId, DecisionId, JobId
from scheduler.model.snapshot import Snapshot
from scheduler.store import codec, tables
from scheduler.store.attempts import stop_job
from scheduler.store.database import Database, Transaction
from scheduler.store.inventory import sync_nodes
from scheduler.store.lease import acquire
from scheduler.store.placing import Placed, place, read_books
from scheduler.store.snapshot import load_delta
from scheduler.store.transitions import apply_event

N0 = node("n0", gpus=2, cpu_milli=4_000, memory_mib=8_192)
N1 = virtual_node("v1", gpus=8)


@pytest.fixture
def epoch(database: Database, clock: ManualClock) -> int:
    def prepare(tx: Transaction) -> int:
        sync_nodes(tx, [N0, N1], now=clock.now())
        for number in range(4):
            insert_job(tx, f"j-{number}", job_spec(gpus=1))
        return acquire(tx, "me", 10, clock.now())

    return database.write_sync(prepare)


def _sound(database: Database) -> None:
    assert database.read_sync(lambda tx: violations(tx.connection)) == []


def test_a_placement_is_written_whole(database: Database, epoch: int, ids: SequentialIds) -> None:
    gang = job_spec(
        "gang",
        tasks=2,
        gpus=1,
        cpu_milli=1_500,
        command=("python", "train.py"),
        env=(("A", "1"),),
        max_runtime_s=60,
        grace_s=5,
    )

    def place(tx: Transaction) -> CommitReport:
        insert_job(tx, "j-gang", gang)
        tasks = (
            task_placement(N0, (1,), cpu_milli=1_500, memory_mib=1_024),
            task_placement(N1, (7,), task_index=1, cpu_milli=1_500, memory_mib=1_024),
        )
        return commit(tx, [placement("j-gang", *tasks, value=3.0)], epoch=epoch, ids=ids)

    report = database.write_sync(place)
    assert report.placed == ("j-gang",)
    assert report.refused == ()

    def check(tx: Transaction) -> None:
        job = job_row(tx, "j-gang")
        assert (job.state, job.attempts, job.version) == ("ASSIGNED", 1, 2)
        (attempt,) = attempt_rows(tx, "j-gang")
        assert (attempt.live, attempt.epoch, attempt.number) == (True, epoch, 1)
        assert attempt.decision_id == report.decision_id
        assert history_of(tx, "j-gang") == ["submit", "place"]
        (intent,) = rows(tx, tables.intents)
        order = codec.launch_order(intent.order_json)
        assert (intent.kind, intent.state) == (IntentKind.LAUNCH, "pending")
        assert order.command == ("python", "train.py")
        assert [task.gpu_ids for task in order.tasks] == [("GPU-n0-1",), ("SIM-v1-7",)]
        assert [task.simulated for task in order.tasks] == [False, True]
        assert (order.max_runtime_s, order.grace_s, order.number) == (60, 5, 1)
        used = {row.name: row.cpu_milli_used for row in rows(tx, tables.nodes)}
        assert used == {"n0": 1_500, "v1": 1_500}
        (decision,) = rows(tx, tables.decisions)
        assert (decision.placed, decision.refused, decision.id) == (1, 0, report.decision_id)

    database.read_sync(check)
    _sound(database)


def test_what_no_longer_fits_is_refused_and_the_rest_stays(
    database: Database, epoch: int, ids: SequentialIds
) -> None:
    def place(tx: Transaction) -> CommitReport:
        stop_job(
            tx,
            JobId("j-3"),
            JobEvent.CANCEL,
            cause=EndCause.CANCELLED,
            now=NOW,
            ids=ids,
            desired="stop",
        )
        return commit(
            tx,
            [
                placement("j-0", task_placement(N0, (0,))),
                placement("j-0", task_placement(N0, (1,))),
                placement("j-1", task_placement(N0, (0,))),
                placement("j-2", task_placement(N0, (1,), cpu_milli=3_500)),
                placement("j-3", task_placement(N1, (0,))),
                placement("j-4", task_placement(N1, (0,))),
            ],
            epoch=epoch,
            ids=ids,
        )

    report = database.write_sync(place)
    assert report.placed == ("j-0",)
    assert dict(report.refused) == {
        "j-0": "the plan places the job twice",
        "j-1": "one of its GPUs was taken meanwhile",
        "j-2": "CPU or memory of node n0 was taken meanwhile",
        "j-3": "the job no longer waits",
        "j-4": "the job no longer waits",
    }
    states = database.read_sync(lambda tx: {row.id: row.state for row in rows(tx, tables.jobs)})
    assert states == {
        "j-0": "ASSIGNED",
        "j-1": "PENDING",
        "j-2": "PENDING",
        "j-3": "CANCELLED",
    }
    _sound(database)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("UPDATE nodes SET cordoned = true WHERE name = 'n0'", "node n0 is cordoned"),
        ("UPDATE nodes SET health = 'unhealthy' WHERE name = 'n0'", "node n0 is unhealthy"),
        ("UPDATE nodes SET present = false WHERE name = 'n0'", "node n-n0 has left"),
        ("UPDATE gpus SET cordoned = true", "GPU GPU-n0-0 of node n0 is cordoned"),
        ("UPDATE gpus SET health = 'unknown'", "GPU GPU-n0-0 of node n0 is unknown"),
        ("UPDATE gpus SET external = true", "GPU GPU-n0-0 of node n0 is in use by others"),
        ("UPDATE gpus SET present = false", "GPU GPU-n0-0 has left node n0"),
        (
            "UPDATE jobs SET document = '{}'",
            "this version cannot read its stored document (haversack.dev/v1alpha1): apiVersion: ",
        ),
        ("UPDATE jobs SET eligible_at = 9e9", "the job may not start yet: it waits out a retry"),
        ("UPDATE jobs SET tasks_min = 2, tasks_max = 2", "the gang needs 2 tasks, not 1"),
    ],
)
def test_capacity_that_left_refuses(
    database: Database, epoch: int, ids: SequentialIds, change: str, why: str
) -> None:
    def place(tx: Transaction) -> CommitReport:
        tx.connection.exec_driver_sql(change)
        tasks = task_placement(N0, (0,))
        return commit(tx, [placement("j-0", tasks)], epoch=epoch, ids=ids)

    ((job_id, told),) = database.write_sync(place).refused
    assert job_id == "j-0"
    assert told.startswith(why)
    _sound(database)


def test_a_job_that_cannot_be_read_is_set_aside_and_the_rest_is_placed(
    database: Database, epoch: int, ids: SequentialIds
) -> None:
    def place(tx: Transaction) -> CommitReport:
        tx.connection.execute(
            sa.update(tables.jobs).where(tables.jobs.c.id == "j-0").values(document="{}")
        )
        wanted = [
            placement("j-0", task_placement(N0, (0,))),
            placement("j-1", task_placement(N0, (1,))),
        ]
        return commit(tx, wanted, epoch=epoch, ids=ids)

    view = Snapshot().apply(database.read_sync(lambda tx: load_delta(tx, 0)))
    report = database.write_sync(place)
    assert report.placed == ("j-1",)
    ((refused, why),) = report.refused
    assert refused == "j-0"

    def check(tx: Transaction) -> None:
        job = job_row(tx, "j-0")
        assert (job.state, job.message, job.version) == ("QUARANTINED", why, 2)
        assert history_of(tx, "j-0") == ["submit", "quarantine"]
        journal = [row for row in rows(tx, tables.journal) if row.object_id == "j-0"]
        assert [orjson.loads(row.payload)["state"] for row in journal] == ["PENDING", "QUARANTINED"]
        # It waits no longer, so no cycle plans it again, until somebody releases it.
        assert set(view.apply(load_delta(tx, view.revision)).waiting) == {"j-2", "j-3"}

    database.read_sync(check)
    _sound(database)
    database.write_sync(lambda tx: apply_event(tx, JobId("j-0"), JobEvent.RELEASE, now=NOW))
    assert database.read_sync(lambda tx: job_row(tx, "j-0").state) == "PENDING"


@pytest.mark.parametrize(
    ("behind_its_back", "why"),
    [
        ("UPDATE jobs SET version = version + 1 WHERE id = 'j-0'", "the job changed meanwhile"),
        (
            "UPDATE nodes SET cpu_milli_used = cpu_milli WHERE name = 'n0'",
            "CPU or memory of node n0 was taken meanwhile",
        ),
        (
            "UPDATE allocations SET gpu_id = 'GPU-n0-0', node_id = 'n-n0' WHERE leaf = 0",
            "one of its GPUs was taken meanwhile",
        ),
        (
            "UPDATE attempts SET job_id = 'j-0'",
            "another attempt of the job is live",
        ),
    ],
)
def test_where_a_guard_objects_only_that_placement_falls(
    database: Database, epoch: int, ids: SequentialIds, behind_its_back: str, why: str
) -> None:
    """Nothing of ours can change what a transaction has read, yet the guards do not rely on it."""

    def place_late(tx: Transaction) -> Placed:
        commit(tx, [placement("j-3", task_placement(N1, (7,)))], epoch=epoch, ids=ids)
        wanted = [
            placement("j-1", task_placement(N1, (0,))),
            placement("j-0", task_placement(N0, (0,))),
            placement("j-2", task_placement(N1, (1,))),
        ]
        decision = DecisionId(ids.new("d"))
        books = read_books(tx, wanted, decision, epoch=epoch, now=NOW, ids=ids)
        tx.connection.exec_driver_sql(behind_its_back)
        return place(books, wanted)

    outcome = database.write_sync(place_late)
    assert outcome.placed == ("j-1", "j-2")
    assert outcome.refused == (("j-0", why),)
    states = database.read_sync(lambda tx: {row.id: row.state for row in rows(tx, tables.jobs)})
    assert states == {"j-0": "PENDING", "j-1": "ASSIGNED", "j-2": "ASSIGNED", "j-3": "ASSIGNED"}
    histories = database.read_sync(lambda tx: [history_of(tx, job_id) for job_id in states])
    assert sorted(map(len, histories)) == [1, 2, 2, 2]
    head, journal = database.read_sync(
        lambda tx: (tx.head_revision, sorted(row.revision for row in rows(tx, tables.journal)))
    )
    assert journal == list(range(1, head + 1))


def test_an_unreadable_job_that_changed_meanwhile_is_left_alone(
    database: Database, epoch: int, ids: SequentialIds
) -> None:
    def place_late(tx: Transaction) -> Placed:
        run = tx.connection.exec_driver_sql
        run("UPDATE jobs SET document = '{}' WHERE id IN ('j-0', 'j-1')")
        wanted = [placement(f"j-{number}", task_placement(N1, (number,))) for number in range(3)]
        decision = DecisionId(ids.new("d"))
        books = read_books(tx, wanted, decision, epoch=epoch, now=NOW, ids=ids)
        run("UPDATE jobs SET version = version + 1 WHERE id = 'j-0'")
        return place(books, wanted)

    outcome = database.write_sync(place_late)
    assert outcome.placed == ("j-2",)
    assert [job_id for job_id, _ in outcome.refused] == ["j-0", "j-1"]
    states = database.read_sync(lambda tx: [job_row(tx, f"j-{n}").state for n in range(3)])
    assert states == ["PENDING", "QUARANTINED", "ASSIGNED"]
    _sound(database)


def test_an_old_epoch_changes_nothing(
    database: Database, epoch: int, ids: SequentialIds, clock: ManualClock
) -> None:
    def place(tx: Transaction) -> CommitReport:
        return commit(tx, [placement("j-0", task_placement(N0, (0,)))], epoch=epoch, ids=ids)

    database.write_sync(lambda tx: acquire(tx, "me", 10, clock.now()))
    with pytest.raises(FencedError):
        database.write_sync(place)
    assert database.read_sync(lambda tx: rows(tx, tables.attempts)) == []


def test_evictions_order_a_stop_once(database: Database, epoch: int, ids: SequentialIds) -> None:
    def prepare(tx: Transaction) -> AttemptId:
        commit(
            tx,
            [
                placement("j-0", task_placement(N0, (0,))),
                placement("j-1", task_placement(N0, (1,))),
            ],
            epoch=epoch,
            ids=ids,
        )
        # That it can no longer be read must not keep it from being stopped.
        tx.connection.execute(
            sa.update(tables.jobs)
            .where(tables.jobs.c.id == "j-0")
            .values(state="LAUNCHING", document="{}")
        )
        return AttemptId(attempt_rows(tx, "j-0")[0].id)

    launched = database.write_sync(prepare)
    assigned = database.read_sync(lambda tx: AttemptId(attempt_rows(tx, "j-1")[0].id))

    def evict(tx: Transaction) -> CommitReport:
        evictions = tuple(
            Eviction(attempt, JobId("j-2"), 1.0)
            for attempt in (launched, assigned, launched, AttemptId("a-none"))
        )
        return commit(tx, [], epoch=epoch, ids=ids, evictions=evictions)

    assert database.write_sync(evict).evicted == (launched, assigned)
    assert database.write_sync(evict).decision_id is None

    def check(tx: Transaction) -> None:
        assert job_row(tx, "j-0").state == "STOPPING"
        # It may be another tenant's job that it made room for.
        assert "j-2" not in f"{job_row(tx, 'j-0').message} {job_row(tx, 'j-1').message}"
        # Never launched: it waits again at once.
        assert (job_row(tx, "j-1").state, job_row(tx, "j-1").end_cause) == (
            "PENDING",
            "preempted",
        )
        stops = [row for row in rows(tx, tables.intents) if row.kind == "stop"]
        (order,) = (codec.stop_order(row.order_json) for row in stops)
        assert (order.attempt_id, order.cause) == (launched, EndCause.PREEMPTED)
        assert (order.epoch, order.grace_s) == (epoch, 30.0)

    database.read_sync(check)


def test_reason_records_are_rewritten_only_when_they_change(
    database: Database, epoch: int, ids: SequentialIds
) -> None:
    key = database.read_sync(lambda tx: str(job_row(tx, "j-0").class_key))

    def decide(message: str | None) -> CommitReport:
        waiting: tuple[Waiting, ...] = ()
        if message is not None:
            reason = Reason(ReasonCode.WAITING_CAPACITY, message, "gpus", 8, 1, 1)
            waiting = (Waiting(key, (reason,)),)
        return database.write_sync(
            lambda tx: commit(
                tx, [], epoch=epoch, ids=ids, waiting=waiting, solver=SolverReport("greedy", 0.0)
            )
        )

    first = decide("no room")
    assert first.decision_id is not None
    assert decide("no room").decision_id is None
    second = decide("still no room")
    assert second.decision_id is not None
    (record,) = database.read_sync(lambda tx: rows(tx, tables.reasons))
    assert (record.decision_id, record.tenant_id) == (second.decision_id, "default")
    assert codec.waiting(record.document).reasons[0].message == "still no room"
    assert decide(None).decision_id is not None
    assert database.read_sync(lambda tx: rows(tx, tables.reasons)) == []
    assert decide(None).decision_id is None


def test_the_schema_itself_forbids_a_second_holder(
    database: Database, epoch: int, ids: SequentialIds
) -> None:
    database.write_sync(
        lambda tx: commit(tx, [placement("j-0", task_placement(N0, (0,)))], epoch=epoch, ids=ids)
    )

    def copy_rows(table: sa.Table, change: dict[str, object]) -> None:
        def insert(tx: Transaction) -> None:
            for row in tx.connection.execute(sa.select(table)).mappings().all():
                tx.connection.execute(sa.insert(table).values({**row, **change}))

        database.write_sync(insert)

    with pytest.raises(sa.exc.IntegrityError):
        copy_rows(tables.attempts, {"id": "a-other", "number": 2})  # I3
    with pytest.raises(sa.exc.IntegrityError):
        copy_rows(tables.allocations, {"id": 99})  # I4
    with pytest.raises(sa.exc.IntegrityError):
        copy_rows(tables.intents, {"id": "i-other"})
    with pytest.raises(sa.exc.IntegrityError):
        database.write_sync(
            lambda tx: tx.connection.exec_driver_sql("UPDATE nodes SET cpu_milli_used = -1")
        )
