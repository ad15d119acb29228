"""The one place that moves jobs from state to state.

Each move is a guarded UPDATE, a gapless history row and a journal row, in one transaction (I2, I9);
many moves by one event share their statements.
What a move orders besides (`Move.instructions`) is carried out by `scheduler.store.attempts`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from sqlalchemy import Row, Update, bindparam, insert, select, update

from scheduler.errors import ConflictError, NotFoundError
from scheduler.model.lifecycle import JobEvent, JobState, Move, move
from scheduler.model.quantity import AttemptId, JobId, UtcSeconds
from scheduler.store import codec
from scheduler.store.tables import history, jobs
from scheduler.store.transaction import Transaction

_INSERT_HISTORY = insert(history)
_NO_DETAIL: Mapping[str, object] = {}
_NAMED = 3
"""Jobs that an error names."""


def load_job(tx: Transaction, job_id: JobId) -> Row[Any]:
    """The job's row.

    Raises:
        NotFoundError: there is no such job.
    """
    row = tx.connection.execute(select(jobs).where(jobs.c.id == job_id)).one_or_none()
    if row is None:
        raise NotFoundError(f"there is no job {job_id}")
    return row


@dataclass(frozen=True, slots=True)
class JobMove:
    """One job to move.

    Attributes:
        job: its row as read in this transaction; stale after the move.
        attempt_id: the attempt it happens to, for the history.
        detail: what else the history should tell.
        changes: further columns to set in the same UPDATE.
    """

    job: Row[Any]
    attempt_id: AttemptId | None = None
    detail: Mapping[str, object] = field(default_factory=dict)
    changes: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Moved:
    """A move that was made, and the revision it was journalled under."""

    move: Move
    revision: int


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
    """Move one job, given by its row or its id, as `apply_event_to_all` does.

    Raises:
        IllegalMoveError, ConflictError: as `apply_event_to_all`.
        NotFoundError: there is no such job.

    Cost: two statements, one more when given an id.
    """
    row = load_job(tx, job) if isinstance(job, str) else job
    (moved,) = apply_event_to_all(tx, [JobMove(row, attempt_id, detail, changes)], event, now=now)
    return moved.move


def apply_event_to_all(
    tx: Transaction, moves: Sequence[JobMove], event: JobEvent, *, now: UtcSeconds
) -> tuple[Moved, ...]:
    """Move jobs; the caller carries out what the returned moves order.

    A terminal state sets `finished_at`; leaving quarantine forgives past infrastructure failures.

    Args:
        tx: a write transaction.
        moves: the jobs, each at most once, in the order in which they are journalled.
        event: what happened to every one of them.
        now: when.

    Raises:
        IllegalMoveError: the table has no such move.
        ConflictError: a row changed since it was read. Which one is not known when there are
            several, and the others have moved: the caller's savepoint must undo them.

    Cost: one statement for each set of changed columns, and one for the history.
    """
    legal = [move(JobState(each.job.state), event, _story(each.job)) for each in moves]
    made: list[Moved] = []
    history_rows: list[dict[str, object]] = []
    job_rows: dict[tuple[str, ...], list[dict[str, object]]] = {}
    for wanted, found in zip(moves, legal, strict=True):
        row = wanted.job
        revision = _journal(tx, wanted, event, found, now)
        made.append(Moved(found, revision))
        columns = {**_columns(row.state, found.to, now=now), "revision": revision, **wanted.changes}
        job_rows.setdefault(tuple(columns), []).append(
            {"of_job": row.id, "was_state": row.state, "was_version": row.version}
            | {f"new_{name}": value for name, value in columns.items()}
        )
        history_rows.append(_history(wanted, event, found, revision, now))
    for names, rows in job_rows.items():
        if tx.connection.execute(_guarded(names), rows).rowcount != len(rows):
            ids = ", ".join(str(row["of_job"]) for row in rows[:_NAMED])
            told = ids if len(rows) <= _NAMED else f"{ids} or another of {len(rows)}"
            raise ConflictError(f"job {told} changed meanwhile", hint="read it again and retry")
    if history_rows:
        tx.connection.execute(_INSERT_HISTORY, history_rows)
    return tuple(made)


def _story(row: Row[Any]) -> str:
    return f"job {row.id}, version {row.version}"


def _journal(
    tx: Transaction, wanted: JobMove, event: JobEvent, found: Move, now: UtcSeconds
) -> int:
    row = wanted.job
    payload = {
        "state": found.to,
        "event": event,
        "name": row.name,
        "queue": row.queue,
        "version": row.version + 1,
        "attempt_id": wanted.attempt_id,
    }
    return tx.next_revision(
        tenant=row.tenant_id, kind="job", object_id=row.id, payload=payload, at=now
    )


def _history(
    wanted: JobMove, event: JobEvent, found: Move, revision: int, now: UtcSeconds
) -> dict[str, object]:
    row = wanted.job
    return {
        "job_id": row.id,
        "seq": row.history_seq + 1,
        "tenant_id": row.tenant_id,
        "at": now,
        "from_state": row.state,
        "to_state": found.to.value,
        "event": event.value,
        "attempt_id": wanted.attempt_id,
        "detail": codec.text(wanted.detail),
        "revision": revision,
    }


def _columns(state: str, to: JobState, *, now: UtcSeconds) -> dict[str, object]:
    """What a move from `state` to `to` alone says about the job's row."""
    columns: dict[str, object] = {"state": to.value}
    if to.terminal:
        columns["finished_at"] = now
    if state == JobState.QUARANTINED:
        columns["free_requeues"] = 0
    return columns


@cache
def _guarded(names: tuple[str, ...]) -> Update:
    """The UPDATE that writes these columns and the next version, if the job still is as read."""
    return (
        update(jobs)
        .where(
            jobs.c.id == bindparam("of_job"),
            jobs.c.state == bindparam("was_state"),
            jobs.c.version == bindparam("was_version"),
        )
        .values(
            version=jobs.c.version + 1,
            history_seq=jobs.c.history_seq + 1,
            **{name: bindparam(f"new_{name}") for name in names},
        )
    )
