"""The database and the simulation's ledger behave alike behind the cycle's door."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import pytest
from support.builders import NOW, job_spec, placement, task_placement, virtual_node
from support.clock import ManualClock
from support.usecases import ROOT, Office

from scheduler import service
from scheduler.model.job import JobSpec, WaitingJob
from scheduler.model.lifecycle import EndCause, JobEvent
from scheduler.model.node import Health, Node
from scheduler.model.plan import Eviction, Placement, Plan, TaskPlacement
from scheduler.model.ports import CommitReport, CycleStore, DecisionMeta
from scheduler.model.quantity import (
    DEFAULT_QUEUE,
    DEFAULT_TENANT,
    AttemptId,
    GpuId,
    JobId,
    UtcSeconds,
)
from scheduler.model.snapshot import Snapshot, SnapshotDelta
from scheduler.settings import StoreSettings
from scheduler.simulator.ledger import Ledger
from scheduler.store import lease
from scheduler.store.cycles import DatabaseCycleStore
from scheduler.store.database import Database

NODE = virtual_node("v0")
OTHER = virtual_node("v1")
META = DecisionMeta("fifo", 1.0)


class World(Protocol):
    """What happens around a cycle's store."""

    @property
    def store(self) -> CycleStore: ...
    @property
    def now(self) -> UtcSeconds: ...
    def nodes(self, *nodes: Node) -> None: ...
    def submit(self, spec: JobSpec) -> JobId: ...
    def cancel(self, job_id: JobId) -> None: ...
    def start(self, job_id: JobId) -> None: ...
    def finish(self, job_id: JobId) -> None: ...


class DatabaseWorld:
    def __init__(self, database: Database, clock: ManualClock) -> None:
        self._office = Office(database, clock)
        epoch = database.write_sync(lambda tx: lease.acquire(tx, "test", 1e9, clock.now()))
        self.store: CycleStore = DatabaseCycleStore(database, epoch, self._office.ids)

    @property
    def now(self) -> UtcSeconds:
        return self._office.now

    def nodes(self, *nodes: Node) -> None:
        self._office.nodes(*nodes)
        for node in nodes:
            if node.cordoned:
                self._office.do(service.cordon_node, ROOT, node.id, cordoned=True, now=self.now)

    def submit(self, spec: JobSpec) -> JobId:
        return self._office.submit(spec=spec).id

    def cancel(self, job_id: JobId) -> None:
        self._office.do(service.cancel, ROOT, job_id, now=self.now, ids=self._office.ids)

    def start(self, job_id: JobId) -> None:
        self._office.events(job_id, JobEvent.CLAIM, JobEvent.START)

    def finish(self, job_id: JobId) -> None:
        self._office.end(job_id, JobEvent.EXIT_OK, EndCause.COMPLETED)


class LedgerWorld:
    def __init__(self) -> None:
        self._ledger = Ledger()
        self._submitted = 0
        self.store: CycleStore = self._ledger

    @property
    def now(self) -> UtcSeconds:
        return UtcSeconds(NOW + self._submitted)

    def nodes(self, *nodes: Node) -> None:
        for gone in self._ledger.nodes.keys() - {node.id for node in nodes}:
            self._ledger.remove_node(gone)
        for node in nodes:
            self._ledger.put_node(node)

    def submit(self, spec: JobSpec) -> JobId:
        self._submitted += 1
        job = WaitingJob(
            id=JobId(f"j-{self._submitted}"),
            tenant=DEFAULT_TENANT,
            queue=DEFAULT_QUEUE,
            priority=spec.priority,
            submitted_at=self.now,
            eligible_at=self.now,
            shape=spec.shape,
            preemptible=spec.preemptible,
            attempts=0,
            class_key=repr(spec.shape),
        )
        self._ledger.submit(job)
        return job.id

    def cancel(self, job_id: JobId) -> None:
        self._ledger.withdraw(job_id)

    def start(self, job_id: JobId) -> None:
        assert self._ledger.attempt_of(job_id) is not None

    def finish(self, job_id: JobId) -> None:
        attempt = self._ledger.attempt_of(job_id)
        assert attempt is not None
        self._ledger.end(attempt.id)


