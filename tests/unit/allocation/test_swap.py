from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.clusters import (
    MIXES,
    NOW,
    make_job,
    make_node,
    occupy,
    random_instance,
    shape,
    snapshot_of,
)

from policies.registry import profile_named
from scheduler.allocation.verify import verify
from scheduler.decide import decide
from scheduler.model.job import WaitingJob
from scheduler.model.plan import Plan
from scheduler.model.ports import Effort
from scheduler.model.quantity import UtcSeconds
from scheduler.model.snapshot import LiveAttempt, Snapshot
from scheduler.model.terms import EvictionCost, Terms

PROFILE = profile_named("knapsack")
A, B, C = (make_node(name) for name in "abc")


def running(attempt: LiveAttempt, hours: float, *, preemptible: bool = True) -> LiveAttempt:
    """It began so long ago."""
    since = UtcSeconds(NOW - 3_600.0 * hours)
    return replace(attempt, since=since, job=replace(attempt.job, preemptible=preemptible))


def job(gpus: int, *, tasks: int = 1, attained_s: float = 0.0, name: str = "new") -> WaitingJob:
    what = shape(gpus, tasks=tasks, cpu_milli=0, memory_mib=0)
    return replace(make_job(name, what, submitted_at=NOW), attained_s=attained_s)


def last(live: Sequence[LiveAttempt], *jobs: WaitingJob, terms: Terms | None = None) -> Plan:
    snapshot = replace(snapshot_of([A, B, C], jobs, live), terms=terms or Terms())
    plans = list(decide(snapshot, PROFILE, Effort(), NOW, 0))
    ordered = PROFILE.order.order(jobs, NOW)
    assert not any(verify(plan, snapshot, ordered) for plan in plans)
    return plans[-1]


def singles(node_name: str, hours: Sequence[float]) -> list[LiveAttempt]:
    node = {"a": A, "b": B, "c": C}[node_name]
    return [running(occupy(node, (gpu,)), since) for gpu, since in enumerate(hours)]


def test_the_job_that_had_most_yields() -> None:
    live = [
        *singles("a", [1, 2, 40, 4, 5, 6, 7, 8]),
        *singles("b", [2] * 8),
        *singles("c", [2] * 8),
    ]
    plan = last(live, job(1))
    assert [eviction.attempt_id for eviction in plan.evictions] == [live[2].id]
    assert plan.evictions[0].for_job == "j-new"
    assert plan.placements == (), "its place is free in the next cycle"
    assert [reservation.job_id for reservation in plan.reservations] == ["j-new"]
    assert 0 < plan.value <= plan.bound


def test_a_large_job_clears_the_cheapest_node() -> None:
    live = [*singles("a", [8] * 8), *singles("b", [64] * 8), *singles("c", [16] * 8)]
    plan = last(live, job(8))
    assert {eviction.attempt_id for eviction in plan.evictions} == {a.id for a in live[8:16]}


def test_only_what_is_missing_is_cleared() -> None:
    live = [*singles("a", [8] * 8), *singles("b", [8] * 8), *singles("c", [8] * 3)]
    plan = last(live, job(6))
    assert len(plan.evictions) == 1
    assert plan.evictions[0].attempt_id in {attempt.id for attempt in live[16:]}


def test_a_gang_clears_a_node_for_each_of_its_tasks() -> None:
    live = [*singles("a", [64] * 8), *singles("b", [8] * 8), *singles("c", [64] * 8)]
    plan = last(live, job(8, tasks=2))
    assert {e.attempt_id for e in plan.evictions} == {a.id for a in (*live[:8], *live[16:])}


def test_scattered_gpus_come_together_by_moving_what_is_small() -> None:
    """Nobody here would be evicted for a job that has had so much; but a move is no loss."""
    veteran = job(8, attained_s=90_000.0)
    live = [*singles("a", [1] * 7), *singles("b", [1] * 3), *singles("c", [1] * 5)]
    plan = last(live, veteran)
    assert {e.attempt_id for e in plan.evictions} == {a.id for a in live[7:10]}
    assert 0 < sum(eviction.cost for eviction in plan.evictions) < 0.5
    just_begun = [replace(attempt, since=NOW) for attempt in live]
    assert last(just_begun, veteran).evictions == (), "or one instant might never end"


def test_nobody_yields_to_an_equal() -> None:
    live = [*singles("a", [1] * 8), *singles("b", [1] * 8), *singles("c", [1] * 8)]
    plan = last(live, job(1, attained_s=3_600.0))
    assert (plan.evictions, plan.placements) == ((), ())


def test_who_may_not_be_preempted_stays() -> None:
    live = [running(occupy(node, range(8)), 100.0, preemptible=False) for node in (A, B, C)]
    assert last(live, job(1)).evictions == ()


def test_a_plan_stops_no_more_than_it_may() -> None:
    live = [*singles("a", [64] * 8), *singles("b", [64] * 8), *singles("c", [64] * 8)]
    jobs = [job(1, name=f"n{number}") for number in range(8)]
    terms = Terms(eviction=EvictionCost(evictions_max=3))
    assert len(last(live, *jobs, terms=terms).evictions) == 3


def crowd(seed: int, mix: str) -> Snapshot:
    """A random cluster whose running jobs began at different times."""
    snapshot = random_instance(seed, mix)
    live = {
        key: running(attempt, 0.1 + (seed * 7 + number * 13) % 50)
        for number, (key, attempt) in enumerate(snapshot.live.items())
    }
    return replace(snapshot, live=live)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
@given(st.builds(crowd, st.integers(0, 10_000), st.sampled_from(sorted(MIXES))))
def test_plans_with_evictions_are_sound_and_get_better(snapshot: Snapshot) -> None:
    ordered = PROFILE.order.order(tuple(snapshot.waiting.values()), NOW)
    plans = list(decide(snapshot, PROFILE, Effort(milp_nodes_max=50), NOW, 0))
    assert not any(verify(plan, snapshot, ordered) for plan in plans)
    for sooner, later in pairwise(plans):
        assert later.value >= sooner.value
        assert later.bound <= sooner.bound
    assert plans[-1].value <= plans[-1].bound
