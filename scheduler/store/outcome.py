"""What an observation means for a job: which moves follow, and how an attempt ends.

The rules of the lifecycle's way out, in one place:
- a recorded cancel never starts again: whatever else ended the attempt, the job ends CANCELLED,
  unless it had finished its work first;
- infrastructure and lost requeue for free after a backoff; a limit in a row, then quarantine;
- the user's own failure spends retries, with exponential backoff; a gang that somebody else made
  has none, as its makers replace what failed;
- a stop that was ordered decides the end, unless the exit was seen first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from sqlalchemy import Row, bindparam, select, update

from scheduler.model.execution import AttemptObservation, IntentKind, Phase
from scheduler.model.lifecycle import EndCause, Instruction, JobEvent, JobState
from scheduler.model.quantity import AttemptId, JobId, UtcSeconds
from scheduler.store import codec
from scheduler.store.attempts import End, close_attempt
from scheduler.store.documents import program
from scheduler.store.tables import attempts, intents, jobs
from scheduler.store.transaction import Transaction
from scheduler.store.transitions import apply_event

AnyRow: TypeAlias = Row[*tuple[Any, ...]]
_E, _S = JobEvent, JobState

_LIVE = select(attempts).where(attempts.c.id == bindparam("attempt"), attempts.c.live.is_(True))
_JOB = select(jobs).where(jobs.c.id == bindparam("job"))
_STARTED = {
    table: update(table).where(table.c.id == bindparam("of")).values(started_at=bindparam("since"))
    for table in (attempts, jobs)
}
_STOP_ORDER = select(intents.c.order_json).where(
    intents.c.attempt_id == bindparam("attempt"), intents.c.kind == IntentKind.STOP.value
)


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of requeues (I11).

    Attributes:
        free_requeues_max: infrastructure failures in a row before a job is quarantined.
        retry_backoff_max_s: cap of the exponential retry backoff.
        requeue_backoff_s: wait after the first infrastructure failure in a row; it doubles with
            each, so that a broken host does not use up all free requeues in a second.
        requeue_backoff_max_s: cap of that wait.
    """

    free_requeues_max: int
    retry_backoff_max_s: float
    requeue_backoff_s: float
    requeue_backoff_max_s: float


@dataclass(frozen=True, slots=True)
class _Step:
    """One move, and the job columns it changes."""

    event: JobEvent
    changes: Mapping[str, object] = field(default_factory=dict)


def apply_observation(
    tx: Transaction, seen: AttemptObservation, limits: Limits, now: UtcSeconds
) -> JobState | None:
    """Fold `seen` into the job's state.

    Returns:
        The job's new state, or None when the observation told nothing new: the attempt is unknown
        or over, or the job already stands there.

    Cost: one statement when there is nothing new; about ten when the attempt ends.
    """
    attempt = _live(tx, seen.attempt_id)
    if attempt is None:
        return None
    job = _job(tx, attempt)
    state = JobState(job.state)
    if seen.phase in (Phase.RUNNING, Phase.EXITED):
        _note_start(tx, attempt, job, seen.started_at)
        if state is _S.ASSIGNED:
            _launch_is_done(tx, attempt, now)
    if seen.phase is Phase.RUNNING:
        return _move(tx, attempt, _steps_to_running(state), now)
    if seen.phase is Phase.UNKNOWN:
        silent = state in (_S.LAUNCHING, _S.RUNNING)
        return _move(tx, attempt, [_Step(_E.SILENCE)] if silent else [], now)
    if seen.phase is Phase.EXITED:
        end = _end_of(seen, now)
        return _finish(tx, attempt, job, end, limits, now)
    if seen.phase in (Phase.VANISHED, Phase.ABSENT) and state is not _S.ASSIGNED:
        # For an attempt that nobody launched yet, absence is no news.
        end = End(EndCause.LOST, now, message=seen.message or "it ended without an exit record")
        return _finish(tx, attempt, job, end, limits, now)
    return None


