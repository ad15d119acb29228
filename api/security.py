"""Who is asking: bearer tokens and browser sessions, checked against the store.

A check is remembered for at most two seconds, so that a revoked token is dead almost at once and a
busy client costs no read per request. Failures are counted per address; an address over its
allowance is refused before the store is asked, unless its token has been valid before.
"""

from __future__ import annotations

import math
import secrets
from collections import OrderedDict
from dataclasses import dataclass, replace

from starlette.requests import HTTPConnection

from scheduler import service
from scheduler.clock import Clock
from scheduler.errors import NotFoundError, OverloadedError, UnauthenticatedError
from scheduler.ids import IdSource
from scheduler.model.access import Actor, Role
from scheduler.model.quantity import DEFAULT_TENANT, SYSTEM_TENANT, TenantId, UtcSeconds
from scheduler.service.identity import BROWSER_SESSION
from scheduler.store.database import Database, Transaction
from scheduler.tokens import digest, looks_valid

SESSION_COOKIE = "haversack_session"
SESSION_S = 12 * 3600
TICKET_S = 300
TENANT_HEADER = "x-haversack-tenant"

_CACHE_S = 2.0
_CACHE_MAX = 10_000
_ADDRESSES_MAX = 4_096
_FAILURES_BURST = 30.0
_FAILURES_PER_S = 1.0
_TICKETS_MAX = 256
_HINT = "send `Authorization: Bearer <token>`; the first token is in the daemon's data directory"


class FailureLimiter:
    """A token bucket of failed authentications per address; bounded, forgets the oldest."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def _level(self, address: str) -> float:
        level, at = self._buckets.get(address, (_FAILURES_BURST, 0.0))
        refilled = level + (self._clock.monotonic_s() - at) * _FAILURES_PER_S
        return min(_FAILURES_BURST, refilled)

    def check(self, address: str) -> None:
        """Let an attempt pass.

        Raises:
            OverloadedError: too many failures from this address lately.
        """
        level = self._level(address)
        if level < 1:
            raise OverloadedError(
                "too many failed authentications from your address",
                retry_after_s=math.ceil((1 - level) / _FAILURES_PER_S),
                hint="check the token; a token that was valid before is still accepted",
            )

    def failed(self, address: str) -> None:
        """Count a failure. O(1)."""
        self._buckets[address] = (self._level(address) - 1, self._clock.monotonic_s())
        self._buckets.move_to_end(address)
        if len(self._buckets) > _ADDRESSES_MAX:
            self._buckets.popitem(last=False)


@dataclass(frozen=True, slots=True)
class Identity:
    """What the store said of a token, and when (monotonic seconds)."""

    actor: Actor
    checked_at: float


@dataclass(frozen=True, slots=True)
class Credentials:
    """A token as it came in; `from_cookie` marks a browser, which may never change anything."""

    sha256_hex: str
    well_formed: bool
    from_cookie: bool


def credentials_of(connection: HTTPConnection) -> Credentials:
    """The token of a request; a header beats a cookie.

    Raises:
        UnauthenticatedError: there is none.
    """
    header = connection.headers.get("authorization")
    if header is not None:
        scheme, _, token = header.partition(" ")
        if scheme.lower() != "bearer":
            raise UnauthenticatedError("only bearer tokens are understood", hint=_HINT)
        token, from_cookie = token.strip(), False
    else:
        token, from_cookie = connection.cookies.get(SESSION_COOKIE, ""), True
    if not token:
        raise UnauthenticatedError("this needs a token", hint=_HINT)
    valid = looks_valid(token)
    return Credentials(digest(token) if valid else "", valid, from_cookie)


class Gate:
    """Turns requests into actors."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._known: OrderedDict[str, Identity] = OrderedDict()
        self._failures = FailureLimiter(clock)

    async def actor(self, connection: HTTPConnection) -> Actor:
        """The actor a request speaks for, acting for the tenant it names. One read at most.

        Raises:
            UnauthenticatedError: no token, or none that is honoured.
            OverloadedError: too many failures from this address.
            NotFoundError: it names a tenant that is not there, or not its own.
            StorageError: the store cannot be read.
        """
        address = connection.client.host if connection.client else ""
        try:
            credentials = credentials_of(connection)
            actor = await self._identify(credentials, address)
        except UnauthenticatedError:
            self._failures.check(address)
            self._failures.failed(address)
            raise
        wanted = connection.headers.get(TENANT_HEADER)
        return actor if wanted is None else await self._acting_for(actor, wanted)

    async def still_honoured(self, connection: HTTPConnection) -> bool:
        """Whether the token behind an open stream would be accepted again."""
        try:
            await self._identify(credentials_of(connection), "")
        except UnauthenticatedError:
            return False
        return True

    async def _identify(self, credentials: Credentials, address: str) -> Actor:
        if not credentials.well_formed:
            raise UnauthenticatedError(
                "this is not a token of ours (it may be cut off or mistyped)", hint=_HINT
            )
        key, now = credentials.sha256_hex, self._clock.monotonic_s()
        known = self._known.get(key)
        if known is None or now - known.checked_at > _CACHE_S:
            if known is None:
                self._failures.check(address)
            known = await self._ask(key, now)
        if credentials.from_cookie:
            return replace(known.actor, read_only=True)
        return known.actor

    async def _ask(self, key: str, now: float) -> Identity:
        wall = self._clock.now()
        found = await self._database.read(lambda tx: service.authenticate(tx, key, now=wall))
        if found is None:
            self._known.pop(key, None)
            raise UnauthenticatedError(
                "this token is unknown, expired or revoked",
                hint="ask your administrator for a new one (`haversack token create`)",
            )
        principal, name, tenant, role, read_only = found
        acts_for = DEFAULT_TENANT if tenant == SYSTEM_TENANT else tenant
        identity = Identity(Actor(principal, name, tenant, role, acts_for, read_only), now)
        self._known[key] = identity
        self._known.move_to_end(key)
        if len(self._known) > _CACHE_MAX:
            self._known.popitem(last=False)
        return identity

    async def _acting_for(self, actor: Actor, wanted: str) -> Actor:
        if not actor.cluster_wide:
            if wanted != actor.tenant:
                raise NotFoundError(
                    f"no tenant {wanted!r} that you may act for",
                    hint=f"leave the {TENANT_HEADER} header out: you act for your own tenant",
                )
            return actor
        tenants = await self._database.read(lambda tx: service.list_tenants(tx, actor))
        for tenant in tenants:
            if wanted in (tenant.id, tenant.name):
                return replace(actor, acts_for=tenant.id)
        raise NotFoundError(f"no tenant {wanted!r}", hint="`haversack tenant list` shows them")


