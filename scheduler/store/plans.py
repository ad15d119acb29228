"""Committing a plan: the transaction decides, what no longer fits is refused and the rest stays.

Each placement stands or falls alone and whole (I7), in its own savepoint: the job's guarded move,
the attempt, its allocations (where an index refuses a taken GPU, I4), the node sums, and the launch
intent with the complete order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from sqlalchemy import Row, bindparam, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from scheduler.errors import ConflictError, InvalidRequestError
from scheduler.ids import IdSource
from scheduler.jobspec import parse_job_json
from scheduler.model.execution import IntentKind, LaunchOrder, LaunchTask
from scheduler.model.lifecycle import EndCause, JobEvent, JobState
from scheduler.model.node import Health
from scheduler.model.plan import Placement, Plan, TaskPlacement, Waiting
from scheduler.model.ports import CommitReport, DecisionMeta
from scheduler.model.quantity import (
    SYSTEM_TENANT,
    AttemptId,
    DecisionId,
    JobId,
    TenantId,
    UtcSeconds,
)
from scheduler.store import codec, lease
from scheduler.store.attempts import insert_intent, stop_job
from scheduler.store.tables import (
    allocations,
    attempts,
    decisions,
    gpus,
    jobs,
    nodes,
    reasons,
)
from scheduler.store.transaction import Transaction
from scheduler.store.transitions import apply_event

AnyRow: TypeAlias = Row[*tuple[Any, ...]]

_CHUNK = 500
_INSERT_ATTEMPT = insert(attempts)
_INSERT_ALLOCATIONS = insert(allocations)
_GRANT = (
    update(nodes)
    .where(
        nodes.c.id == bindparam("node"),
        nodes.c.cpu_milli_used + bindparam("cpu") <= nodes.c.cpu_milli,
        nodes.c.memory_mib_used + bindparam("memory") <= nodes.c.memory_mib,
    )
    .values(
        cpu_milli_used=nodes.c.cpu_milli_used + bindparam("cpu"),
        memory_mib_used=nodes.c.memory_mib_used + bindparam("memory"),
    )
)
_EVICTABLE = frozenset({JobState.ASSIGNED, JobState.LAUNCHING, JobState.RUNNING})


class _RefusedError(Exception):
    """A placement does not fit any more; the message says what changed."""


@dataclass(frozen=True, slots=True)
class _Commit:
    """What every placement of one commit needs."""

    tx: Transaction
    decision_id: DecisionId
    epoch: int
    now: UtcSeconds
    ids: IdSource
    jobs: Mapping[str, AnyRow]
    nodes: Mapping[str, AnyRow]
    gpus: Mapping[str, AnyRow]


def commit_plan(
    tx: Transaction,
    plan: Plan,
    *,
    epoch: int,
    decision: DecisionMeta,
    now: UtcSeconds,
    ids: IdSource,
) -> CommitReport:
    """Make a plan real, as far as it still fits.

    Evictions become stop intents; reason records are rewritten only where they changed; a decision
    row is written only when something was placed, refused or evicted or a reason changed.

    Args:
        tx: a write transaction.
        plan: the plan, verified by the caller.
        epoch: the caller's leader epoch (I8).
        decision: how the plan came to be.
        now: when.
        ids: for decision, attempts and intents.

    Cost: about eight statements for each placement.

    Raises:
        FencedError: another leader has taken over; nothing was kept.
    """
    lease.require(tx, epoch)
    decision_id = DecisionId(ids.new("d"))
    evicted = _evict(tx, plan, epoch=epoch, now=now, ids=ids)
    placed, refused = _place_all(_load(tx, plan, decision_id, epoch=epoch, now=now, ids=ids), plan)
    changed, gone = _changed_reasons(tx, plan.waiting)
    if not (placed or refused or evicted or changed or gone):
        return CommitReport(None)
    report = CommitReport(decision_id, placed, refused, evicted=evicted)
    revision = tx.next_revision(
        tenant=SYSTEM_TENANT,
        kind="decision",
        object_id=decision_id,
        payload={
            "placed": len(placed),
            "refused": len(refused),
            "evicted": len(evicted),
            "value": plan.value,
            "bound": plan.bound,
            "gap": plan.gap,
        },
        at=now,
    )
    _write_reasons(tx, changed, gone, decision_id, revision=revision, now=now)
    _write_decision(tx, plan, report, decision, epoch=epoch, revision=revision, now=now)
    return report


def _load(
    tx: Transaction,
    plan: Plan,
    decision_id: DecisionId,
    *,
    epoch: int,
    now: UtcSeconds,
    ids: IdSource,
) -> _Commit:
    tasks = [task for placement in plan.placements for task in placement.tasks]
    return _Commit(
        tx=tx,
        decision_id=decision_id,
        epoch=epoch,
        now=now,
        ids=ids,
        jobs=_by_id(tx, jobs, (placement.job_id for placement in plan.placements)),
        nodes=_by_id(tx, nodes, (task.node_id for task in tasks)),
        gpus=_by_id(tx, gpus, (gpu for task in tasks for gpu in task.gpu_ids)),
    )


def _by_id(tx: Transaction, table: Any, wanted: Iterable[str]) -> dict[str, AnyRow]:
    keys = sorted(set(wanted))
    found: dict[str, AnyRow] = {}
    for start in range(0, len(keys), _CHUNK):
        statement = select(table).where(table.c.id.in_(keys[start : start + _CHUNK]))
        found |= {row.id: row for row in tx.connection.execute(statement)}
    return found


def _place_all(
    commit: _Commit, plan: Plan
) -> tuple[tuple[JobId, ...], tuple[tuple[JobId, str], ...]]:
    placed: list[JobId] = []
    refused: list[tuple[JobId, str]] = []
    for placement in plan.placements:
        try:
            with commit.tx.savepoint():
                _place(commit, placement)
        except _RefusedError as error:
            refused.append((placement.job_id, str(error)))
        except ConflictError:
            refused.append((placement.job_id, "the plan places the job twice"))
        except InvalidRequestError as error:
            # One job that this version cannot read must not stop all others.
            refused.append((placement.job_id, f"its stored document is unreadable: {error}"))
        else:
            placed.append(placement.job_id)
    return tuple(placed), tuple(refused)


def _place(commit: _Commit, placement: Placement) -> None:
    tx, now = commit.tx, commit.now
    job = commit.jobs.get(placement.job_id)
    if job is None or job.state != JobState.PENDING or job.desired != "run":
        raise _RefusedError("the job no longer waits")
    if job.eligible_at > now:
        raise _RefusedError("the job may not start yet: it waits out a retry")
    if not job.tasks_min <= len(placement.tasks) <= job.tasks_max:
        raise _RefusedError(f"the gang needs {job.tasks_min} tasks, not {len(placement.tasks)}")
    for task in placement.tasks:
        _check_task(commit, task)
    attempt_id = AttemptId(commit.ids.new("a"))
    number = job.attempts + 1
    apply_event(
        tx,
        job,
        JobEvent.PLACE,
        now=now,
        attempt_id=attempt_id,
        detail={"decision_id": commit.decision_id, "why": placement.why},
        changes={"attempts": number},
    )
    _open_attempt(commit, job, placement, attempt_id, number)
    for task in placement.tasks:
        _grant(commit, task)
    order = _launch_order(commit, job, placement, attempt_id, number)
    insert_intent(
        tx,
        job.tenant_id,
        placement.job_id,
        IntentKind.LAUNCH,
        order,
        now=now,
        ids=commit.ids,
    )


def _check_task(commit: _Commit, task: TaskPlacement) -> None:
    node = commit.nodes.get(task.node_id)
    if node is None or not node.present:
        raise _RefusedError(f"node {task.node_id} has left")
    if node.cordoned or node.health != Health.HEALTHY:
        state = "cordoned" if node.cordoned else node.health
        raise _RefusedError(f"node {node.name} is {state}")
    for gpu_id in task.gpu_ids:
        gpu = commit.gpus.get(gpu_id)
        if gpu is None or not gpu.present or gpu.node_id != task.node_id:
            raise _RefusedError(f"GPU {gpu_id} has left node {node.name}")
        if gpu.cordoned or gpu.health != Health.HEALTHY:
            state = "cordoned" if gpu.cordoned else gpu.health
            raise _RefusedError(f"GPU {gpu_id} of node {node.name} is {state}")


def _open_attempt(
    commit: _Commit, job: AnyRow, placement: Placement, attempt_id: AttemptId, number: int
) -> None:
    commit.tx.connection.execute(
        _INSERT_ATTEMPT,
        {
            "id": attempt_id,
            "tenant_id": job.tenant_id,
            "job_id": job.id,
            "number": number,
            "epoch": commit.epoch,
            "live": True,
            "decision_id": commit.decision_id,
            "placement": codec.text(placement.tasks),
            "why": placement.why,
            "outside_id": "",
            "created_at": commit.now,
            "message": "",
            # The move that opens it was journalled just before.
            "revision": commit.tx.head_revision,
        },
    )
    try:
        commit.tx.connection.execute(
            _INSERT_ALLOCATIONS,
            [
                {
                    "tenant_id": job.tenant_id,
                    "attempt_id": attempt_id,
                    "live": True,
                    "created_at": commit.now,
                    **held,
                }
                for task in placement.tasks
                for held in _holds(commit, task)
            ],
        )
    except IntegrityError as error:
        raise _RefusedError("one of its GPUs was taken meanwhile") from error


def _holds(commit: _Commit, task: TaskPlacement) -> list[dict[str, object]]:
    """The allocation rows of one task: CPU, memory, and every leaf of each of its GPUs."""
    where = {"node_id": task.node_id, "task_index": task.task_index}
    sums: list[dict[str, object]] = [
        {**where, "resource": resource, "amount": amount, "gpu_id": None, "leaf": None}
        for resource, amount in (("cpu", task.cpu_milli), ("memory", task.memory_mib))
    ]
    return sums + [
        {**where, "resource": "gpu", "amount": 1, "gpu_id": gpu_id, "leaf": leaf}
        for gpu_id in task.gpu_ids
        for leaf in range(commit.gpus[gpu_id].leaves)
    ]


def _grant(commit: _Commit, task: TaskPlacement) -> None:
    granted = commit.tx.connection.execute(
        _GRANT, {"node": task.node_id, "cpu": task.cpu_milli, "memory": task.memory_mib}
    )
    if granted.rowcount != 1:
        name = commit.nodes[task.node_id].name
        raise _RefusedError(f"CPU or memory of node {name} was taken meanwhile")


def _launch_order(
    commit: _Commit, job: AnyRow, placement: Placement, attempt_id: AttemptId, number: int
) -> LaunchOrder:
    spec, _ = parse_job_json(job.document)
    return LaunchOrder(
        attempt_id=attempt_id,
        job_id=placement.job_id,
        tenant=TenantId(job.tenant_id),
        job_name=job.name,
        number=number,
        epoch=commit.epoch,
        tasks=tuple(
            LaunchTask(
                task_index=task.task_index,
                node_id=task.node_id,
                node_name=commit.nodes[task.node_id].name,
                gpu_ids=task.gpu_ids,
                simulated=commit.nodes[task.node_id].simulated,
                cpu_milli=task.cpu_milli,
            )
            for task in placement.tasks
        ),
        processes=spec.task.processes,
        command=spec.task.command,
        env=spec.task.env,
        launcher=spec.launcher,
        stop_signal=spec.checkpoint.signal,
        grace_s=spec.checkpoint.grace_s,
        max_runtime_s=spec.max_runtime_s,
        workdir=spec.task.workdir,
    )


def _evict(
    tx: Transaction, plan: Plan, *, epoch: int, now: UtcSeconds, ids: IdSource
) -> tuple[AttemptId, ...]:
    """Order the plan's evictions; an attempt that is on its way out anyway is left alone."""
    evicted = []
    for eviction in plan.evictions:
        job = tx.connection.execute(
            select(jobs)
            .join(attempts, attempts.c.job_id == jobs.c.id)
            .where(attempts.c.id == eviction.attempt_id, attempts.c.live.is_(True))
        ).one_or_none()
        if job is None or JobState(job.state) not in _EVICTABLE:
            continue
        stop_job(
            tx,
            job,
            JobEvent.PREEMPT,
            cause=EndCause.PREEMPTED,
            now=now,
            ids=ids,
            epoch=epoch,
            # The decision says for whom; here the owner, who may be a stranger, would read it.
            message="preempted: its resources went to a job that comes first",
        )
        evicted.append(eviction.attempt_id)
    return tuple(evicted)


