"""Who may enter: tokens, principals and tenants."""

from __future__ import annotations

import re

from scheduler.errors import ConflictError, ForbiddenError, InvalidRequestError, NotFoundError
from scheduler.ids import IdSource
from scheduler.model.access import Actor, Permission, Role
from scheduler.model.quantity import SYSTEM_TENANT, PrincipalId, TenantId, UtcSeconds
from scheduler.model.view import TenantView, TokenView
from scheduler.service import access
from scheduler.store import identity
from scheduler.store.identity import Identity
from scheduler.store.transaction import Transaction

BROWSER_SESSION = "browser session"
"""Description of the tokens behind browser sessions: they end with any other of their principal."""

_DESCRIPTION_MAX = 256
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
"""A DNS label, so that a tenant can become a Kubernetes namespace and a header value."""
_PRINCIPAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")


def authenticate(tx: Transaction, sha256_hex: str, *, now: UtcSeconds) -> Identity | None:
    """Whom the token of this digest speaks for; None when unknown, revoked or expired.

    Cost: one look-up in a unique index.
    """
    return identity.by_digest(tx, sha256_hex, now=now)


def create_token(
    tx: Transaction,
    actor: Actor,
    *,
    tenant: TenantId,
    name: str,
    role: Role,
    description: str,
    expires_at: UtcSeconds | None,
    sha256_hex: str,
    read_only: bool,
    now: UtcSeconds,
    ids: IdSource,
) -> TokenView:
    """Issue a token for the principal `name` of `tenant`, which is made if there is none.

    Only the digest comes here; the caller shows the token itself once and forgets it.

    Raises:
        ForbiddenError: the actor may not grant that role there; nobody grants above themselves.
        NotFoundError: no such tenant for this actor.
        ConflictError: the principal exists with another role.
        InvalidRequestError: unusable name or description, or it has expired already.
    """
    access.require_change(actor, Permission.TOKENS_ADMIN)
    if not actor.cluster_wide and tenant != actor.tenant:
        raise _no_tenant(tenant)
    if not actor.may_grant(tenant, role):
        raise ForbiddenError(
            f"role {actor.role} of tenant {actor.tenant} may not grant {role} in tenant {tenant}"
        )
    if identity.tenant(tx, tenant) is None:
        raise _no_tenant(tenant)
    _check_token(name, description, expires_at, now)
    principal_id = _principal(tx, tenant, name, role, now=now, ids=ids)
    token_id = ids.new("t")
    identity.insert_token(
        tx,
        token_id,
        tenant,
        principal_id,
        sha256_hex=sha256_hex,
        read_only=read_only,
        description=description,
        expires_at=expires_at,
        now=now,
    )
    tx.audit(
        tenant=tenant,
        principal=actor.principal,
        action="tokens.create",
        object_id=token_id,
        outcome="done",
        detail={"name": name, "role": role.value, "read_only": read_only},
        at=now,
    )
    return _token(tx, actor, token_id)


def _check_token(
    name: str, description: str, expires_at: UtcSeconds | None, now: UtcSeconds
) -> None:
    if _PRINCIPAL.fullmatch(name) is None:
        raise InvalidRequestError(
            "name must be 1 to 64 letters, digits or ._@+- and start with a letter or digit"
        )
    if len(description) > _DESCRIPTION_MAX or (description and not description.isprintable()):
        raise InvalidRequestError(
            f"description must be at most {_DESCRIPTION_MAX} printable characters"
        )
    if expires_at is not None and not expires_at > now:
        raise InvalidRequestError("expires_at must be in the future")


def _principal(
    tx: Transaction, tenant: TenantId, name: str, role: Role, *, now: UtcSeconds, ids: IdSource
) -> PrincipalId:
    known = identity.principal(tx, tenant, name)
    if known is None:
        principal_id = PrincipalId(ids.new("p"))
        identity.insert_principal(tx, principal_id, tenant, name, role, now=now)
        return principal_id
    principal_id, has = known
    if has is not role:
        raise ConflictError(
            f"{name} of tenant {tenant} exists with role {has}",
            hint="a principal has one role: take another name for another role",
        )
    return principal_id


def _no_tenant(tenant: TenantId) -> NotFoundError:
    return NotFoundError(f"no tenant {tenant!r}")


def _token(tx: Transaction, actor: Actor, token_id: str) -> TokenView:
    found = identity.token(tx, actor, token_id)
    if found is None:
        raise NotFoundError(f"no token {token_id!r}", hint="`haversack token list` shows yours")
    return found


def list_tokens(tx: Transaction, actor: Actor) -> tuple[TokenView, ...]:
    """Every token of the actor's tenant (of all tenants, cluster-wide), oldest first.

    Raises:
        ForbiddenError: the role does not grant it.
    """
    access.require(actor, Permission.TOKENS_ADMIN)
    return identity.token_list(tx, actor)


def revoke_token(tx: Transaction, actor: Actor, token_id: str, *, now: UtcSeconds) -> TokenView:
    """Make a token useless, at once and for good. Idempotent.

    Whoever had it may have opened browser sessions with it: those of its principal end too.

    Raises:
        ForbiddenError: the actor could not have granted it.
        NotFoundError: no such token for this actor.
        ConflictError: it is the last usable administrator token of the system tenant.
    """
    access.require_change(actor, Permission.TOKENS_ADMIN)
    token = _token(tx, actor, token_id)
    role = Role(token.role)
    if not actor.may_grant(token.tenant, role):
        raise ForbiddenError(f"role {actor.role} may not revoke a token of role {role}")
    guards = token.tenant == SYSTEM_TENANT and role is Role.ADMIN and token.revoked_at is None
    if guards and identity.other_admin_tokens(tx, token_id, now=now) == 0:
        raise ConflictError(
            "this is the last usable administrator token of the system tenant",
            hint="create another administrator token first",
        )
    identity.revoke(tx, token_id, now=now)
    identity.revoke_sessions(tx, token.principal, BROWSER_SESSION, now=now)
    tx.audit(
        tenant=token.tenant,
        principal=actor.principal,
        action="tokens.revoke",
        object_id=token_id,
        outcome="done",
        detail={"name": token.principal_name, "role": role.value},
        at=now,
    )
    return _token(tx, actor, token_id)


def create_tenant(
    tx: Transaction, actor: Actor, name: str, *, now: UtcSeconds, ids: IdSource
) -> TenantView:
    """Add a tenant with a default queue. Its id is its name.

    Raises:
        ForbiddenError: the role does not grant it.
        InvalidRequestError: the name is no lower-case DNS label.
        ConflictError: the tenant exists.
    """
    access.require_change(actor, Permission.TENANTS_ADMIN)
    if _NAME.fullmatch(name) is None:
        raise InvalidRequestError(
            "a tenant name is 1 to 63 lower-case letters, digits or '-', not at either end"
        )
    tenant = TenantId(name)
    if identity.tenant(tx, tenant) is not None:
        raise ConflictError(f"tenant {name} exists")
    revision = tx.next_revision(
        tenant=tenant, kind="tenant", object_id=tenant, payload={"event": "create"}, at=now
    )
    identity.insert_tenant(tx, tenant, ids.new("q"), now=now, revision=revision)
    tx.audit(
        tenant=SYSTEM_TENANT,
        principal=actor.principal,
        action="tenants.create",
        object_id=tenant,
        outcome="done",
        detail={},
        at=now,
    )
    return TenantView(tenant, name, now)


def list_tenants(tx: Transaction, actor: Actor) -> tuple[TenantView, ...]:
    """The tenants that the actor may know of: its own, or all for the system tenant."""
    return identity.tenant_list(tx, actor)
