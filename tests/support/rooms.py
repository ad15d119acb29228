"""Random small clusters with every trait that allocation knows, and gangs for them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from support.builders import waiting_job_of
from support.clusters import DGX1_V100, NOW, links, make_job, two_domains

from policies.best_fit import BestFit
from scheduler.allocation.gangs import Gang, gang_of
from scheduler.allocation.room import Room
from scheduler.model.job import JobShape, Topology
from scheduler.model.node import NO_LINKS, Gpu, Health, Node, PriceClass
from scheduler.model.plan import TaskPlacement
from scheduler.model.ports import OrderedJob
from scheduler.model.quantity import (
    WHOLE_GPU_MILLI,
    AttemptId,
    GpuId,
    NodeId,
    PoolName,
    Resources,
    UtcSeconds,
)
from scheduler.model.snapshot import LiveAttempt, Snapshot
from scheduler.model.terms import Terms

MODELS = ("A100", "H100", "V100")


def room_of(snapshot: Snapshot) -> Room:
    return Room(snapshot, BestFit(), 0)


def gang(what: JobShape, name: str = "1", *, rank: int = 0, value: float = 1.0) -> Gang:
    return gang_of(OrderedJob(make_job(name, what), rank, value))


def random_node(rng: random.Random, index: int) -> Node:
    """A node of 0-8 GPUs: perhaps of two models, perhaps partly or wholly closed."""
    name = f"node{index:02}"
    count = rng.choice([0, 2, 4, 8, 8, 8])
    model = rng.choice(MODELS)
    other = rng.choice(MODELS) if rng.random() < 0.3 else model
    gpus = tuple(
        Gpu(
            GpuId(f"{name}-{i}"),
            i,
            model if i < count // 2 else other,
            80_000,
            health=Health.UNHEALTHY if rng.random() < 0.05 else Health.HEALTHY,
            cordoned=rng.random() < 0.05,
        )
        for i in range(count)
    )
    board = NO_LINKS
    if count == 8:
        board = rng.choice([NO_LINKS, links(DGX1_V100), two_domains()])
    return Node(
        id=NodeId(f"n-{name}"),
        name=name,
        capacity=Resources(count, rng.choice([16_000, 64_000]), rng.choice([64_000, 256_000])),
        gpus=gpus,
        links=board,
        pool=PoolName(rng.choice(["default", "default", "batch"])),
        price_class=rng.choice(list(PriceClass)),
        rack=rng.choice(["", "rack0", "rack1"]),
        health=Health.UNHEALTHY if rng.random() < 0.1 else Health.HEALTHY,
        cordoned=rng.random() < 0.1,
    )


def random_tasks(rng: random.Random, nodes: Sequence[Node]) -> tuple[TaskPlacement, ...]:
    """One attempt on one node; nothing makes sure that the node has room for it."""
    node = rng.choice(nodes)
    indexes = rng.sample(range(len(node.gpus)), min(len(node.gpus), rng.choice([1, 1, 2, 4])))
    milli = WHOLE_GPU_MILLI if rng.random() < 0.6 else rng.choice([250, 460])
    own = indexes if milli == WHOLE_GPU_MILLI else indexes[:1]
    return (
        TaskPlacement(
            0,
            node.id,
            tuple(node.gpus[index].id for index in own),
            rng.choice([0, 1_000, 20_000]),
            rng.choice([0, 1_000, 60_000]),
            milli if own else WHOLE_GPU_MILLI,
        ),
    )


def random_attempt(rng: random.Random, name: str, nodes: Sequence[Node]) -> LiveAttempt:
    tasks = random_tasks(rng, nodes)
    job = waiting_job_of(f"j-live-{name}", tasks)
    return LiveAttempt(AttemptId(f"a-{name}"), job, UtcSeconds(NOW - 100.0), tasks)


def random_cluster(seed: int, terms: Terms | None = None) -> Snapshot:
    """2-8 nodes and attempts on them that hold no GPU beyond its whole."""
    rng = random.Random(seed)
    nodes = [random_node(rng, index) for index in range(rng.randint(2, 8))]
    live: dict[AttemptId, LiveAttempt] = {}
    held: dict[GpuId, int] = {}
    for number in range(rng.randint(0, 12)):
        attempt = random_attempt(rng, f"{number}", nodes)
        (task,) = attempt.tasks
        if any(held.get(gpu, 0) + task.gpu_milli > WHOLE_GPU_MILLI for gpu in task.gpu_ids):
            continue
        for gpu in task.gpu_ids:
            held[gpu] = held.get(gpu, 0) + task.gpu_milli
        live[attempt.id] = attempt
    return Snapshot(
        revision=1, nodes={node.id: node for node in nodes}, live=live, terms=terms or Terms()
    )


def random_shape(rng: random.Random) -> JobShape:
    """Whole GPUs, a share of one or none, with all kinds of constraints, rigid or elastic."""
    sharing = rng.random() < 0.3
    tasks = rng.choice([1, 1, 2, 3, 5])
    what = JobShape(
        tasks,
        Resources(
            0 if sharing else rng.choice([0, 1, 1, 2, 4]),
            rng.choice([0, 1_000, 9_000]),
            rng.choice([0, 2_000, 30_000]),
        ),
        gpu_models=rng.choice([(), (), ("H100",), ("V100", "A100"), ("T4",)]),
        topology=rng.choice([Topology.ANY, Topology.ANY, *Topology]),
        pool=rng.choice([None, None, PoolName("batch"), PoolName("nowhere")]),
        gpu_milli=rng.choice([100, 250, 460, 999]) if sharing else 0,
    )
    return replace(what, tasks_max=tasks * 3) if rng.random() < 0.3 else what
