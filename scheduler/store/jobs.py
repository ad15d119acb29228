"""Jobs as rows: inserting one, finding and listing them, and the views made of them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import ColumnElement, Row, bindparam, func, insert, or_, select, update

from scheduler.errors import ConflictError, InvalidRequestError
from scheduler.model.access import Actor
from scheduler.model.execution import RankExit
from scheduler.model.job import JobShape, JobSpec, Origin, Topology
from scheduler.model.lifecycle import EndCause, JobState
from scheduler.model.quantity import (
    JobId,
    QueueName,
    Resources,
    TenantId,
    UtcSeconds,
)
from scheduler.model.site import ANYWHERE
from scheduler.model.view import (
    SORTS,
    AttemptView,
    HistoryEntry,
    JobFilter,
    JobView,
    Page,
)
from scheduler.store import codec, paging
from scheduler.store.scoping import storable, visible
from scheduler.store.tables import allocations, attempts, history, jobs, nodes
from scheduler.store.transaction import Transaction

_INSERT = insert(jobs)
_INSERT_HISTORY = insert(history)
_BY_ID = select(jobs).where(jobs.c.id == bindparam("job_id"))
_AHEAD = (
    select(func.count())
    .select_from(jobs)
    .where(
        jobs.c.state == JobState.PENDING,
        or_(
            jobs.c.priority > bindparam("priority"),
            (jobs.c.priority == bindparam("priority"))
            & (
                (jobs.c.submitted_at < bindparam("submitted_at"))
                | (
                    (jobs.c.submitted_at == bindparam("submitted_at"))
                    & (jobs.c.id < bindparam("job_id"))
                )
            ),
        ),
    )
)
_SET_DESIRED_STOP = (
    update(jobs)
    .where(jobs.c.id == bindparam("of_job"), jobs.c.version == bindparam("at_version"))
    .values(desired="stop", version=jobs.c.version + 1, revision=bindparam("new_revision"))
)
_ATTEMPT_OF_POD = re.compile(r"-(a-[0-9a-z]{16})-[0-9]+$")
_SORT_COLUMNS = {
    "submitted_at": (jobs.c.submitted_at, float),
    "priority": (jobs.c.priority, int),
    "name": (jobs.c.name, str),
}


def class_key(tenant: TenantId, queue: QueueName, shape: JobShape) -> str:
    """Digest of what makes jobs interchangeable to the decision; 32 hexadecimal digits."""
    need = shape.per_task
    parts: list[object] = [
        tenant,
        queue,
        shape.tasks,
        need.gpus,
        need.cpu_milli,
        need.memory_mib,
        shape.gpu_models,
        shape.topology,
        shape.pool,
    ]
    if shape.gpu_milli or shape.tasks_max != shape.tasks:
        parts += [shape.gpu_milli, shape.tasks_max]
    if shape.site != ANYWHERE or shape.extras:
        parts += [codec.site_text(shape.site), shape.extras]
    text = json.dumps(parts, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def new_view(
    job_id: JobId, actor: Actor, spec: JobSpec, document: str, *, now: UtcSeconds
) -> JobView:
    """The view of a job about to be stored: PENDING, version 1, revision 0 until it is."""
    shape = spec.shape
    return JobView(
        id=job_id,
        tenant=actor.acts_for,
        queue=spec.queue,
        name=spec.name,
        origin=Origin.API.value,
        principal=actor.principal,
        state=JobState.PENDING,
        desired="run",
        priority=spec.priority,
        shape=shape,
        class_key=class_key(actor.acts_for, spec.queue, shape),
        document=document,
        submitted_at=now,
        eligible_at=now,
        started_at=None,
        finished_at=None,
        attempts=0,
        retries_used=0,
        end_cause=None,
        exit_code=None,
        message="",
        version=1,
        revision=0,
    )


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job about to be stored.

    Attributes:
        job: how it will look; only its revision is not known yet.
        api_version: version of its document.
        outside_key: what it is known by outside, for a gang that somebody else made.
    """

    job: JobView
    preemptible: bool
    api_version: str
    outside_key: str | None = None
    evicts: bool = True


def add(tx: Transaction, job: JobView, spec: JobSpec, api_version: str) -> JobView:
    """Insert one job that was submitted, as `add_all` does."""
    new = NewJob(job, spec.preemptible, api_version)
    (revision,) = add_all(tx, [new], now=job.submitted_at)
    return replace(job, revision=revision)


def add_all(tx: Transaction, new: Sequence[NewJob], *, now: UtcSeconds) -> tuple[int, ...]:
    """Insert jobs, each with its first history and journal rows; their revisions.

    Cost: two statements.
    """
    revisions = tuple(_journal(tx, each.job, now) for each in new)
    if not new:
        return revisions
    rows = [_columns(each, revision) for each, revision in zip(new, revisions, strict=True)]
    tx.connection.execute(_INSERT, rows)
    tx.connection.execute(
        _INSERT_HISTORY,
        [
            {
                "job_id": each.job.id,
                "seq": 1,
                "tenant_id": each.job.tenant,
                "at": now,
                "from_state": None,
                "to_state": each.job.state.value,
                "event": "submit",
                "attempt_id": None,
                "detail": "{}",
                "revision": revision,
            }
            for each, revision in zip(new, revisions, strict=True)
        ],
    )
    return revisions


