from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from support.clusters import NOW, make_job, make_node, occupy, shape, snapshot_of
from support.solver_instances import solver_instance

from policies.best_fit import BestFit
from policies.priority_age import PriorityAge
from scheduler.allocation.evictions import options_of, victims_of
from scheduler.allocation.gangs import gangs_of
from scheduler.allocation.optimise import (
    Candidate,
    Memory,
    Task,
    greedy,
    improve,
)
from scheduler.allocation.room import Room
from scheduler.allocation.swap import swap
from scheduler.allocation.worth import Worth
from scheduler.decide import decide
from scheduler.model.job import JobShape, Topology, WaitingJob
from scheduler.model.node import Node
from scheduler.model.plan import Plan
from scheduler.model.ports import Effort, OrderedJob, Preemption, Profile
from scheduler.model.quantity import AttemptId, Resources, UtcSeconds
from scheduler.model.snapshot import LiveAttempt, Snapshot
from scheduler.model.terms import EvictionCost, Terms

EXACT = Effort(gap_target=1e-6)


def task_of(
    snapshot: Snapshot, values: dict[str, float], now: UtcSeconds = NOW
) -> tuple[Task, tuple[OrderedJob, ...]]:
    """A task in which jobs are worth what `values` says, running ones too."""
    jobs = [*snapshot.waiting.values(), *(a.as_waiting(now) for a in snapshot.live.values())]
    line = tuple(
        OrderedJob(job, rank, values[job.id])
        for rank, job in enumerate(sorted(jobs, key=lambda job: -values[job.id]))
    )
    gangs = gangs_of([entry for entry in line if entry.job.id in snapshot.waiting])
    victims = victims_of(snapshot, line, now)
    found = Task(snapshot, gangs, lambda: Room(snapshot, BestFit(), 0), Worth(snapshot), victims)
    return found, line


def last(task: Task, memory: Memory | None = None) -> Candidate:
    return list(improve(task, greedy(task), EXACT, 0, memory))[-1]


def running(node: Node, gpus: Sequence[int], name: str, **changes: object) -> LiveAttempt:
    attempt = occupy(node, gpus, 1_000 * len(gpus), 1_000)
    job = replace(attempt.job, id=f"live-{name}", **changes)  # type: ignore[arg-type]  # a test
    return replace(attempt, id=AttemptId(name), job=job)


def full_node() -> tuple[Node, list[LiveAttempt]]:
    node = make_node("a")
    return node, [running(node, [2 * n, 2 * n + 1], f"v{n}") for n in range(4)]


def test_nobody_is_stopped_for_less_than_he_is_worth() -> None:
    node, live = full_node()
    snapshot = snapshot_of([node], [make_job("new", shape(2))], live)
    task, _ = task_of(snapshot, {"j-new": 11.0, **{f"live-v{n}": 10.0 for n in range(4)}})
    assert last(task).evicted == ()
    assert last(task).value == 0.0


def test_the_cheapest_who_make_room_are_stopped_and_nobody_else() -> None:
    node, live = full_node()
    snapshot = snapshot_of([node], [make_job("new", shape(4))], live)
    values = {"j-new": 30.0, "live-v0": 9.0, "live-v1": 2.0, "live-v2": 3.0, "live-v3": 8.0}
    found = last(task_of(snapshot, values)[0])
    assert [victim.attempt.id for victim in found.evicted] == ["v2", "v1"]
    assert found.value == pytest.approx(30.0 - 1.2 * 5.0)
    assert found.bound == pytest.approx(found.value)


def test_a_job_on_two_nodes_is_stopped_once_and_frees_both() -> None:
    nodes = [make_node("a"), make_node("b")]
    wide = occupy(nodes[0], range(8))
    other = occupy(nodes[1], range(8))
    tasks = (*wide.tasks, replace(other.tasks[0], task_index=1))
    live = replace(wide, id=AttemptId("wide"), tasks=tasks)
    live = replace(live, job=replace(live.job, id="live-wide"))  # type: ignore[arg-type]
    jobs = [make_job("one", shape(8)), make_job("two", shape(8))]
    snapshot = snapshot_of(nodes, jobs, [live])
    found = last(task_of(snapshot, {"j-one": 8.0, "j-two": 8.0, "live-wide": 10.0})[0])
    assert [victim.attempt.id for victim in found.evicted] == ["wide"]
    assert found.value == pytest.approx(16.0 - 12.0)
    assert sorted(found.packing) == [0, 1]
    alone = last(task_of(snapshot, {"j-one": 11.0, "j-two": 0.5, "live-wide": 10.0})[0])
    assert alone.evicted == ()


