"""An independent checker of plans. It knows the model and no allocator.

It recomputes everything from the snapshot: what is free, who may start, what each gang asked for.
The worker checks all of it before it sends; the daemon checks safety again before it commits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain

from scheduler.model.job import Topology, WaitingJob
from scheduler.model.node import Node
from scheduler.model.plan import Placement, Plan, TaskPlacement
from scheduler.model.ports import OrderedJob
from scheduler.model.quantity import GpuId, JobId, NodeId, UtcSeconds
from scheduler.model.snapshot import Snapshot

VALUE_TOLERANCE = 1e-6
"""Relative; values are sums of floats added in different orders."""


class Severity(StrEnum):
    """What would go wrong: neither kind of plan may be committed."""

    UNSAFE = "unsafe"
    """Carrying it out would break an invariant of the cluster."""
    UNTRUE = "untrue"
    """What it says about itself is wrong: its value, its bound, its reasons."""


class Kind(StrEnum):
    """What a plan can do wrong."""

    REVISION = "revision"
    JOB = "job"
    GANG = "gang"
    RESOURCES = "resources"
    NODE = "node"
    MODEL = "model"
    POOL = "pool"
    TOPOLOGY = "topology"
    GPU = "gpu"
    CAPACITY = "capacity"
    VALUE = "value"
    BOUND = "bound"
    EVICTION = "eviction"
    REASON = "reason"


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing wrong with a plan."""

    kind: Kind
    severity: Severity
    message: str


def verify(plan: Plan, snapshot: Snapshot, ordered: Sequence[OrderedJob]) -> tuple[Violation, ...]:
    """Everything wrong with `plan`; empty when it may be committed.

    Args:
        plan: the plan to check.
        snapshot: what it was made from.
        ordered: the jobs that may start now with their values, as the queue order gave them.

    Returns:
        the violations found. O(GPUs + placed tasks + waiting jobs).
    """
    values = {entry.job.id: entry.value for entry in ordered}
    claims = (_claim(placement, values) for placement in plan.placements)
    return (*_sound(plan, snapshot), *chain.from_iterable(claims), *_reasons(plan, snapshot))


def check_safety(plan: Plan, snapshot: Snapshot, now: UtcSeconds) -> tuple[Violation, ...]:
    """As `verify`, less what the plan says about jobs it does not place.

    The daemon's own look before it commits: it needs no queue order, so that a long queue does not
    hold up the event loop. O(GPUs + placed tasks).
    """
    early = (
        _unsafe(Kind.JOB, f"job {placement.job_id} may not start yet")
        for placement in plan.placements
        if placement.job_id in snapshot.waiting
        and snapshot.waiting[placement.job_id].eligible_at > now
    )
    return (*_sound(plan, snapshot), *early)


def _sound(plan: Plan, snapshot: Snapshot) -> Iterator[Violation]:
    if plan.snapshot_revision != snapshot.revision:
        yield _unsafe(
            Kind.REVISION,
            f"made for revision {plan.snapshot_revision}, not {snapshot.revision}",
        )
    for placement in plan.placements:
        yield from _job(placement, snapshot)
    for job, times in Counter(p.job_id for p in plan.placements).items():
        if times > 1:
            yield _unsafe(Kind.JOB, f"job {job} is placed more than once")
    yield from _shared_use(plan, snapshot)
    yield from _worth(plan)
    yield from _evictions(plan, snapshot)


def _unsafe(kind: Kind, message: str) -> Violation:
    return Violation(kind, Severity.UNSAFE, message)


def _untrue(kind: Kind, message: str) -> Violation:
    return Violation(kind, Severity.UNTRUE, message)


def _claim(placement: Placement, values: Mapping[JobId, float]) -> Iterator[Violation]:
    value = values.get(placement.job_id)
    if value is None:
        yield _unsafe(Kind.JOB, f"job {placement.job_id} may not start yet")
    elif not _close(value, placement.value):
        yield _untrue(
            Kind.VALUE, f"job {placement.job_id} is worth {value:g}, not {placement.value:g}"
        )


