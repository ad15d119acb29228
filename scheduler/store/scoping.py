"""Who sees which rows: the one place that turns an actor into a WHERE clause (I12).

Every query for a request passes through `visible`, so a foreign object looks exactly like one
that does not exist.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, true

from scheduler.model.access import Actor

_TEXT_MAX = 255


def visible(actor: Actor, tenant: ColumnElement[str]) -> ColumnElement[bool]:
    """Rows that `actor` may know of: its own tenant's, or all for the system tenant."""
    return true() if actor.cluster_wide else tenant == actor.tenant


def storable(text: str) -> bool:
    """Whether any stored key could equal `text`.

    PostgreSQL refuses NUL characters and every driver refuses lone surrogates; a key from a
    request that holds one names nothing, which is a plain "not found" and no server error.
    """
    return 0 < len(text) <= _TEXT_MAX and text.isprintable()
