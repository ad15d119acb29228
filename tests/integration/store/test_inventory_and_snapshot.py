from collections.abc import Callable, Sequence
from dataclasses import replace

from support.builders import NOW, gpu, job_spec, no_links, node, placement, task_placement
from support.clock import ManualClock
from support.ids import SequentialIds
from support.store import commit, insert_job, job_row, rows

from scheduler.model.job import Topology
from scheduler.model.lifecycle import EndCause, JobEvent
from scheduler.model.node import Health, Node, PriceClass
from scheduler.model.quantity import SYSTEM_TENANT, JobId, NodeId, Resources, UtcSeconds
from scheduler.model.site import Effect, Taint
from scheduler.model.snapshot import Snapshot, SnapshotDelta
from scheduler.store import tables
from scheduler.store.attempts import End, close_attempt, stop_job
from scheduler.store.database import Database, Transaction
from scheduler.store.inventory import sync_nodes
from scheduler.store.lease import acquire
from scheduler.store.snapshot import load_delta
from scheduler.store.transitions import apply_event

A = node("a", gpus=4, rack="r1", zone="z1")
B = replace(node("b", gpus=2, links=no_links(2)), price_class=PriceClass.SPOT)


def _sync(database: Database, nodes: Sequence[Node], now: float = NOW) -> int:
    return database.write_sync(lambda tx: sync_nodes(tx, nodes, now=UtcSeconds(now)))


def _full(database: Database) -> Snapshot:
    return Snapshot().apply(database.read_sync(lambda tx: load_delta(tx, 0)))


def _since(database: Database, revision: int) -> SnapshotDelta:
    return database.read_sync(lambda tx: load_delta(tx, revision))


def test_nodes_come_back_equal(database: Database) -> None:
    assert _sync(database, [B, A]) == 2
    assert list(_full(database).nodes.values()) == [A, B]


def test_labels_taints_and_further_resources_come_back_equal(database: Database) -> None:
    taints = (Taint("gpu", "true", Effect.NO_SCHEDULE), Taint("x", "", Effect.NO_EXECUTE))
    used = replace(A.gpus[1], external=True)
    guest = replace(
        A,
        labels=(("host", "a"), ("zone", "ü")),
        taints=taints,
        extras=(("pods", 110), ("port:TCP:80", 0)),
        gpus=(A.gpus[0], used, *A.gpus[2:]),
    )
    assert _sync(database, [guest, B]) == 2
    view = _full(database)
    assert list(view.nodes.values()) == [guest, B]
    assert _sync(database, [guest, B], NOW + 5) == 0
    changes = (
        replace(guest, labels=(("host", "a"),)),
        replace(guest, taints=taints[:1]),
        replace(guest, extras=(("pods", 109),)),
        replace(guest, gpus=A.gpus),
    )
    for changed in changes:
        assert _sync(database, [changed, B]) == 1
        delta = _since(database, view.revision)
        assert delta.nodes == (changed,)
        view = view.apply(delta)
        assert view == _full(database)
        assert _sync(database, [guest, B]) == 1


def test_what_a_task_holds_of_further_resources_comes_back(
    database: Database, ids: SequentialIds, clock: ManualClock
) -> None:
    task = replace(task_placement(A, (2,)), extras=(("pods", 1), ("port:TCP:80", 1_000)))

    def start(tx: Transaction) -> None:
        sync_nodes(tx, [replace(A, extras=(("pods", 4),))], now=NOW)
        insert_job(tx, "j-0")
        epoch = acquire(tx, "me", 10, clock.now())
        commit(tx, [placement("j-0", task)], epoch=epoch, ids=ids)

    database.write_sync(start)
    view = _full(database)
    (live,) = view.live.values()
    assert live.tasks == (task,)
    assert view.columns.free.amount_of("pods").tolist() == [3]
    assert view.columns.free.amount_of("port:TCP:80").tolist() == [0]


