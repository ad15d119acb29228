"""Committing a plan: the transaction decides, what no longer fits is refused and the rest stays.

Evictions come first, since what was never launched frees its room at once; then the placements
(`scheduler.store.placing`), and last the record of the decision and of why others wait.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from sqlalchemy import Row, bindparam, delete, insert, select

from scheduler.ids import IdSource
from scheduler.model.lifecycle import EndCause, JobEvent, JobState
from scheduler.model.plan import Plan, Waiting
from scheduler.model.ports import CommitReport, DecisionMeta
from scheduler.model.quantity import (
    SYSTEM_TENANT,
    AttemptId,
    DecisionId,
    UtcSeconds,
)
from scheduler.store import codec, lease
from scheduler.store.attempts import stop_jobs
from scheduler.store.placing import place, read_books
from scheduler.store.tables import attempts, decisions, jobs, reasons
from scheduler.store.transaction import Transaction

AnyRow: TypeAlias = Row[*tuple[Any, ...]]

_CHUNK = 500
_LIVE_AMONG = select(attempts.c.id, attempts.c.job_id, attempts.c.epoch).where(
    attempts.c.id.in_(bindparam("attempt_ids", expanding=True)), attempts.c.live.is_(True)
)
_JOBS_AMONG = select(jobs).where(jobs.c.id.in_(bindparam("job_ids", expanding=True)))
_STORED_REASONS = select(reasons.c.class_key, reasons.c.tenant_id, reasons.c.document)
_EVICTABLE = frozenset({JobState.ASSIGNED, JobState.LAUNCHING, JobState.RUNNING})


def commit_plan(
    tx: Transaction,
    plan: Plan,
    *,
    epoch: int,
    decision: DecisionMeta,
    now: UtcSeconds,
    ids: IdSource,
) -> CommitReport:
    """Make a plan real, as far as it still fits.

    Evictions become stop intents; reason records are rewritten only where they changed; a decision
    row is written only when something was placed, refused or evicted or a reason changed.

    Args:
        tx: a write transaction.
        plan: the plan, verified by the caller.
        epoch: the caller's leader epoch (I8).
        decision: how the plan came to be.
        now: when.
        ids: for decision, attempts and intents.

    Cost: about thirty statements, however much the plan holds, and some for each `_CHUNK` of ids.

    Raises:
        FencedError: another leader has taken over; nothing was kept.
    """
    lease.require(tx, epoch)
    decision_id = DecisionId(ids.new("d"))
    evicted = _evict(tx, plan, epoch=epoch, now=now, ids=ids)
    books = read_books(
        tx,
        plan.placements,
        decision_id,
        epoch=epoch,
        now=now,
        ids=ids,
        since=plan.snapshot_revision,
    )
    outcome = place(books, plan.placements)
    placed, refused = outcome.placed, outcome.refused
    told = _reason_changes(tx, plan.waiting)
    if not (placed or refused or evicted or told.changed or told.gone):
        return CommitReport(None)
    report = CommitReport(decision_id, placed, refused, evicted=evicted)
    revision = tx.next_revision(
        tenant=SYSTEM_TENANT,
        kind="decision",
        object_id=decision_id,
        payload={
            "placed": len(placed),
            "refused": len(refused),
            "evicted": len(evicted),
            "value": plan.value,
            "bound": plan.bound,
            "gap": plan.gap,
        },
        at=now,
    )
    _write_reasons(tx, told, decision_id, revision=revision, now=now)
    _write_decision(tx, plan, report, decision, epoch=epoch, revision=revision, now=now)
    return report


def _evict(
    tx: Transaction, plan: Plan, *, epoch: int, now: UtcSeconds, ids: IdSource
) -> tuple[AttemptId, ...]:
    """Order the plan's evictions; an attempt that is on its way out anyway is left alone."""
    rows: dict[str, tuple[AnyRow, AnyRow]] = {}
    wanted = list(dict.fromkeys(eviction.attempt_id for eviction in plan.evictions))
    for start in range(0, len(wanted), _CHUNK):
        chunk = wanted[start : start + _CHUNK]
        live = tx.connection.execute(_LIVE_AMONG, {"attempt_ids": chunk}).all()
        job_ids = [attempt.job_id for attempt in live]
        of = {job.id: job for job in tx.connection.execute(_JOBS_AMONG, {"job_ids": job_ids})}
        rows |= {attempt.id: (of[attempt.job_id], attempt) for attempt in live}
    evicted = tuple(
        attempt_id
        for attempt_id in wanted
        if attempt_id in rows and JobState(rows[attempt_id][0].state) in _EVICTABLE
    )
    stop_jobs(
        tx,
        [rows[attempt_id] for attempt_id in evicted],
        JobEvent.PREEMPT,
        cause=EndCause.PREEMPTED,
        now=now,
        ids=ids,
        epoch=epoch,
        # The decision says for whom; here the owner, who may be a stranger, would read it.
        message="preempted: its resources went to a job that comes first",
    )
    return evicted