class Desk:
    """One reader and writer of a world's store."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.snapshot = Snapshot()
        world.nodes(NODE, OTHER)

    def read(self) -> SnapshotDelta:
        delta = asyncio.run(self.world.store.load_delta(self.snapshot.revision))
        self.snapshot = self.snapshot.apply(delta)
        return delta

    def commit(
        self, *placements: Placement, evict: Iterable[AttemptId] = (), at: UtcSeconds | None = None
    ) -> CommitReport:
        evictions = tuple(Eviction(attempt, JobId("j-any"), 0.0) for attempt in evict)
        plan = Plan(self.snapshot.revision, placements=placements, evictions=evictions)
        now = self.world.now if at is None else at
        return asyncio.run(self.world.store.commit(plan, META, now))

    def attempt(self, job_id: JobId) -> AttemptId:
        self.read()
        (found,) = (a.id for a in self.snapshot.live.values() if a.job_id == job_id)
        return found

    def refusal(self, *placements: Placement) -> str:
        """Why the last of `placements` was refused."""
        report = self.commit(*placements)
        assert [job for job, _ in report.refused] == [placements[-1].job_id]
        return report.refused[0][1]


@pytest.fixture(params=["ledger", "sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def desk(request: pytest.FixtureRequest, clock: ManualClock, data_dir: Path) -> Iterator[Desk]:
    if request.param == "ledger":
        yield Desk(LedgerWorld())
        return
    settings = StoreSettings(data_dir=data_dir)
    if request.param == "postgresql":
        url: str = request.getfixturevalue("postgres_url")
        settings = StoreSettings(data_dir=data_dir, database_url=url)
    else:
        shutil.copy(request.getfixturevalue("_sqlite_template"), data_dir)
    with closing(Database.open(settings, clock=clock)) as database:
        yield Desk(DatabaseWorld(database, clock))


def on(node: Node, *gpus: int, index: int = 0, cpu_milli: int = 1_000) -> TaskPlacement:
    return task_placement(node, gpus, task_index=index, cpu_milli=cpu_milli)


def test_the_first_read_tells_everything_and_the_next_only_what_changed(desk: Desk) -> None:
    job = desk.world.submit(job_spec(gpus=2))
    first = desk.read()
    assert first.base_revision == 0
    assert {node.id for node in first.nodes} == {NODE.id, OTHER.id}
    assert [waiting.id for waiting in first.waiting] == [job]
    again = desk.read()
    assert again == SnapshotDelta(first.revision, first.revision)
    late = desk.world.submit(job_spec(gpus=1))
    assert [waiting.id for waiting in desk.read().waiting] == [late]


def test_a_placed_job_leaves_the_queue_and_lives_where_it_was_placed(desk: Desk) -> None:
    job = desk.world.submit(job_spec(gpus=2))
    desk.read()
    report = desk.commit(placement(job, on(NODE, 0, 1)))
    assert report.placed == (job,)
    assert report.decision_id is not None
    delta = desk.read()
    assert delta.waiting_gone == (job,)
    (attempt,) = delta.live
    assert (attempt.job_id, attempt.since, attempt.stopping) == (job, desk.world.now, False)
    assert attempt.tasks == (on(NODE, 0, 1),)
    assert attempt.job.attempts == 1
    assert desk.snapshot.columns.free.whole.sum() == 14


def test_a_finished_job_frees_its_place(desk: Desk) -> None:
    job = desk.world.submit(job_spec(gpus=8))
    desk.commit(placement(job, on(NODE, *range(8))))
    attempt = desk.attempt(job)
    desk.world.start(job)
    desk.world.finish(job)
    assert desk.read().live_gone == (attempt,)
    twin = desk.world.submit(job_spec(gpus=8))
    assert desk.commit(placement(twin, on(NODE, *range(8)))).placed == (twin,)


def test_a_gpu_that_was_taken_is_refused(desk: Desk) -> None:
    one, two = (desk.world.submit(job_spec(gpus=1)) for _ in range(2))
    why = desk.refusal(placement(one, on(NODE, 3)), placement(two, on(NODE, 3)))
    assert why == "one of its GPUs was taken meanwhile"
    assert desk.commit(placement(two, on(NODE, 4))).placed == (two,)


def test_of_a_gang_that_does_not_fit_nothing_is_kept(desk: Desk) -> None:
    blocker, gang, third = (desk.world.submit(job_spec(tasks=tasks, gpus=1)) for tasks in (1, 2, 1))
    desk.commit(placement(blocker, on(NODE, 0)))
    assert desk.refusal(placement(gang, on(NODE, 1), on(NODE, 0, index=1)))
    assert desk.commit(placement(third, on(NODE, 1))).placed == (third,)


def test_a_gang_of_another_size_is_refused(desk: Desk) -> None:
    gang = desk.world.submit(job_spec(tasks=2, gpus=1))
    assert desk.refusal(placement(gang, on(NODE, 0))) == "the gang needs 2 tasks, not 1"


def test_a_job_that_left_is_refused(desk: Desk) -> None:
    job = desk.world.submit(job_spec(gpus=1))
    desk.world.cancel(job)
    assert desk.refusal(placement(job, on(NODE, 0))) == "the job no longer waits"


def test_a_job_is_placed_once(desk: Desk) -> None:
    job = desk.world.submit(job_spec(gpus=1))
    report = desk.commit(placement(job, on(NODE, 0)), placement(job, on(NODE, 1)))
    assert report.placed == (job,)
    assert report.refused == ((job, "the plan places the job twice"),)


def test_a_job_is_not_placed_before_its_time(desk: Desk) -> None:
    job = desk.world.submit(job_spec(gpus=1))
    report = desk.commit(placement(job, on(NODE, 0)), at=UtcSeconds(desk.world.now - 1.0))
    assert report.refused == ((job, "the job may not start yet: it waits out a retry"),)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        (replace(NODE, cordoned=True), "node v0 is cordoned"),
        (replace(NODE, health=Health.UNHEALTHY), "node v0 is unhealthy"),
    ],
    ids=["cordoned", "unhealthy"],
)
def test_a_node_that_takes_no_work_is_refused(desk: Desk, changed: Node, why: str) -> None:
    job = desk.world.submit(job_spec(gpus=1))
    desk.world.nodes(changed, OTHER)
    assert desk.refusal(placement(job, on(NODE, 0))) == why
    assert desk.commit(placement(job, on(OTHER, 0))).placed == (job,)


def test_a_node_that_left_is_refused_and_told(desk: Desk) -> None:
    job = desk.world.submit(job_spec(gpus=1))
    desk.read()
    desk.world.nodes(OTHER)
    assert desk.read().nodes_gone == (NODE.id,)
    assert desk.refusal(placement(job, on(NODE, 0))) == f"node {NODE.id} has left"


def test_a_gpu_that_is_sick_or_elsewhere_is_refused(desk: Desk) -> None:
    job = desk.world.submit(job_spec(gpus=1))
    sick = replace(NODE.gpus[0], health=Health.UNHEALTHY)
    desk.world.nodes(replace(NODE, gpus=(sick, *NODE.gpus[1:])), OTHER)
    why = desk.refusal(placement(job, on(NODE, 0)))
    assert why == f"GPU {NODE.gpus[0].id} of node v0 is unhealthy"
    stray = replace(on(NODE, 1), gpu_ids=(GpuId(OTHER.gpus[0].id),))
    assert desk.refusal(placement(job, stray)) == f"GPU {OTHER.gpus[0].id} has left node v0"


def test_cpu_is_granted_as_long_as_the_sum_fits(desk: Desk) -> None:
    half = NODE.capacity.cpu_milli // 2
    jobs = [desk.world.submit(job_spec(gpus=0, cpu_milli=half)) for _ in range(3)]
    first, second, third = (placement(job, on(NODE, cpu_milli=half)) for job in jobs)
    assert desk.refusal(first, second, third) == "CPU or memory of node v0 was taken meanwhile"


def test_an_evicted_attempt_holds_its_place_until_it_has_ended(desk: Desk) -> None:
    job, heir = (desk.world.submit(job_spec(gpus=8)) for _ in range(2))
    desk.commit(placement(job, on(NODE, *range(8))))
    attempt = desk.attempt(job)
    desk.world.start(job)
    report = desk.commit(evict=[attempt])
    assert report.evicted == (attempt,)
    assert report.decision_id is not None
    desk.read()
    assert desk.snapshot.live[attempt].stopping
    assert desk.refusal(placement(heir, on(NODE, *range(8))))


def test_an_attempt_is_evicted_once_and_an_unknown_one_never(desk: Desk) -> None:
    job = desk.world.submit(job_spec(gpus=8))
    desk.commit(placement(job, on(NODE, *range(8))))
    attempt = desk.attempt(job)
    desk.world.start(job)
    assert desk.commit(evict=[attempt, AttemptId("a-nobody")]).evicted == (attempt,)
    again = desk.commit(evict=[attempt])
    assert (again.evicted, again.decision_id) == ((), None)


def test_a_reader_with_another_base_gets_the_same_view(desk: Desk) -> None:
    job = desk.world.submit(job_spec(gpus=1))
    desk.read()
    desk.commit(placement(job, on(NODE, 0)))
    desk.read()
    fresh = Snapshot().apply(asyncio.run(desk.world.store.load_delta(0)))
    assert (fresh.revision, fresh.waiting, fresh.live) == (
        desk.snapshot.revision,
        desk.snapshot.waiting,
        desk.snapshot.live,
    )