def test_syncing_the_same_again_moves_no_revision(database: Database) -> None:
    _sync(database, [A, B])
    before = database.read_sync(lambda tx: tx.head_revision)
    assert _sync(database, [A, B], NOW + 5) == 0
    assert database.read_sync(lambda tx: tx.head_revision) == before
    seen = database.read_sync(lambda tx: {row.seen_at for row in rows(tx, tables.nodes)})
    assert seen == {NOW + 5}


def test_only_what_changed_is_in_the_delta(database: Database) -> None:
    _sync(database, [A, B])
    view = _full(database)
    sick = replace(A.gpus[1], health=Health.UNHEALTHY)
    changed = replace(A, gpus=(A.gpus[0], sick, *A.gpus[2:]))
    assert _sync(database, [changed, B]) == 1
    delta = database.read_sync(lambda tx: load_delta(tx, view.revision))
    assert delta.nodes == (changed,)
    assert view.apply(delta).nodes == _full(database).nodes
    assert database.read_sync(lambda tx: load_delta(tx, delta.revision)).nodes == ()


def test_a_cordoned_gpu_alone_puts_its_node_in_the_delta(database: Database) -> None:
    _sync(database, [A, B])
    view = _full(database)

    def cordon(tx: Transaction) -> None:
        revision = tx.next_revision(
            tenant=SYSTEM_TENANT, kind="gpu", object_id=A.gpus[0].id, payload={}, at=NOW
        )
        tx.connection.execute(
            tables.gpus.update()
            .where(tables.gpus.c.id == A.gpus[0].id)
            .values(cordoned=True, revision=revision)
        )

    database.write_sync(cordon)
    (seen,) = database.read_sync(lambda tx: load_delta(tx, view.revision)).nodes
    assert seen.gpus[0].cordoned
    # The host does not own that flag.
    assert _sync(database, [A, B]) == 0


def test_gpus_and_nodes_leave_but_keep_what_runs(
    database: Database, ids: SequentialIds, clock: ManualClock
) -> None:
    def occupy(tx: Transaction) -> None:
        sync_nodes(tx, [A, B], now=NOW)
        epoch = acquire(tx, "me", 10, clock.now())
        insert_job(tx, "j-0")
        commit(tx, [placement("j-0", task_placement(A, (0,)))], epoch=epoch, ids=ids)

    database.write_sync(occupy)
    view = _full(database)
    smaller = replace(A, gpus=A.gpus[1:], capacity=replace(A.capacity, gpus=3))
    assert _sync(database, [smaller, B]) == 1
    assert _full(database).nodes[A.id].gpus == A.gpus[1:]
    assert _sync(database, [B]) == 1
    after = view.apply(database.read_sync(lambda tx: load_delta(tx, view.revision)))
    assert after == _full(database)
    assert list(after.nodes) == [B.id]
    assert [live.tasks[0].gpu_ids for live in after.live.values()] == [(A.gpus[0].id,)]
    assert _sync(database, [A, B]) == 1
    assert list(_full(database).nodes.values()) == [A, B]


def test_capacity_may_shrink_below_what_is_used(
    database: Database, ids: SequentialIds, clock: ManualClock
) -> None:
    def occupy(tx: Transaction) -> None:
        sync_nodes(tx, [A], now=NOW)
        epoch = acquire(tx, "me", 10, clock.now())
        insert_job(tx, "j-0", job_spec(cpu_milli=60_000))
        tasks = task_placement(A, (0,), cpu_milli=60_000)
        commit(tx, [placement("j-0", tasks)], epoch=epoch, ids=ids)

    database.write_sync(occupy)
    shrunk = replace(A, capacity=Resources(4, 1_000, 1_000))
    assert _sync(database, [shrunk]) == 1
    view = _full(database)
    free = view.columns.free
    assert (free.whole.sum(), free.cpu.tolist(), free.memory.tolist()) == (3, [0], [0])


