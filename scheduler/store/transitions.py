"""The one place that moves a job from state to state.

Each move is a guarded UPDATE, a gapless history row and a journal row, in one transaction (I2, I9).
What a move orders besides (`Move.instructions`) is carried out by `scheduler.store.attempts`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Row, insert, select, update

from scheduler.errors import ConflictError, NotFoundError
from scheduler.model.lifecycle import JobEvent, JobState, Move, move
from scheduler.model.quantity import AttemptId, JobId, UtcSeconds
from scheduler.store import codec
from scheduler.store.tables import history, jobs
from scheduler.store.transaction import Transaction

_INSERT_HISTORY = insert(history)
_NO_DETAIL: Mapping[str, object] = {}


def load_job(tx: Transaction, job_id: JobId) -> Row[Any]:
    """The job's row.

    Raises:
        NotFoundError: there is no such job.
    """
    row = tx.connection.execute(select(jobs).where(jobs.c.id == job_id)).one_or_none()
    if row is None:
        raise NotFoundError(f"there is no job {job_id}")
    return row


def apply_event(
    tx: Transaction,
    job: Row[Any] | JobId,
    event: JobEvent,
    *,
    now: UtcSeconds,
    attempt_id: AttemptId | None = None,
    detail: Mapping[str, object] = _NO_DETAIL,
    changes: Mapping[str, object] = _NO_DETAIL,
) -> Move:
    """Move a job; the caller carries out what the returned move orders.

    A terminal state sets `finished_at`; leaving quarantine forgives past infrastructure failures.

    Args:
        tx: a write transaction.
        job: its row as read in this transaction, or its id. A row is stale after this call.
        event: what happened.
        now: when.
        attempt_id: the attempt it happened to, for the history.
        detail: what else the history should tell.
        changes: further columns to set in the same UPDATE.

    Raises:
        IllegalMoveError: the table has no such move.
        ConflictError: the row changed since it was read.
        NotFoundError: there is no such job.

    Cost: two statements, one more when given an id.
    """
    row = load_job(tx, job) if isinstance(job, str) else job
    state = JobState(row.state)
    found = move(state, event, f"job {row.id}, version {row.version}")
    payload = {
        "state": found.to,
        "event": event,
        "name": row.name,
        "queue": row.queue,
        "version": row.version + 1,
        "attempt_id": attempt_id,
    }
    revision = tx.next_revision(
        tenant=row.tenant_id, kind="job", object_id=row.id, payload=payload, at=now
    )
    values = {**_columns(state, found.to, now=now), "revision": revision, **changes}
    _update_guarded(tx, row, values)
    entry = {
        "job_id": row.id,
        "seq": row.history_seq + 1,
        "tenant_id": row.tenant_id,
        "at": now,
        "from_state": state.value,
        "to_state": found.to.value,
        "event": event.value,
        "attempt_id": attempt_id,
        "detail": codec.text(detail),
        "revision": revision,
    }
    tx.connection.execute(_INSERT_HISTORY, entry)
    return found


def _columns(state: JobState, to: JobState, *, now: UtcSeconds) -> dict[str, object]:
    """What a move from `state` to `to` alone says about the job's row."""
    columns: dict[str, object] = {"state": to.value}
    if to.terminal:
        columns["finished_at"] = now
    if state is JobState.QUARANTINED:
        columns["free_requeues"] = 0
    return columns


def _update_guarded(tx: Transaction, row: Row[Any], values: Mapping[str, object]) -> None:
    """Write `values` and the next version, provided the job still is as `row` was read.

    Raises:
        ConflictError: it is not.
    """
    updated = tx.connection.execute(
        update(jobs)
        .where(jobs.c.id == row.id, jobs.c.state == row.state, jobs.c.version == row.version)
        .values(version=row.version + 1, history_seq=row.history_seq + 1, **values)
    )
    if updated.rowcount != 1:
        raise ConflictError(f"job {row.id} changed meanwhile", hint="read it again and retry")
