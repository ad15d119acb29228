"""Clusters and queues for allocation tests and benchmarks: small builders, and random instances."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from support.builders import waiting_job_of

from scheduler.model.job import JobShape, Topology, WaitingJob
from scheduler.model.node import NO_LINKS, Gpu, Health, Links, Node
from scheduler.model.plan import TaskPlacement
from scheduler.model.quantity import (
    DEFAULT_POOL,
    DEFAULT_QUEUE,
    DEFAULT_TENANT,
    AttemptId,
    GpuId,
    JobId,
    NodeId,
    PoolName,
    Resources,
    UtcSeconds,
)
from scheduler.model.snapshot import LiveAttempt, Snapshot

NOW = UtcSeconds(10_000.0)
NODE_CPU_MILLI = 96_000
NODE_MEMORY_MIB = 1_000_000

DGX1_V100 = (
    (0, 1, 1, 2, 2, 0, 0, 0),
    (1, 0, 2, 1, 0, 2, 0, 0),
    (1, 2, 0, 2, 0, 0, 1, 0),
    (2, 1, 2, 0, 0, 0, 0, 1),
    (2, 0, 0, 0, 0, 1, 1, 2),
    (0, 2, 0, 0, 1, 0, 2, 1),
    (0, 0, 1, 0, 1, 2, 0, 2),
    (0, 0, 0, 1, 2, 1, 2, 0),
)
"""NVLinks of each pair of a DGX-1 with V100, GPUs in nvidia-smi order: a fact of the board."""


def links(nvlinks: Sequence[Sequence[int]], per_link: float = 25.0, pcie: float = 10.0) -> Links:
    size = range(len(nvlinks))
    return Links(
        tuple(tuple(row) for row in nvlinks),
        tuple(
            tuple(0.0 if a == b else nvlinks[a][b] * per_link or pcie for b in size) for a in size
        ),
    )


def two_domains(gpus: int = 8) -> Links:
    """Two halves, each all-to-all, without NVLink between them."""
    half = gpus // 2
    return links(
        [[int(a != b and (a < half) == (b < half)) for b in range(gpus)] for a in range(gpus)],
        per_link=50.0,
    )


def make_node(
    name: str,
    *,
    gpus: int = 8,
    model: str = "H100",
    cpu_milli: int = NODE_CPU_MILLI,
    memory_mib: int = NODE_MEMORY_MIB,
    pool: str = DEFAULT_POOL,
    rack: str = "",
    board: Links = NO_LINKS,
    cordoned: bool = False,
    health: Health = Health.HEALTHY,
) -> Node:
    return Node(
        id=NodeId(f"n-{name}"),
        name=name,
        capacity=Resources(gpus, cpu_milli, memory_mib),
        gpus=tuple(Gpu(GpuId(f"{name}-{i}"), i, model, 81_559) for i in range(gpus)),
        links=board,
        pool=PoolName(pool),
        rack=rack,
        cordoned=cordoned,
        health=health,
    )


def shape(
    gpus: int = 1,
    *,
    tasks: int = 1,
    cpu_milli: int = 1_000,
    memory_mib: int = 1_000,
    models: tuple[str, ...] = (),
    topology: Topology = Topology.ANY,
    pool: str | None = None,
) -> JobShape:
    return JobShape(
        tasks,
        Resources(gpus, cpu_milli, memory_mib),
        models,
        topology,
        None if pool is None else PoolName(pool),
    )


def make_job(
    name: str,
    what: JobShape,
    *,
    priority: int = 50,
    submitted_at: float = 9_000.0,
    eligible_at: float = 0.0,
) -> WaitingJob:
    return WaitingJob(
        id=JobId(f"j-{name}"),
        tenant=DEFAULT_TENANT,
        queue=DEFAULT_QUEUE,
        priority=priority,
        submitted_at=UtcSeconds(submitted_at),
        eligible_at=UtcSeconds(eligible_at),
        shape=what,
        preemptible=True,
        attempts=0,
        class_key=repr(what),
    )


def occupy(node: Node, gpus: Sequence[int], cpu_milli: int = 0, memory_mib: int = 0) -> LiveAttempt:
    """An attempt that holds these GPUs of the node."""
    name = f"{node.name}-{'.'.join(str(gpu) for gpu in gpus)}-{cpu_milli}"
    tasks = (
        TaskPlacement(0, node.id, tuple(node.gpus[gpu].id for gpu in gpus), cpu_milli, memory_mib),
    )
    job = waiting_job_of(f"j-live-{name}", tasks)
    return LiveAttempt(AttemptId(f"a-{name}"), job, UtcSeconds(0.0), tasks)


def snapshot_of(
    nodes: Sequence[Node], jobs: Sequence[WaitingJob], live: Sequence[LiveAttempt] = ()
) -> Snapshot:
    return Snapshot(
        7,
        {node.id: node for node in nodes},
        {attempt.id: attempt for attempt in live},
        {job.id: job for job in jobs},
    )


@dataclass(frozen=True)
class Mix:
    """Shares of a queue.

    Attributes:
        sizes: (weight, tasks, GPUs per task).
        cpu_only: share of gangs without GPUs.
        cpu_per_gpu: CPU milli per GPU that tasks ask, drawn uniformly.
    """

    sizes: tuple[tuple[float, int, int], ...]
    cpu_only: float
    cpu_per_gpu: tuple[int, ...]


MIXES = {
    "philly": Mix(
        ((66, 1, 1), (12, 1, 2), (10, 1, 4), (6, 1, 8), (3, 2, 4), (2, 2, 8), (1, 4, 8)),
        0.03,
        (2_000, 4_000, 8_000),
    ),
    "gang": Mix(
        ((20, 1, 1), (15, 1, 4), (27, 1, 8), (10, 2, 2), (10, 4, 1), (10, 2, 4), (8, 2, 8)),
        0.03,
        (2_000, 4_000, 8_000),
    ),
    "cpu": Mix(
        ((60, 1, 1), (15, 1, 2), (10, 1, 4), (5, 1, 8), (5, 2, 2), (5, 4, 1)),
        0.35,
        (4_000, 12_000, 20_000, 28_000),
    ),
}


def random_instance(seed: int, mix: str, *, plain: bool = False) -> Snapshot:
    """4-16 nodes, 70-95 % full, a demand of 1.5-3 times the free GPUs, 20-200 gangs.

    Each queue has a least length, drawn from 20-200 in a third of the instances, else 20; what GPU
    gangs do not reach at that demand is filled up with gangs that need no GPU. `plain` leaves out
    model lists, pools and topology constraints.
    """
    rng = random.Random(f"{seed}-{mix}")
    nodes = [_random_node(rng, index, plain=plain) for index in range(rng.randint(4, 16))]
    live, free = _fill(rng, nodes, rng.uniform(0.70, 0.95))
    demand = max(1, round(free * rng.uniform(1.5, 3.0)))
    jobs: list[WaitingJob] = []
    while len(jobs) < 200 and demand > 0:
        what = _random_shape(rng, MIXES[mix], demand, plain=plain)
        demand -= what.total.gpus
        jobs.append(_random_job(rng, len(jobs), what))
    least = rng.randint(20, 200) if seed % 9 < 3 else 20
    while len(jobs) < least:
        jobs.append(_random_job(rng, len(jobs), _cpu_shape(rng)))
    return snapshot_of(nodes, jobs, live)


def _random_node(rng: random.Random, index: int, *, plain: bool) -> Node:
    board = rng.choice([NO_LINKS, links(DGX1_V100), two_domains()])
    return make_node(
        f"node{index:02}",
        model="H100" if plain or rng.random() < 0.7 else "A100",
        pool=DEFAULT_POOL if plain or rng.random() < 0.8 else PoolName("batch"),
        rack=f"rack{index // 4}" if rng.random() < 0.9 else "",
        board=board,
    )


def _fill(rng: random.Random, nodes: Sequence[Node], share: float) -> tuple[list[LiveAttempt], int]:
    """Attempts of 1-8 GPUs on random nodes until `share` of all GPUs is held; and what is free."""
    free = {node.id: list(range(len(node.gpus))) for node in nodes}
    cpu = {node.id: node.capacity.cpu_milli for node in nodes}
    memory = {node.id: node.capacity.memory_mib for node in nodes}
    total = sum(len(node.gpus) for node in nodes)
    held, live = 0, []
    while held < round(share * total):
        node = rng.choice([node for node in nodes if free[node.id]])
        size = min(rng.choice([1, 1, 2, 4, 8]), len(free[node.id]), round(share * total) - held)
        gpus = sorted(rng.sample(free[node.id], size))
        free[node.id] = [gpu for gpu in free[node.id] if gpu not in gpus]
        cpu_milli = min(size * rng.choice([4_000, 8_000, 12_000]), cpu[node.id])
        memory_mib = min(size * rng.choice([32_000, 64_000, 120_000]), memory[node.id])
        cpu[node.id] -= cpu_milli
        memory[node.id] -= memory_mib
        live.append(occupy(node, gpus, cpu_milli, memory_mib))
        held += size
    return live, total - held


def _random_shape(rng: random.Random, mix: Mix, demand: int, *, plain: bool) -> JobShape:
    if rng.random() < mix.cpu_only:
        return _cpu_shape(rng)
    weights = [size[0] for size in mix.sizes]
    _, tasks, gpus = rng.choices(mix.sizes, weights)[0]
    if tasks * gpus > demand:
        tasks, gpus = 1, 1
    what = shape(
        gpus,
        tasks=tasks,
        cpu_milli=gpus * rng.choice(mix.cpu_per_gpu),
        memory_mib=gpus * rng.choice([16_000, 64_000]),
    )
    if plain or rng.random() < 0.7:
        return what
    return replace(
        what,
        gpu_models=rng.choice([(), ("H100",), ("H100", "A100")]),
        topology=rng.choice(list(Topology)),
        pool=rng.choice([None, None, DEFAULT_POOL]),
    )


def _cpu_shape(rng: random.Random) -> JobShape:
    return shape(
        0,
        tasks=rng.choice([1, 1, 2, 4]),
        cpu_milli=rng.choice([2_000, 8_000, 16_000]),
        memory_mib=rng.choice([4_000, 32_000]),
    )


def _random_job(rng: random.Random, number: int, what: JobShape) -> WaitingJob:
    return make_job(
        f"{number:04}",
        what,
        priority=rng.choice([0, 20, 50, 50, 80, 100]),
        submitted_at=NOW - rng.uniform(0.0, 7_200.0),
    )