def test_a_gpu_may_move_to_another_node(database: Database) -> None:
    _sync(database, [A, B])
    moved = replace(A.gpus[3], index=2)
    with_more = replace(
        B, gpus=(*B.gpus, moved), links=no_links(3), capacity=replace(B.capacity, gpus=3)
    )
    with_less = replace(A, gpus=A.gpus[:3], capacity=replace(A.capacity, gpus=3))
    for order in ([with_less, with_more], [A, B], [with_more, with_less]):
        _sync(database, order)
        assert {each.id: each for each in order} == dict(_full(database).nodes)


def test_a_node_that_returns_under_a_new_id_takes_its_name(database: Database) -> None:
    _sync(database, [A])
    reborn = replace(A, id=NodeId("n-reborn"), gpus=(gpu("GPU-new"),))
    reborn = replace(reborn, capacity=replace(A.capacity, gpus=1), links=no_links(1))
    assert _sync(database, [reborn]) == 2
    assert list(_full(database).nodes.values()) == [reborn]
    names = database.read_sync(lambda tx: {row.name for row in rows(tx, tables.nodes)})
    assert names == {"a", "a~n-a"}


def test_deltas_follow_jobs_and_attempts(
    database: Database, ids: SequentialIds, clock: ManualClock
) -> None:
    def first(tx: Transaction) -> int:
        sync_nodes(tx, [A], now=NOW)
        spec = job_spec(gpu_models=("H100", "A100"), topology=Topology.SAME_NODE, priority=7)
        insert_job(tx, "j-0", spec)
        insert_job(tx, "j-1", preemptible_spec)
        return acquire(tx, "me", 10, clock.now())

    preemptible_spec = job_spec(preemptible=False, tasks=2)
    epoch = database.write_sync(first)
    view = _full(database)
    assert set(view.waiting) == {"j-0", "j-1"}
    waiting = view.waiting[JobId("j-0")]
    assert (waiting.priority, waiting.shape) == (
        7,
        job_spec(gpu_models=("H100", "A100"), topology=Topology.SAME_NODE).shape,
    )
    assert not view.waiting[JobId("j-1")].preemptible

    def step(command: Callable[[Transaction], object]) -> None:
        nonlocal view
        database.write_sync(command)
        view = view.apply(database.read_sync(lambda tx: load_delta(tx, view.revision)))
        assert view == _full(database)

    step(lambda tx: commit(tx, [placement("j-0", task_placement(A, (2,)))], epoch=epoch, ids=ids))
    assert set(view.waiting) == {"j-1"}
    (live,) = view.live.values()
    assert (live.job_id, live.job.priority, live.tasks) == ("j-0", 7, (task_placement(A, (2,)),))
    assert not live.stopping
    step(lambda tx: apply_event(tx, JobId("j-0"), JobEvent.CLAIM, now=NOW))
    step(
        lambda tx: stop_job(
            tx, JobId("j-0"), JobEvent.PREEMPT, cause=EndCause.PREEMPTED, now=NOW, ids=ids
        )
    )
    assert view.live[live.id].stopping

    def end(tx: Transaction) -> None:
        apply_event(tx, JobId("j-0"), JobEvent.STOPPED_PREEMPTED, now=NOW)
        close_attempt(tx, live.id, End(EndCause.PREEMPTED, NOW), now=NOW)

    step(end)
    assert (set(view.waiting), set(view.live)) == ({"j-0", "j-1"}, set())
    step(
        lambda tx: stop_job(
            tx,
            JobId("j-0"),
            JobEvent.CANCEL,
            cause=EndCause.CANCELLED,
            now=NOW,
            ids=ids,
            desired="stop",
        )
    )
    assert (set(view.waiting), set(view.live)) == ({"j-1"}, set())
    assert database.read_sync(lambda tx: str(job_row(tx, "j-0").state)) == "CANCELLED"
