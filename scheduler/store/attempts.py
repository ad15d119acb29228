"""Opening, stopping and closing attempts: what a job's moves order, done in the same transaction.

Closing is the only way to free what an attempt holds, and it happens only on proof that nothing of
it runs (I6).
"""

from __future__ import annotations

from collections import Counter
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
from scheduler.jobspec import parse_job_json
from scheduler.model.execution import IntentKind, LaunchOrder, RankExit, StopOrder
from scheduler.model.lifecycle import EndCause, Instruction, JobEvent, JobState, Move, move
from scheduler.model.quantity import AttemptId, IntentId, JobId, UtcSeconds
from scheduler.store import codec
from scheduler.store.tables import allocations, attempts, intents, nodes
from scheduler.store.transaction import Transaction
from scheduler.store.transitions import apply_event, load_job

LIVE = and_(text("attempts.live"), attempts.c.live.is_(True))
"""Live attempts. Said twice: SQLite takes a partial index only for the very words of its WHERE, and
searches it only for an equality; without, it scans the attempts of all time."""
OPEN = text("intents.state IN ('pending', 'claimed')")

_INSERT_INTENT = insert(intents)
_LIVE_OF_JOB = select(attempts).where(attempts.c.job_id == bindparam("job_id"), LIVE)
_HELD = select(allocations.c.node_id, allocations.c.resource, allocations.c.amount).where(
    allocations.c.attempt_id == bindparam("attempt_id"), allocations.c.live.is_(True)
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
    attempt = live_attempt(tx, JobId(row.id))
    orders = move(JobState(row.state), event, f"job {row.id}, version {row.version}").instructions
    end = End(cause, now, message=message)
    changes: dict[str, object] = {} if desired is None else {"desired": desired}
    if desired == "stop" or Instruction.CLOSE_ATTEMPT in orders:
        changes |= end.job_columns
    found = apply_event(
        tx,
        row,
        event,
        now=now,
        attempt_id=None if attempt is None else AttemptId(attempt.id),
        detail={"cause": cause, "message": message},
        changes=changes,
    )
    if attempt is not None and Instruction.CLOSE_ATTEMPT in orders:
        close_attempt(tx, AttemptId(attempt.id), end, now=now)
    if attempt is not None and Instruction.REQUEST_STOP in orders:
        _order_stop(tx, row, attempt, cause, now=now, ids=ids, epoch=epoch)
    return found


def close_attempt(tx: Transaction, attempt_id: AttemptId, end: End, *, now: UtcSeconds) -> None:
    """End an attempt: free its allocations, give back node sums, withdraw open intents.

    Cost: five statements and one per node.

    Raises:
        LedgerError: the attempt is not live, or the sums do not add up.
    """
    connection = tx.connection
    closed = connection.execute(
        update(attempts)
        .where(attempts.c.id == attempt_id, attempts.c.live.is_(True))
        .values(
            live=False,
            ended_at=end.at,
            end_cause=end.cause.value,
            exit_code=end.exit.exit_code if end.exit else None,
            exit_signal=end.exit.signal if end.exit else None,
            message=end.message,
            # The move that closes it was journalled just before.
            revision=tx.head_revision,
        )
    )
    if closed.rowcount != 1:
        raise LedgerError(f"attempt {attempt_id} is not live, so it cannot end")
    cpu: Counter[str] = Counter()
    memory: Counter[str] = Counter()
    for held in connection.execute(_HELD, {"attempt_id": attempt_id}):
        if held.resource == "cpu":
            cpu[held.node_id] += held.amount
        elif held.resource == "memory":
            memory[held.node_id] += held.amount
    connection.execute(_FREE, {"of": attempt_id, "at": now})
    for node_id in sorted(cpu.keys() | memory.keys()):
        given = connection.execute(
            _GIVE_BACK, {"node": node_id, "cpu": cpu[node_id], "memory": memory[node_id]}
        )
        if given.rowcount != 1:
            raise LedgerError(f"node {node_id} gives back more than is used of it")
    for was, becomes in (("pending", "void"), ("claimed", "done")):
        connection.execute(
            _CLOSE_INTENTS,
            {
                "of": attempt_id,
                "was": was,
                "state": becomes,
                "settled_at": now,
                "message": f"the attempt ended: {end.cause}",
            },
        )


def _order_stop(
    tx: Transaction,
    job: Row[Any],
    attempt: Row[Any],
    cause: EndCause,
    *,
    now: UtcSeconds,
    ids: IdSource,
    epoch: int | None,
) -> None:
    spec, _ = parse_job_json(job.document)
    order = StopOrder(
        attempt_id=AttemptId(attempt.id),
        epoch=attempt.epoch if epoch is None else epoch,
        cause=cause,
        grace_s=spec.checkpoint.grace_s,
    )
    insert_intent(tx, job.tenant_id, JobId(job.id), IntentKind.STOP, order, now=now, ids=ids)


def insert_intent(
    tx: Transaction,
    tenant: str,
    job_id: JobId,
    kind: IntentKind,
    order: LaunchOrder | StopOrder,
    *,
    now: UtcSeconds,
    ids: IdSource,
) -> IntentId:
    """Order an outside effect (I5); it happens only after this transaction commits."""
    intent_id = IntentId(ids.new("i"))
    tx.connection.execute(
        _INSERT_INTENT,
        {
            "id": intent_id,
            "tenant_id": tenant,
            "attempt_id": order.attempt_id,
            "job_id": job_id,
            "kind": kind.value,
            "state": "pending",
            "epoch": order.epoch,
            "order_json": codec.text(order),
            "created_at": now,
            "claimed_at": None,
            "settled_at": None,
            "message": "",
        },
    )
    return intent_id