def _changed_reasons(
    tx: Transaction, waiting: Iterable[Waiting]
) -> tuple[dict[str, str], frozenset[str]]:
    """Reason documents to write by class, and the classes that no longer wait."""
    stored = {
        row.class_key: row.document
        for row in tx.connection.execute(select(reasons.c.class_key, reasons.c.document))
    }
    wanted = {record.class_key: codec.text(record) for record in waiting}
    changed = {key: text for key, text in wanted.items() if stored.get(key) != text}
    return changed, frozenset(stored.keys() - wanted.keys())


def _write_reasons(
    tx: Transaction,
    changed: Mapping[str, str],
    gone: frozenset[str],
    decision_id: DecisionId,
    *,
    revision: int,
    now: UtcSeconds,
) -> None:
    old = sorted(gone | changed.keys())
    for start in range(0, len(old), _CHUNK):
        keys = old[start : start + _CHUNK]
        tx.connection.execute(delete(reasons).where(reasons.c.class_key.in_(keys)))
    if not changed:
        return
    tenants = _tenants_of(tx, changed)
    tx.connection.execute(
        insert(reasons),
        [
            {
                "class_key": key,
                "tenant_id": tenants.get(key, SYSTEM_TENANT),
                "decision_id": decision_id,
                "at": now,
                "document": text,
                "revision": revision,
            }
            for key, text in sorted(changed.items())
        ],
    )


