"""Tenants, principals and tokens: rows, and the views made of them."""

from __future__ import annotations

from typing import Any, NamedTuple

from sqlalchemy import Row, Select, bindparam, func, insert, or_, select, update

from scheduler.model.access import Actor, Role
from scheduler.model.quantity import (
    DEFAULT_QUEUE,
    SYSTEM_TENANT,
    PrincipalId,
    TenantId,
    UtcSeconds,
)
from scheduler.model.view import TenantView, TokenView
from scheduler.store.scoping import storable, visible
from scheduler.store.tables import principals, queues, tenants, tokens
from scheduler.store.transaction import Transaction


class Identity(NamedTuple):
    """Whom a token speaks for."""

    principal: PrincipalId
    name: str
    tenant: TenantId
    role: Role
    read_only: bool


_BY_DIGEST = (
    select(
        principals.c.id,
        principals.c.name,
        principals.c.tenant_id,
        principals.c.role,
        tokens.c.read_only,
        tokens.c.expires_at,
        tokens.c.revoked_at,
    )
    .join(principals, principals.c.id == tokens.c.principal_id)
    .where(tokens.c.sha256 == bindparam("sha256_hex"))
)


def by_digest(tx: Transaction, sha256_hex: str, *, now: UtcSeconds) -> Identity | None:
    """Whom a token's digest speaks for; None when unknown, revoked or expired.

    One look-up in a unique index; comparing digests leaks nothing of the token.
    """
    row = tx.connection.execute(_BY_DIGEST, {"sha256_hex": sha256_hex}).one_or_none()
    if row is None or row.revoked_at is not None:
        return None
    if row.expires_at is not None and row.expires_at <= now:
        return None
    return Identity(
        PrincipalId(row.id), row.name, TenantId(row.tenant_id), Role(row.role), row.read_only
    )


def principal(tx: Transaction, tenant: TenantId, name: str) -> tuple[PrincipalId, Role] | None:
    """The principal of that name in the tenant, with its role."""
    row = tx.connection.execute(
        select(principals.c.id, principals.c.role).where(
            principals.c.tenant_id == tenant, principals.c.name == name
        )
    ).one_or_none()
    return None if row is None else (PrincipalId(row.id), Role(row.role))


def insert_principal(
    tx: Transaction,
    principal_id: PrincipalId,
    tenant: TenantId,
    name: str,
    role: Role,
    *,
    now: UtcSeconds,
) -> None:
    """Add a principal; the caller has checked that the name is free."""
    tx.connection.execute(
        insert(principals),
        {
            "id": principal_id,
            "tenant_id": tenant,
            "name": name,
            "role": role,
            "created_at": now,
        },
    )


def insert_token(
    tx: Transaction,
    token_id: str,
    tenant: TenantId,
    principal_id: PrincipalId,
    *,
    sha256_hex: str,
    read_only: bool,
    description: str,
    expires_at: UtcSeconds | None,
    now: UtcSeconds,
) -> None:
    """Add a token by its digest."""
    tx.connection.execute(
        insert(tokens),
        {
            "id": token_id,
            "tenant_id": tenant,
            "principal_id": principal_id,
            "sha256": sha256_hex,
            "read_only": read_only,
            "created_at": now,
            "expires_at": expires_at,
            "revoked_at": None,
            "description": description,
        },
    )


def _tokens(actor: Actor) -> Select[Any]:
    return (
        select(
            tokens,
            principals.c.name.label("principal_name"),
            principals.c.role,
        )
        .join(principals, principals.c.id == tokens.c.principal_id)
        .where(visible(actor, tokens.c.tenant_id))
    )


def _token_view(row: Row[Any]) -> TokenView:
    return TokenView(
        id=row.id,
        tenant=row.tenant_id,
        principal=row.principal_id,
        principal_name=row.principal_name,
        role=row.role,
        description=row.description,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
    )


def token(tx: Transaction, actor: Actor, token_id: str) -> TokenView | None:
    """One token that the actor may know of."""
    if not storable(token_id):
        return None
    row = tx.connection.execute(_tokens(actor).where(tokens.c.id == token_id)).one_or_none()
    return None if row is None else _token_view(row)


def token_list(tx: Transaction, actor: Actor) -> tuple[TokenView, ...]:
    """Every token the actor may know of, oldest first."""
    found = tx.connection.execute(_tokens(actor).order_by(tokens.c.created_at, tokens.c.id))
    return tuple(_token_view(row) for row in found)


def revoke(tx: Transaction, token_id: str, *, now: UtcSeconds) -> None:
    """Mark the token revoked; a token revoked before keeps its first instant."""
    tx.connection.execute(
        update(tokens)
        .where(tokens.c.id == token_id, tokens.c.revoked_at.is_(None))
        .values(revoked_at=now)
    )


def revoke_sessions(
    tx: Transaction, principal_id: PrincipalId, description: str, *, now: UtcSeconds
) -> None:
    """Revoke every read-only token of the principal that bears this description."""
    tx.connection.execute(
        update(tokens)
        .where(
            tokens.c.principal_id == principal_id,
            tokens.c.read_only.is_(True),
            tokens.c.description == description,
            tokens.c.revoked_at.is_(None),
        )
        .values(revoked_at=now)
    )


def other_admin_tokens(tx: Transaction, token_id: str, *, now: UtcSeconds) -> int:
    """Usable tokens of system administrators besides `token_id`; read-only ones do not count."""
    return tx.connection.execute(
        select(func.count())
        .select_from(tokens.join(principals, principals.c.id == tokens.c.principal_id))
        .where(
            principals.c.tenant_id == SYSTEM_TENANT,
            principals.c.role == Role.ADMIN,
            tokens.c.read_only.is_(False),
            tokens.c.revoked_at.is_(None),
            or_(tokens.c.expires_at.is_(None), tokens.c.expires_at > now),
            tokens.c.id != token_id,
        )
    ).scalar_one()


def tenant(tx: Transaction, tenant_id: TenantId) -> TenantView | None:
    """The tenant of that id."""
    if not storable(tenant_id):
        return None
    row = tx.connection.execute(select(tenants).where(tenants.c.id == tenant_id)).one_or_none()
    return None if row is None else TenantView(row.id, row.name, row.created_at)


def tenant_list(tx: Transaction, actor: Actor) -> tuple[TenantView, ...]:
    """Every tenant the actor may know of, by name."""
    found = tx.connection.execute(
        select(tenants).where(visible(actor, tenants.c.id)).order_by(tenants.c.name)
    )
    return tuple(TenantView(row.id, row.name, row.created_at) for row in found)


def insert_tenant(
    tx: Transaction, tenant_id: TenantId, queue_id: str, *, now: UtcSeconds, revision: int
) -> None:
    """Add a tenant, whose name is its id, with its default queue of weight 1."""
    tx.connection.execute(
        insert(tenants),
        {"id": tenant_id, "name": tenant_id, "created_at": now, "revision": revision},
    )
    insert_default_queue(tx, tenant_id, queue_id, now=now)


def insert_default_queue(
    tx: Transaction, tenant_id: TenantId, queue_id: str, *, now: UtcSeconds
) -> None:
    """Add a tenant's default queue, of weight 1."""
    tx.connection.execute(
        insert(queues),
        {
            "id": queue_id,
            "tenant_id": tenant_id,
            "name": DEFAULT_QUEUE,
            "parent_id": None,
            "weight": 1.0,
            "created_at": now,
        },
    )
