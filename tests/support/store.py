"""Short ways to put jobs and nodes into a store and to look at its rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import orjson
import sqlalchemy as sa
from support.builders import NOW, job_spec

from scheduler.ids import IdSource
from scheduler.jobspec import API_VERSION, parse_job_json
from scheduler.model.access import Actor, Role
from scheduler.model.execution import AttemptObservation, Phase, RankExit
from scheduler.model.job import JobSpec
from scheduler.model.lifecycle import EndCause
from scheduler.model.plan import Placement, Plan
from scheduler.model.ports import CommitReport, DecisionMeta
from scheduler.model.quantity import (
    DEFAULT_TENANT,
    AttemptId,
    JobId,
    PrincipalId,
    TenantId,
    UtcSeconds,
)
from scheduler.store import jobs as job_rows
from scheduler.store import tables
from scheduler.store.database import Transaction
from scheduler.store.plans import commit_plan

META = DecisionMeta(policy="test", duration_ms=1.0)


def document(spec: JobSpec) -> str:
    """The canonical job file of a spec."""
    task = spec.task
    return orjson.dumps(
        {
            "apiVersion": API_VERSION,
            "kind": "Job",
            "metadata": {"name": spec.name},
            "spec": {
                "queue": spec.queue,
                "priority": spec.priority,
                "tasks": spec.tasks_min,
                "task": {
                    "gpus": task.gpus,
                    "gpu_models": list(task.gpu_models),
                    "cpus": task.cpu_milli / 1000,
                    "memory_mib": task.memory_mib,
                    "command": list(task.command),
                    "env": dict(task.env),
                },
                "launcher": spec.launcher.value,
                "topology": spec.topology.value,
                "max_runtime_s": spec.max_runtime_s,
                "preemptible": spec.preemptible,
                "retry": {"max": spec.retry.max_retries, "backoff_s": spec.retry.backoff_s},
                "checkpoint": {
                    "signal": spec.checkpoint.signal,
                    "grace_s": spec.checkpoint.grace_s,
                },
            },
        },
        option=orjson.OPT_SORT_KEYS,
    ).decode()


def actor(tenant: TenantId = DEFAULT_TENANT, role: Role = Role.USER) -> Actor:
    return Actor(PrincipalId(f"p-{tenant}"), "tester", tenant, role, tenant)


def insert_job(
    tx: Transaction,
    job_id: str,
    spec: JobSpec | None = None,
    *,
    now: UtcSeconds = NOW,
    tenant: TenantId = DEFAULT_TENANT,
) -> JobId:
    """Store a PENDING job as a submission does."""
    parsed, canonical = parse_job_json(document(spec or job_spec()))
    view = job_rows.new_view(JobId(job_id), actor(tenant), parsed, canonical, now=now)
    return job_rows.add(tx, view, parsed, API_VERSION).id


def commit(
    tx: Transaction,
    placements: Iterable[Placement],
    *,
    epoch: int,
    ids: IdSource,
    now: UtcSeconds = NOW,
    **plan: Any,
) -> CommitReport:
    """Commit a plan of these placements."""
    found = Plan(snapshot_revision=tx.head_revision, placements=tuple(placements), **plan)
    return commit_plan(tx, found, epoch=epoch, decision=META, now=now, ids=ids)


def job_row(tx: Transaction, job_id: str) -> Any:
    return tx.connection.execute(sa.select(tables.jobs).where(tables.jobs.c.id == job_id)).one()


def attempt_rows(tx: Transaction, job_id: str) -> Sequence[Any]:
    found = tables.attempts
    return tx.connection.execute(
        sa.select(found).where(found.c.job_id == job_id).order_by(found.c.number)
    ).all()


def history_of(tx: Transaction, job_id: str) -> list[str]:
    """Events of a job, first to last."""
    found = tables.history
    return list(
        tx.connection.execute(
            sa.select(found.c.event).where(found.c.job_id == job_id).order_by(found.c.seq)
        ).scalars()
    )


def rows(tx: Transaction, table: sa.Table) -> Sequence[Any]:
    return tx.connection.execute(sa.select(table)).all()


def running(attempt_id: str, at: float = NOW) -> AttemptObservation:
    return AttemptObservation(AttemptId(attempt_id), Phase.RUNNING, started_at=UtcSeconds(at))


def exited(
    attempt_id: str,
    cause: EndCause = EndCause.COMPLETED,
    *,
    started_at: float | None = NOW,
    ended_at: float = NOW + 10,
    exit_code: int = 0,
) -> AttemptObservation:
    rank = RankExit(0, exit_code, None)
    return AttemptObservation(
        AttemptId(attempt_id),
        Phase.EXITED,
        started_at=None if started_at is None else UtcSeconds(started_at),
        ended_at=UtcSeconds(ended_at),
        cause=cause,
        ranks=(rank,),
        first_failure=rank if exit_code else None,
    )


def phase(attempt_id: str, seen: Phase) -> AttemptObservation:
    return AttemptObservation(AttemptId(attempt_id), seen)
