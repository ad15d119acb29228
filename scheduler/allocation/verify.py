"""An independent checker of plans. It knows the model and no allocator.

It recomputes everything from the snapshot: who may start, what each gang asked for and is worth,
who may hold how much. What is free it reads from the snapshot's columns, so that a check costs as
much as the plan is long, however large the cluster. The worker checks all of it before it sends;
the daemon checks safety again before it commits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from scheduler.model.columns import Free
from scheduler.model.job import Topology, WaitingJob
from scheduler.model.plan import Placement, Plan, TaskPlacement
from scheduler.model.ports import OrderedJob
from scheduler.model.quantity import (
    WHOLE_GPU_MILLI,
    GpuId,
    JobId,
    NodeId,
    TenantId,
    UtcSeconds,
)
from scheduler.model.snapshot import Snapshot
from scheduler.model.terms import EXTRA_WORTH, Headroom

VALUE_TOLERANCE = 1e-6
"""Relative; values are sums of floats added in different orders."""
HARD_TOPOLOGIES = frozenset({Topology.SAME_NVLINK, Topology.SAME_NODE, Topology.SAME_RACK})


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
    QUOTA = "quota"
    HEADROOM = "headroom"
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
        the violations found. O(placed tasks + waiting jobs), and the live tasks if there are
        quotas.
    """
    values = {entry.job.id: entry.value for entry in ordered}
    return (*_sound(plan, snapshot), *_claims(plan, snapshot, values), *_reasons(plan, snapshot))


def check_safety(plan: Plan, snapshot: Snapshot, now: UtcSeconds) -> tuple[Violation, ...]:
    """As `verify`, less what the plan says about jobs it does not place.

    The daemon's own look before it commits: it needs no queue order, so that a long queue does not
    hold up the event loop. O(placed tasks), else as `verify`.
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
    yield from _evictions(plan, snapshot)
    yield from _shared_use(plan, snapshot)
    yield from _quotas(plan, snapshot)
    yield from _headroom(plan, snapshot)
    yield from _sums(plan)


def _unsafe(kind: Kind, message: str) -> Violation:
    return Violation(kind, Severity.UNSAFE, message)


def _untrue(kind: Kind, message: str) -> Violation:
    return Violation(kind, Severity.UNTRUE, message)


def _claims(plan: Plan, snapshot: Snapshot, values: Mapping[JobId, float]) -> Iterator[Violation]:
    """Whether each placed job may start now, and is worth what the plan says."""
    for placement in plan.placements:
        value = values.get(placement.job_id)
        job = snapshot.waiting.get(placement.job_id)
        if value is None:
            yield _unsafe(Kind.JOB, f"job {placement.job_id} may not start yet")
        if value is None or job is None:
            continue
        extra = (len(placement.tasks) - job.shape.tasks) / job.shape.tasks
        worth = value * (1 + EXTRA_WORTH * extra) - _cost(placement, snapshot)
        if not _close(worth, placement.value):
            yield _untrue(
                Kind.VALUE, f"job {job.id} is worth {worth:g} there, not {placement.value:g}"
            )


def _cost(placement: Placement, snapshot: Snapshot) -> float:
    """What the objective pays for the placement's GPUs."""
    terms = snapshot.terms
    if not terms.price_weight or not terms.prices:
        return 0.0
    general = {p.price_class: p.per_gpu_hour for p in terms.prices if p.pool is None}
    of_pool = {(p.price_class, p.pool): p.per_gpu_hour for p in terms.prices if p.pool is not None}
    cost = 0.0
    for task in placement.tasks:
        node = snapshot.nodes.get(task.node_id)
        if node is not None:
            usual = general.get(node.price_class, 0.0)
            price = of_pool.get((node.price_class, node.pool), usual)
            cost += price * len(task.gpu_ids) * task.gpu_milli / WHOLE_GPU_MILLI
    return terms.price_weight * cost


def _job(placement: Placement, snapshot: Snapshot) -> Iterator[Violation]:
    job = snapshot.waiting.get(placement.job_id)
    if job is None:
        yield _unsafe(Kind.JOB, f"job {placement.job_id} does not wait")
        return
    indexes = [task.task_index for task in placement.tasks]
    least, most = job.shape.tasks, job.shape.tasks_max
    if indexes != list(range(len(indexes))) or not least <= len(indexes) <= most:
        size = f"{least}" if least == most else f"{least} to {most}"
        yield _unsafe(Kind.GANG, f"job {job.id} has tasks {indexes}, its gang is {size}")
    for task in placement.tasks:
        yield from _task(job, task, snapshot)
    yield from _topology(job, placement, snapshot)


def _who(job: WaitingJob, task: TaskPlacement) -> str:
    return f"task {task.task_index} of job {job.id}"


