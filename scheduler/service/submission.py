"""Accepting a job: one transaction, few statements, every refusal explicit."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import orjson

from scheduler.errors import (
    FieldProblem,
    IdempotencyError,
    InfeasibleError,
    InvalidRequestError,
    OverloadedError,
)
from scheduler.ids import IdSource
from scheduler.jobspec import API_VERSION
from scheduler.model.access import Actor, Permission
from scheduler.model.job import JobSpec
from scheduler.model.quantity import JobId, UtcSeconds
from scheduler.model.view import JobView, SubmitResult
from scheduler.service import access
from scheduler.store import admission, idempotency, jobs
from scheduler.store.scoping import storable
from scheduler.store.transaction import Transaction

_PURGED_AT_ONCE = 2 * idempotency.PURGE_EVERY
"""Twice as many keys forgotten as are taken between two purges: the table can only shrink."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the queue.

    Attributes:
        waiting_jobs_max: waiting jobs of one tenant.
        idempotency_keep_s: how long an idempotency key is remembered.
    """

    waiting_jobs_max: int
    idempotency_keep_s: float


def submit(
    tx: Transaction,
    actor: Actor,
    spec: JobSpec,
    document: str,
    *,
    idempotency_key: str | None,
    now: UtcSeconds,
    ids: IdSource,
    limits: Limits,
    dry_run: bool = False,
) -> SubmitResult:
    """Put a job into the queue, or say why not.

    Args:
        tx: a write transaction; a read transaction will do for a dry run.
        actor: who submits; the job belongs to the tenant it acts for.
        spec: the validated job.
        document: the job as submitted, canonical JSON text.
        idempotency_key: the same key and body of one principal make one job.
        now: the submission instant.
        ids: makes the job id.
        limits: bounds of the queue.
        dry_run: check everything, keep nothing; the view then has revision 0.

    Raises:
        ForbiddenError: the role may not submit.
        IdempotencyError: the key was used with another body.
        InvalidRequestError: unknown queue, or an unusable key.
        InfeasibleError: the present nodes could not run it even if all were empty.
        OverloadedError: the tenant has too many waiting jobs.

    Cost: four statements with a key, three without, and the journal's share of the commit.
    """
    access.require_change(actor, Permission.JOBS_WRITE)
    job = jobs.new_view(JobId(ids.new("j")), actor, spec, document, now=now)
    if idempotency_key is not None and not dry_run:
        earlier = _claim_key(tx, job, idempotency_key, limits, now)
        if earlier is not None:
            return SubmitResult(earlier, replayed=True)
    _admit(tx, job, limits, now, dry_run=dry_run)
    if dry_run:
        return SubmitResult(job, replayed=False)
    stored = jobs.add(tx, job, spec, _api_version(document))
    _audit(tx, stored, "accepted", now)
    return SubmitResult(stored, replayed=False)


def _claim_key(
    tx: Transaction, job: JobView, key: str, limits: Limits, now: UtcSeconds
) -> JobView | None:
    """The job that this key made before; None when the key now belongs to `job`."""
    if not storable(key):
        raise InvalidRequestError(
            "Idempotency-Key must be 1 to 255 printable characters",
            problems=(FieldProblem("Idempotency-Key", "1 to 255 printable characters"),),
        )
    body = hashlib.sha256(f"{job.tenant}\n{job.document}".encode()).hexdigest()
    use = idempotency.KeyUse(job.id, job.tenant, body)
    keep_s = limits.idempotency_keep_s
    earlier = idempotency.claim(tx, job.principal, key, use, now=now, keep_s=keep_s)
    if earlier is None:
        if idempotency.purge_due(tx):
            idempotency.purge(tx, before=UtcSeconds(now - keep_s), at_most=_PURGED_AT_ONCE)
        return None
    if earlier.body_sha256 != body:
        raise IdempotencyError(
            f"idempotency key {key!r} was used before with another body",
            hint="take a new key for a new job; repeat the same body to repeat a request",
        )
    made = jobs.by_id(tx, earlier.job_id)
    _audit(tx, made, "replayed", now)
    return made


def _admit(
    tx: Transaction, job: JobView, limits: Limits, now: UtcSeconds, *, dry_run: bool
) -> None:
    """Raise unless the job may enter the queue."""
    known = admission.facts(tx, job.tenant, job.queue, job.shape)
    if not known.queue_known:
        raise InvalidRequestError(
            f"tenant {job.tenant} has no queue {job.queue!r}",
            problems=(FieldProblem("spec.queue", f"no queue {job.queue!r}"),),
            hint="`haversack queue` lists the queues",
        )
    if known.never_fits is not None:
        raise InfeasibleError(
            known.never_fits.message,
            dimension=known.never_fits.dimension,
            hint="ask for less, or add nodes; `haversack nodes` shows what there is",
        )
    room = admission.room(tx, job.tenant, limits.waiting_jobs_max, now=now)
    if room == 0:
        raise OverloadedError(
            f"tenant {job.tenant} has {limits.waiting_jobs_max} waiting jobs, the most allowed",
            retry_after_s=admission.FULL_S,
            hint="wait until some have started, or cancel some",
        )
    if not dry_run:
        admission.enter(tx, job.tenant)


def _api_version(document: str) -> str:
    """The version the document itself names, else ours."""
    parsed = orjson.loads(document)
    named = parsed.get("apiVersion") if isinstance(parsed, dict) else None
    return named if isinstance(named, str) else API_VERSION


def _audit(tx: Transaction, job: JobView, outcome: str, now: UtcSeconds) -> None:
    tx.audit(
        tenant=job.tenant,
        principal=job.principal,
        action="jobs.submit",
        object_id=job.id,
        outcome=outcome,
        detail={"name": job.name, "queue": job.queue},
        at=now,
    )
