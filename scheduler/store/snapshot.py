"""What a cycle decides on, read as the difference to what it already knows."""

from __future__ import annotations

from collections import defaultdict
from functools import lru_cache
from typing import Any, TypeAlias

from sqlalchemy import BigInteger, Row, bindparam, case, func, or_, select

from scheduler.errors import InvalidRequestError
from scheduler.model.job import JobShape, Topology, WaitingJob
from scheduler.model.lifecycle import JobState
from scheduler.model.node import Gpu, Health, Node, PriceClass
from scheduler.model.ports import Sees
from scheduler.model.quantity import (
    AttemptId,
    GpuId,
    JobId,
    NodeId,
    PoolName,
    QueueName,
    Resources,
    TenantId,
    UtcSeconds,
)
from scheduler.model.snapshot import LiveAttempt, SnapshotDelta
from scheduler.store import codec
from scheduler.store.attempts import LIVE
from scheduler.store.documents import program
from scheduler.store.tables import attempts, gpus, jobs, nodes
from scheduler.store.transaction import Transaction

AnyRow: TypeAlias = Row[*tuple[Any, ...]]
_ALL = 0
_BASE = bindparam("base", type_=BigInteger)
_CHANGED_NODES = select(nodes).where(
    or_(
        nodes.c.revision > _BASE,
        nodes.c.id.in_(select(gpus.c.node_id).where(gpus.c.revision > _BASE)),
    )
)
_ALL_NODES = select(nodes).where(nodes.c.present.is_(True))
_EARLIER = attempts.alias("earlier")
# An attempt that never started ran for no time, like one that ended before its start by a clock
# that was set back.
_RAN = case(
    (_EARLIER.c.ended_at > _EARLIER.c.started_at, _EARLIER.c.ended_at - _EARLIER.c.started_at),
    else_=0.0,
)
_RAN_S = (
    select(func.sum(_RAN))
    .where(_EARLIER.c.job_id == jobs.c.id, _EARLIER.c.live.is_(False))
    .correlate(jobs)
    .scalar_subquery()
)
# Asked for by job, through its index, and only of the few that had an attempt before.
_ATTAINED_S = case((jobs.c.attempts > 0, func.coalesce(_RAN_S, 0.0)), else_=0.0)
_WAITING_COLUMNS = (
    jobs.c.id,
    jobs.c.tenant_id,
    jobs.c.queue,
    jobs.c.state,
    jobs.c.desired,
    jobs.c.priority,
    jobs.c.submitted_at,
    jobs.c.eligible_at,
    jobs.c.tasks_min,
    jobs.c.tasks_max,
    jobs.c.gpus_per_task,
    jobs.c.cpu_milli,
    jobs.c.memory_mib,
    jobs.c.gpu_models,
    jobs.c.topology,
    jobs.c.pool,
    jobs.c.site,
    jobs.c.extras,
    jobs.c.preemptible,
    jobs.c.shielded,
    jobs.c.evicts,
    jobs.c.attempts,
    jobs.c.class_key,
    _ATTAINED_S.label("attained_s"),
)
_ALL_WAITING = select(*_WAITING_COLUMNS).where(
    jobs.c.state == JobState.PENDING.value, jobs.c.desired == "run"
)
_CHANGED_JOBS = select(*_WAITING_COLUMNS).where(jobs.c.revision > _BASE)
_LIVE = select(
    *_WAITING_COLUMNS,
    attempts.c.id.label("attempt_id"),
    attempts.c.created_at,
    attempts.c.placement,
    attempts.c.live,
).join(jobs, jobs.c.id == attempts.c.job_id)
_ALL_LIVE = _LIVE.where(LIVE)
_CHANGED_ATTEMPTS = _LIVE.where(attempts.c.revision > _BASE)
_GPUS = (
    select(
        gpus.c.node_id,
        gpus.c.id,
        gpus.c.position,
        gpus.c.model,
        gpus.c.memory_mib,
        gpus.c.health,
        gpus.c.cordoned,
        gpus.c.external,
    )
    .where(gpus.c.present.is_(True))
    .order_by(gpus.c.position)
)
# By value: calling an Enum costs as much as all the rest of a small value.
_HEALTH = {health.value: health for health in Health}
_SHAPES_KEPT = 16_384
_GPUS_AT_ONCE = 4_096