def _tenants_of(tx: Transaction, class_keys: Iterable[str]) -> dict[str, str]:
    """Tenant of each class of waiting jobs; a class whose jobs all left meanwhile has none."""
    waiting = tx.connection.execute(
        select(jobs.c.class_key, jobs.c.tenant_id)
        .where(jobs.c.state == JobState.PENDING.value)
        .distinct()
    )
    wanted = set(class_keys)
    return {row.class_key: row.tenant_id for row in waiting if row.class_key in wanted}


def _write_decision(
    tx: Transaction,
    plan: Plan,
    report: CommitReport,
    decision: DecisionMeta,
    *,
    epoch: int,
    revision: int,
    now: UtcSeconds,
) -> None:
    document = {
        "solver": plan.solver,
        "placements": plan.placements,
        "refused": [{"job_id": job_id, "why": why} for job_id, why in report.refused],
        "evictions": plan.evictions,
        "reservations": plan.reservations,
    }
    tx.connection.execute(
        insert(decisions),
        {
            "id": report.decision_id,
            "tenant_id": SYSTEM_TENANT,
            "at": now,
            "epoch": epoch,
            "snapshot_revision": plan.snapshot_revision,
            "revision": revision,
            "value": plan.value,
            "bound": plan.bound,
            "gap": plan.gap,
            "placed": len(report.placed),
            "refused": len(report.refused),
            "waiting_classes": len(plan.waiting),
            "policy": decision.policy,
            "duration_ms": decision.duration_ms,
            "document": codec.text(document),
        },
    )
