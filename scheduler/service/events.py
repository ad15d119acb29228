"""What happened: the journal for everyone, the audit log for operators."""

from __future__ import annotations

from collections.abc import Mapping

from scheduler.model.access import Actor, Permission
from scheduler.model.quantity import SYSTEM_TENANT, PrincipalId, UtcSeconds
from scheduler.model.view import AuditEntry, JournalEntry, Page
from scheduler.service import access
from scheduler.store import events
from scheduler.store.transaction import Transaction

ANONYMOUS = PrincipalId("anonymous")
"""Who is audited when nobody was authenticated."""

_OBJECT_MAX = 128
_ACTION_MAX = 64


def events_after(
    tx: Transaction, actor: Actor, revision: int, *, limit: int
) -> tuple[JournalEntry, ...]:
    """Committed changes behind `revision`, oldest first: the actor's tenant's and the cluster's.

    Raises:
        InvalidRequestError: limit out of range.
    """
    return events.after(tx, actor, revision, limit=limit)


def head_revision(tx: Transaction) -> int:
    """The journal revision that this transaction sees."""
    return tx.head_revision


def list_audit(
    tx: Transaction, actor: Actor, *, cursor: str | None, limit: int
) -> Page[AuditEntry]:
    """Audited requests, newest first.

    Raises:
        ForbiddenError: the role does not grant it.
        InvalidRequestError: malformed cursor or limit out of range.
    """
    access.require(actor, Permission.AUDIT_READ)
    return events.audit_page(tx, actor, cursor=cursor, limit=limit)


def audit_denied(
    tx: Transaction,
    actor: Actor | None,
    action: str,
    object_id: str,
    detail: Mapping[str, object],
    now: UtcSeconds,
) -> None:
    """Record a request that was refused; in a transaction of its own, as the other rolled back.

    Args:
        tx: a write transaction.
        actor: who asked, or None when nobody was authenticated.
        action: what was asked, for example `jobs.cancel`.
        object_id: the object's id as the caller wrote it; cut and cleaned, it comes from outside.
        detail: why it was refused; never a secret.
        now: the instant.
    """
    cleaned = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in object_id)
    tx.audit(
        tenant=SYSTEM_TENANT if actor is None else actor.tenant,
        principal=ANONYMOUS if actor is None else actor.principal,
        action=action[:_ACTION_MAX],
        object_id=cleaned[:_OBJECT_MAX],
        outcome="denied",
        detail=detail,
        at=now,
    )