def load_delta(tx: Transaction, base_revision: int, sees: Sees = Sees.NOTHING) -> SnapshotDelta:
    """What changed after `base_revision`; 0 loads everything there is now.

    A node shows only GPUs that are present; a node that is gone leaves, while what runs on it
    stays among the live attempts until it is proved dead.

    Args:
        tx: reads of one instant.
        base_revision: what the reader knows.
        sees: whether it goes by the limits of run time that job files declare.

    Cost: six statements; O(what changed), through indexes on `revision`. With limits every job's
    document is read too, tens of microseconds each.
    """
    revision = tx.head_revision
    if revision == base_revision:
        return SnapshotDelta(base_revision, revision)
    everything = base_revision == _ALL
    base = {"base": base_revision}
    run = tx.connection.execute
    node_rows = run(_ALL_NODES).all() if everything else run(_CHANGED_NODES, base).all()
    of_attempts = _ALL_LIVE if everything else _CHANGED_ATTEMPTS
    of_jobs = _ALL_WAITING if everything else _CHANGED_JOBS
    if sees is Sees.LIMITS:
        of_attempts = of_attempts.add_columns(jobs.c.document)
        of_jobs = of_jobs.add_columns(jobs.c.document)
    attempt_rows = run(of_attempts, {} if everything else base).all()
    job_rows = run(of_jobs, {} if everything else base).all()
    waiting, waiting_gone = [], []
    for row in job_rows:
        if row.state == JobState.PENDING and row.desired == "run":
            waiting.append(_waiting_job(row, sees))
        else:
            waiting_gone.append(JobId(row.id))
    return SnapshotDelta(
        base_revision=base_revision,
        revision=revision,
        nodes=load_nodes(tx, [row for row in node_rows if row.present]),
        nodes_gone=tuple(NodeId(row.id) for row in node_rows if not row.present),
        live=tuple(_live_attempt(row, sees) for row in attempt_rows if row.live),
        live_gone=tuple(AttemptId(row.attempt_id) for row in attempt_rows if not row.live),
        waiting=tuple(waiting),
        waiting_gone=tuple(waiting_gone),
    )


def load_nodes(tx: Transaction, rows: list[AnyRow]) -> tuple[Node, ...]:
    """The nodes of these rows of `nodes`, with the GPUs that are present. At most one statement."""
    if not rows:
        return ()
    found: defaultdict[str, list[Gpu]] = defaultdict(list)
    statement = _GPUS
    few = 100  # beyond that, reading all GPUs beats a long list of ids
    if len(rows) <= few:
        statement = statement.where(gpus.c.node_id.in_([row.id for row in rows]))
    for some in tx.connection.execute(statement).partitions(_GPUS_AT_ONCE):
        # Unpacked by position: there are many, and access by name is slow.
        for node_id, gpu_id, position, model, memory_mib, health, cordoned, external in some:
            found[node_id].append(
                Gpu(GpuId(gpu_id), position, model, memory_mib, _HEALTH[health], cordoned, external)
            )
    return tuple(_node(row, tuple(found[row.id])) for row in rows)


def _node(row: AnyRow, on_it: tuple[Gpu, ...]) -> Node:
    return Node(
        id=NodeId(row.id),
        name=row.name,
        capacity=Resources(len(on_it), row.cpu_milli, row.memory_mib),
        gpus=on_it,
        links=codec.links(row.links),
        pool=PoolName(row.pool_id),
        price_class=PriceClass(row.price_class),
        rack=row.rack,
        zone=row.zone,
        health=_HEALTH[row.health],
        cordoned=row.cordoned,
        simulated=row.simulated,
        labels=codec.labels(row.labels),
        taints=codec.taints(row.taints),
        extras=codec.extras(row.extras),
    )


def _waiting_job(row: AnyRow, sees: Sees) -> WaitingJob:
    """The job of a row that begins with `_WAITING_COLUMNS`.

    Taken by position: there are many jobs, and access by name takes as long as all the rest.
    """
    (
        job_id,
        tenant_id,
        queue,
        _state,
        _desired,
        priority,
        submitted_at,
        eligible_at,
        *shape,
        preemptible,
        shielded,
        evicts,
        made,
        class_key,
        attained_s,
    ) = row[: len(_WAITING_COLUMNS)]
    return WaitingJob(
        id=JobId(job_id),
        tenant=TenantId(tenant_id),
        queue=QueueName(queue),
        priority=priority,
        submitted_at=UtcSeconds(submitted_at),
        eligible_at=UtcSeconds(eligible_at),
        shape=_shape(*shape),
        preemptible=preemptible and not shielded,
        attempts=made,
        class_key=class_key,
        attained_s=attained_s,
        runtime_s=_limit_s(row.document) if sees is Sees.LIMITS else None,
        evicts=evicts,
    )


def _limit_s(document: str) -> float | None:
    """The run time that a job file allows each attempt, if it says so.

    A document that cannot be read says nothing here: it is quarantined when it is placed.
    """
    try:
        return program(document).max_runtime_s
    except InvalidRequestError:
        return None


@lru_cache(maxsize=_SHAPES_KEPT)
def _shape(
    tasks: int,
    tasks_max: int,
    gpus_per_task: int,
    cpu_milli: int,
    memory_mib: int,
    gpu_models: str,
    topology: str,
    pool: str | None,
    site: str,
    extras: str,
) -> JobShape:
    """The shape that these columns say: one value, however many jobs have it."""
    return JobShape(
        tasks=tasks,
        per_task=Resources(gpus_per_task, cpu_milli, memory_mib),
        gpu_models=codec.gpu_models(gpu_models),
        topology=Topology(topology),
        pool=None if pool is None else PoolName(pool),
        tasks_max=tasks_max,
        site=codec.site(site),
        extras=codec.extras(extras),
    )


def _live_attempt(row: AnyRow, sees: Sees) -> LiveAttempt:
    return LiveAttempt(
        id=AttemptId(row.attempt_id),
        job=_waiting_job(row, sees),
        since=UtcSeconds(row.created_at),
        tasks=codec.placement_tasks(row.placement),
        stopping=row.desired != "run" or row.state == JobState.STOPPING,
    )
