"""What cycles decided."""

from __future__ import annotations

from scheduler.errors import NotFoundError
from scheduler.model.access import Actor, Permission
from scheduler.model.quantity import DecisionId
from scheduler.model.view import DecisionView, Page
from scheduler.service import access
from scheduler.store import decisions
from scheduler.store.transaction import Transaction


def list_decisions(
    tx: Transaction, actor: Actor, *, cursor: str | None, limit: int
) -> Page[DecisionView]:
    """Committed decisions, newest first; of their documents only what names the actor's jobs.

    Raises:
        ForbiddenError: the role does not grant it.
        InvalidRequestError: malformed cursor or limit out of range.
    """
    access.require(actor, Permission.JOBS_READ)
    return decisions.page(tx, actor, cursor=cursor, limit=limit)


def get_decision(tx: Transaction, actor: Actor, decision_id: DecisionId) -> DecisionView:
    """One committed decision, cut down as by `list_decisions`.

    Raises:
        ForbiddenError: the role does not grant it.
        NotFoundError: no such decision.
    """
    access.require(actor, Permission.JOBS_READ)
    found = decisions.find(tx, actor, decision_id)
    if found is None:
        raise NotFoundError(f"no decision {decision_id!r}")
    return found