def _journal(tx: Transaction, job: JobView, now: UtcSeconds) -> int:
    payload = {
        "state": job.state,
        "event": "submit",
        "name": job.name,
        "queue": job.queue,
        "version": job.version,
    }
    return tx.next_revision(
        tenant=job.tenant, kind="job", object_id=job.id, payload=payload, at=now
    )


def _columns(new: NewJob, revision: int) -> dict[str, object]:
    """The row of a new job."""
    job, shape = new.job, new.job.shape
    return {
        "id": job.id,
        "tenant_id": job.tenant,
        "queue": job.queue,
        "name": job.name,
        "origin": job.origin,
        "principal_id": job.principal,
        "state": job.state.value,
        "desired": job.desired,
        "priority": job.priority,
        "tasks_min": shape.tasks,
        "tasks_max": shape.tasks_max,
        "gpus_per_task": shape.per_task.gpus,
        "cpu_milli": shape.per_task.cpu_milli,
        "memory_mib": shape.per_task.memory_mib,
        "gpu_models": codec.text(shape.gpu_models),
        "topology": shape.topology.value,
        "pool": shape.pool,
        "site": codec.site_text(shape.site),
        "extras": codec.text(shape.extras),
        "preemptible": new.preemptible,
        "evicts": new.evicts,
        "class_key": job.class_key,
        "api_version": new.api_version,
        "document": job.document,
        "outside_key": new.outside_key,
        "submitted_at": job.submitted_at,
        "eligible_at": job.eligible_at,
        "started_at": None,
        "finished_at": None,
        "attempts": 0,
        "retries_used": 0,
        "free_requeues": 0,
        "end_cause": None,
        "exit_code": None,
        "message": job.message,
        "history_seq": 1,
        "version": job.version,
        "revision": revision,
    }


def row(tx: Transaction, actor: Actor, job_id: JobId) -> Row[Any] | None:
    """The job's row, if the actor may know of it."""
    if not storable(job_id):
        return None
    statement = _BY_ID.where(visible(actor, jobs.c.tenant_id))
    return tx.connection.execute(statement, {"job_id": job_id}).one_or_none()


def by_id(tx: Transaction, job_id: JobId) -> JobView:
    """The view of a job that is known to exist and to be the caller's."""
    return view(tx, tx.connection.execute(_BY_ID, {"job_id": job_id}).one())


def view(tx: Transaction, found: Row[Any]) -> JobView:
    """The view of one row."""
    return views(tx, [found])[0]


def views(tx: Transaction, rows: Iterable[Row[Any]]) -> tuple[JobView, ...]:
    """Views of rows, in their order. One more query when some of them ever ran."""
    found = list(rows)
    simulated = _simulated(tx, [row.id for row in found if row.attempts])
    return tuple(_view(row, simulated=row.id in simulated) for row in found)


def _view(row: Row[Any], *, simulated: bool) -> JobView:
    return JobView(
        id=row.id,
        tenant=row.tenant_id,
        queue=row.queue,
        name=row.name,
        origin=row.origin,
        principal=row.principal_id,
        state=JobState(row.state),
        desired=row.desired,
        priority=row.priority,
        shape=JobShape(
            tasks=row.tasks_min,
            per_task=Resources(row.gpus_per_task, row.cpu_milli, row.memory_mib),
            gpu_models=codec.gpu_models(row.gpu_models),
            topology=Topology(row.topology),
            pool=row.pool,
            tasks_max=row.tasks_max,
            site=codec.site(row.site),
            extras=codec.extras(row.extras),
        ),
        class_key=row.class_key,
        document=row.document,
        submitted_at=row.submitted_at,
        eligible_at=row.eligible_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        attempts=row.attempts,
        retries_used=row.retries_used,
        end_cause=None if row.end_cause is None else EndCause(row.end_cause),
        exit_code=row.exit_code,
        message=row.message,
        version=row.version,
        revision=row.revision,
        simulated=simulated,
    )


def _simulated(tx: Transaction, job_ids: list[str]) -> frozenset[str]:
    """Those of the jobs whose last attempt sits on simulated nodes."""
    if not job_ids:
        return frozenset()
    joined = (
        jobs.join(
            attempts, (attempts.c.job_id == jobs.c.id) & (attempts.c.number == jobs.c.attempts)
        )
        .join(allocations, allocations.c.attempt_id == attempts.c.id)
        .join(nodes, nodes.c.id == allocations.c.node_id)
    )
    statement = (
        select(jobs.c.id)
        .select_from(joined)
        .where(jobs.c.id.in_(job_ids), nodes.c.simulated)
        .distinct()
    )
    return frozenset(tx.connection.execute(statement).scalars())