def launch_refused(
    tx: Transaction, attempt_id: AttemptId, why: str, limits: Limits, now: UtcSeconds
) -> JobState | None:
    """End an attempt whose launch the executor refused: nothing of it runs or will run."""
    attempt = _live(tx, attempt_id)
    if attempt is None:
        return None
    job = _job(tx, attempt)
    end = End(EndCause.INFRASTRUCTURE, now, message=f"launch refused: {why}")
    return _finish(tx, attempt, job, end, limits, now)


def _live(tx: Transaction, attempt_id: AttemptId) -> AnyRow | None:
    return tx.connection.execute(_LIVE, {"attempt": attempt_id}).one_or_none()


def _job(tx: Transaction, attempt: AnyRow) -> AnyRow:
    return tx.connection.execute(_JOB, {"job": attempt.job_id}).one()


def _note_start(
    tx: Transaction, attempt: AnyRow, job: AnyRow, started_at: UtcSeconds | None
) -> None:
    """Remember when the attempt started, and the job with its first."""
    if started_at is None or attempt.started_at is not None:
        return
    tx.connection.execute(_STARTED[attempts], {"of": attempt.id, "since": started_at})
    if job.started_at is None:
        tx.connection.execute(_STARTED[jobs], {"of": job.id, "since": started_at})


def _launch_is_done(tx: Transaction, attempt: AnyRow, now: UtcSeconds) -> None:
    """Settle a launch that was carried out although no claim of it is stored."""
    tx.connection.execute(
        update(intents)
        .where(intents.c.attempt_id == attempt.id, intents.c.kind == IntentKind.LAUNCH.value)
        .values(state="done", settled_at=now, message="found running")
    )


def _steps_to_running(state: JobState) -> list[_Step]:
    """Moves from `state` to RUNNING; none where it is there or on its way out.

    An ASSIGNED job that runs was launched by a leader whose claim we lost (a restored backup).
    """
    return {
        _S.ASSIGNED: [_Step(_E.CLAIM), _Step(_E.START)],
        _S.LAUNCHING: [_Step(_E.START)],
        _S.SUSPECT: [_Step(_E.RETURN)],
    }.get(state, [])


def _end_of(seen: AttemptObservation, now: UtcSeconds) -> End:
    failure = seen.first_failure
    decisive = failure or (seen.ranks[0] if seen.ranks else None)
    message = seen.message
    if not message and failure is not None:
        how = f"signal {failure.signal}" if failure.signal else f"exit code {failure.exit_code}"
        message = f"rank {failure.rank} ended with {how}"
    return End(
        cause=seen.cause or EndCause.INFRASTRUCTURE,
        at=now if seen.ended_at is None else seen.ended_at,
        exit=decisive,
        message=message,
    )


def _finish(
    tx: Transaction, attempt: AnyRow, job: AnyRow, end: End, limits: Limits, now: UtcSeconds
) -> JobState | None:
    """Move the job along its way out and close the attempt, which is proved dead."""
    state = JobState(job.state)
    stop_cause = _stop_cause(tx, AttemptId(attempt.id))
    if state is _S.ASSIGNED and end.cause is EndCause.INFRASTRUCTURE:
        return _move(tx, attempt, [_Step(_E.REFUSE)], now, end)
    if state is _S.STOPPING:
        steps = [_stopped(job, end, stop_cause)]
    elif end.cause.free_requeue and end.cause is not EndCause.PREEMPTED:
        steps = _lost(job, state, limits, now)
    else:
        steps = [*_steps_to_running(state), *_exited(job, end, limits, now)]
    return _move(tx, attempt, steps, now, _told(end, steps[-1].event))


def _told(end: End, last: JobEvent) -> End:
    """The end as the books tell it: a stop that was ordered names the cause."""
    ordered = {
        _E.STOPPED_CANCELLED: EndCause.CANCELLED,
        _E.STOPPED_PREEMPTED: EndCause.PREEMPTED,
        _E.STOPPED_TIMED_OUT: EndCause.TIMED_OUT,
        _E.EXIT_OK: EndCause.COMPLETED,
    }
    return End(ordered.get(last, end.cause), end.at, end.exit, end.message)


