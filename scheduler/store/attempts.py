"""Opening, stopping and closing attempts: what a job's moves order, done in the same transaction.

Closing is the only way to free what an attempt holds, and it happens only on proof that nothing of
it runs (I6).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    Row,
    and_,
    bindparam,
    insert,
    select,
    text,
    update,
)

from scheduler.ids import IdSource
from scheduler.model.execution import IntentKind, LaunchOrder, RankExit, StopOrder
from scheduler.model.lifecycle import EndCause, Instruction, JobEvent, JobState, Move, move
from scheduler.model.quantity import AttemptId, JobId, UtcSeconds
from scheduler.store import codec
from scheduler.store.tables import allocations, attempts, intents, nodes
from scheduler.store.transaction import Transaction
from scheduler.store.transitions import JobMove, apply_event_to_all, load_job

LIVE = and_(text("attempts.live"), attempts.c.live.is_(True))
"""Live attempts. Said twice: SQLite takes a partial index only for the very words of its WHERE, and
searches it only for an equality; without, it scans the attempts of all time."""
OPEN = text("intents.state IN ('pending', 'claimed')")

_CHUNK = 500
_NAMED = 3
"""Rows that an error names."""
_INSERT_INTENT = insert(intents)
_LIVE_OF_JOB = select(attempts).where(attempts.c.job_id == bindparam("job_id"), LIVE)
_HELD = select(allocations.c.node_id, allocations.c.resource, allocations.c.amount).where(
    allocations.c.attempt_id.in_(bindparam("attempt_ids", expanding=True)),
    allocations.c.live.is_(True),
)
LAUNCHES = select(intents.c.attempt_id, intents.c.order_json).where(
    intents.c.attempt_id.in_(bindparam("attempt_ids", expanding=True)),
    intents.c.kind == IntentKind.LAUNCH.value,
)
_TOUCH = update(attempts).where(attempts.c.id == bindparam("of"))
_CLOSE = (
    update(attempts)
    .where(attempts.c.id == bindparam("of"), attempts.c.live.is_(True))
    .values(live=False)
)
_FREE = (
    update(allocations)
    .where(allocations.c.attempt_id == bindparam("of"), allocations.c.live.is_(True))
    .values(live=False, released_at=bindparam("at"))
)
_GIVE_BACK = (
    update(nodes)
    .where(
        nodes.c.id == bindparam("node"),
        nodes.c.cpu_milli_used >= bindparam("cpu"),
        nodes.c.memory_mib_used >= bindparam("memory"),
    )
    .values(
        cpu_milli_used=nodes.c.cpu_milli_used - bindparam("cpu"),
        memory_mib_used=nodes.c.memory_mib_used - bindparam("memory"),
    )
)
_CLOSE_INTENTS = update(intents).where(
    intents.c.attempt_id == bindparam("of"), intents.c.state == bindparam("was")
)


class LedgerError(Exception):
    """The books contradict themselves: a bug. The transaction must not commit."""


@dataclass(frozen=True, slots=True)
class End:
    """How an attempt ended.

    Attributes:
        at: when, as far as known.
        exit: exit of the rank that decided it, if one did.
    """

    cause: EndCause
    at: UtcSeconds
    exit: RankExit | None = None
    message: str = ""

    @property
    def job_columns(self) -> dict[str, object]:
        """What the job row tells of it."""
        return {
            "end_cause": self.cause.value,
            "exit_code": self.exit.exit_code if self.exit else None,
            "message": self.message,
        }


def live_attempt(tx: Transaction, job_id: JobId) -> Row[Any] | None:
    """The job's live attempt, if it has one (I3: at most one)."""
    return tx.connection.execute(_LIVE_OF_JOB, {"job_id": job_id}).one_or_none()


