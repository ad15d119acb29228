"""The `ExecutionStore` port over the database: claims, receipts and observations.

Observations are facts read from outside, so `record` folds them into whatever state the job is in;
each transaction first checks that this daemon still leads (I8).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from sqlalchemy import Row, bindparam, or_, select, update

from scheduler.errors import ConflictError
from scheduler.ids import IdSource
from scheduler.model.execution import (
    AttemptObservation,
    ExpectedAttempt,
    Intent,
    IntentKind,
    LaunchOrder,
    Outcome,
    Receipt,
    StopOrder,
)
from scheduler.model.lifecycle import EndCause, JobEvent, JobState
from scheduler.model.quantity import AttemptId, IntentId, JobId, UtcSeconds
from scheduler.store import codec, lease
from scheduler.store.attempts import LAUNCHES, LIVE, OPEN, stop_job
from scheduler.store.outcome import Limits, apply_observation, launch_refused
from scheduler.store.tables import attempts, intents, jobs
from scheduler.store.transaction import Transaction, Transactions
from scheduler.store.transitions import JobMove, apply_event_to_all

AnyRow: TypeAlias = Row[*tuple[Any, ...]]

_CHUNK = 500
_CLAIM = (
    update(intents)
    .where(intents.c.id == bindparam("intent"), intents.c.state == "pending")
    .values(state="claimed", claimed_at=bindparam("at"), epoch=bindparam("by"))
)
_SETTLE = (
    update(intents)
    .where(intents.c.id == bindparam("intent"), intents.c.state == "claimed")
    .values(state=bindparam("becomes"), settled_at=bindparam("at"), message=bindparam("told"))
)
_WITHDRAW = (
    update(intents)
    .where(intents.c.id == bindparam("intent"), intents.c.state == "pending")
    .values(state="void", settled_at=bindparam("at"), message=bindparam("told"))
)
_PENDING = (
    select(intents)
    .where(
        OPEN,
        intents.c.state == "pending",
        or_(intents.c.kind == bindparam("kind"), intents.c.kind == bindparam("other_kind")),
    )
    .order_by(intents.c.created_at, intents.c.id)
    .limit(bindparam("at_most"))
)
_LAUNCH_NOTE = select(intents.c.message).where(
    intents.c.attempt_id == bindparam("attempt"), intents.c.kind == IntentKind.LAUNCH.value
)
_JOBS_AMONG = select(jobs).where(jobs.c.id.in_(bindparam("job_ids", expanding=True)))
_launches = intents.alias("launches")
_stops = intents.alias("stops")
_EXPECTED = (
    select(
        attempts.c.id,
        attempts.c.job_id,
        attempts.c.epoch,
        jobs.c.state,
        _launches.c.state.label("launch_state"),
        _stops.c.order_json.label("stop_order"),
    )
    .join(jobs, jobs.c.id == attempts.c.job_id)
    .outerjoin(
        _launches,
        (_launches.c.attempt_id == attempts.c.id) & (_launches.c.kind == IntentKind.LAUNCH.value),
    )
    .outerjoin(
        _stops,
        (_stops.c.attempt_id == attempts.c.id) & (_stops.c.kind == IntentKind.STOP.value),
    )
    .where(LIVE)
    .order_by(attempts.c.id)
)


class SqlExecutionStore:
    """What executing needs of the store; each call is one transaction.

    Args:
        database: the store.
        epoch: this leader's epoch.
        ids: for new rows.
        free_requeues_max: infrastructure failures in a row before a job is quarantined.
        retry_backoff_max_s: cap of the exponential retry backoff.
        requeue_backoff_s: wait after the first infrastructure failure in a row, doubling.
        requeue_backoff_max_s: cap of that wait.
    """

    def __init__(
        self,
        database: Transactions,
        *,
        epoch: int,
        ids: IdSource,
        free_requeues_max: int,
        retry_backoff_max_s: float,
        requeue_backoff_s: float,
        requeue_backoff_max_s: float,
    ) -> None:
        self._database = database
        self._epoch = epoch
        self._ids = ids
        self._limits = Limits(
            free_requeues_max, retry_backoff_max_s, requeue_backoff_s, requeue_backoff_max_s
        )

    @property
    def epoch(self) -> int:
        """The leader epoch this store acts under; orders to executors carry it."""
        return self._epoch

    async def claim_intents(
        self, kinds: Sequence[IntentKind], limit: int, now: UtcSeconds
    ) -> Sequence[Intent]:
        """Claim up to `limit` pending intents, oldest first; a launch moves its job to LAUNCHING.

        A launch whose job no longer wants to run is voided instead, and its job ends CANCELLED.

        Raises:
            FencedError: another leader has taken over.
        """
        return await self._database.write(
            lambda tx: claim(tx, kinds, limit, epoch=self._epoch, now=now, ids=self._ids)
        )

    async def unsettled(self) -> Sequence[Intent]:
        """Intents that were claimed and whose outcome was never stored, oldest first."""
        return await self._database.read(lambda tx: claimed(tx, self._epoch))

    async def settle_many(
        self, receipts: Sequence[tuple[IntentId, Receipt]], now: UtcSeconds
    ) -> None:
        """Store what became of orders, all or none. Idempotent; UNKNOWN is left to `unsettled`.

        A refused launch frees what was held for it and sends the job back to the queue.

        Raises:
            FencedError: another leader has taken over.
        """
        told = [(of, receipt) for of, receipt in receipts if receipt.outcome is not Outcome.UNKNOWN]
        if told:
            await self._database.write(lambda tx: self._settle(tx, told, now))

    def _settle(
        self, tx: Transaction, told: Sequence[tuple[IntentId, Receipt]], now: UtcSeconds
    ) -> None:
        """Three statements, and those that each refused launch needs."""
        lease.require(tx, self._epoch)
        done = [
            {"intent": of, "becomes": "done", "at": now, "told": receipt.message}
            for of, receipt in told
            if receipt.outcome is Outcome.DONE
        ]
        if done:
            tx.connection.execute(_SETTLE, done)
        for of, receipt in told:
            if receipt.outcome is not Outcome.DONE:
                self._refuse(tx, of, receipt, now)

    def _refuse(
        self, tx: Transaction, intent_id: IntentId, receipt: Receipt, now: UtcSeconds
    ) -> None:
        told = {"becomes": "refused", "at": now, "told": receipt.message}
        if tx.connection.execute(_SETTLE, {"intent": intent_id, **told}).rowcount != 1:
            return
        intent = tx.connection.execute(select(intents).where(intents.c.id == intent_id)).one()
        if intent.kind == IntentKind.LAUNCH:
            launch_refused(tx, AttemptId(intent.attempt_id), receipt.message, self._limits, now)

    async def record_many(
        self, observations: Sequence[AttemptObservation], now: UtcSeconds
    ) -> Sequence[JobState | None]:
        """Fold observations into their jobs' states, all or none; None for what is not new.

        Idempotent.

        Raises:
            FencedError: another leader has taken over.
        """
        return await self._database.write(lambda tx: self._record(tx, observations, now))

    def _record(
        self, tx: Transaction, observations: Sequence[AttemptObservation], now: UtcSeconds
    ) -> tuple[JobState | None, ...]:
        lease.require(tx, self._epoch)
        return tuple(apply_observation(tx, seen, self._limits, now) for seen in observations)

    async def expected(self) -> Sequence[ExpectedAttempt]:
        """Every live attempt, by id."""
        return await self._database.read(expected)


def claim(
    tx: Transaction,
    kinds: Sequence[IntentKind],
    limit: int,
    *,
    epoch: int,
    now: UtcSeconds,
    ids: IdSource,
) -> tuple[Intent, ...]:
    """As `SqlExecutionStore.claim_intents`, inside `tx`.

    Cost: six statements, one more for each `_CHUNK` of jobs, and some for each launch that is
    not claimed after all.
    """
    lease.require(tx, epoch)
    rows = tx.connection.execute(
        _PENDING, {"kind": kinds[0].value, "other_kind": kinds[-1].value, "at_most": limit}
    ).all()
    job_ids = [row.job_id for row in rows if row.kind == IntentKind.LAUNCH]
    job_of: dict[str, AnyRow] = {}
    for start in range(0, len(job_ids), _CHUNK):
        chunk = {"job_ids": job_ids[start : start + _CHUNK]}
        job_of |= {job.id: job for job in tx.connection.execute(_JOBS_AMONG, chunk)}
    taken: list[AnyRow] = []
    starting: list[JobMove] = []
    for row in rows:
        if row.kind == IntentKind.LAUNCH:
            job = job_of[row.job_id]
            if job.state != JobState.ASSIGNED or job.desired != "run":
                _do_not_launch(tx, row, job, epoch=epoch, now=now, ids=ids)
                continue
            starting.append(JobMove(job, AttemptId(row.attempt_id)))
        taken.append(row)
    _take(tx, taken, starting, epoch=epoch, now=now)
    return tuple(_intent(row, epoch) for row in taken)


def _do_not_launch(
    tx: Transaction, row: AnyRow, job: AnyRow, *, epoch: int, now: UtcSeconds, ids: IdSource
) -> None:
    """Withdraw a launch whose job has moved on, or shall stop."""
    if job.state != JobState.ASSIGNED:
        withdrawn = {"at": now, "told": "the job no longer awaits its launch"}
        tx.connection.execute(_WITHDRAW, {"intent": row.id, **withdrawn})
        return
    # A recorded cancel never starts (I10). Nothing was launched, so this ends it.
    stop_job(
        tx,
        job,
        JobEvent.CANCEL,
        cause=EndCause.CANCELLED,
        now=now,
        ids=ids,
        epoch=epoch,
        desired="stop",
    )


def _take(
    tx: Transaction,
    taken: Sequence[AnyRow],
    starting: Sequence[JobMove],
    *,
    epoch: int,
    now: UtcSeconds,
) -> None:
    """Mark these intents as claimed, and the jobs of the launches among them as LAUNCHING.

    Raises:
        ConflictError: one of them changed since it was read.
    """
    if not taken:
        return
    apply_event_to_all(tx, starting, JobEvent.CLAIM, now=now)
    claims = [{"intent": row.id, "at": now, "by": epoch} for row in taken]
    if tx.connection.execute(_CLAIM, claims).rowcount != len(claims):
        raise ConflictError("an intent changed meanwhile", hint="claim again")


def claimed(tx: Transaction, epoch: int) -> tuple[Intent, ...]:
    """Intents that were claimed and never settled, oldest first, as orders of `epoch`."""
    rows = tx.connection.execute(
        select(intents)
        .where(OPEN, intents.c.state == "claimed")
        .order_by(intents.c.created_at, intents.c.id)
    )
    return tuple(_intent(row, epoch) for row in rows)


def _intent(row: AnyRow, epoch: int) -> Intent:
    """The intent as an order of the present leader: executors refuse lower epochs than seen."""
    kind = IntentKind(row.kind)
    order: LaunchOrder | StopOrder
    if kind is IntentKind.LAUNCH:
        order = replace(codec.launch_order(row.order_json), epoch=epoch)
    else:
        order = replace(codec.stop_order(row.order_json), epoch=epoch)
    return Intent(IntentId(row.id), kind, order)


def launch_note(tx: Transaction, attempt_id: AttemptId) -> str:
    """What the executor said of this attempt's launch; "" if nothing. One statement."""
    told = tx.connection.execute(_LAUNCH_NOTE, {"attempt": attempt_id}).scalar_one_or_none()
    return told or ""


