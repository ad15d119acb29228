"""An independent checker of plans. It knows the model and no allocator.

It recomputes everything from the snapshot: who may start, what each gang asked for and is worth,
who may hold how much. What nodes are and what is free it reads from the snapshot's columns, all
tasks of a plan at once, so that a check costs as much as the plan is long, however large the
cluster. The worker checks all of it before it sends; the daemon checks safety again before it
commits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from scheduler.allocation.given import ANY_POOL, Asked, Given, ints
from scheduler.model.columns import Bools, Floats, Free, Ints, NodeTable
from scheduler.model.job import Topology, WaitingJob
from scheduler.model.plan import Placement, Plan
from scheduler.model.ports import OrderedJob
from scheduler.model.quantity import (
    WHOLE_GPU_MILLI,
    JobId,
    NodeId,
    TenantId,
    UtcSeconds,
)
from scheduler.model.site import ANYWHERE, resource_label
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
    SITE = "site"
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
    given = Given.of(plan.placements, snapshot)
    return (
        *_sound(plan, snapshot, given),
        *_claims(snapshot, given, values),
        *_reasons(plan, snapshot),
    )


def check_safety(plan: Plan, snapshot: Snapshot, now: UtcSeconds) -> tuple[Violation, ...]:
    """As `verify`, less what each placed job is worth.

    The daemon's own look before it commits: it needs no queue order, so that a long queue does not
    hold up the event loop. A plan that forgets a class is as harmful as one that over-commits: what
    a decision left waiting is looked at again only when something changes, so that a job nobody
    spoke of would wait for ever. O(placed tasks + waiting jobs), else as `verify`.
    """
    early = (
        _unsafe(Kind.JOB, f"job {placement.job_id} may not start yet")
        for placement in plan.placements
        if placement.job_id in snapshot.waiting
        and snapshot.waiting[placement.job_id].eligible_at > now
    )
    sound = _sound(plan, snapshot, Given.of(plan.placements, snapshot))
    return (*sound, *early, *_reasons(plan, snapshot))


def _sound(plan: Plan, snapshot: Snapshot, given: Given) -> Iterator[Violation]:
    if plan.snapshot_revision != snapshot.revision:
        yield _unsafe(
            Kind.REVISION,
            f"made for revision {plan.snapshot_revision}, not {snapshot.revision}",
        )
    for placement, job in zip(given.placements, given.jobs, strict=True):
        if job is None:
            yield _unsafe(Kind.JOB, f"job {placement.job_id} does not wait")
    yield from _gangs(given)
    yield from _tasks(given, snapshot)
    yield from _sites(given, snapshot)
    for placement, job in zip(given.placements, given.jobs, strict=True):
        if job is not None and job.shape.topology in HARD_TOPOLOGIES:
            yield from _topology(job, placement, snapshot)
    for job_id, times in Counter(p.job_id for p in given.placements).items():
        if times > 1:
            yield _unsafe(Kind.JOB, f"job {job_id} is placed more than once")
    yield from _evictions(plan, snapshot)
    yield from _gpu_use(given, snapshot.columns.free)
    yield from _node_use(given, snapshot.columns.free)
    yield from _extra_use(given, snapshot.columns.free)
    yield from _quotas(given, snapshot)
    yield from _headroom(given, snapshot)
    yield from _sums(plan)


def _unsafe(kind: Kind, message: str) -> Violation:
    return Violation(kind, Severity.UNSAFE, message)


def _untrue(kind: Kind, message: str) -> Violation:
    return Violation(kind, Severity.UNTRUE, message)


def _claims(snapshot: Snapshot, given: Given, values: Mapping[JobId, float]) -> Iterator[Violation]:
    """Whether each placed job may start now, and is worth what the plan says."""
    costs = _costs(given, snapshot).tolist()
    for placement, job, cost in zip(given.placements, given.jobs, costs, strict=True):
        value = values.get(placement.job_id)
        if value is None:
            yield _unsafe(Kind.JOB, f"job {placement.job_id} may not start yet")
        if value is None or job is None:
            continue
        least = job.shape.tasks
        worth = value * (1 + EXTRA_WORTH * (len(placement.tasks) - least) / least) - cost
        if not _close(worth, placement.value):
            yield _untrue(
                Kind.VALUE, f"job {job.id} is worth {worth:g} there, not {placement.value:g}"
            )


def _costs(given: Given, snapshot: Snapshot) -> Floats:
    """(P,) what the objective pays for each placement's GPUs."""
    terms, table = snapshot.terms, snapshot.columns.table
    costs = np.zeros(len(given.placements))
    if not terms.price_weight or not terms.prices:
        return costs
    general = {p.price_class: p.per_gpu_hour for p in terms.prices if p.pool is None}
    of_pool = {
        (p.price_class, str(p.pool)): p.per_gpu_hour for p in terms.prices if p.pool is not None
    }
    price = np.array(
        [
            [of_pool.get((each, pool), general.get(each, 0.0)) for pool in table.pools]
            for each in table.prices
        ]
    ).reshape(len(table.prices), len(table.pools))
    known = given.row >= 0
    rows = given.row[known]
    gpus = (given.gpus * given.milli)[known] / WHOLE_GPU_MILLI
    paid = price[table.price[rows], table.pool[rows]] * gpus
    np.add.at(costs, given.owner[known], paid)
    return terms.price_weight * costs