def _job(placement: Placement, snapshot: Snapshot) -> Iterator[Violation]:
    job = snapshot.waiting.get(placement.job_id)
    if job is None:
        yield _unsafe(Kind.JOB, f"job {placement.job_id} does not wait")
        return
    indexes = [task.task_index for task in placement.tasks]
    if indexes != list(range(job.shape.tasks)):
        yield _unsafe(Kind.GANG, f"job {job.id} has tasks {indexes}, its gang is {job.shape.tasks}")
    for task in placement.tasks:
        yield from _task(job, task, snapshot)
    yield from _topology(job, placement, snapshot)


def _task(job: WaitingJob, task: TaskPlacement, snapshot: Snapshot) -> Iterator[Violation]:
    who = f"task {task.task_index} of job {job.id}"
    need = job.shape.per_task
    if (len(task.gpu_ids), task.cpu_milli, task.memory_mib) != (
        need.gpus,
        need.cpu_milli,
        need.memory_mib,
    ):
        yield _unsafe(
            Kind.RESOURCES,
            f"{who} gets {len(task.gpu_ids)} GPUs, {task.cpu_milli} m CPU, {task.memory_mib} MiB; "
            f"it asked for {need.gpus}, {need.cpu_milli}, {need.memory_mib}",
        )
    node = snapshot.nodes.get(task.node_id)
    if node is None:
        yield _unsafe(Kind.NODE, f"{who} sits on node {task.node_id}, which does not exist")
        return
    if not node.schedulable:
        yield _unsafe(Kind.NODE, f"{who} sits on {node.name}, which takes no new work")
    if job.shape.pool is not None and node.pool != job.shape.pool:
        yield _unsafe(Kind.POOL, f"{who} sits in pool {node.pool}, it asked for {job.shape.pool}")
    gpus = {gpu.id: gpu for gpu in node.gpus}
    for gpu_id in task.gpu_ids:
        gpu = gpus.get(gpu_id)
        if gpu is None:
            yield _unsafe(Kind.GPU, f"{who} gets GPU {gpu_id}, which {node.name} does not have")
        elif not gpu.schedulable:
            yield _unsafe(Kind.GPU, f"{who} gets GPU {gpu_id}, which takes no new work")
        elif job.shape.gpu_models and gpu.model not in job.shape.gpu_models:
            yield _unsafe(
                Kind.MODEL, f"{who} gets a {gpu.model}, it asked for {job.shape.gpu_models}"
            )


def _topology(job: WaitingJob, placement: Placement, snapshot: Snapshot) -> Iterator[Violation]:
    wanted = job.shape.topology
    nodes = {task.node_id for task in placement.tasks}
    known = [snapshot.nodes[node_id] for node_id in sorted(nodes) if node_id in snapshot.nodes]
    if wanted.one_node and len(nodes) > 1:
        yield _unsafe(
            Kind.TOPOLOGY, f"job {job.id} asked for {wanted}, it spans {len(nodes)} nodes"
        )
    if wanted is Topology.SAME_RACK and len(nodes) > 1:
        racks = {node.rack for node in known}
        if len(racks) > 1 or "" in racks:
            yield _unsafe(Kind.TOPOLOGY, f"job {job.id} asked for {wanted}, it leaves its rack")
    if wanted is Topology.SAME_NVLINK and len(known) == 1:
        index = {gpu.id: gpu.index for gpu in known[0].gpus}
        used = {
            index[gpu_id] for task in placement.tasks for gpu_id in task.gpu_ids if gpu_id in index
        }
        if len(used) > 1 and not any(used <= domain for domain in known[0].links.domains()):
            yield _unsafe(
                Kind.TOPOLOGY, f"job {job.id} asked for {wanted}, its GPUs span NVLink domains"
            )


