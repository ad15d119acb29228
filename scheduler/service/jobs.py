"""Reading jobs: one, many, their attempts and their history."""

from __future__ import annotations

from scheduler.model.access import Actor, Permission
from scheduler.model.quantity import JobId
from scheduler.model.view import AttemptView, HistoryEntry, JobFilter, JobView, Page
from scheduler.service import access
from scheduler.store import jobs
from scheduler.store.transaction import Transaction


def get_job(tx: Transaction, actor: Actor, job_id: JobId) -> JobView:
    """One job.

    Raises:
        ForbiddenError: the role does not grant it.
        NotFoundError: no such job for this actor.
    """
    access.require(actor, Permission.JOBS_READ)
    return jobs.view(tx, access.job_row(tx, actor, job_id))


def list_jobs(
    tx: Transaction, actor: Actor, wanted: JobFilter, *, cursor: str | None, limit: int
) -> Page[JobView]:
    """One page of the jobs that the actor may know of.

    Args:
        tx: a transaction.
        actor: who asks.
        wanted: filter and sort order.
        cursor: `next_cursor` of the page before, or None for the first.
        limit: 1 to 500.

    Raises:
        ForbiddenError: the role does not grant it.
        InvalidRequestError: unknown sort, malformed cursor or limit out of range.
    """
    access.require(actor, Permission.JOBS_READ)
    return jobs.page(tx, actor, wanted, cursor=cursor, limit=limit)


def job_attempts(tx: Transaction, actor: Actor, job_id: JobId) -> tuple[AttemptView, ...]:
    """The job's attempts, first to last.

    Raises:
        ForbiddenError, NotFoundError: as `get_job`.
    """
    access.require(actor, Permission.JOBS_READ)
    return jobs.attempt_list(tx, JobId(access.job_row(tx, actor, job_id).id))


def job_history(tx: Transaction, actor: Actor, job_id: JobId) -> tuple[HistoryEntry, ...]:
    """Every move of the job, oldest first.

    Raises:
        ForbiddenError, NotFoundError: as `get_job`.
    """
    access.require(actor, Permission.JOBS_READ)
    return jobs.history_list(tx, JobId(access.job_row(tx, actor, job_id).id))
