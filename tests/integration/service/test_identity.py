from __future__ import annotations

import hashlib

import pytest
from sqlalchemy import select
from support.usecases import RED, ROOT, USER, Office, actor

from scheduler import service
from scheduler.errors import (
    ConflictError,
    ForbiddenError,
    InvalidRequestError,
    NotFoundError,
)
from scheduler.model.access import Actor, Role
from scheduler.model.quantity import DEFAULT_TENANT, SYSTEM_TENANT, TenantId, UtcSeconds
from scheduler.model.view import TokenView
from scheduler.service.identity import BROWSER_SESSION
from scheduler.store.tables import tokens
from scheduler.tokens import digest, new_token


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _create(
    office: Office,
    who: Actor = ROOT,
    *,
    tenant: TenantId = DEFAULT_TENANT,
    name: str = "bob",
    role: Role = Role.USER,
    secret: str = "secret",
    expires_at: float | None = None,
    description: str = "",
    read_only: bool = False,
) -> TokenView:
    return office.do(
        service.create_token,
        who,
        tenant=tenant,
        name=name,
        role=role,
        description=description,
        expires_at=None if expires_at is None else UtcSeconds(expires_at),
        sha256_hex=_digest(secret),
        read_only=read_only,
        now=office.now,
        ids=office.ids,
    )


def _knows(office: Office, secret: str = "secret") -> object:
    return office.ask(service.authenticate, _digest(secret), now=office.now)


def _revoke(office: Office, token: TokenView, who: Actor = ROOT) -> TokenView:
    return office.do(service.revoke_token, who, token.id, now=office.now)


def test_a_token_speaks_for_its_principal(office: Office) -> None:
    token = _create(office, read_only=True, description="laptop")
    assert _knows(office) == (token.principal, "bob", "default", Role.USER, True)
    assert (token.principal_name, token.role, token.description) == ("bob", "user", "laptop")
    assert _knows(office, "other") is None
    (row,) = office.audited()
    assert (row.action, row.object_id, row.tenant_id) == ("tokens.create", token.id, "default")


def test_the_store_holds_no_usable_token(office: Office) -> None:
    secret = new_token()
    token = office.do(
        service.create_token,
        ROOT,
        tenant=DEFAULT_TENANT,
        name="bob",
        role=Role.USER,
        description="",
        expires_at=None,
        sha256_hex=digest(secret),
        read_only=False,
        now=office.now,
        ids=office.ids,
    )
    row = office.read(lambda tx: tx.connection.execute(select(tokens)).one())
    assert secret not in str(tuple(row))
    assert secret not in str(token)


def test_a_token_ends_when_it_expires_or_is_revoked(office: Office) -> None:
    _create(office, secret="short", expires_at=office.now + 10)
    lasting = _create(office, secret="long")
    office.clock.advance(9.9)
    assert _knows(office, "short") is not None
    office.clock.advance(0.1)
    assert _knows(office, "short") is None
    assert _knows(office, "long") is not None
    revoked = _revoke(office, lasting)
    assert revoked.revoked_at == office.now
    assert _knows(office, "long") is None
    office.clock.advance(5)
    assert _revoke(office, lasting) == revoked


def test_browser_sessions_end_with_a_token_of_their_principal(office: Office) -> None:
    token = _create(office, secret="token")
    for secret, name in (("session", "bob"), ("other", "eve")):
        _create(office, secret=secret, name=name, read_only=True, description=BROWSER_SESSION)
    _create(office, secret="script", read_only=True, description="a script of bob's")
    _revoke(office, token)
    assert _knows(office, "session") is None
    assert _knows(office, "other") is not None
    assert _knows(office, "script") is not None


def test_tokens_of_one_principal_share_it_and_its_role(office: Office) -> None:
    first, second = _create(office, secret="1"), _create(office, secret="2")
    assert first.principal == second.principal
    with pytest.raises(ConflictError, match="exists with role user"):
        _create(office, secret="3", role=Role.OPERATOR)
    office.tenant(RED)
    assert _create(office, secret="4", tenant=RED).principal != first.principal


