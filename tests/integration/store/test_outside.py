"""Gangs that somebody else made, as jobs of the store, on both databases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import sqlalchemy as sa
from support.builders import NOW, node, placement, task_placement
from support.outside import OutsideWorld, outside_gang
from support.store import META, exited, insert_job, phase, rows, running

from scheduler.errors import FencedError
from scheduler.model.execution import AttemptObservation, LaunchOrder, Phase, StopOrder
from scheduler.model.job import Topology
from scheduler.model.lifecycle import EndCause, JobEvent, JobState
from scheduler.model.node import Node
from scheduler.model.outside import OutsideJob
from scheduler.model.plan import Plan
from scheduler.model.quantity import SYSTEM_TENANT, GpuId, NodeId, UtcSeconds
from scheduler.model.site import (
    Effect,
    Operator,
    Requirement,
    Site,
    Taint,
    Term,
    Toleration,
    TolerationOperator,
)
from scheduler.model.snapshot import Snapshot
from scheduler.store import tables
from scheduler.store.attempts import stop_job
from scheduler.store.database import Database, Transaction
from scheduler.store.inventory import sync_nodes
from scheduler.store.journal import verify_audit_chain
from scheduler.store.lease import acquire
from scheduler.store.plans import commit_plan
from scheduler.store.snapshot import load_delta
from scheduler.store.transitions import apply_event

A, B = node("a", gpus=4), node("b", gpus=4)


@pytest.fixture
def world(database: Database) -> OutsideWorld:
    return OutsideWorld.build(database, [A, B])


def _snapshot(world: OutsideWorld) -> Snapshot:
    return Snapshot().apply(world.database.read_sync(lambda tx: load_delta(tx, 0)))


def _audited(world: OutsideWorld) -> list[tuple[str, str]]:
    def look(tx: Transaction) -> list[tuple[str, str]]:
        assert verify_audit_chain(tx.connection).broken_at is None
        return [(row.action, row.object_id) for row in rows(tx, tables.audit)]

    return world.database.read_sync(look)


def test_a_gang_waits_as_a_job_of_its_namespace(world: OutsideWorld) -> None:
    gang = outside_gang(
        tasks=2,
        gpus=2,
        priority=1_000_000,
        topology=Topology.PREFER_SAME_RACK,
        site=Site(
            selector=(("disk", "ssd"),),
            terms=(Term((Requirement("zone", Operator.IN, ("a", "b")),)),),
            tolerations=(Toleration("gpu"),),
        ),
        extras=(("pods", 1), ("port:TCP:80", 1_000)),
        preemptible=False,
        submitted_at=NOW - 60,
    )
    job_id = world.adopt_one(gang)
    waiting = _snapshot(world).waiting[job_id]
    assert waiting.shape == gang.shape
    assert (waiting.tenant, waiting.queue, waiting.priority) == ("team-a", "default", 1_000_000)
    assert (waiting.submitted_at, waiting.eligible_at) == (NOW - 60, NOW - 60)
    assert not waiting.preemptible
    job = world.job(job_id)
    assert (job.origin, job.principal_id, job.state, job.message) == (
        "kubernetes",
        "kubernetes",
        "PENDING",
        "",
    )
    assert world.run(world.outside.open_gangs()) == {
        "k-0": OutsideJob(job_id, gang.members, waiting=True)
    }
    assert _audited(world) == [("tenants.create", "team-a"), ("jobs.adopt", job_id)]
    world.assert_sound()


def test_a_known_key_makes_no_second_job(world: OutsideWorld) -> None:
    first = world.adopt(outside_gang("k-0"), outside_gang("k-1"), outside_gang("k-0"))
    before = world.database.read_sync(lambda tx: tx.head_revision)
    assert world.adopt(outside_gang("k-1"), outside_gang("k-0")) == first
    assert world.database.read_sync(lambda tx: tx.head_revision) == before
    again = world.adopt(outside_gang("k-1"), outside_gang("k-2"))
    assert again["k-1"] == first["k-1"]
    assert len(world.run(world.outside.open_gangs())) == 3
    world.assert_sound()


def test_many_gangs_of_many_namespaces_go_in_at_once(world: OutsideWorld) -> None:
    gangs = [outside_gang(f"k-{number}", namespace=f"ns-{number % 3}") for number in range(1_203)]
    made = world.adopt(*gangs)
    assert len(set(made.values())) == 1_203
    waiting = _snapshot(world).waiting
    assert {waiting[made[gang.key]].tenant for gang in gangs} == {"ns-0", "ns-1", "ns-2"}
    found = world.run(world.outside.open_gangs())
    assert {key: job.job_id for key, job in found.items()} == made
    world.assert_sound()


def test_an_unknown_queue_becomes_the_default_one_and_the_job_says_so(world: OutsideWorld) -> None:
    world.adopt(outside_gang("k-0"))

    def add_queue(tx: Transaction) -> None:
        tx.connection.execute(
            sa.insert(tables.queues),
            {
                "id": "q-fast",
                "tenant_id": "team-a",
                "name": "fast",
                "weight": 1.0,
                "created_at": NOW,
            },
        )

    world.database.write_sync(add_queue)
    made = world.adopt(outside_gang("k-1", queue="fast"), outside_gang("k-2", queue="slow"))
    fast, slow = world.job(made["k-1"]), world.job(made["k-2"])
    assert (fast.queue, fast.message) == ("fast", "")
    assert (slow.queue, slow.message) == (
        "default",
        "its tenant has no queue 'slow', so it waits in 'default'",
    )


def test_a_tenant_without_a_default_queue_gets_one(world: OutsideWorld) -> None:
    world.adopt(outside_gang(namespace=SYSTEM_TENANT))
    queues = world.database.read_sync(
        lambda tx: {(row.tenant_id, row.name) for row in rows(tx, tables.queues)}
    )
    assert ("system", "default") in queues
    world.adopt(outside_gang("k-1", namespace=SYSTEM_TENANT))


def test_a_gang_from_a_clock_ahead_of_ours_may_start_now(world: OutsideWorld) -> None:
    job_id = world.adopt_one(outside_gang(submitted_at=NOW + 3_600))
    assert world.place(job_id, (A, (0,)))


def test_member_zero_becomes_task_zero(world: OutsideWorld) -> None:
    gang = outside_gang(tasks=3)
    job_id = world.adopt_one(gang)
    world.place(job_id, (B, (0,)), (A, (1,)), (B, (2,)))
    (intent,) = world.claim()
    order = intent.order
    assert isinstance(order, LaunchOrder)
    assert [(task.task_index, task.member, task.node_name) for task in order.tasks] == [
        (0, gang.members[0], "b"),
        (1, gang.members[1], "a"),
        (2, gang.members[2], "b"),
    ]
    assert (order.command, order.env, order.processes, order.tenant) == ((), (), 1, "team-a")
    world.assert_sound()


def test_a_gang_without_enough_members_is_set_aside(world: OutsideWorld) -> None:
    job_id = world.adopt_one(outside_gang(tasks=2, members=["team-a/only/u-1"]))
    why = "its stored document names members for 1 of its 2 tasks"
    with pytest.raises(LookupError, match=why):
        world.place(job_id, (A, (0,)), (B, (0,)))
    assert (world.job(job_id).state, world.job(job_id).message) == ("QUARANTINED", why)


def test_a_gang_that_fails_has_failed(world: OutsideWorld) -> None:
    job_id = world.adopt_one(outside_gang())
    attempt = world.launch(job_id, (A, (0,)))
    world.record(running(attempt))
    assert world.record(exited(attempt, EndCause.USER, exit_code=3)) is JobState.FAILED
    assert world.run(world.outside.open_gangs()) == {}
    assert world.adopt(outside_gang()) == {"k-0": job_id}, "it must not run a second time"
    assert world.job(job_id).state == "FAILED"
    world.assert_sound()


def test_a_gang_that_was_lost_waits_until_it_is_withdrawn(world: OutsideWorld) -> None:
    job_id = world.adopt_one(outside_gang())
    attempt = world.launch(job_id, (A, (0,)))
    assert world.record(phase(attempt, Phase.VANISHED)) is JobState.PENDING
    (known,) = world.run(world.outside.open_gangs()).values()
    assert known.waiting
    world.withdraw("k-0")
    assert world.job(job_id).state == "CANCELLED"
    world.assert_sound()


@pytest.mark.parametrize("aside", [None, JobEvent.HOLD, JobEvent.QUARANTINE])
def test_what_waits_is_cancelled_when_it_is_withdrawn(
    world: OutsideWorld, aside: JobEvent | None
) -> None:
    job_id = world.adopt_one(outside_gang())
    if aside is not None:
        world.database.write_sync(lambda tx: apply_event(tx, job_id, aside, now=NOW))
    world.withdraw("k-0", "never-known")
    job = world.job(job_id)
    assert (job.state, job.end_cause, job.message) == (
        "CANCELLED",
        "cancelled",
        "its pods are gone",
    )
    assert world.run(world.outside.open_gangs()) == {}
    assert _audited(world)[-1] == ("jobs.withdraw", job_id)
    before = world.database.read_sync(lambda tx: tx.head_revision)
    world.withdraw("k-0")
    assert world.database.read_sync(lambda tx: tx.head_revision) == before
    world.assert_sound()


def test_a_gang_that_comes_back_as_it_was_is_adopted_anew(world: OutsideWorld) -> None:
    first = world.adopt_one(outside_gang())
    world.withdraw("k-0")
    second = world.adopt_one(outside_gang())
    assert first != second
    assert [world.job(each).state for each in (first, second)] == ["CANCELLED", "PENDING"]


def test_a_shielded_gang_may_not_be_stopped_until_the_shield_goes(world: OutsideWorld) -> None:
    key, other = "k-0", "k-1"
    ids = world.adopt(outside_gang(key), outside_gang(other))
    for place, job_id in enumerate(ids.values()):
        world.launch(job_id, (A, [place]))

    def may_go(since: Snapshot) -> tuple[Snapshot, dict[str, bool]]:
        delta = world.database.read_sync(lambda tx: load_delta(tx, since.revision))
        seen = since.apply(delta)
        return seen, {each.job_id: each.preemptible for each in seen.live.values()}

    seen, first = may_go(_snapshot(world))
    assert first == {ids[key]: True, ids[other]: True}
    world.run(world.outside.shield([ids[key]], world.now))
    seen, second = may_go(seen)
    assert second == {ids[key]: False, ids[other]: True}
    head = _head(world)
    world.run(world.outside.shield([ids[key]], world.now))
    assert _head(world) == head, "nothing changed, and nothing is written"
    world.run(world.outside.shield([ids[other]], world.now))
    seen, third = may_go(seen)
    assert third == {ids[key]: True, ids[other]: False}


def test_who_evicts_nobody_and_who_is_never_a_victim_says_so_in_the_snapshot(
    world: OutsideWorld,
) -> None:
    gang = replace(outside_gang(preemptible=False), evicts=False)
    job_id = world.adopt_one(gang)
    waiting = _snapshot(world).waiting[job_id]
    assert (waiting.evicts, waiting.preemptible) == (False, False)


def test_what_was_placed_and_not_started_is_withdrawn_at_once(world: OutsideWorld) -> None:
    job_id = world.adopt_one(outside_gang())
    world.place(job_id, (A, (0,)))
    assert not world.run(world.outside.open_gangs())["k-0"].waiting
    world.withdraw("k-0")
    assert world.job(job_id).state == "CANCELLED"
    assert world.claim() == []
    world.place(world.adopt_one(outside_gang()), (A, (0,)))
    world.assert_sound()


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize(
    "seen", [lambda a: phase(a, Phase.VANISHED), lambda a: exited(a, EndCause.USER, exit_code=1)]
)
def test_what_runs_is_stopped_and_does_not_come_back(
    world: OutsideWorld, seen: Callable[[str], AttemptObservation], *, started: bool
) -> None:
    job_id = world.adopt_one(outside_gang())
    attempt = world.launch(job_id, (A, (0,)))
    if started:
        world.record(running(attempt))
    world.withdraw("k-0", why="two of its pods were deleted")
    world.withdraw("k-0")
    assert (world.job(job_id).state, world.job(job_id).desired) == ("STOPPING", "stop")
    (intent,) = world.claim()
    assert isinstance(intent.order, StopOrder)
    assert intent.order.attempt_id == attempt
    world.settle(intent)
    assert world.record(seen(attempt)) is JobState.CANCELLED
    assert world.adopt(outside_gang()) == {"k-0": job_id}, "its members were started once"
    world.assert_sound()


def test_a_gang_withdrawn_while_it_is_preempted_does_not_come_back(world: OutsideWorld) -> None:
    job_id = world.adopt_one(outside_gang())
    attempt = world.launch(job_id, (A, (0,)))
    world.record(running(attempt))
    world.database.write_sync(
        lambda tx: stop_job(
            tx, job_id, JobEvent.PREEMPT, cause=EndCause.PREEMPTED, now=NOW, ids=world.ids
        )
    )
    world.withdraw("k-0")
    assert world.record(exited(attempt, EndCause.PREEMPTED)) is JobState.CANCELLED
    world.assert_sound()


def test_many_are_withdrawn_at_once_wherever_they_stand(world: OutsideWorld) -> None:
    made = world.adopt(*(outside_gang(f"k-{number}") for number in range(5)))
    world.launch(made["k-0"], (A, (0,)))
    world.place(made["k-1"], (A, (1,)))
    world.database.write_sync(lambda tx: apply_event(tx, made["k-2"], JobEvent.HOLD, now=NOW))
    world.withdraw("k-0", "k-1", "k-2", "k-3", "k-3", "unheard-of")
    states = [world.job(made[f"k-{number}"]).state for number in range(5)]
    assert states == ["STOPPING", "CANCELLED", "CANCELLED", "CANCELLED", "PENDING"]
    assert sorted(world.run(world.outside.open_gangs())) == ["k-0", "k-4"]
    world.assert_sound()


def test_a_gang_that_cannot_be_read_is_not_told_of(world: OutsideWorld) -> None:
    world.adopt(outside_gang("k-0"), outside_gang("k-1"))

    def spoil(tx: Transaction) -> None:
        document = '{"apiVersion":"haversack.dev/v9","kind":"PodGang"}'
        changed = sa.update(tables.jobs).where(tables.jobs.c.outside_key == "k-0")
        tx.connection.execute(changed.values(document=document))

    world.database.write_sync(spoil)
    assert list(world.run(world.outside.open_gangs())) == ["k-1"]


def test_jobs_of_the_api_are_nobodys_gangs(world: OutsideWorld) -> None:
    world.database.write_sync(lambda tx: insert_job(tx, "j-api"))
    assert world.run(world.outside.open_gangs()) == {}


ROOMY = replace(A, labels=(("disk", "ssd"),), extras=(("pods", 3), ("port:TCP:81", 1_000)))
PODS, PORT = (("pods", 1),), (("pods", 1), ("port:TCP:80", 1_000))


def _head(world: OutsideWorld) -> int:
    return world.database.read_sync(lambda tx: tx.head_revision)


@pytest.mark.parametrize(
    ("now", "why"),
    [
        (replace(ROOMY, labels=()), "node a is no longer one that the job selects"),
        (
            replace(ROOMY, taints=(Taint("gone", "", Effect.NO_SCHEDULE),)),
            "node a now has the taint gone:NoSchedule",
        ),
    ],
)
def test_a_node_that_was_relabelled_or_tainted_meanwhile_is_not_given(
    world: OutsideWorld, now: Node, why: str
) -> None:
    world.run(world.outside.sync_nodes([ROOMY], [], NOW))
    site = Site(selector=(("disk", "ssd"),), tolerations=(Toleration("gpu"),))
    first, second = (world.adopt_one(outside_gang(key, site=site)) for key in ("k-0", "k-1"))
    world.place(first, (A, (0,)))
    world.run(world.outside.sync_nodes([now], [], NOW))
    with pytest.raises(LookupError, match=why):
        world.place(second, (A, (1,)))
    world.assert_sound()


def test_a_taint_keeps_off_who_asks_for_nothing_and_not_who_tolerates_it(
    world: OutsideWorld,
) -> None:
    world.run(
        world.outside.sync_nodes(
            [replace(A, taints=(Taint("gpu", "", Effect.NO_SCHEDULE),))], [], NOW
        )
    )
    tolerant = Site(tolerations=(Toleration("gpu", TolerationOperator.EXISTS),))
    plain, guest = world.adopt_one(outside_gang("k-0")), outside_gang("k-1", site=tolerant)
    with pytest.raises(LookupError, match="gpu:NoSchedule"):
        world.place(plain, (A, (0,)))
    world.place(world.adopt_one(guest), (A, (0,)))


def test_further_resources_are_counted_again_where_a_node_changed(world: OutsideWorld) -> None:
    gangs = [outside_gang(f"k-{number}", extras=PODS) for number in range(4)]
    jobs = [world.adopt_one(gang) for gang in gangs]
    world.run(world.outside.sync_nodes([ROOMY], [], NOW))
    world.place(jobs[0], (A, (0,)), extras=PORT)
    world.place(jobs[1], (A, (1,)), extras=PODS)
    decided = _head(world)
    smaller = replace(ROOMY, extras=(("pods", 2),))
    world.run(world.outside.sync_nodes([smaller], [], NOW))
    with pytest.raises(LookupError, match=r"^pods of node a was taken meanwhile$"):
        world.place(jobs[2], (A, (2,)), extras=PODS, since=decided)
    world.run(world.outside.sync_nodes([ROOMY], [], NOW))
    with pytest.raises(LookupError, match=r"^host port 80/TCP of node a was taken meanwhile$"):
        world.place(jobs[2], (A, (2,)), extras=PORT, since=decided)
    world.place(jobs[2], (A, (2,)), extras=PODS, since=decided)
    with pytest.raises(LookupError, match=r"^pods of node a"):
        world.place(jobs[3], (A, (3,)), extras=PODS, since=decided)
    world.place(jobs[3], (B, (3,)), extras=(("port:TCP:80", 1_000),), since=decided)
    world.assert_sound()


def test_further_resources_of_one_plan_add_up(world: OutsideWorld) -> None:
    world.run(world.outside.sync_nodes([ROOMY], [], NOW))
    jobs = list(world.adopt(*(outside_gang(f"k-{number}") for number in range(5))).values())
    wanted = [
        placement(job_id, replace(task_placement(A, spots), extras=PODS))
        for job_id, spots in zip(jobs, ((0,), (1,), (2,), (3,)), strict=False)
    ]
    report = world.database.write_sync(
        lambda tx: commit_plan(
            tx,
            Plan(snapshot_revision=0, placements=tuple(wanted)),
            epoch=world.epoch,
            decision=META,
            now=NOW,
            ids=world.ids,
        )
    )
    assert (report.placed, len(report.refused)) == (tuple(jobs[:3]), 1)


def test_nodes_are_told_by_what_changed(world: OutsideWorld) -> None:
    c = node("c", gpus=2)
    view = _snapshot(world)
    smaller = replace(A, gpus=A.gpus[:3], capacity=replace(A.capacity, gpus=3))
    assert world.run(world.outside.sync_nodes([smaller, c], [], NOW)) == 2
    delta = world.database.read_sync(lambda tx: load_delta(tx, view.revision))
    assert {found.id: found for found in delta.nodes} == {A.id: smaller, c.id: c}
    assert view.apply(delta) == _snapshot(world)
    assert world.run(world.outside.sync_nodes([smaller], [], NOW)) == 0
    assert world.run(world.outside.node_ids()) == {"a": A.id, "b": B.id, "c": c.id}
    gone = [B.id, NodeId("n-unheard-of"), B.id]
    assert world.run(world.outside.sync_nodes([], gone, NOW)) == 1
    assert world.run(world.outside.sync_nodes([], gone, NOW)) == 0
    assert _snapshot(world).nodes == {A.id: smaller, c.id: c}
    assert world.run(world.outside.node_ids()) == {"a": A.id, "c": c.id}
    assert world.run(world.outside.sync_nodes([B], [], NOW)) == 1
    assert _snapshot(world).nodes == {A.id: smaller, B.id: B, c.id: c}
    world.assert_sound()


def test_telling_changes_or_telling_all_comes_to_the_same(world: OutsideWorld) -> None:
    labelled = replace(A, labels=(("zone", "x"),), gpus=(replace(A.gpus[0], external=True),))
    labelled = replace(labelled, capacity=replace(A.capacity, gpus=1))
    world.run(world.outside.sync_nodes([labelled], [B.id], NOW))
    told = _snapshot(world).nodes
    assert world.database.write_sync(lambda tx: sync_nodes(tx, [labelled], now=NOW)) == 0
    assert told == {A.id: labelled}


def test_a_node_made_anew_under_its_old_name_takes_it_over(world: OutsideWorld) -> None:
    anew = replace(node("a", gpus=2), id=NodeId("n-a2"))
    anew = replace(anew, gpus=tuple(replace(gpu, id=GpuId(gpu.id + "x")) for gpu in anew.gpus))
    assert world.run(world.outside.sync_nodes([anew], [A.id], NOW)) == 2
    assert _snapshot(world).nodes == {anew.id: anew, B.id: B}


def test_a_fenced_store_takes_nothing_in(world: OutsideWorld) -> None:
    world.adopt(outside_gang())
    world.database.write_sync(lambda tx: acquire(tx, "me", 60, UtcSeconds(NOW)))
    before = world.database.read_sync(lambda tx: tx.head_revision)
    for call in (
        lambda: world.adopt(outside_gang("k-1")),
        lambda: world.withdraw("k-0"),
        lambda: world.run(world.outside.sync_nodes([], [A.id], NOW)),
    ):
        with pytest.raises(FencedError):
            call()
    assert world.database.read_sync(lambda tx: tx.head_revision) == before
    assert list(world.run(world.outside.open_gangs())) == ["k-0"]