def stop_job(
    tx: Transaction,
    job: Row[Any] | JobId,
    event: JobEvent,
    *,
    cause: EndCause,
    now: UtcSeconds,
    ids: IdSource,
    epoch: int | None = None,
    desired: str | None = None,
    message: str = "",
) -> Move:
    """Move a job by CANCEL, PREEMPT or TIME_OUT and do what the move orders.

    A job that was never launched ends here; a launched one gets a stop intent, once.

    Args:
        tx: a write transaction.
        job: its row as read in this transaction, or its id.
        event: the event; `cause` says the same to the executor.
        cause: end cause of the attempt.
        now: when.
        ids: for the stop intent.
        epoch: leader epoch that decided; None takes that of the attempt (users decide without).
        desired: new `desired` of the job, `stop` to make a cancel final; None leaves it.
        message: why, for people.

    Raises:
        IllegalMoveError, ConflictError, NotFoundError: as `apply_event`.
    """
    row = load_job(tx, job) if isinstance(job, str) else job
    (moved,) = stop_jobs(
        tx,
        [(row, live_attempt(tx, JobId(row.id)))],
        event,
        cause=cause,
        now=now,
        ids=ids,
        epoch=epoch,
        desired=desired,
        message=message,
    )
    return moved


def stop_jobs(
    tx: Transaction,
    found: Sequence[tuple[Row[Any], Row[Any] | None]],
    event: JobEvent,
    *,
    cause: EndCause,
    now: UtcSeconds,
    ids: IdSource,
    epoch: int | None = None,
    desired: str | None = None,
    message: str = "",
) -> tuple[Move, ...]:
    """As `stop_job`, for the rows of several jobs, each with the row of its live attempt.

    Raises:
        IllegalMoveError, ConflictError: as `apply_event_to_all`.
        LedgerError: as `close_attempts`.

    Cost: about ten statements, however many jobs, and two for each `_CHUNK` of attempts.
    """
    end = End(cause, now, message=message)
    detail = {"cause": cause, "message": message}
    moves = [
        JobMove(
            job,
            None if attempt is None else AttemptId(attempt.id),
            detail,
            _told(job, event, end, desired),
        )
        for job, attempt in found
    ]
    made = apply_event_to_all(tx, moves, event, now=now)
    close: list[tuple[AttemptId, int]] = []
    stop: list[tuple[Row[Any], Row[Any], int]] = []
    for (job, attempt), moved in zip(found, made, strict=True):
        if attempt is None:
            continue
        if Instruction.CLOSE_ATTEMPT in moved.move.instructions:
            close.append((AttemptId(attempt.id), moved.revision))
        if Instruction.REQUEST_STOP in moved.move.instructions:
            stop.append((job, attempt, moved.revision))
    close_attempts(tx, close, end, now=now)
    _order_stops(tx, stop, cause, now=now, ids=ids, epoch=epoch)
    return tuple(moved.move for moved in made)


def _told(job: Row[Any], event: JobEvent, end: End, desired: str | None) -> dict[str, object]:
    """What the job's row tells of the stop."""
    changes: dict[str, object] = {} if desired is None else {"desired": desired}
    orders = move(JobState(job.state), event, f"job {job.id}, version {job.version}").instructions
    if desired == "stop" or Instruction.CLOSE_ATTEMPT in orders:
        changes |= end.job_columns
    return changes


def close_attempt(tx: Transaction, attempt_id: AttemptId, end: End, *, now: UtcSeconds) -> None:
    """End one attempt, by the move that was journalled last, as `close_attempts` does."""
    close_attempts(tx, [(attempt_id, tx.head_revision)], end, now=now)


def close_attempts(
    tx: Transaction, closing: Sequence[tuple[AttemptId, int]], end: End, *, now: UtcSeconds
) -> None:
    """End attempts: free their allocations, give back node sums, withdraw open intents.

    Args:
        tx: a write transaction.
        closing: the attempts, each with the revision of the move that closes it.
        end: how all of them ended.
        now: when their allocations are free again.

    Cost: five statements, and one more for each further `_CHUNK` attempts.

    Raises:
        LedgerError: an attempt is not live, or the sums do not add up.
    """
    if not closing:
        return
    run = tx.connection.execute
    ended = {
        "ended_at": end.at,
        "end_cause": end.cause.value,
        "exit_code": end.exit.exit_code if end.exit else None,
        "exit_signal": end.exit.signal if end.exit else None,
        "message": end.message,
    }
    closed = run(_CLOSE, [{"of": of, "revision": at, **ended} for of, at in closing])
    if closed.rowcount != len(closing):
        named = ", ".join(of for of, _ in closing[:_NAMED])
        raise LedgerError(f"attempt {named} is not live, so it cannot end")
    ids = [of for of, _ in closing]
    _give_back(tx, ids)
    run(_FREE, [{"of": of, "at": now} for of in ids])
    message = f"the attempt ended: {end.cause}"
    for was, becomes in (("pending", "void"), ("claimed", "done")):
        settled = {"was": was, "state": becomes, "settled_at": now, "message": message}
        run(_CLOSE_INTENTS, [{"of": of, **settled} for of in ids])


