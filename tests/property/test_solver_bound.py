"""The proven bound against every plan there is, on clusters small enough to try them all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support.clusters import NOW, make_job, make_node, occupy, snapshot_of

from policies.best_fit import BestFit
from scheduler.allocation.evictions import Victim, options_of, victims_of
from scheduler.allocation.figures import figures_of, trimmed
from scheduler.allocation.gangs import Gang, gang_of, gangs_of
from scheduler.allocation.highs import Limits
from scheduler.allocation.knapsack import build, relax, weak_dual_bound
from scheduler.allocation.optimise import Packed as Packing
from scheduler.allocation.optimise import Task, greedy, improve, value_of
from scheduler.allocation.outline import Scene, outline_of
from scheduler.allocation.room import Room
from scheduler.allocation.swap import move_cost, swap_bound
from scheduler.allocation.worth import Worth
from scheduler.decide import decide
from scheduler.model.job import JobShape, Topology, WaitingJob
from scheduler.model.ports import Effort, OrderedJob, Preemption, Profile
from scheduler.model.quantity import (
    WHOLE_GPU_MILLI,
    PoolName,
    Resources,
    TenantId,
    UtcSeconds,
)
from scheduler.model.snapshot import LiveAttempt, Snapshot
from scheduler.model.terms import EXTRA_WORTH, EvictionCost, Headroom, Quota, Terms

LIMITS = Limits(2_000, 1e-6, 0)
EFFORT = Effort(gap_target=1e-6)
SLACK = 1e-6
MUST = 1e6
"""A value above those of all others together."""
VICTIMS_MAX = 4
"""Of whom every choice to stay, go or move is tried."""
TENANTS = (TenantId("red"), TenantId("blue"))


@dataclass
class Spot:
    """A node with what is free on it: thousandths of each GPU, CPU, memory."""

    gpus: list[int]
    cpu: int
    memory: int
    model: str
    pool: str
    rack: str


def tiny(seed: int, *, evict: bool) -> tuple[Snapshot, tuple[OrderedJob, ...]]:
    """Two or three nodes of two to four GPUs, three to five gangs, and a few that run already."""
    rng = np.random.default_rng(seed)
    nodes = [
        make_node(
            f"n{number}",
            gpus=int(rng.integers(2, 5)),
            model=str(rng.choice(["A100", "H100"])),
            cpu_milli=int(rng.integers(4, 12)) * 1_000,
            memory_mib=10_000,
            pool=str(rng.choice(["default", "batch"], p=[0.8, 0.2])),
            rack=str(rng.choice(["r0", "r1"])),
        )
        for number in range(int(rng.integers(2, 4)))
    ]
    live: list[LiveAttempt] = []
    for node in nodes:
        taken = 0
        while taken < len(node.gpus) and rng.random() < (0.8 if evict else 0.3):
            size = int(rng.integers(1, len(node.gpus) - taken + 1))
            gpus = list(range(taken, taken + size))
            attempt = occupy(node, gpus, cpu_milli=500 * size, memory_mib=500)
            tenant = TENANTS[int(rng.integers(2))]
            live.append(
                replace(
                    attempt,
                    job=replace(attempt.job, tenant=tenant, preemptible=bool(rng.random() < 0.8)),
                )
            )
            taken += size
    if evict and len(live) > 1 and rng.random() < 0.5:
        first, second = live.pop(), live.pop()
        tasks = (*first.tasks, replace(second.tasks[0], task_index=1))
        live.append(replace(first, tasks=tasks))
    jobs = [
        replace(
            make_job(f"{number}", _shape(rng)),
            tenant=(tenant := TENANTS[int(rng.integers(2))]),
            class_key=f"{number}-{tenant}",
        )
        for number in range(int(rng.integers(3, 6)))
    ]
    snapshot = replace(snapshot_of(nodes, jobs, live), terms=_terms(rng, live))
    ordered = [OrderedJob(job, rank, float(rng.integers(1, 20))) for rank, job in enumerate(jobs)]
    running = [
        OrderedJob(attempt.job, 100 + rank, float(rng.integers(1, 8)))
        for rank, attempt in enumerate(live)
    ]
    return snapshot, (*ordered, *(running if evict else ()))


def _shape(rng: np.random.Generator) -> JobShape:
    tasks = int(rng.choice([1, 1, 2, 3]))
    share = int(rng.choice([0, 0, 0, 300, 500, 700]))
    gpus = 0 if share else int(rng.choice([0, 1, 1, 2, 3]))
    return JobShape(
        tasks,
        Resources(gpus, int(rng.integers(0, 4)) * 1_000, int(rng.integers(1, 4)) * 1_000),
        gpu_models=("H100",) if rng.random() < 0.2 and (gpus or share) else (),
        topology=Topology.SAME_RACK
        if rng.random() < 0.3
        else Topology.SAME_NODE
        if rng.random() < 0.2
        else Topology.ANY,
        pool=PoolName("batch") if rng.random() < 0.1 else None,
        gpu_milli=share,
        tasks_max=tasks + int(rng.choice([0, 0, 0, 1, 2])),
    )


def _terms(rng: np.random.Generator, live: Sequence[LiveAttempt]) -> Terms:
    eviction = EvictionCost(keep_bonus=0.2)
    if rng.random() < 0.5:
        return Terms(eviction=eviction)
    quotas = tuple(
        Quota(
            tenant,
            int(rng.integers(0, 6)) * WHOLE_GPU_MILLI,
            int(rng.integers(0, 3)) * WHOLE_GPU_MILLI,
            "both" if rng.random() < 0.5 else "",
        )
        for tenant in TENANTS
    )
    headroom = (Headroom(None, int(rng.integers(1, 4)), 1),) if rng.random() < 0.5 else ()
    return Terms(quotas=quotas, headroom=headroom, eviction=eviction)


def spots_of(snapshot: Snapshot, gone: Sequence[Victim]) -> list[Spot]:
    columns = snapshot.columns.changed(
        (task for victim in gone for task in victim.attempt.tasks), ()
    )
    free, table = columns.free, columns.table
    return [
        Spot(
            free.gpu[row, : len(node.gpus)].tolist(),
            int(free.cpu[row]),
            int(free.memory[row]),
            node.gpus[0].model,
            str(node.pool),
            node.rack,
        )
        for row, node in enumerate(table.nodes)
    ]


def best_plan(snapshot: Snapshot, gangs: Sequence[Gang], victims: Sequence[Victim]) -> float:
    """The best objective over all sets of victims, gangs, sizes and places."""
    best = 0.0
    for size in range(len(victims) + 1):
        for gone in combinations(victims, size):
            cost = sum(victim.cost for victim in gone)
            spots = spots_of(snapshot, gone)
            best = max(best, _best(snapshot, list(gangs), spots, gone, 0.0, best + cost) - cost)
    return best


def _best(
    snapshot: Snapshot,
    gangs: list[Gang],
    spots: list[Spot],
    gone: Sequence[Victim],
    value: float,
    known: float,
    started: tuple[tuple[TenantId, int], ...] = (),
) -> float:
    most = value + sum(
        gang.value * (1 + EXTRA_WORTH * (gang.workers_max - gang.workers) / gang.workers)
        for gang in gangs
    )
    if most <= known:
        return known
    if not gangs:
        return max(known, value) if _kept(snapshot, spots) else known
    gang, rest = gangs[0], gangs[1:]
    known = _best(snapshot, rest, spots, gone, value, known, started)
    for workers in range(gang.workers_max, gang.workers - 1, -1):
        milli = gang.worker.milli * workers
        more = (*started, (gang.job.tenant, milli))
        if not _within_quota(snapshot, gone, more):
            continue
        worth = gang.value * (1 + EXTRA_WORTH * (workers - gang.workers) / gang.workers)
        for after in _places(gang, workers, spots, 0, None):
            known = _best(snapshot, rest, after, gone, value + worth, known, more)
    return known


def _places(
    gang: Gang, workers: int, spots: list[Spot], first: int, rack: str | None
) -> Iterator[list[Spot]]:
    if workers == 0:
        yield spots
        return
    for number in range(first, len(spots)):
        spot = spots[number]
        if gang.one_rack and rack is not None and spot.rack != rack:
            continue
        for after in _with_one(gang, spot):
            now = [*spots[:number], after, *spots[number + 1 :]]
            yield from _places(gang, workers - 1, now, number, spot.rack)


def _with_one(gang: Gang, spot: Spot) -> Iterator[Spot]:
    worker = gang.worker
    needs = worker.needs
    if needs.cpu_milli > spot.cpu or needs.memory_mib > spot.memory:
        return
    if worker.pool is not None and worker.pool != spot.pool:
        return
    if worker.gpu_models and spot.model not in worker.gpu_models:
        return
    cpu, memory = spot.cpu - needs.cpu_milli, spot.memory - needs.memory_mib
    if worker.gpu_milli:
        for gpus in _shares(spot.gpus, worker.gpu_milli, worker.parts):
            yield replace(spot, gpus=gpus, cpu=cpu, memory=memory)
        return
    whole = [at for at, milli in enumerate(spot.gpus) if milli == WHOLE_GPU_MILLI]
    if len(whole) >= needs.gpus:
        taken = set(whole[: needs.gpus])
        gpus = [0 if at in taken else milli for at, milli in enumerate(spot.gpus)]
        yield replace(spot, gpus=gpus, cpu=cpu, memory=memory)


def _shares(gpus: list[int], milli: int, parts: int) -> Iterator[list[int]]:
    if parts == 0:
        yield gpus
        return
    tried = set()
    for at, free in enumerate(gpus):
        if free >= milli and free not in tried:
            tried.add(free)
            yield from _shares([*gpus[:at], free - milli, *gpus[at + 1 :]], milli, parts - 1)


def _kept(snapshot: Snapshot, spots: Sequence[Spot]) -> bool:
    for headroom in snapshot.terms.headroom:
        before = sum(
            spot.gpus.count(WHOLE_GPU_MILLI) // headroom.gpus for spot in spots_of(snapshot, ())
        )
        after = sum(spot.gpus.count(WHOLE_GPU_MILLI) // headroom.gpus for spot in spots)
        if after < min(before, headroom.blocks):
            return False
    return True


def _within_quota(
    snapshot: Snapshot, gone: Sequence[Victim], started: Sequence[tuple[TenantId, int]]
) -> bool:
    """No tenant and no cohort ends up above its limit, except as far as it was before."""
    quotas = {quota.tenant: quota for quota in snapshot.terms.quotas}
    used = dict.fromkeys(quotas, 0)
    for attempt in snapshot.live.values():
        if attempt.tenant in used:
            used[attempt.tenant] += sum(len(t.gpu_ids) * t.gpu_milli for t in attempt.tasks)
    after = dict(used)
    for victim in gone:
        if victim.attempt.tenant in after:
            after[victim.attempt.tenant] -= victim.milli
    for tenant, milli in started:
        if tenant in after:
            after[tenant] += milli
    for tenant, quota in quotas.items():
        if after[tenant] > max(used[tenant], quota.nominal_milli + quota.borrow_milli):
            return False
        cohort = [q for q in quotas.values() if (q.cohort or q.tenant) == (quota.cohort or tenant)]
        total = sum(q.nominal_milli for q in cohort)
        if sum(after[q.tenant] for q in cohort) > max(sum(used[q.tenant] for q in cohort), total):
            return False
    return True


def task_of(seed: int, *, evict: bool) -> Task:
    snapshot, line = tiny(seed, evict=evict)
    gangs = gangs_of([entry for entry in line if entry.job.id in snapshot.waiting])
    victims = victims_of(snapshot, line, UtcSeconds(NOW)) if evict else ()
    return Task(snapshot, gangs, lambda: Room(snapshot, BestFit(), 0), Worth(snapshot), victims)


@pytest.mark.parametrize("evict", [False, True])
@given(seed=st.integers(0, 100_000))
@settings(max_examples=40, deadline=None)
def test_no_plan_is_worth_more_than_the_bound(seed: int, *, evict: bool) -> None:
    task = task_of(seed, evict=evict)
    options = options_of(task.snapshot.columns, task.victims)
    scene = Scene.of(task.snapshot, task.gangs, options)
    best = best_plan(task.snapshot, task.gangs, task.victims)
    rng = np.random.default_rng(seed)
    for each_node in (False, True):
        outline = outline_of(scene, options, each_node=each_node)
        figures = figures_of(outline, scene)
        knapsack = build(trimmed(outline, figures), figures)
        relaxed = relax(knapsack, LIMITS)
        assert relaxed.notes == ()
        assert relaxed.bound >= best - SLACK
        rows = knapsack.program.arrays.limit.size
        for prices in (np.zeros(rows), rng.uniform(-3.0, 3.0, rows), np.full(rows, np.nan)):
            assert weak_dual_bound(knapsack, prices) >= best - SLACK


@pytest.mark.parametrize("evict", [False, True])
@given(seed=st.integers(0, 100_000))
@settings(max_examples=40, deadline=None)
def test_candidates_are_plans_no_worse_than_greedy_and_below_their_bound(
    seed: int, *, evict: bool
) -> None:
    task = task_of(seed, evict=evict)
    best = best_plan(task.snapshot, task.gangs, task.victims)
    packing = greedy(task)
    value = task.worth.total(task.gangs, packing)
    for candidate in improve(task, packing, EFFORT, 0):
        assert candidate.value >= value - SLACK
        value = candidate.value
        packed = Packing(dict(candidate.packing), candidate.evicted)
        assert value_of(task, packed) == pytest.approx(candidate.value)
        assert candidate.value <= best + SLACK
        assert candidate.bound >= best - SLACK
        room = task.rooms()
        for victim in candidate.evicted:
            room.release(victim.attempt)
        assert all(
            room.take(task.gangs[index], loads) for index, loads in candidate.packing.items()
        )


class Priced:
    """A queue order in which jobs are worth what the instance says."""

    name = "priced"

    def __init__(self, line: Sequence[OrderedJob]) -> None:
        self._value = {entry.job.id: entry.value for entry in line}

    def order(self, waiting: Sequence[WaitingJob], now: UtcSeconds) -> Sequence[OrderedJob]:
        """The most valuable first."""
        del now
        jobs = sorted(waiting, key=lambda job: (-self._value[job.id], job.id))
        return [OrderedJob(job, rank, self._value[job.id]) for rank, job in enumerate(jobs)]


def best_with_moves(task: Task) -> float:
    """As `best_plan`, where those who leave may also take another place and cost less for it."""
    best = 0.0
    victims = task.victims
    for kinds in product(("stays", "goes", "moves"), repeat=len(victims)):
        gone = [v for v, kind in zip(victims, kinds, strict=True) if kind != "stays"]
        movers = [v for v, kind in zip(victims, kinds, strict=True) if kind == "moves"]
        cost = sum(move_cost(task, v) if v in movers else v.cost for v in gone)
        # Whoever moves must find a place: it is worth more than all the others together.
        gangs = [
            replace(gang, value=MUST, workers_max=gang.workers)
            for gang in (gang_of(OrderedJob(v.attempt.job, 0, 0.0)) for v in movers)
        ]
        least = MUST * len(movers) + best + cost
        spots = spots_of(task.snapshot, gone)
        found = _best(task.snapshot, [*gangs, *task.gangs], spots, gone, 0.0, least)
        best = max(best, found - MUST * len(movers) - cost)
    return best


@given(seed=st.integers(0, 100_000))
@settings(max_examples=60, deadline=None)
def test_no_plan_with_moves_is_worth_more_than_a_decision_claims(seed: int) -> None:
    snapshot, line = tiny(seed, evict=True)
    profile = Profile("priced", Priced(line), BestFit(), preemption=Preemption.EVICT)
    task = task_of(seed, evict=True)
    assume(len(task.victims) <= VICTIMS_MAX)
    best = best_with_moves(task)
    plans = list(decide(snapshot, profile, EFFORT, NOW, 0))
    assert all(plan.bound >= best - SLACK for plan in plans)
    assert all(plan.value <= best + SLACK for plan in plans)
    assert [plan.value for plan in plans] == sorted(plan.value for plan in plans)
    assert swap_bound(task) >= best - SLACK


@given(seed=st.integers(0, 100_000))
@settings(max_examples=60, deadline=None)
def test_no_plan_is_worth_more_than_a_decision_without_evictions_claims(seed: int) -> None:
    snapshot, line = tiny(seed, evict=False)
    profile = Profile("priced", Priced(line), BestFit())
    task = task_of(seed, evict=False)
    best = best_plan(task.snapshot, task.gangs, ())
    for plan in decide(snapshot, profile, EFFORT, NOW, 0):
        assert plan.value - SLACK <= best <= plan.bound + SLACK