@pytest.mark.parametrize(
    ("changes", "eviction"),
    [
        ({"preemptible": False}, EvictionCost()),
        ({}, EvictionCost(min_run_s=1e9)),
        ({}, EvictionCost(evictions_max=0)),
        ({}, EvictionCost(restart_s=100.0, value_per_gpu_s=1.0)),
    ],
)
def test_who_may_not_be_stopped_or_costs_too_much_runs_on(
    changes: dict[str, object], eviction: EvictionCost
) -> None:
    node = make_node("a")
    snapshot = snapshot_of(
        [node], [make_job("new", shape(8))], [running(node, range(8), "v", **changes)]
    )
    snapshot = replace(snapshot, terms=Terms(eviction=eviction))
    assert last(task_of(snapshot, {"j-new": 100.0, "live-v": 1.0})[0]).evicted == ()


def test_victims_of_many_small_jobs_are_listed_in_part_and_the_bound_still_holds() -> None:
    node = make_node("a", gpus=16)
    live = [running(node, [n], f"v{n:02}") for n in range(16)]
    snapshot = snapshot_of([node], [make_job("new", shape(16))], live)
    values = {"j-new": 100.0, **{f"live-v{n:02}": 1.0 + n / 100 for n in range(16)}}
    task, _ = task_of(snapshot, values)
    options = options_of(snapshot.columns, task.victims)
    assert options is not None
    assert options.row.size == 255 + 9
    assert not options.complete
    best = 100.0 - 1.2 * sum(value for name, value in values.items() if name != "j-new")
    found = last(task)
    assert found.bound >= best - 1e-6
    assert found.value == pytest.approx(best)
    assert not found.proved


def evolve(snapshot: Snapshot, plan: Plan, now: float) -> Snapshot:
    """The snapshot after the evicted have left for the queue and the placed have started."""
    live, waiting = dict(snapshot.live), dict(snapshot.waiting)
    for eviction in plan.evictions:
        gone = live.pop(eviction.attempt_id)
        waiting[gone.job_id] = gone.job
    for placement in plan.placements:
        job = waiting.pop(placement.job_id)
        attempt = AttemptId(f"{job.id}@{now}")
        live[attempt] = LiveAttempt(attempt, job, UtcSeconds(now), placement.tasks)
    return Snapshot(snapshot.revision, snapshot.nodes, live, waiting, snapshot.terms)


