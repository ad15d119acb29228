"""The journal and the audit log, as tenants may read them."""

from __future__ import annotations

import orjson
from sqlalchemy import or_, select

from scheduler.model.access import Actor
from scheduler.model.quantity import SYSTEM_TENANT
from scheduler.model.view import AuditEntry, JournalEntry, Page
from scheduler.store import paging
from scheduler.store.scoping import visible
from scheduler.store.tables import audit, journal
from scheduler.store.transaction import Transaction

SHARED_KINDS = ("node", "gpu", "decision")
"""Kinds of the system tenant's journal rows that every tenant may see; none names a job."""

_AUDIT_SORT = "-id"


def after(tx: Transaction, actor: Actor, revision: int, *, limit: int) -> tuple[JournalEntry, ...]:
    """Committed changes behind `revision` that the actor may know of, oldest first.

    Cost: O(journal rows behind `revision`) until `limit` visible ones are found.

    Raises:
        InvalidRequestError: limit out of range.
    """
    paging.checked_limit(limit)
    shared = (journal.c.tenant_id == SYSTEM_TENANT) & journal.c.kind.in_(SHARED_KINDS)
    statement = (
        select(journal)
        .where(journal.c.revision > revision, or_(visible(actor, journal.c.tenant_id), shared))
        .order_by(journal.c.revision)
        .limit(limit)
    )
    return tuple(
        JournalEntry(
            revision=row.revision,
            tenant=row.tenant_id,
            at=row.at,
            kind=row.kind,
            object_id=row.object_id,
            payload=orjson.loads(row.payload),
        )
        for row in tx.connection.execute(statement)
    )


def audit_page(
    tx: Transaction, actor: Actor, *, cursor: str | None, limit: int
) -> Page[AuditEntry]:
    """Audited requests that the actor may know of, newest first.

    Raises:
        InvalidRequestError: malformed cursor or limit out of range.
    """
    paging.checked_limit(limit)
    position = paging.decode(_AUDIT_SORT, cursor, int, int)
    statement = paging.after(
        select(audit).where(visible(actor, audit.c.tenant_id)),
        audit.c.id,
        audit.c.id,
        position,
        descending=True,
        limit=limit,
    )
    rows = tx.connection.execute(statement).all()
    entries = tuple(
        AuditEntry(
            id=row.id,
            at=row.at,
            tenant=row.tenant_id,
            principal=row.principal_id,
            action=row.action,
            object_id=row.object_id,
            outcome=row.outcome,
            detail=orjson.loads(row.detail),
        )
        for row in rows[:limit]
    )
    following = None
    if len(rows) > limit:
        following = paging.encode(_AUDIT_SORT, paging.Position(entries[-1].id, entries[-1].id))
    return Page(entries, following)