def _task(job: WaitingJob, task: TaskPlacement, snapshot: Snapshot) -> Iterator[Violation]:
    shape = job.shape
    need = shape.per_task
    gpus = 1 if shape.gpu_milli else need.gpus
    milli = shape.gpu_milli or WHOLE_GPU_MILLI
    if (len(task.gpu_ids), task.cpu_milli, task.memory_mib) != (
        gpus,
        need.cpu_milli,
        need.memory_mib,
    ) or (gpus and task.gpu_milli != milli):
        yield _unsafe(
            Kind.RESOURCES,
            f"{_who(job, task)} gets {task.gpu_milli} thousandths of {len(task.gpu_ids)} GPUs, "
            f"{task.cpu_milli} m CPU, {task.memory_mib} MiB; it asked for {milli} of {gpus}, "
            f"{need.cpu_milli}, {need.memory_mib}",
        )
    node = snapshot.nodes.get(task.node_id)
    if node is None:
        yield _unsafe(
            Kind.NODE, f"{_who(job, task)} sits on node {task.node_id}, which does not exist"
        )
        return
    if not node.schedulable:
        yield _unsafe(Kind.NODE, f"{_who(job, task)} sits on {node.name}, which takes no new work")
    if job.shape.pool is not None and node.pool != job.shape.pool:
        yield _unsafe(
            Kind.POOL, f"{_who(job, task)} sits in pool {node.pool}, it asked for {job.shape.pool}"
        )
    table = snapshot.columns.table
    row = table.row_of[node.id]
    models = set()
    for gpu_id in task.gpu_ids:
        where = table.gpu_at.get(gpu_id)
        if where is None or where[0] != row:
            yield _unsafe(
                Kind.GPU, f"{_who(job, task)} gets GPU {gpu_id}, which {node.name} does not have"
            )
            continue
        model = table.models[table.gpu_model[where]]
        models.add(model)
        if not table.gpu_open[where]:
            yield _unsafe(Kind.GPU, f"{_who(job, task)} gets GPU {gpu_id}, which takes no new work")
        elif shape.gpu_models and model not in shape.gpu_models:
            yield _unsafe(
                Kind.MODEL, f"{_who(job, task)} gets a {model}, it asked for {shape.gpu_models}"
            )
    if len(models) > 1:
        yield _unsafe(
            Kind.MODEL, f"{_who(job, task)} gets GPUs of several models: {sorted(models)}"
        )


def _topology(job: WaitingJob, placement: Placement, snapshot: Snapshot) -> Iterator[Violation]:
    wanted = job.shape.topology
    if wanted not in HARD_TOPOLOGIES:
        return
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
    """GPUs, CPU or memory given out beyond what is free.

    Who is evicted holds its place until it is proved dead (I6): nobody may be placed there yet.
    """
    free = snapshot.columns.free
    tasks = [task for placement in plan.placements for task in placement.tasks]
    yield from _gpu_use(tasks, free)
    yield from _node_use(tasks, free)


def _gpu_use(tasks: Sequence[TaskPlacement], free: Free) -> Iterator[Violation]:
    """GPUs given out beyond the thousandths that are free of them."""
    given: Counter[GpuId] = Counter()
    for task in tasks:
        for gpu_id in task.gpu_ids:
            given[gpu_id] += task.gpu_milli
    where = free.table.gpu_at
    known = [gpu_id for gpu_id in given if gpu_id in where]
    asked = np.fromiter((given[gpu_id] for gpu_id in known), dtype=np.int64, count=len(known))
    places = np.array([where[gpu_id] for gpu_id in known], dtype=np.int64).reshape(-1, 2)
    left = free.gpu[places[:, 0], places[:, 1]]
    for number in np.flatnonzero(asked > left).tolist():
        yield _unsafe(
            Kind.GPU,
            f"{asked[number]} thousandths of GPU {known[number]} are given out, "
            f"{left[number]} are free",
        )


def _node_use(tasks: Sequence[TaskPlacement], free: Free) -> Iterator[Violation]:
    """Nodes that would give more CPU or memory than is free."""
    cpu: Counter[NodeId] = Counter()
    memory: Counter[NodeId] = Counter()
    for task in tasks:
        cpu[task.node_id] += task.cpu_milli
        memory[task.node_id] += task.memory_mib
    table = free.table
    for node_id in sorted(cpu.keys() & table.row_of.keys()):
        row = table.row_of[node_id]
        for name, asked, left in (
            ("cpu_milli", cpu[node_id], free.cpu[row]),
            ("memory_mib", memory[node_id], free.memory[row]),
        ):
            if asked > left and table.open[row]:
                yield _unsafe(
                    Kind.CAPACITY,
                    f"{table.nodes[row].name} would give {asked} {name}, {left} are free",
                )


