"""Decisions and reason records, and what of them a tenant may read.

Decisions are made for the cluster, over the jobs of all tenants. A tenant reads their figures whole
and of their documents only what names its own jobs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import Column, Row, bindparam, select

from scheduler.model.access import Actor
from scheduler.model.lifecycle import JobState
from scheduler.model.plan import REMEDIES, Reason, ReasonCode, Waiting
from scheduler.model.quantity import DecisionId, JobId, UtcSeconds
from scheduler.model.view import DecisionView, Page
from scheduler.store import codec, paging
from scheduler.store.scoping import storable, visible
from scheduler.store.tables import attempts, decisions, jobs, reasons
from scheduler.store.transaction import Transaction

_SORT = "-revision"
_CHUNK = 500
_REASON = (
    select(reasons.c.document, reasons.c.decision_id, reasons.c.at, decisions.c.gap)
    .outerjoin(decisions, decisions.c.id == reasons.c.decision_id)
    .where(reasons.c.class_key == bindparam("class_key"))
)
_NEWEST = select(decisions.c.revision).order_by(decisions.c.revision.desc()).limit(1)
_OUTSIDE = (
    select(jobs.c.id, reasons.c.document)
    .join(reasons, reasons.c.class_key == jobs.c.class_key)
    .where(jobs.c.state == JobState.PENDING.value, jobs.c.outside_key.is_not(None))
)


@dataclass(frozen=True, slots=True)
class StoredReasons:
    """Why a class of jobs waits, and the decision that said so.

    Attributes:
        gap: proven gap of that decision.
        at: when it was made; the reasons have held since.
    """

    waiting: Waiting
    decision_id: DecisionId
    gap: float | None
    at: UtcSeconds


def reasons_of(tx: Transaction, class_key: str) -> StoredReasons | None:
    """The reason record of a class; None when no decision has left jobs of it waiting."""
    row = tx.connection.execute(_REASON, {"class_key": class_key}).one_or_none()
    if row is None:
        return None
    return StoredReasons(codec.waiting(row.document), row.decision_id, row.gap, row.at)


def newest_revision(tx: Transaction) -> int:
    """The revision of the latest decision; 0 without one. One look at an index."""
    return tx.connection.execute(_NEWEST).scalar_one_or_none() or 0


def why_outside_waits(tx: Transaction) -> dict[JobId, str]:
    """What to tell each waiting gang that somebody else made. One statement, O(such gangs).

    Gangs that were merely left to the next cycle are not told so: it comes in moments.
    """
    said: dict[str, str] = {}
    found: dict[JobId, str] = {}
    for job_id, document in tx.connection.execute(_OUTSIDE):
        if document not in said:
            said[document] = _told(codec.waiting(document).reasons)
        if said[document]:
            found[JobId(job_id)] = said[document]
    return found


def _told(reasons: Iterable[Reason]) -> str:
    """All reasons, and what helps against the limiting one; "" if there is nothing to tell."""
    known = [each for each in reasons if each.code is not ReasonCode.PENDING_EVALUATION]
    if not known:
        return ""
    messages = "; ".join(each.message for each in known)
    return f"{messages}. What helps: {REMEDIES[known[0].code]}."


def page(tx: Transaction, actor: Actor, *, cursor: str | None, limit: int) -> Page[DecisionView]:
    """Decisions, newest first.

    Raises:
        InvalidRequestError: malformed cursor or limit out of range.
    """
    paging.checked_limit(limit)
    position = paging.decode(_SORT, cursor, int, str)
    statement = paging.after(
        select(decisions),
        decisions.c.revision,
        decisions.c.id,
        position,
        descending=True,
        limit=limit,
    )
    rows = list(tx.connection.execute(statement))
    following = None
    if len(rows) > limit:
        last = rows[limit - 1]
        following = paging.encode(_SORT, paging.Position(last.revision, last.id))
    return Page(_views(tx, actor, rows[:limit]), following)


def find(tx: Transaction, actor: Actor, decision_id: DecisionId) -> DecisionView | None:
    """One decision."""
    if not storable(decision_id):
        return None
    rows = list(tx.connection.execute(select(decisions).where(decisions.c.id == decision_id)))
    return _views(tx, actor, rows)[0] if rows else None


def _views(tx: Transaction, actor: Actor, rows: list[Row[Any]]) -> tuple[DecisionView, ...]:
    documents: list[dict[str, Any]] = [orjson.loads(row.document) for row in rows]
    if not actor.cluster_wide:
        documents = _redacted(tx, actor, documents)
    return tuple(
        DecisionView(
            id=row.id,
            at=row.at,
            epoch=row.epoch,
            snapshot_revision=row.snapshot_revision,
            value=row.value,
            bound=row.bound,
            gap=row.gap,
            placed=row.placed,
            refused=row.refused,
            waiting_classes=row.waiting_classes,
            policy=row.policy,
            duration_ms=row.duration_ms,
            document=document,
        )
        for row, document in zip(rows, documents, strict=True)
    )


def _redacted(
    tx: Transaction, actor: Actor, documents: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The documents, cut down to what is named here; a part added later stays hidden until then."""
    named_jobs = {
        entry[key]
        for document in documents
        for part, key in _JOB_PARTS.items()
        for entry in document[part]
    }
    named_attempts = {entry["attempt_id"] for doc in documents for entry in doc["evictions"]}
    own_jobs = _own(tx, actor, jobs.c.id, jobs.c.tenant_id, named_jobs)
    own_attempts = _own(tx, actor, attempts.c.id, attempts.c.tenant_id, named_attempts)
    return [
        {
            # Notes may name anything that was wrong with a plan.
            "solver": {**document["solver"], "notes": []},
            "evictions": list(_own_evictions(document["evictions"], own_jobs, own_attempts)),
            **{
                part: [entry for entry in document[part] if entry["job_id"] in own_jobs]
                for part, key in _JOB_PARTS.items()
                if key == "job_id"
            },
        }
        for document in documents
    ]


_JOB_PARTS = {
    "placements": "job_id",
    "refused": "job_id",
    "reservations": "job_id",
    "evictions": "for_job",
}
"""Lists of a decision's document, and the key by which their entries name a job."""


def _own_evictions(
    evictions: Iterable[Mapping[str, Any]], own_jobs: frozenset[str], own_attempts: frozenset[str]
) -> Iterable[dict[str, Any]]:
    for eviction in evictions:
        ours = eviction["attempt_id"] in own_attempts
        for_us = eviction["for_job"] in own_jobs
        if ours or for_us:
            yield {
                **eviction,
                "attempt_id": eviction["attempt_id"] if ours else None,
                "for_job": eviction["for_job"] if for_us else None,
            }


def _own(
    tx: Transaction, actor: Actor, key: Column[Any], tenant: Column[str], named: set[str]
) -> frozenset[str]:
    """Those of the named objects that the actor may know of."""
    wanted = sorted(named)
    found: set[str] = set()
    for start in range(0, len(wanted), _CHUNK):
        statement = select(key).where(
            key.in_(wanted[start : start + _CHUNK]), visible(actor, tenant)
        )
        found.update(tx.connection.execute(statement).scalars())
    return frozenset(found)