class Constant:
    """Worth by priority, whatever the time."""

    name = "constant"

    def order(self, waiting: Sequence[WaitingJob], now: UtcSeconds) -> Sequence[OrderedJob]:
        """Dearest first."""
        jobs = sorted(waiting, key=lambda job: (-job.priority, job.id))
        return [OrderedJob(job, rank, 1.0 + job.priority) for rank, job in enumerate(jobs)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("family", ["philly", "gang"])
def test_with_constant_values_evictions_come_to_an_end(seed: int, family: str) -> None:
    snapshot = solver_instance(seed, family, 16, gangs=20, plain=True)
    profile = Profile("evict", Constant(), BestFit(), preemption=Preemption.EVICT)
    total, stopped = 0.0, 0
    for cycle in range(30):
        plan = list(decide(snapshot, profile, Effort(), NOW, 0))[-1]
        if not plan.placements and not plan.evictions:
            break
        stopped += len(plan.evictions)
        snapshot = evolve(snapshot, plan, NOW + cycle)
        if not plan.evictions and not plan.reservations:
            now_worth = sum(1.0 + attempt.job.priority for attempt in snapshot.live.values())
            assert now_worth > total
            total = now_worth
    else:
        pytest.fail("the same jobs go round and round")
    assert stopped > 0, "the instances must have something to win by evicting"


def test_elastic_gangs_get_what_is_worth_most() -> None:
    node = make_node("a")
    grows = make_job("grows", JobShape(2, Resources(1, 1_000, 1_000), tasks_max=8))
    snapshot = snapshot_of([node], [grows, make_job("small", shape(2))])
    # One more worker of `grows` is worth 10 / 2 / 2 = 2.5, so two of them outweigh `small`.
    alone = last(task_of(snapshot, {"j-grows": 10.0, "j-small": 4.0})[0])
    assert alone.value == pytest.approx(10.0 + 6 * 2.5)
    both = last(task_of(snapshot, {"j-grows": 10.0, "j-small": 6.0})[0])
    assert both.value == pytest.approx(10.0 + 4 * 2.5 + 6.0)
    assert both.bound == pytest.approx(both.value)


def test_a_gang_bound_to_a_rack_is_neither_split_nor_bounded_as_if_it_could() -> None:
    nodes = [make_node(f"{n}", gpus=4, rack=f"r{n // 2}") for n in range(4)]
    live = [running(nodes[0], [0, 1], "x", preemptible=False)]
    bound = shape(2, tasks=4, topology=Topology.SAME_RACK)
    jobs = [make_job("one", bound), make_job("two", bound)]
    found = last(
        task_of(snapshot_of(nodes, jobs, live), {"j-one": 5.0, "j-two": 4.0, "live-x": 1.0})[0]
    )
    assert sorted(found.packing) == [0]
    assert {nodes[load.row].rack for load in found.packing[0]} == {"r1"}
    assert found.bound == pytest.approx(5.0)


def test_a_memory_saves_the_build_and_changes_no_proof() -> None:
    memory = Memory()
    snapshot = solver_instance(0, "philly", 150)
    profile = Profile("x", PriorityAge(), BestFit())
    effort = Effort(columns_max=0)
    cold = list(decide(snapshot, profile, effort, NOW, 0))[-1]
    first = list(decide(snapshot, profile, effort, NOW, 0, memory))[-1]
    model = memory.knapsack
    fewer = dict(list(snapshot.waiting.items())[20:])
    smaller = Snapshot(8, snapshot.nodes, snapshot.live, fewer, snapshot.terms)
    second = list(decide(smaller, profile, effort, NOW, 0, memory))[-1]
    afresh = list(decide(smaller, profile, effort, NOW, 0))[-1]
    assert first == cold
    assert memory.knapsack is model, "the model fits the smaller queue too"
    assert second.bound == pytest.approx(afresh.bound, rel=1e-6)
    assert second.value >= second.bound * 0.97


def test_with_the_prices_of_before_an_optimal_plan_asks_no_solver() -> None:
    memory = Memory()
    node = make_node("a", gpus=4)
    snapshot = snapshot_of([node], [make_job("one", shape(4)), make_job("two", shape(2))])
    task, _ = task_of(snapshot, {"j-one": 9.0, "j-two": 1.0})
    assert last(task, memory).value == 9.0
    assert memory.prices is not None
    again = list(improve(task, greedy(task), EXACT, 0, memory))
    assert len(again) == 1
    assert again[0].bound == pytest.approx(9.0)


def test_no_more_start_than_may() -> None:
    """The relaxation would start both; the more valuable one of them starts."""
    node = make_node("a", gpus=4)
    snapshot = snapshot_of([node], [make_job("one", shape(2)), make_job("two", shape(2))])
    task, _ = task_of(snapshot, {"j-one": 5.0, "j-two": 6.0})
    assert len(last(task).packing) == 2
    capped = replace(task, most=1)
    found = list(improve(capped, {}, EXACT, 0))[-1]
    assert [capped.gangs[index].job.id for index in found.packing] == ["j-two"]
    assert found.value == pytest.approx(6.0)
    assert greedy(capped).keys() == found.packing.keys()


def test_nobody_leaves_for_a_gang_beyond_the_cap() -> None:
    node, live = full_node()
    jobs = [make_job("one", shape(2)), make_job("two", shape(2))]
    snapshot = snapshot_of([node], jobs, live)
    values = {"j-one": 50.0, "j-two": 60.0, **{f"live-v{n}": 1.0 for n in range(4)}}
    task, _ = task_of(snapshot, values)
    assert len(last(task).evicted) == 2
    capped = replace(task, most=1)
    for found in (last(capped), swap(capped, NOW)):
        assert [capped.gangs[index].job.id for index in found.packing] == ["j-two"]
        assert len(found.evicted) == 1


def test_the_gap_is_measured_on_what_runs_as_well() -> None:
    """What little could be won is not worth a model where much more runs."""
    node = make_node("a", gpus=4)
    snapshot = snapshot_of([node], [make_job("one", shape(4)), make_job("two", shape(2))])
    task, _ = task_of(snapshot, {"j-one": 9.0, "j-two": 1.0})
    (only,) = improve(replace(task, standing=1e9), greedy(task), EXACT, 0)
    assert (only.stage, only.columns, only.value) == ("greedy", 0, 9.0)
    assert last(task).columns > 0
