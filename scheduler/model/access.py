"""Who may do what: five roles, the permissions each holds, and the actor a request speaks for."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from scheduler.model.quantity import SYSTEM_TENANT, PrincipalId, TenantId


class Role(StrEnum):
    """A principal's role inside its tenant, from least to most trusted; `agent` stands aside."""

    VIEWER = "viewer"
    USER = "user"
    OPERATOR = "operator"
    ADMIN = "admin"
    AGENT = "agent"


class Permission(StrEnum):
    """What a route asks for. Every route declares exactly one."""

    JOBS_READ = "jobs:read"
    JOBS_WRITE = "jobs:write"
    CLUSTER_READ = "cluster:read"
    CLUSTER_OPERATE = "cluster:operate"
    AUDIT_READ = "audit:read"
    TOKENS_ADMIN = "tokens:admin"
    TENANTS_ADMIN = "tenants:admin"
    METRICS_READ = "metrics:read"
    SESSION = "session"
    PUBLIC = "public"


_P = Permission
_VIEW = frozenset({_P.JOBS_READ, _P.CLUSTER_READ, _P.METRICS_READ, _P.SESSION})
_USE = _VIEW | {_P.JOBS_WRITE}
_OPERATE = _USE | {_P.CLUSTER_OPERATE, _P.AUDIT_READ}
_ADMIN = _OPERATE | {_P.TOKENS_ADMIN, _P.TENANTS_ADMIN}

GRANTS: dict[Role, frozenset[Permission]] = {
    Role.VIEWER: _VIEW,
    Role.USER: _USE,
    Role.OPERATOR: _OPERATE,
    Role.ADMIN: _ADMIN,
    Role.AGENT: frozenset({_P.CLUSTER_READ}),
}

SYSTEM_ONLY = frozenset({_P.CLUSTER_OPERATE, _P.TENANTS_ADMIN})
"""Permissions that touch what tenants share: only principals of the system tenant hold them."""


@dataclass(frozen=True, slots=True)
class Actor:
    """The identity one request speaks for.

    Attributes:
        tenant: the principal's home tenant.
        acts_for: tenant its writes belong to; differs from `tenant` only for the system tenant.
        read_only: True for browser sessions, which may never change anything.
    """

    principal: PrincipalId
    name: str
    tenant: TenantId
    role: Role
    acts_for: TenantId
    read_only: bool = False

    @property
    def cluster_wide(self) -> bool:
        """Whether the actor sees every tenant."""
        return self.tenant == SYSTEM_TENANT

    def may(self, permission: Permission) -> bool:
        """Whether the role grants `permission` to this actor."""
        if permission is Permission.PUBLIC:
            return True
        if permission not in GRANTS[self.role]:
            return False
        return self.cluster_wide or permission not in SYSTEM_ONLY

    def may_grant(self, tenant: TenantId, role: Role) -> bool:
        """Whether the actor may issue a token for (tenant, role): nobody grants above themselves.

        `agent` tokens speak for machines that all tenants share: only the system tenant issues
        them.
        """
        if not self.may(Permission.TOKENS_ADMIN):
            return False
        if role is Role.AGENT:
            return self.cluster_wide
        return GRANTS[role] <= GRANTS[self.role] and (self.cluster_wide or tenant == self.tenant)
