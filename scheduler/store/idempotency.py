"""Idempotency keys (I15): one key of one principal makes one job, for as long as it is kept."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import bindparam, delete, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite

from scheduler.model.quantity import JobId, PrincipalId, TenantId, UtcSeconds
from scheduler.store.tables import idempotency
from scheduler.store.transaction import Transaction

# SQLAlchemy forgets the row count of an INSERT unless it is asked to keep it.
_INSERT = {
    dialect: statement.on_conflict_do_nothing().execution_options(preserve_rowcount=True)
    for dialect, statement in (
        ("sqlite", sqlite.insert(idempotency)),
        ("postgresql", postgresql.insert(idempotency)),
    )
}
_FIND = select(
    idempotency.c.body_sha256,
    idempotency.c.job_id,
    idempotency.c.tenant_id,
    idempotency.c.created_at,
).where(
    idempotency.c.principal_id == bindparam("of_principal"),
    idempotency.c.key == bindparam("of_key"),
)
_RENEW = (
    update(idempotency)
    .where(
        idempotency.c.principal_id == bindparam("of_principal"),
        idempotency.c.key == bindparam("of_key"),
    )
    .values(
        tenant_id=bindparam("new_tenant"),
        body_sha256=bindparam("new_body"),
        job_id=bindparam("new_job"),
        created_at=bindparam("new_created"),
    )
)
_KEY = (idempotency.c.principal_id, idempotency.c.key)
_PURGE = delete(idempotency).where(
    tuple_(*_KEY).in_(
        select(*_KEY)
        .where(idempotency.c.created_at < bindparam("expired_before"))
        .order_by(idempotency.c.created_at)
        .limit(bindparam("at_most"))
    )
)

PURGE_EVERY = 32
"""Keys taken for each look at old ones: a statement saved on most submissions."""


@dataclass(frozen=True, slots=True)
class KeyUse:
    """What a key was used for."""

    job_id: JobId
    tenant: TenantId
    body_sha256: str


def claim(
    tx: Transaction,
    principal: PrincipalId,
    key: str,
    use: KeyUse,
    *,
    now: UtcSeconds,
    keep_s: float,
) -> KeyUse | None:
    """Take the key for `use`; the unique index decides between two that try at once.

    Returns:
        None when the key was free (or older than `keep_s`) and is now taken, else what it was
        used for before.

    Cost: one statement for a fresh key.
    """
    values = {
        "principal_id": principal,
        "key": key,
        "tenant_id": use.tenant,
        "body_sha256": use.body_sha256,
        "job_id": use.job_id,
        "created_at": now,
    }
    if tx.connection.execute(_INSERT[tx.dialect], values).rowcount == 1:
        return None
    found = tx.connection.execute(_FIND, {"of_principal": principal, "of_key": key}).one()
    if found.created_at >= now - keep_s:
        return KeyUse(JobId(found.job_id), TenantId(found.tenant_id), found.body_sha256)
    tx.connection.execute(
        _RENEW,
        {
            "of_principal": principal,
            "of_key": key,
            "new_tenant": use.tenant,
            "new_body": use.body_sha256,
            "new_job": use.job_id,
            "new_created": now,
        },
    )
    return None


def purge_due(tx: Transaction) -> bool:
    """Whether to purge now: at every `PURGE_EVERY`-th call on this connection, from the first."""
    calls = tx.connection.info.get("haversack-keys", 0)
    tx.connection.info["haversack-keys"] = calls + 1
    return bool(calls % PURGE_EVERY == 0)


def purge(tx: Transaction, *, before: UtcSeconds, at_most: int) -> int:
    """Forget up to `at_most` keys made before `before`, oldest first; how many were forgotten."""
    return tx.connection.execute(_PURGE, {"expired_before": before, "at_most": at_most}).rowcount