def page(
    tx: Transaction, actor: Actor, wanted: JobFilter, *, cursor: str | None, limit: int
) -> Page[JobView]:
    """One page of the jobs that the actor may know of.

    Cost: by `submitted_at` O(page) through an index plus what the filter skips; `priority` and
    `name` sort all that the filter lets through; `pod` reads the documents of its namespace's jobs.

    Raises:
        InvalidRequestError: unknown sort, malformed cursor or limit out of range.
    """
    if wanted.sort not in SORTS:
        raise InvalidRequestError(
            f"sort {wanted.sort!r} is unknown", hint=f"use one of {', '.join(SORTS)}"
        )
    paging.checked_limit(limit)
    key, kind = _SORT_COLUMNS[wanted.sort.removeprefix("-")]
    position = paging.decode(wanted.sort, cursor, kind, str)
    statement = select(jobs).where(visible(actor, jobs.c.tenant_id))
    if wanted.states:
        statement = statement.where(jobs.c.state.in_([state.value for state in wanted.states]))
    equal: Mapping[Any, str | None] = {
        jobs.c.queue: wanted.queue,
        jobs.c.name: wanted.name,
        jobs.c.tenant_id: wanted.tenant,
    }
    for column, value in equal.items():
        if value is None:
            continue
        if not storable(value):
            return Page((), None)
        statement = statement.where(column == value)
    if wanted.pod is not None:
        if not storable(wanted.pod):
            return Page((), None)
        statement = statement.where(_has_pod(wanted.pod))
    statement = paging.after(
        statement,
        key,
        jobs.c.id,
        position,
        descending=wanted.sort.startswith("-"),
        limit=limit,
    )
    rows = tx.connection.execute(statement).all()
    following = None
    if len(rows) > limit:
        last = rows[limit - 1]
        following = paging.encode(wanted.sort, paging.Position(getattr(last, key.name), last.id))
    return Page(views(tx, rows[:limit]), following)


def _has_pod(pod: str) -> ColumnElement[bool]:
    """Jobs that have or had this pod, `namespace/name`.

    One that somebody else made is a member `namespace/name/uid`, which `documents.of_gang` writes
    as a whole string. One that was made for a job has its attempt's id in its name.
    """
    has = (
        (jobs.c.tenant_id == pod.partition("/")[0])
        & (jobs.c.origin == Origin.KUBERNETES.value)
        & jobs.c.document.contains(f'"{pod}/', autoescape=True)
    )
    made_for = _ATTEMPT_OF_POD.search(pod)
    if made_for is None:
        return has
    return has | jobs.c.id.in_(select(attempts.c.job_id).where(attempts.c.id == made_for[1]))


def set_desired_stop(tx: Transaction, found: Row[Any], *, now: UtcSeconds) -> None:
    """Record that the job must not run again, without a move: it is on its way out already.

    Raises:
        ConflictError: the row changed since it was read.
    """
    revision = tx.next_revision(
        tenant=found.tenant_id,
        kind="job",
        object_id=found.id,
        payload={
            "state": found.state,
            "event": "desired-stop",
            "name": found.name,
            "queue": found.queue,
            "version": found.version + 1,
        },
        at=now,
    )
    updated = tx.connection.execute(
        _SET_DESIRED_STOP,
        {"of_job": found.id, "at_version": found.version, "new_revision": revision},
    )
    if updated.rowcount != 1:
        raise ConflictError(f"job {found.id} changed meanwhile", hint="read it again and retry")


def ahead(tx: Transaction, job: JobView) -> int:
    """Waiting jobs of all tenants with a higher claim: priority first, then age. O(waiting)."""
    return tx.connection.execute(
        _AHEAD,
        {"priority": job.priority, "submitted_at": job.submitted_at, "job_id": job.id},
    ).scalar_one()


def attempt_list(tx: Transaction, job_id: JobId) -> tuple[AttemptView, ...]:
    """The job's attempts, first to last. The caller has checked that the job may be seen."""
    found = tx.connection.execute(
        select(attempts).where(attempts.c.job_id == job_id).order_by(attempts.c.number)
    )
    return tuple(_attempt_view(row) for row in found)


def _attempt_view(row: Row[Any]) -> AttemptView:
    exited = row.exit_code is not None or row.exit_signal is not None
    return AttemptView(
        id=row.id,
        number=row.number,
        live=row.live,
        decision_id=row.decision_id,
        tasks=codec.placement_tasks(row.placement),
        why=row.why,
        created_at=row.created_at,
        started_at=row.started_at,
        ended_at=row.ended_at,
        end_cause=None if row.end_cause is None else EndCause(row.end_cause),
        exit=RankExit(0, row.exit_code, row.exit_signal) if exited else None,
        message=row.message,
    )


def history_list(tx: Transaction, job_id: JobId) -> tuple[HistoryEntry, ...]:
    """Every move of the job, oldest first. The caller has checked that it may be seen."""
    found = tx.connection.execute(
        select(history).where(history.c.job_id == job_id).order_by(history.c.seq)
    )
    return tuple(
        HistoryEntry(
            seq=row.seq,
            at=row.at,
            from_state=None if row.from_state is None else JobState(row.from_state),
            to_state=JobState(row.to_state),
            event=row.event,
            attempt_id=row.attempt_id,
            detail=json.loads(row.detail),
        )
        for row in found
    )