def _stop_cause(tx: Transaction, attempt_id: AttemptId) -> EndCause | None:
    document = tx.connection.execute(_STOP_ORDER, {"attempt": attempt_id}).scalar_one_or_none()
    return None if document is None else codec.stop_order(document).cause


def _stopped(job: AnyRow, end: End, stop_cause: EndCause | None) -> _Step:
    """The move out of STOPPING."""
    if end.cause is EndCause.COMPLETED:
        return _Step(_E.EXIT_OK)
    if job.desired == "stop":
        return _Step(_E.STOPPED_CANCELLED)
    if EndCause.TIMED_OUT in (end.cause, stop_cause):
        return _Step(_E.STOPPED_TIMED_OUT)
    if stop_cause is EndCause.PREEMPTED:
        return _Step(_E.STOPPED_PREEMPTED)
    return _Step(_E.STOPPED_CANCELLED)


def _cancelled() -> list[_Step]:
    return [_Step(_E.CANCEL), _Step(_E.STOPPED_CANCELLED)]


def _lost(job: AnyRow, state: JobState, limits: Limits, now: UtcSeconds) -> list[_Step]:
    """Moves after an infrastructure failure: requeue for free, up to a limit."""
    if job.desired == "stop":
        return _cancelled()
    way = [] if state is _S.SUSPECT else [_Step(_E.SILENCE)]
    way.append(_Step(_E.PROVE_DEATH))
    failures = job.free_requeues + 1
    if failures >= limits.free_requeues_max:
        return [*way, _Step(_E.QUARANTINE, {"free_requeues": failures})]
    wait_s = min(limits.requeue_backoff_s * 2.0**job.free_requeues, limits.requeue_backoff_max_s)
    changes = {"free_requeues": failures, "eligible_at": now + wait_s}
    return [*way, _Step(_E.REQUEUE, changes)]


def _exited(job: AnyRow, end: End, limits: Limits, now: UtcSeconds) -> list[_Step]:
    """Moves from RUNNING after an exit that the launcher recorded."""
    if end.cause is EndCause.COMPLETED:
        return [_Step(_E.EXIT_OK)]
    if job.desired == "stop" or end.cause is EndCause.CANCELLED:
        return _cancelled()
    if end.cause is EndCause.TIMED_OUT:
        return [_Step(_E.TIME_OUT), _Step(_E.STOPPED_TIMED_OUT)]
    if end.cause is EndCause.PREEMPTED:
        return [_Step(_E.PREEMPT), _Step(_E.STOPPED_PREEMPTED)]
    retry = program(job.document).retry
    if job.retries_used >= retry.max_retries:
        return [_Step(_E.EXIT_FAILED)]
    wait_s = min(retry.backoff_s * 2.0**job.retries_used, limits.retry_backoff_max_s)
    changes = {
        "retries_used": job.retries_used + 1,
        "eligible_at": now + wait_s,
        # The job got as far as its own failure: earlier failures below it were not in a row.
        "free_requeues": 0,
    }
    return [_Step(_E.EXIT_RETRY, changes)]


def _move(
    tx: Transaction,
    attempt: AnyRow,
    steps: list[_Step],
    now: UtcSeconds,
    end: End | None = None,
) -> JobState | None:
    """Make the moves; where one orders it, close the attempt with `end`.

    Stops that a move on the way orders are left out: with `end`, the end is already proved.
    """
    state: JobState | None = None
    attempt_id = AttemptId(attempt.id)
    for step in steps:
        last = step is steps[-1]
        changes = dict(step.changes)
        detail: dict[str, object] = {}
        if end is not None and last:
            changes |= end.job_columns
            detail = {
                "cause": end.cause,
                "exit_code": end.exit.exit_code if end.exit else None,
                "signal": end.exit.signal if end.exit else None,
                "message": end.message,
            }
        found = apply_event(
            tx,
            JobId(attempt.job_id),
            step.event,
            now=now,
            attempt_id=attempt_id,
            detail=detail,
            changes=changes,
        )
        state = found.to
        if end is not None and Instruction.CLOSE_ATTEMPT in found.instructions:
            close_attempt(tx, attempt_id, end, now=now)
    return state