def _gangs(given: Given) -> Iterator[Violation]:
    """Tasks are counted from 0, and as many as the gang may have."""
    sizes = np.diff(given.first)
    index = ints([task.task_index for task in given.tasks])
    astray = index != np.arange(len(given.tasks)) - given.first[given.owner]
    wrong = np.zeros(len(given.placements), dtype=np.bool_)
    wrong[given.owner[astray]] = True
    for number, job in enumerate(given.jobs):
        if job is None:
            continue
        least, most = job.shape.tasks, job.shape.tasks_max
        if wrong[number] or not least <= sizes[number] <= most:
            indexes = [task.task_index for task in given.placements[number].tasks]
            size = f"{least}" if least == most else f"{least} to {most}"
            yield _unsafe(Kind.GANG, f"job {job.id} has tasks {indexes}, its gang is {size}")


def _tasks(given: Given, snapshot: Snapshot) -> Iterator[Violation]:
    """Whether every task gets what its job asked for, on a node that may give it."""
    table = snapshot.columns.table
    asked = Asked.of(given, table)
    gpus, cpu, memory, milli = asked.amounts.T
    short = (given.gpus != gpus) | (given.cpu != cpu) | (given.memory != memory)
    short |= (gpus > 0) & (given.milli != milli)
    for number in np.flatnonzero(asked.waits & short).tolist():
        task = given.tasks[number]
        yield _unsafe(
            Kind.RESOURCES,
            f"{_who(given, number)} gets {task.gpu_milli} thousandths of {len(task.gpu_ids)} GPUs, "
            f"{task.cpu_milli} m CPU, {task.memory_mib} MiB; it asked for {milli[number]} of "
            f"{gpus[number]}, {cpu[number]}, {memory[number]}",
        )
    for number in np.flatnonzero(asked.waits & (given.row < 0)).tolist():
        node_id = given.tasks[number].node_id
        yield _unsafe(
            Kind.NODE, f"{_who(given, number)} sits on node {node_id}, which does not exist"
        )
    sits = asked.waits & (given.row >= 0)
    seated = np.flatnonzero(sits)
    rows, pool = given.row[seated], asked.pool[seated]
    for number in seated[~table.open[rows]].tolist():
        node = table.nodes[given.row[number]]
        yield _unsafe(
            Kind.NODE, f"{_who(given, number)} sits on {node.name}, which takes no new work"
        )
    for number in seated[(pool != ANY_POOL) & (table.pool[rows] != pool)].tolist():
        job, node = given.jobs[given.owner[number]], table.nodes[given.row[number]]
        wanted = None if job is None else job.shape.pool
        yield _unsafe(
            Kind.POOL, f"{_who(given, number)} sits in pool {node.pool}, it asked for {wanted}"
        )
    yield from _gpus(given, asked, sits, table)