def launched_members(
    tx: Transaction, attempt_ids: Sequence[AttemptId]
) -> dict[AttemptId, frozenset[str]]:
    """The `LaunchTask.member`s of these attempts, ended ones too, by attempt.

    Attempts that this store never held are left out. One statement for each `_CHUNK` of them.
    """
    found: dict[AttemptId, frozenset[str]] = {}
    for start in range(0, len(attempt_ids), _CHUNK):
        chunk = {"attempt_ids": attempt_ids[start : start + _CHUNK]}
        for row in tx.connection.execute(LAUNCHES, chunk):
            order = codec.launch_order(row.order_json)
            found[order.attempt_id] = frozenset(task.member for task in order.tasks)
    return found


def expected(tx: Transaction) -> tuple[ExpectedAttempt, ...]:
    """Every live attempt, by id. One statement."""
    return tuple(_expected(row) for row in tx.connection.execute(_EXPECTED))


def _expected(row: AnyRow) -> ExpectedAttempt:
    stop = codec.stop_order(row.stop_order) if row.stop_order else None
    return ExpectedAttempt(
        attempt_id=AttemptId(row.id),
        job_id=JobId(row.job_id),
        state=row.state,
        epoch=row.epoch,
        launch_claimed=row.launch_state not in (None, "pending", "void"),
        stop_cause=None if stop is None else stop.cause,
        stop_grace_s=0.0 if stop is None else stop.grace_s,
    )
