"""Preemption by priority: who may take whose place, and who never does."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import pytest
from support.clusters import NOW, make_job, make_node, occupy, shape, snapshot_of

from policies.registry import profile_named
from scheduler.allocation.verify import Kind, verify
from scheduler.decide import decide
from scheduler.model.job import JobShape, WaitingJob
from scheduler.model.node import Node
from scheduler.model.plan import Plan
from scheduler.model.ports import Effort, Profile
from scheduler.model.quantity import UtcSeconds
from scheduler.model.snapshot import LiveAttempt, Snapshot

OUTRANK = profile_named("priority-preempt")
CLUSTER_CLASSES = (-10, 0, 50, 100, 1_000, 1_000_000, 2_000_000_000)


def decided(snapshot: Snapshot, profile: Profile = OUTRANK) -> Plan:
    return list(decide(snapshot, profile, Effort(), NOW, 0))[-1]


def running(node: Node, gpus: Sequence[int], priority: int, **fields: object) -> LiveAttempt:
    """One that has run for so long that its age makes it dear."""
    found = occupy(node, gpus)
    return replace(found, job=replace(found.job, priority=priority), **fields)  # type: ignore[arg-type] # fields of an attempt


def urgent(name: str, what: JobShape, priority: int, *, evicts: bool = True) -> WaitingJob:
    return replace(make_job(name, what, priority=priority, submitted_at=NOW), evicts=evicts)


def stopped(plan: Plan) -> list[str]:
    return [eviction.attempt_id for eviction in plan.evictions]


@pytest.mark.parametrize(("low", "high"), list(itertools.pairwise(CLUSTER_CLASSES)))
def test_one_gpu_of_higher_priority_outweighs_a_whole_node_of_lower(low: int, high: int) -> None:
    node = make_node("a", gpus=8)
    live = running(node, range(8), low)
    plan = decided(snapshot_of([node], [urgent("x", shape(1), high)], [live]))
    assert stopped(plan) == [live.id]
    assert [each.job_id for each in plan.reservations] == ["j-x"]
    assert plan.placements == ()


@pytest.mark.parametrize("priority", [0, 50])
def test_equals_and_higher_ones_stay(priority: int) -> None:
    node = make_node("a", gpus=8)
    lives = [running(node, range(4), 50), running(node, range(4, 8), 70)]
    plan = decided(snapshot_of([node], [urgent("x", shape(4), priority)], lives))
    assert (stopped(plan), plan.placements, plan.reservations) == ([], (), ())


def test_the_lowest_go_first_and_no_more_than_must() -> None:
    node = make_node("a", gpus=8)
    lives = [running(node, [2 * at, 2 * at + 1], priority) for at, priority in enumerate((3, 1, 2))]
    lives.append(running(node, [6, 7], 9))
    plan = decided(snapshot_of([node], [urgent("x", shape(4), 100)], lives))
    assert sorted(stopped(plan)) == sorted([lives[1].id, lives[2].id])


def test_nobody_is_stopped_while_there_is_room_elsewhere() -> None:
    full, free = make_node("a", gpus=4), make_node("b", gpus=4)
    plan = decided(
        snapshot_of([full, free], [urgent("x", shape(4), 100)], [running(full, range(4), 1)])
    )
    assert (stopped(plan), len(plan.placements)) == ([], 1)


@pytest.mark.parametrize("policy", ["priority-preempt", "knapsack", "las"])
def test_who_does_not_evict_starts_only_in_what_is_free(policy: str) -> None:
    profile = profile_named(policy)
    node = make_node("a", gpus=4)
    live = running(node, range(2), 0)
    polite = urgent("polite", shape(4), 100, evicts=False)
    assert stopped(decided(snapshot_of([node], [polite], [live]), profile)) == []
    small = urgent("small", shape(2), 100, evicts=False)
    plan = decided(snapshot_of([node], [polite, small], [live]), profile)
    assert stopped(plan) == []
    assert [each.job_id for each in plan.placements] == ["j-small"]


def test_who_evicts_is_not_held_back_by_who_does_not() -> None:
    node = make_node("a", gpus=4)
    live = running(node, range(4), 0)
    jobs = [urgent("polite", shape(4), 100, evicts=False), urgent("x", shape(4), 90)]
    plan = decided(snapshot_of([node], jobs, [live]), profile_named("knapsack"))
    assert [(each.attempt_id, each.for_job) for each in plan.evictions] == [(live.id, "j-x")]


def test_what_must_not_be_stopped_is_not() -> None:
    node = make_node("a", gpus=4)
    live = running(node, range(4), 0)
    kept = replace(live, job=replace(live.job, preemptible=False))
    assert stopped(decided(snapshot_of([node], [urgent("x", shape(4), 100)], [kept]))) == []


def test_a_place_that_comes_free_bit_by_bit_is_kept_for_whom_it_was_cleared() -> None:
    node = make_node("a", gpus=4)
    leaving = running(node, [2, 3], 0, stopping=True)
    jobs = [urgent("x", shape(4), 100), urgent("small", shape(2), 0)]
    plan = decided(snapshot_of([node], jobs, [leaving]))
    assert (plan.placements, stopped(plan)) == ((), [])
    assert [each.job_id for each in plan.reservations] == ["j-x"]
    other = make_node("b", gpus=2)
    plan = decided(snapshot_of([node, other], jobs, [leaving]))
    assert [each.job_id for each in plan.placements] == ["j-small"]


def test_old_jobs_in_numbers_do_not_take_the_place_that_was_cleared() -> None:
    node = make_node("a", gpus=4)
    crowd = [make_job(f"s{n}", shape(1), priority=9, submitted_at=0.0) for n in range(20)]
    snapshot = snapshot_of(
        [node], [urgent("x", shape(4), 10), *crowd], [running(node, range(4), 0)]
    )
    plan = decided(snapshot)
    assert {each.for_job for each in plan.evictions} == {"j-x"}
    (live,) = snapshot.live.values()
    leaving = replace(snapshot, live={live.id: replace(live, stopping=True)})
    plan = decided(leaving)
    assert ([each.job_id for each in plan.reservations], plan.placements) == (["j-x"], ())
    plan = decided(replace(leaving, live={}))
    assert [each.job_id for each in plan.placements] == ["j-x"]


def test_who_fits_elsewhere_meanwhile_does_not_wait_for_the_place_it_had_cleared() -> None:
    node, fresh = make_node("a", gpus=4), make_node("b", gpus=4)
    leaving = running(node, range(4), 0, stopping=True)
    jobs = [urgent("x", shape(4), 100), urgent("y", shape(4), 90)]
    plan = decided(snapshot_of([node, fresh], jobs, [leaving]))
    assert [each.job_id for each in plan.placements] == ["j-x"]
    assert [each.job_id for each in plan.reservations] == ["j-y"]


def test_others_may_be_stopped_while_somebody_is_leaving() -> None:
    nodes = [make_node("a", gpus=4), make_node("b", gpus=4)]
    lives = [running(nodes[0], range(4), 0, stopping=True), running(nodes[1], range(4), 0)]
    jobs = [urgent("x", shape(4), 100), urgent("y", shape(4), 90)]
    plan = decided(snapshot_of(nodes, jobs, lives))
    assert [(each.attempt_id, each.for_job) for each in plan.evictions] == [(lives[1].id, "j-y")]
    assert [each.job_id for each in plan.reservations] == ["j-x", "j-y"]


def test_a_plan_that_stops_somebody_for_who_does_not_evict_is_refused() -> None:
    node = make_node("a", gpus=4)
    live = running(node, range(4), 0)
    snapshot = snapshot_of([node], [urgent("x", shape(4), 100)], [live])
    plan = decided(snapshot)
    polite = replace(
        snapshot, waiting={key: replace(job, evicts=False) for key, job in snapshot.waiting.items()}
    )
    ordered = OUTRANK.order.order(tuple(polite.waiting.values()), UtcSeconds(NOW))
    found = [(each.kind, each.message) for each in verify(plan, polite, ordered)]
    assert (Kind.EVICTION, "nobody may be stopped for job j-x") in found