def _sites(given: Given, snapshot: Snapshot) -> Iterator[Violation]:
    """Tasks on nodes that they did not ask for, or whose taints keep them off."""
    labels: dict[NodeId, dict[str, str]] = {}
    for number, task in enumerate(given.tasks):
        job, node = given.jobs[given.owner[number]], snapshot.nodes.get(task.node_id)
        if job is None or node is None:
            continue
        site = job.shape.site
        if site != ANYWHERE and not site.selects(
            node.name, labels.setdefault(node.id, dict(node.labels))
        ):
            yield _unsafe(
                Kind.SITE, f"{_who(given, number)} sits on {node.name}, which it does not select"
            )
        taint = site.untolerated(node.taints)
        if taint is not None:
            yield _unsafe(
                Kind.SITE,
                f"{_who(given, number)} sits on {node.name}, which has the taint {taint.text}, "
                "which it does not tolerate",
            )


def _gpus(given: Given, asked: Asked, sits: Bools, table: NodeTable) -> Iterator[Violation]:
    """Whether every task's GPUs are there, take work, and are of one accepted model."""
    user = given.user
    row, index = given.at[:, 0], given.at[:, 1]
    here = row == given.row[user]
    for use in np.flatnonzero(sits[user] & ~here).tolist():
        node = table.nodes[given.row[user[use]]]
        yield _unsafe(
            Kind.GPU,
            f"{_who(given, user[use])} gets GPU {given.gpu_ids[use]}, "
            f"which {node.name} does not have",
        )
    right = np.flatnonzero(sits[user] & here)
    is_open = table.gpu_open[row[right], index[right]]
    for use in right[~is_open].tolist():
        yield _unsafe(
            Kind.GPU,
            f"{_who(given, user[use])} gets GPU {given.gpu_ids[use]}, which takes no new work",
        )
    model = table.gpu_model[row[right], index[right]]
    for at in np.flatnonzero(is_open & ~asked.models[asked.wish[user[right]], model]).tolist():
        job = given.jobs[given.owner[user[right[at]]]]
        wanted = () if job is None else job.shape.gpu_models
        yield _unsafe(
            Kind.MODEL,
            f"{_who(given, user[right[at]])} gets a {table.models[model[at]]}, "
            f"it asked for {wanted}",
        )
    mixed = np.flatnonzero((np.diff(user[right]) == 0) & (np.diff(model) != 0))
    for number in dict.fromkeys(user[right[mixed]].tolist()):
        names = sorted({table.models[code] for code in model[user[right] == number].tolist()})
        yield _unsafe(Kind.MODEL, f"{_who(given, number)} gets GPUs of several models: {names}")


def _who(given: Given, number: int) -> str:
    placement = given.placements[given.owner[number]]
    return f"task {given.tasks[number].task_index} of job {placement.job_id}"


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


def _gpu_use(given: Given, free: Free) -> Iterator[Violation]:
    """GPUs given out beyond the thousandths that are free of them.

    Who is evicted holds its place until it is proved dead (I6): nobody may be placed there yet.
    """
    known = given.at[:, 0] >= 0
    row, index = given.at[known].T
    asked = np.zeros_like(free.gpu)
    np.add.at(asked, (row, index), given.milli[given.user[known]])
    over = asked[row, index] > free.gpu[row, index]
    ids = [given.gpu_ids[use] for use in np.flatnonzero(known)[over].tolist()]
    for gpu_id in dict.fromkeys(ids):
        at = free.table.gpu_at[gpu_id]
        yield _unsafe(
            Kind.GPU,
            f"{asked[at]} thousandths of GPU {gpu_id} are given out, {free.gpu[at]} are free",
        )