@dataclass(frozen=True, slots=True)
class _ReasonChanges:
    """How the stored reason records differ from those of a plan.

    Attributes:
        changed: documents to write, by class.
        gone: classes that no longer wait.
        tenants: tenant of each class that has a record already; a class never changes it.
    """

    changed: Mapping[str, str]
    gone: frozenset[str]
    tenants: Mapping[str, str]


def _reason_changes(tx: Transaction, waiting: Iterable[Waiting]) -> _ReasonChanges:
    stored = {row.class_key: row for row in tx.connection.execute(_STORED_REASONS)}
    wanted = {record.class_key: codec.text(record) for record in waiting}
    changed = {
        key: text
        for key, text in wanted.items()
        if key not in stored or stored[key].document != text
    }
    known = {key: row.tenant_id for key, row in stored.items() if row.tenant_id != SYSTEM_TENANT}
    return _ReasonChanges(changed, frozenset(stored.keys() - wanted.keys()), known)


def _write_reasons(
    tx: Transaction,
    changes: _ReasonChanges,
    decision_id: DecisionId,
    *,
    revision: int,
    now: UtcSeconds,
) -> None:
    old = sorted(changes.gone | changes.changed.keys())
    for start in range(0, len(old), _CHUNK):
        keys = old[start : start + _CHUNK]
        tx.connection.execute(delete(reasons).where(reasons.c.class_key.in_(keys)))
    if not changes.changed:
        return
    tenants = {**changes.tenants, **_tenants_of(tx, changes.changed.keys() - changes.tenants)}
    tx.connection.execute(
        insert(reasons),
        [
            {
                "class_key": key,
                "tenant_id": tenants.get(key, SYSTEM_TENANT),
                "decision_id": decision_id,
                "at": now,
                "document": text,
                "revision": revision,
            }
            for key, text in sorted(changes.changed.items())
        ],
    )


def _tenants_of(tx: Transaction, class_keys: Collection[str]) -> dict[str, str]:
    """Tenant of each class of waiting jobs; a class whose jobs all left meanwhile has none.

    Cost: goes over all waiting jobs, unless no class is asked for.
    """
    if not class_keys:
        return {}
    waiting = tx.connection.execute(
        select(jobs.c.class_key, jobs.c.tenant_id)
        .where(jobs.c.state == JobState.PENDING.value)
        .distinct()
    )
    return {row.class_key: row.tenant_id for row in waiting if row.class_key in class_keys}


def _write_decision(
    tx: Transaction,
    plan: Plan,
    report: CommitReport,
    decision: DecisionMeta,
    *,
    epoch: int,
    revision: int,
    now: UtcSeconds,
) -> None:
    document = {
        "solver": plan.solver,
        "placements": plan.placements,
        "refused": [{"job_id": job_id, "why": why} for job_id, why in report.refused],
        "evictions": plan.evictions,
        "reservations": plan.reservations,
    }
    tx.connection.execute(
        insert(decisions),
        {
            "id": report.decision_id,
            "tenant_id": SYSTEM_TENANT,
            "at": now,
            "epoch": epoch,
            "snapshot_revision": plan.snapshot_revision,
            "revision": revision,
            "value": plan.value,
            "bound": plan.bound,
            "gap": plan.gap,
            "placed": len(report.placed),
            "refused": len(report.refused),
            "waiting_classes": len(plan.waiting),
            "policy": decision.policy,
            "duration_ms": decision.duration_ms,
            "document": codec.text(document),
        },
    )
