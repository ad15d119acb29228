"""What a user may do to a job after submitting it: cancel, hold, release, requeue."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Row

from scheduler.errors import ConflictError
from scheduler.ids import IdSource
from scheduler.model.access import Actor, Permission
from scheduler.model.lifecycle import (
    EndCause,
    IllegalMoveError,
    JobEvent,
    JobState,
)
from scheduler.model.quantity import JobId, UtcSeconds
from scheduler.model.view import JobView
from scheduler.service import access
from scheduler.store import jobs
from scheduler.store.attempts import stop_job
from scheduler.store.transaction import Transaction
from scheduler.store.transitions import apply_event

_NO_CHANGES: Mapping[str, object] = {}


def cancel(
    tx: Transaction,
    actor: Actor,
    job_id: JobId,
    *,
    now: UtcSeconds,
    ids: IdSource,
    if_match: int | None = None,
) -> JobView:
    """See to it that the job ends and never starts again (I10). Idempotent.

    A job that never launched is CANCELLED at once; a launched one goes through STOPPING, and one
    that is already stopping for another cause ends there instead of going back to the queue.

    Raises:
        ForbiddenError: the role may not change jobs.
        NotFoundError: no such job for this actor.
        PreconditionError: the job is not at version `if_match`.
        ConflictError: it has already succeeded or failed.
    """
    found = _find(tx, actor, job_id, if_match)
    state = JobState(found.state)
    outcome = "done"
    leaving = state in (JobState.STOPPING, JobState.LOST)
    if state is JobState.CANCELLED or (leaving and found.desired == "stop"):
        outcome = "already"
    elif leaving:
        jobs.set_desired_stop(tx, found, now=now)
    else:
        try:
            stop_job(
                tx,
                found,
                JobEvent.CANCEL,
                cause=EndCause.CANCELLED,
                now=now,
                ids=ids,
                desired="stop",
                message=f"cancelled by {actor.name}",
            )
        except IllegalMoveError as error:
            raise _conflict(found, "cancel") from error
    return _done(tx, actor, found, "jobs.cancel", outcome, now)


def hold(
    tx: Transaction,
    actor: Actor,
    job_id: JobId,
    *,
    now: UtcSeconds,
    ids: IdSource,
    if_match: int | None = None,
) -> JobView:
    """Keep a waiting job from starting until it is released.

    Raises:
        ForbiddenError, NotFoundError, PreconditionError: as `cancel`.
        ConflictError: it is not PENDING.
    """
    del ids
    found = _find(tx, actor, job_id, if_match)
    _apply(tx, found, JobEvent.HOLD, "hold", now, {"message": f"held by {actor.name}"})
    return _done(tx, actor, found, "jobs.hold", "done", now)


def release(
    tx: Transaction,
    actor: Actor,
    job_id: JobId,
    *,
    now: UtcSeconds,
    ids: IdSource,
    if_match: int | None = None,
) -> JobView:
    """Let a held or quarantined job wait for its turn again.

    Raises:
        ForbiddenError, NotFoundError, PreconditionError: as `cancel`.
        ConflictError: it is neither HELD nor QUARANTINED.
    """
    del ids
    found = _find(tx, actor, job_id, if_match)
    changes: dict[str, object] = {"message": ""}
    if JobState(found.state) is JobState.QUARANTINED:
        changes["eligible_at"] = now
    _apply(tx, found, JobEvent.RELEASE, "release", now, changes)
    return _done(tx, actor, found, "jobs.release", "done", now)


def requeue(
    tx: Transaction,
    actor: Actor,
    job_id: JobId,
    *,
    now: UtcSeconds,
    ids: IdSource,
    if_match: int | None = None,
) -> JobView:
    """Send a job back to the queue: out of quarantine, or by stopping what runs of it.

    A launched job is stopped like a preempted one, with its grace time, and waits again once its
    attempt is proved dead. None of its retries is spent.

    Raises:
        ForbiddenError, NotFoundError, PreconditionError: as `cancel`.
        ConflictError: it waits already, is stopping, or is over.
    """
    found = _find(tx, actor, job_id, if_match)
    message = f"requeued by {actor.name}"
    if JobState(found.state) is JobState.QUARANTINED:
        changes: dict[str, object] = {"eligible_at": now, "message": message}
        _apply(tx, found, JobEvent.REQUEUE, "requeue", now, changes)
        return _done(tx, actor, found, "jobs.requeue", "done", now)
    try:
        stop_job(
            tx,
            found,
            JobEvent.PREEMPT,
            cause=EndCause.PREEMPTED,
            now=now,
            ids=ids,
            message=message,
        )
    except IllegalMoveError as error:
        raise _conflict(found, "requeue") from error
    return _done(tx, actor, found, "jobs.requeue", "done", now)


def _find(tx: Transaction, actor: Actor, job_id: JobId, if_match: int | None) -> Row[Any]:
    access.require_change(actor, Permission.JOBS_WRITE)
    found = access.job_row(tx, actor, job_id)
    access.check_version(f"job {job_id}", found.version, if_match)
    return found


def _apply(
    tx: Transaction,
    found: Row[Any],
    event: JobEvent,
    verb: str,
    now: UtcSeconds,
    changes: Mapping[str, object] = _NO_CHANGES,
) -> None:
    try:
        apply_event(tx, found, event, now=now, changes=changes)
    except IllegalMoveError as error:
        raise _conflict(found, verb) from error


_ADVICE = {
    JobState.PENDING: "it waits already; `haversack explain` says for what",
    JobState.HELD: "release it first",
    JobState.QUARANTINED: "release or requeue it, or cancel it",
    JobState.SUSPECT: "nothing was heard of it for a while; wait for proof, or cancel it",
    JobState.STOPPING: "wait until it has stopped",
}


def _conflict(found: Row[Any], verb: str) -> ConflictError:
    state = JobState(found.state)
    if state.terminal:
        hint = "it is over" if verb == "cancel" else "submit it again"
    else:
        hint = _ADVICE.get(state, "cancel it, or wait")
    return ConflictError(f"cannot {verb} job {found.id}: it is {state}", hint=hint)


def _done(
    tx: Transaction, actor: Actor, before: Row[Any], action: str, outcome: str, now: UtcSeconds
) -> JobView:
    """Audit the request against the job's own tenant; the job as it stands now."""
    tx.audit(
        tenant=before.tenant_id,
        principal=actor.principal,
        action=action,
        object_id=before.id,
        outcome=outcome,
        detail={"from": before.state},
        at=now,
    )
    return jobs.by_id(tx, JobId(before.id))
