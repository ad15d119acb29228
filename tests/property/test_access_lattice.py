"""Nobody grants above themselves (S4), and only the system tenant touches what tenants share."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from scheduler.model.access import GRANTS, SYSTEM_ONLY, Actor, Permission, Role
from scheduler.model.quantity import SYSTEM_TENANT, PrincipalId, TenantId

TENANTS = st.sampled_from([SYSTEM_TENANT, TenantId("red"), TenantId("blue")])
ROLES = st.sampled_from(list(Role))


@st.composite
def actors(draw: st.DrawFn) -> Actor:
    tenant = draw(TENANTS)
    acts_for = draw(TENANTS) if tenant == SYSTEM_TENANT else tenant
    return _actor(tenant, draw(ROLES), acts_for)


def _actor(tenant: TenantId, role: Role, acts_for: TenantId | None = None) -> Actor:
    return Actor(PrincipalId("p-1"), "ann", tenant, role, acts_for or tenant)


def _powers(actor: Actor) -> frozenset[tuple[Permission, str]]:
    """What the actor may do, and where: `*` is everywhere."""
    where = "*" if actor.cluster_wide else actor.tenant
    return frozenset((p, where) for p in Permission if actor.may(p))


def _covered(
    powers: frozenset[tuple[Permission, str]], by: frozenset[tuple[Permission, str]]
) -> bool:
    return all(power in by or (power[0], "*") in by for power in powers)


@given(actors(), TENANTS, ROLES)
def test_a_granted_actor_never_can_more_than_its_granter(
    granter: Actor, tenant: TenantId, role: Role
) -> None:
    if granter.may_grant(tenant, role):
        assert _covered(_powers(_actor(tenant, role)), _powers(granter))


@given(actors(), st.lists(st.tuples(TENANTS, ROLES), max_size=5))
def test_no_chain_of_grants_climbs(start: Actor, chain: list[tuple[TenantId, Role]]) -> None:
    current = start
    for tenant, role in chain:
        if current.may_grant(tenant, role):
            current = _actor(tenant, role)
    assert _covered(_powers(current), _powers(start))


@given(actors(), TENANTS, ROLES)
def test_only_the_system_tenant_grants_elsewhere_or_to_machines(
    granter: Actor, tenant: TenantId, role: Role
) -> None:
    if granter.may_grant(tenant, role) and not granter.cluster_wide:
        assert tenant == granter.tenant
        assert role is not Role.AGENT


@given(actors(), TENANTS, ROLES)
def test_granting_needs_the_permission_to(granter: Actor, tenant: TenantId, role: Role) -> None:
    if granter.may_grant(tenant, role):
        assert granter.may(Permission.TOKENS_ADMIN)


@given(TENANTS, ROLES)
def test_shared_things_belong_to_the_system_tenant(tenant: TenantId, role: Role) -> None:
    actor = _actor(tenant, role)
    if tenant != SYSTEM_TENANT:
        assert not any(actor.may(permission) for permission in SYSTEM_ONLY)


def test_roles_form_a_chain_and_agents_stand_aside() -> None:
    chain = [Role.VIEWER, Role.USER, Role.OPERATOR, Role.ADMIN]
    for lower, higher in pairwise(chain):
        assert GRANTS[lower] < GRANTS[higher]
    assert Permission.JOBS_READ not in GRANTS[Role.AGENT]


@given(actors())
def test_everyone_may_ask_for_public_things(actor: Actor) -> None:
    assert actor.may(Permission.PUBLIC)