def _shared_use(plan: Plan, snapshot: Snapshot) -> Iterator[Violation]:
    """GPUs with two holders, and CPU or memory given out beyond what is free."""
    held: Counter[GpuId] = Counter(
        gpu_id
        for attempt in snapshot.live.values()
        for task in attempt.tasks
        for gpu_id in task.gpu_ids
    )
    tasks = [task for placement in plan.placements for task in placement.tasks]
    given = Counter(gpu_id for task in tasks for gpu_id in task.gpu_ids)
    for gpu_id, times in given.items():
        if times > 1:
            yield _unsafe(Kind.GPU, f"GPU {gpu_id} is given out {times} times")
        if held[gpu_id]:
            yield _unsafe(Kind.GPU, f"GPU {gpu_id} is in use")
    cpu: Counter[NodeId] = Counter()
    memory: Counter[NodeId] = Counter()
    for task in tasks:
        cpu[task.node_id] += task.cpu_milli
        memory[task.node_id] += task.memory_mib
    new = set(cpu)
    for attempt in snapshot.live.values():
        for task in attempt.tasks:
            cpu[task.node_id] += task.cpu_milli
            memory[task.node_id] += task.memory_mib
    for node_id in sorted(new & snapshot.nodes.keys()):
        node: Node = snapshot.nodes[node_id]
        for name, used, cap in (
            ("cpu_milli", cpu[node_id], node.capacity.cpu_milli),
            ("memory_mib", memory[node_id], node.capacity.memory_mib),
        ):
            if used > cap and any(_asks(task, name) for task in tasks if task.node_id == node_id):
                yield _unsafe(Kind.CAPACITY, f"{node.name} would hold {used} of {cap} {name}")


def _asks(task: TaskPlacement, name: str) -> bool:
    return (task.cpu_milli if name == "cpu_milli" else task.memory_mib) > 0


def _worth(plan: Plan) -> Iterator[Violation]:
    total = sum(placement.value for placement in plan.placements)
    if not _close(total, plan.value):
        yield _untrue(Kind.VALUE, f"the plan says {plan.value:g}, its placements sum to {total:g}")
    if plan.bound < plan.value and not _close(plan.bound, plan.value):
        yield _untrue(Kind.BOUND, f"value {plan.value:g} is above its bound {plan.bound:g}")


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= VALUE_TOLERANCE * max(1.0, abs(a), abs(b))


def _evictions(plan: Plan, snapshot: Snapshot) -> Iterator[Violation]:
    for eviction in plan.evictions:
        attempt = snapshot.live.get(eviction.attempt_id)
        if attempt is None:
            yield _unsafe(Kind.EVICTION, f"attempt {eviction.attempt_id} is not live")
        elif not attempt.preemptible:
            yield _unsafe(Kind.EVICTION, f"attempt {eviction.attempt_id} may not be preempted")
        if eviction.for_job not in snapshot.waiting:
            yield _unsafe(
                Kind.EVICTION, f"job {eviction.for_job}, which should profit, does not wait"
            )


def _reasons(plan: Plan, snapshot: Snapshot) -> Iterator[Violation]:
    """Every class with a job left waiting has exactly one record, with a reason in it."""
    placed = {placement.job_id for placement in plan.placements}
    left = {job.class_key for job in snapshot.waiting.values() if job.id not in placed}
    told = Counter(record.class_key for record in plan.waiting)
    for class_key in sorted(left - told.keys()):
        yield _untrue(Kind.REASON, f"class {class_key} waits without a reason")
    for class_key, times in told.items():
        if times > 1:
            yield _untrue(Kind.REASON, f"class {class_key} has {times} records")
        if class_key not in left:
            yield _untrue(Kind.REASON, f"class {class_key} has a record but nobody waits")
    for record in plan.waiting:
        if not record.reasons:
            yield _untrue(Kind.REASON, f"class {record.class_key} has an empty record")