def test_nobody_grants_above_or_beside_themselves(sqlite_office: Office) -> None:
    office = sqlite_office
    office.tenant(RED)
    admin = actor(RED, Role.ADMIN)
    assert _create(office, admin, tenant=RED, role=Role.ADMIN, name="eve").tenant == RED
    with pytest.raises(ForbiddenError):
        _create(office, admin, tenant=RED, role=Role.AGENT, name="box", secret="2")
    for foreign in (SYSTEM_TENANT, DEFAULT_TENANT, TenantId("none")):
        with pytest.raises(NotFoundError):
            _create(office, admin, tenant=foreign, role=Role.VIEWER, name="spy", secret="3")
    for role in (Role.VIEWER, Role.USER, Role.OPERATOR, Role.AGENT):
        with pytest.raises(ForbiddenError):
            _create(office, actor(SYSTEM_TENANT, role), name="me", role=role, secret="4")
    with pytest.raises(ForbiddenError):
        _create(office, actor(SYSTEM_TENANT, Role.ADMIN, read_only=True), secret="5")


def test_tokens_need_a_tenant_that_exists(office: Office) -> None:
    with pytest.raises(NotFoundError):
        _create(office, tenant=TenantId("nowhere"))


@pytest.mark.parametrize("name", ["", "-x", "a b", "a\n", "ä", "x" * 65])
def test_odd_principal_names_are_refused(sqlite_office: Office, name: str) -> None:
    with pytest.raises(InvalidRequestError):
        _create(sqlite_office, name=name)


def test_odd_descriptions_and_past_ends_are_refused(sqlite_office: Office) -> None:
    for description in ("x" * 257, "a\x00b", "two\nlines"):
        with pytest.raises(InvalidRequestError):
            _create(sqlite_office, description=description)
    for end in (sqlite_office.now, float("nan")):
        with pytest.raises(InvalidRequestError):
            _create(sqlite_office, expires_at=end)


def test_the_last_system_administrator_stays(office: Office) -> None:
    first = _create(office, tenant=SYSTEM_TENANT, name="root", role=Role.ADMIN, secret="1")
    _create(office, tenant=SYSTEM_TENANT, name="root", role=Role.ADMIN, secret="ro", read_only=True)
    _create(
        office,
        tenant=SYSTEM_TENANT,
        name="root",
        role=Role.ADMIN,
        secret="short",
        expires_at=office.now + 5,
    )
    _create(office, tenant=DEFAULT_TENANT, name="boss", role=Role.ADMIN, secret="tenant")
    office.clock.advance(10)
    with pytest.raises(ConflictError):
        _revoke(office, first)
    assert _knows(office, "1") is not None
    second = _create(office, tenant=SYSTEM_TENANT, name="two", role=Role.ADMIN, secret="2")
    _revoke(office, first)
    with pytest.raises(ConflictError):
        _revoke(office, second)


def test_tenants_see_and_revoke_only_their_own_tokens(office: Office) -> None:
    office.tenant(RED)
    red = _create(office, tenant=RED, secret="1")
    other = _create(office, secret="2")
    admin = actor(RED, Role.ADMIN)
    assert office.ask(service.list_tokens, admin) == (red,)
    assert len(office.ask(service.list_tokens, ROOT)) == 2
    with pytest.raises(NotFoundError):
        _revoke(office, other, admin)
    with pytest.raises(ForbiddenError):
        office.ask(service.list_tokens, USER)
    assert _revoke(office, red, admin).revoked_at is not None


def test_a_tenant_is_made_with_a_queue(office: Office) -> None:
    office.tenant(RED)
    assert office.submit(actor(RED)).queue == "default"
    listed = office.ask(service.list_tenants, ROOT)
    assert [tenant.name for tenant in listed] == ["default", "red", "system"]
    assert [t.name for t in office.ask(service.list_tenants, USER)] == ["default"]
    with pytest.raises(ConflictError):
        office.tenant(RED)


@pytest.mark.parametrize("name", ["", "Red", "-red", "red-", "r" * 64, "re d", "red\n"])
def test_tenant_names_are_dns_labels(sqlite_office: Office, name: str) -> None:
    with pytest.raises(InvalidRequestError):
        sqlite_office.tenant(TenantId(name))


def test_only_system_administrators_make_tenants(sqlite_office: Office) -> None:
    for who in (actor(RED, Role.ADMIN), actor(SYSTEM_TENANT, Role.OPERATOR)):
        with pytest.raises(ForbiddenError):
            sqlite_office.do(
                service.create_tenant, who, "blue", now=sqlite_office.now, ids=sqlite_office.ids
            )
