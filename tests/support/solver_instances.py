"""Seeded clusters and queues at the sizes the solver must hold: 16 to 5,000 nodes, three families.

8 GPUs a node, three GPU models, four pools, three price classes, racks of 16, 70 to 95 % held in
fragments. Queues ask about four times what is free: `philly` is mostly single GPUs with few large
gangs (the sizes of the public Philly trace), `gang` half 8-GPU and multi-node gangs, `cpu` is
philly with tasks that ask as much CPU and memory as their GPUs' share of a node, half of them more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from support.clusters import NODE_CPU_MILLI, NODE_MEMORY_MIB, NOW, make_node, snapshot_of

from scheduler.model.job import JobShape, Topology, WaitingJob
from scheduler.model.node import Node, PriceClass
from scheduler.model.plan import TaskPlacement
from scheduler.model.quantity import (
    DEFAULT_QUEUE,
    WHOLE_GPU_MILLI,
    AttemptId,
    JobId,
    NodeId,
    PoolName,
    Resources,
    TenantId,
    UtcSeconds,
)
from scheduler.model.snapshot import LiveAttempt, Snapshot
from scheduler.model.terms import Headroom, Price, Quota, Terms

MODELS = ("A100", "H100", "H200")
POOLS = tuple(PoolName(name) for name in ("batch", "default", "research", "serving"))
PRICES = (PriceClass.RESERVED, PriceClass.ON_DEMAND, PriceClass.SPOT)
TENANTS = tuple(TenantId(f"tenant{number}") for number in range(8))
GPUS = 8
RACK_NODES = 16

GANGS = {16: 100, 32: 100, 150: 500, 1_000: 2_000, 5_000: 10_000}
"""How many gangs wait, by number of nodes."""


@dataclass(frozen=True)
class Family:
    """A queue's mix.

    Attributes:
        sizes: (weight, tasks, GPUs a task).
        bundles: (milli-CPU, MiB) a GPU, drawn alike often.
        cpu_only: share of gangs without GPUs.
    """

    sizes: tuple[tuple[float, int, int], ...]
    bundles: tuple[tuple[int, int], ...]
    cpu_only: float = 0.0


_MODEST = ((4_000, 32_000), (6_000, 48_000), (8_000, 64_000), (10_000, 100_000))
_HUNGRY = ((6_000, 60_000), (10_000, 100_000), (14_000, 140_000), (18_000, 180_000))
_PHILLY = (
    (66.0, 1, 1),
    (10.0, 1, 2),
    (9.0, 1, 4),
    (8.0, 1, 8),
    (3.0, 2, 4),
    (2.0, 2, 8),
    (1.0, 4, 8),
    (1.0, 8, 8),
)
FAMILIES = {
    "philly": Family(_PHILLY, _MODEST),
    "gang": Family(
        (
            (20.0, 1, 1),
            (8.0, 1, 2),
            (17.0, 1, 4),
            (27.0, 1, 8),
            (8.0, 2, 4),
            (10.0, 2, 8),
            (6.0, 4, 8),
            (4.0, 8, 8),
        ),
        _MODEST,
    ),
    "cpu": Family(_PHILLY, _HUNGRY, cpu_only=0.05),
}


def solver_instance(
    seed: int, family: str, nodes: int, *, gangs: int | None = None, plain: bool = False
) -> Snapshot:
    """One instance; equal arguments give equal snapshots.

    Args:
        seed: of everything random.
        family: a key of `FAMILIES`.
        nodes: size of the cluster.
        gangs: length of the queue; `GANGS` by default.
        plain: without quotas, prices and headroom.
    """
    rng = np.random.default_rng([seed, nodes, sorted(FAMILIES).index(family)])
    cluster = [_node(rng, number) for number in range(nodes)]
    live, left = _fill(rng, cluster, float(rng.uniform(0.70, 0.95)))
    count = GANGS[nodes] if gangs is None else gangs
    jobs = [_job(rng, number, FAMILIES[family]) for number in range(count)]
    snapshot = snapshot_of(cluster, jobs, live)
    return snapshot if plain else replace(snapshot, terms=_terms(cluster, live, left))


def _node(rng: np.random.Generator, number: int) -> Node:
    kind = int(rng.choice(12))
    return replace(
        make_node(
            f"n{number:04}",
            model=MODELS[kind % 3],
            pool=POOLS[kind // 3],
            rack=f"r{number // RACK_NODES:03}",
        ),
        price_class=PRICES[int(rng.choice(3, p=[0.5, 0.3, 0.2]))],
    )


def _fill(
    rng: np.random.Generator, nodes: list[Node], share: float
) -> tuple[list[LiveAttempt], dict[NodeId, int]]:
    """Attempts of 1 to 8 GPUs; some nodes stay empty, the others are filled in fragments."""
    held = 0
    goal = round(share * GPUS * len(nodes))
    left = {node.id: GPUS for node in nodes}
    cpu = {node.id: NODE_CPU_MILLI for node in nodes}
    memory = {node.id: NODE_MEMORY_MIB for node in nodes}
    live: list[LiveAttempt] = []
    while held < goal:
        node = nodes[int(rng.integers(len(nodes)))]
        size = min(int(rng.choice([1, 1, 1, 2, 4, 8, 8])), left[node.id], goal - held)
        if not size:
            continue
        start = GPUS - left[node.id]
        milli = min(size * int(rng.choice([4_000, 8_000, 12_000])), cpu[node.id])
        mib = min(size * int(rng.choice([32_000, 64_000, 110_000])), memory[node.id])
        task = TaskPlacement(
            0, node.id, tuple(gpu.id for gpu in node.gpus[start : start + size]), milli, mib
        )
        live.append(_attempt(rng, len(live), task))
        left[node.id] -= size
        cpu[node.id] -= milli
        memory[node.id] -= mib
        held += size
    return live, left


def _attempt(rng: np.random.Generator, number: int, task: TaskPlacement) -> LiveAttempt:
    need = Resources(len(task.gpu_ids), task.cpu_milli, task.memory_mib)
    shape = JobShape(1, need)
    job = WaitingJob(
        id=JobId(f"live-{number:05}"),
        tenant=TENANTS[int(rng.integers(len(TENANTS)))],
        queue=DEFAULT_QUEUE,
        priority=int(rng.choice([10, 20, 30, 40, 50])),
        submitted_at=UtcSeconds(NOW - float(rng.uniform(0.0, 7_200.0))),
        eligible_at=UtcSeconds(0.0),
        shape=shape,
        preemptible=True,
        attempts=1,
        class_key=f"live-{number}",
    )
    return LiveAttempt(AttemptId(f"a-{number:05}"), job, UtcSeconds(NOW - 600.0), (task,))


def _job(rng: np.random.Generator, number: int, family: Family) -> WaitingJob:
    tenant = TENANTS[int(rng.integers(len(TENANTS)))]
    shape = _shape(rng, family)
    return WaitingJob(
        id=JobId(f"j-{number:05}"),
        tenant=tenant,
        queue=DEFAULT_QUEUE,
        priority=int(rng.choice([30, 40, 50, 60, 70])),
        submitted_at=UtcSeconds(NOW - float(rng.uniform(0.0, 7_200.0))),
        eligible_at=UtcSeconds(0.0),
        shape=shape,
        preemptible=True,
        attempts=0,
        class_key=f"{tenant}|{shape!r}",
    )


def _shape(rng: np.random.Generator, family: Family) -> JobShape:
    if rng.random() < family.cpu_only:
        tasks = int(rng.choice([1, 2, 4]))
        return JobShape(tasks, Resources(0, int(rng.choice([2, 8, 16])) * 1_000, 8_000))
    weights = np.array([size[0] for size in family.sizes])
    _, tasks, gpus = family.sizes[int(rng.choice(len(weights), p=weights / weights.sum()))]
    cpu, memory = family.bundles[int(rng.choice(len(family.bundles)))]
    if rng.random() < 0.08:  # an odd request
        cpu = int(rng.integers(2, 12)) * 1_000
        memory = int(rng.integers(2, 12)) * 10_000
    cpu, memory = min(cpu * gpus, NODE_CPU_MILLI), min(memory * gpus, NODE_MEMORY_MIB)
    limited = rng.random()
    return JobShape(
        tasks,
        Resources(gpus, cpu, memory),
        gpu_models=(MODELS[int(rng.choice(3))],) if limited < 0.15 else (),
        topology=Topology.ANY,
        pool=POOLS[int(rng.choice(4))] if 0.15 <= limited < 0.30 else None,
    )


def _terms(nodes: list[Node], live: list[LiveAttempt], left: dict[NodeId, int]) -> Terms:
    """Quotas that half of the tenants will hit, 15 % of empty nodes reserved, cheap and dear."""
    used = dict.fromkeys(TENANTS, 0)
    for attempt in live:
        used[attempt.tenant] += sum(len(task.gpu_ids) for task in attempt.tasks) * WHOLE_GPU_MILLI
    free = (GPUS * len(nodes) - sum(used.values()) // WHOLE_GPU_MILLI) * WHOLE_GPU_MILLI
    quotas = tuple(
        Quota(
            tenant,
            nominal_milli=used[tenant] + free * (number % 4 + 1) // 24,
            borrow_milli=free // 12 * (number % 3),
            cohort=f"cohort{number % 2}",
        )
        for number, tenant in enumerate(TENANTS)
    )
    empty = sum(1 for count in left.values() if count == GPUS)
    return Terms(
        quotas=quotas,
        headroom=(Headroom(None, GPUS, round(0.15 * empty)),) if empty else (),
        prices=(
            Price(PriceClass.RESERVED, 1.0),
            Price(PriceClass.ON_DEMAND, 2.5),
            Price(PriceClass.SPOT, 1.5),
        ),
        price_weight=0.05,
    )