class Tickets:
    """One-time login links: who asked, until when. In memory; a restart forgets them."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._open: OrderedDict[str, tuple[Actor, float]] = OrderedDict()

    def issue(self, actor: Actor) -> str:
        """A ticket for `actor`, good once within five minutes; the oldest give way."""
        ticket = secrets.token_urlsafe(32)
        self._open[digest(ticket)] = (actor, self._clock.monotonic_s() + TICKET_S)
        if len(self._open) > _TICKETS_MAX:
            self._open.popitem(last=False)
        return ticket

    def redeem(self, ticket: str) -> Actor | None:
        """The actor of a ticket, which is worthless from now on; None if it was before."""
        actor, until = self._open.pop(digest(ticket), (None, 0.0))
        return actor if self._clock.monotonic_s() <= until else None


def session_token(
    tx: Transaction, actor: Actor, *, sha256_hex: str, now: UtcSeconds, ids: IdSource
) -> None:
    """Store the token behind a browser session: the actor's own rights, read-only, twelve hours.

    Raises:
        StorageError: the store cannot be written.
    """
    # Issuing tokens is an administrator's right, but this one can do less than what asked for it:
    # the same principal, unable to change anything.
    issuer = replace(actor, role=Role.ADMIN, read_only=False)
    service.create_token(
        tx,
        issuer,
        tenant=TenantId(actor.tenant),
        name=actor.name,
        role=actor.role,
        description=BROWSER_SESSION,
        expires_at=UtcSeconds(now + SESSION_S),
        sha256_hex=sha256_hex,
        read_only=True,
        now=now,
        ids=ids,
    )