def _quotas(plan: Plan, snapshot: Snapshot) -> Iterator[Violation]:
    """Tenants and cohorts that take more although they would then hold more than they may."""
    quotas = {quota.tenant: quota for quota in snapshot.terms.quotas}
    if not quotas:
        return
    held: Counter[TenantId] = Counter(snapshot.held_milli)
    taken: Counter[TenantId] = Counter()
    for placement in plan.placements:
        job = snapshot.waiting.get(placement.job_id)
        if job is not None:
            taken[job.tenant] += _milli(placement.tasks)
    cohorts: dict[str, list[TenantId]] = {}
    for tenant, quota in quotas.items():
        # One without a cohort has nobody to borrow of.
        cohorts.setdefault(quota.cohort or f"\0{tenant}", []).append(tenant)
        holds, limit = held[tenant] + taken[tenant], quota.nominal_milli + quota.borrow_milli
        if taken[tenant] and holds > limit:
            yield _unsafe(
                Kind.QUOTA, f"tenant {tenant} would hold {holds} GPU thousandths of {limit}"
            )
    for name, tenants in cohorts.items():
        holds = sum(held[tenant] + taken[tenant] for tenant in tenants)
        limit = sum(quotas[tenant].nominal_milli for tenant in tenants)
        if any(taken[tenant] for tenant in tenants) and holds > limit:
            who = name if quotas[tenants[0]].cohort else tenants[0]
            yield _unsafe(Kind.QUOTA, f"cohort {who} would hold {holds} GPU thousandths of {limit}")


def _milli(tasks: Iterable[TaskPlacement]) -> int:
    return sum(len(task.gpu_ids) * task.gpu_milli for task in tasks)


def _headroom(plan: Plan, snapshot: Snapshot) -> Iterator[Violation]:
    """Reserved blocks of free GPUs that the plan breaks, although they were whole before."""
    hard = [each for each in snapshot.terms.headroom if each.value is None and each.gpus > 0]
    if not hard or not plan.placements:
        return
    free = snapshot.columns.free
    used = {
        where
        for placement in plan.placements
        for task in placement.tasks
        for gpu_id in task.gpu_ids
        if (where := free.table.gpu_at.get(gpu_id)) is not None
    }
    left = free.copy()
    for row, gpu in sorted(used):
        if left.gpu[row, gpu] == WHOLE_GPU_MILLI:
            left.whole[left.table.gpu_model[row, gpu], row] -= 1
    for headroom in hard:
        before, after = _blocks(headroom, free), _blocks(headroom, left)
        if after < min(before, headroom.blocks):
            pool = f" of pool {headroom.pool}" if headroom.pool is not None else ""
            yield _unsafe(
                Kind.HEADROOM,
                f"{headroom.blocks} blocks of {headroom.gpus} GPUs{pool} must stay free, "
                f"of {before} {after} would",
            )


def _blocks(headroom: Headroom, free: Free) -> int:
    """How many blocks are free in the headroom's pool."""
    pools = np.array([str(node.pool) for node in free.table.nodes], dtype=object)
    inside = np.ones(pools.size, dtype=np.bool_)
    if headroom.pool is not None:
        inside = pools == str(headroom.pool)
    return int((free.whole[:, inside] // headroom.gpus).sum())


def _sums(plan: Plan) -> Iterator[Violation]:
    total = sum(placement.value for placement in plan.placements)
    total += sum(reservation.value for reservation in plan.reservations)
    total -= sum(eviction.cost for eviction in plan.evictions)
    if not _close(total, plan.value):
        yield _untrue(Kind.VALUE, f"the plan says {plan.value:g}, its parts sum to {total:g}")
    if plan.bound < plan.value and not _close(plan.bound, plan.value):
        yield _untrue(Kind.BOUND, f"value {plan.value:g} is above its bound {plan.bound:g}")


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= VALUE_TOLERANCE * max(1.0, abs(a), abs(b))


def _evictions(plan: Plan, snapshot: Snapshot) -> Iterator[Violation]:
    for attempt_id, times in Counter(each.attempt_id for each in plan.evictions).items():
        if times > 1:
            yield _unsafe(Kind.EVICTION, f"attempt {attempt_id} is evicted {times} times")
    for eviction in plan.evictions:
        attempt = snapshot.live.get(eviction.attempt_id)
        if attempt is None:
            yield _unsafe(Kind.EVICTION, f"attempt {eviction.attempt_id} is not live")
        elif not attempt.preemptible:
            yield _unsafe(Kind.EVICTION, f"attempt {eviction.attempt_id} may not be preempted")
        elif attempt.stopping:
            yield _unsafe(Kind.EVICTION, f"attempt {eviction.attempt_id} is told to end already")
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