def _give_back(tx: Transaction, attempt_ids: Sequence[AttemptId]) -> None:
    """Take what these attempts hold off the sums of their nodes.

    Raises:
        LedgerError: the sums do not add up.
    """
    cpu: Counter[str] = Counter()
    memory: Counter[str] = Counter()
    for start in range(0, len(attempt_ids), _CHUNK):
        chunk = attempt_ids[start : start + _CHUNK]
        for held in tx.connection.execute(_HELD, {"attempt_ids": chunk}):
            if held.resource == "cpu":
                cpu[held.node_id] += held.amount
            elif held.resource == "memory":
                memory[held.node_id] += held.amount
    sums = [
        {"node": node_id, "cpu": cpu[node_id], "memory": memory[node_id]}
        for node_id in sorted(cpu.keys() | memory.keys())
    ]
    if sums and tx.connection.execute(_GIVE_BACK, sums).rowcount != len(sums):
        named = ", ".join(str(each["node"]) for each in sums[:_NAMED])
        raise LedgerError(f"node {named} gives back more than is used of it")


def _order_stops(
    tx: Transaction,
    stopping: Sequence[tuple[Row[Any], Row[Any], int]],
    cause: EndCause,
    *,
    now: UtcSeconds,
    ids: IdSource,
    epoch: int | None,
) -> None:
    if not stopping:
        return
    # Snapshots tell of attempts by their revision, and that one is stopping is news.
    tx.connection.execute(
        _TOUCH, [{"of": attempt.id, "revision": revision} for _, attempt, revision in stopping]
    )
    grace_s = _grace_s(tx, [attempt.id for _, attempt, _ in stopping])
    orders = [
        (
            job,
            StopOrder(
                attempt_id=AttemptId(attempt.id),
                epoch=attempt.epoch if epoch is None else epoch,
                cause=cause,
                grace_s=grace_s[attempt.id],
            ),
        )
        for job, attempt, _ in stopping
    ]
    insert_intents(tx, IntentKind.STOP, orders, now=now, ids=ids)


def _grace_s(tx: Transaction, attempt_ids: Sequence[str]) -> dict[str, float]:
    """The grace that each attempt was launched with.

    Not that of the job's document: this version may no longer be able to read it, and whatever runs
    must be able to be stopped.
    """
    found: dict[str, float] = {}
    for start in range(0, len(attempt_ids), _CHUNK):
        chunk = attempt_ids[start : start + _CHUNK]
        for row in tx.connection.execute(LAUNCHES, {"attempt_ids": chunk}):
            found[row.attempt_id] = codec.launch_order(row.order_json).grace_s
    return found


def insert_intents(
    tx: Transaction,
    kind: IntentKind,
    orders: Sequence[tuple[Row[Any], LaunchOrder | StopOrder]],
    *,
    now: UtcSeconds,
    ids: IdSource,
) -> None:
    """Order outside effects (I5), each with its job; they happen only after this commits."""
    if not orders:
        return
    tx.connection.execute(
        _INSERT_INTENT,
        [
            {
                "id": ids.new("i"),
                "tenant_id": job.tenant_id,
                "attempt_id": order.attempt_id,
                "job_id": job.id,
                "kind": kind.value,
                "state": "pending",
                "epoch": order.epoch,
                "order_json": codec.text(order),
                "created_at": now,
                "claimed_at": None,
                "settled_at": None,
                "message": "",
            }
            for job, order in orders
        ],
    )