def _node_use(given: Given, free: Free) -> Iterator[Violation]:
    """Nodes that would give more CPU or memory than is free; closed ones are told of elsewhere."""
    table = free.table
    known = given.row >= 0
    for name, amount, left in (
        ("cpu_milli", given.cpu, free.cpu),
        ("memory_mib", given.memory, free.memory),
    ):
        asked = np.zeros_like(left)
        np.add.at(asked, given.row[known], amount[known])
        for row in np.flatnonzero((asked > left) & table.open).tolist():
            yield _unsafe(
                Kind.CAPACITY,
                f"{table.nodes[row].name} would give {asked[row]} {name}, {left[row]} are free",
            )


def _extra_use(given: Given, free: Free) -> Iterator[Violation]:
    """Further resources: not what was asked for, or more of a node than is free."""
    asked: dict[str, Ints] = {}
    for number, task in enumerate(given.tasks):
        job = given.jobs[given.owner[number]]
        if job is not None and task.extras != job.shape.extras:
            yield _unsafe(
                Kind.RESOURCES,
                f"{_who(given, number)} gets {task.extras}, it asked for {job.shape.extras}",
            )
        for name, amount in task.extras if given.row[number] >= 0 else ():
            total = asked.setdefault(name, np.zeros_like(free.cpu))
            total[given.row[number]] += amount
    for name, total in sorted(asked.items(), key=lambda each: each[0]):
        left = free.amount_of(name)
        for row in np.flatnonzero((total > left) & free.table.open).tolist():
            yield _unsafe(
                Kind.CAPACITY,
                f"{free.table.nodes[row].name} would give {total[row]} {resource_label(name)}, "
                f"{left[row]} are free",
            )


def _quotas(given: Given, snapshot: Snapshot) -> Iterator[Violation]:
    """Tenants and cohorts that take more although they would then hold more than they may."""
    quotas = {quota.tenant: quota for quota in snapshot.terms.quotas}
    if not quotas:
        return
    held: Counter[TenantId] = Counter(snapshot.held_milli)
    taken: Counter[TenantId] = Counter()
    for job, milli in zip(given.jobs, given.drawn.tolist(), strict=True):
        if job is not None:
            taken[job.tenant] += milli
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


def _headroom(given: Given, snapshot: Snapshot) -> Iterator[Violation]:
    """Reserved blocks of free GPUs that the plan breaks, although they were whole before."""
    hard = [each for each in snapshot.terms.headroom if each.value is None and each.gpus > 0]
    if not hard or not given.placements:
        return
    free = snapshot.columns.free
    row, index = np.unique(given.at[given.at[:, 0] >= 0], axis=0).T
    broken = free.gpu[row, index] == WHOLE_GPU_MILLI
    row, index = row[broken], index[broken]
    left = free.whole.copy()
    np.subtract.at(left, (free.table.gpu_model[row, index], row), 1)
    for headroom in hard:
        before = _blocks(headroom, free.table, free.whole)
        after = _blocks(headroom, free.table, left)
        if after < min(before, headroom.blocks):
            pool = f" of pool {headroom.pool}" if headroom.pool is not None else ""
            yield _unsafe(
                Kind.HEADROOM,
                f"{headroom.blocks} blocks of {headroom.gpus} GPUs{pool} must stay free, "
                f"of {before} {after} would",
            )


def _blocks(headroom: Headroom, table: NodeTable, whole: Ints) -> int:
    """How many blocks there are in the headroom's pool, of (M, N) entirely free GPUs."""
    if headroom.pool is not None:
        pools = {name: code for code, name in enumerate(table.pools)}
        whole = whole[:, table.pool == pools.get(str(headroom.pool), -1)]
    return int((whole // headroom.gpus).sum())


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
        heir = snapshot.waiting.get(eviction.for_job)
        if heir is None:
            yield _unsafe(
                Kind.EVICTION, f"job {eviction.for_job}, which should profit, does not wait"
            )
        elif not heir.evicts:
            yield _unsafe(Kind.EVICTION, f"nobody may be stopped for job {eviction.for_job}")


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
