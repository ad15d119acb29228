"""Requests to the API server: bounded, timed, and honest about what nobody knows.

Every answer falls into one of five: a document; `RejectedError` (the server said no);
`TooBusyError` (it said "later" too often); `UnreachableError` (nothing was sent);
`OutcomeUnknownError` (perhaps done: read again before deciding). The official client is not used
here: its typed models cost twenty times what orjson does, and it has no rate limit.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

import aiohttp
import orjson
import structlog

from scheduler.errors import (
    ConfigurationError,
    HaversackError,
    OverloadedError,
    UnreachableError,
)
from scheduler.execution.kubernetes.access import Access

Document = dict[str, Any]
"""A JSON object as it came from the server."""

log = structlog.get_logger(__name__)

JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_MERGE_PATCH = "application/strategic-merge-patch+json"

_REFUSED, _UNAUTHORIZED, _FORBIDDEN, _MISSING = 400, 401, 403, 404
_CONFLICT, _GONE, _INVALID, _BUSY, _BROKEN = 409, 410, 422, 429, 500
_CREDENTIALS_AGE_S = 60.0
_LONGEST_PAUSE_S = 30.0


class RejectedError(HaversackError):
    """The server refused the request: nothing was done.

    Attributes:
        status: the HTTP status, 4xx.
        reason: the server's word for it (`Conflict`, `Invalid`, ...); "" if it gave none.
        message: the server's own explanation.
    """

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}" if reason else f"{status}: {message}")
        self.status = status
        self.reason = reason
        self.message = message

    @property
    def unauthorized(self) -> bool:
        """It does not know who we are."""
        return self.status == _UNAUTHORIZED

    @property
    def forbidden(self) -> bool:
        """Our rights do not cover it, or an admission policy refused it."""
        return self.status == _FORBIDDEN

    @property
    def lacks_rights(self) -> bool:
        """Our rights do not cover it; no admission policy was asked."""
        return self.forbidden and ' resource "' in self.message and " cannot " in self.message

    @property
    def missing(self) -> bool:
        """There is no such object."""
        return self.status == _MISSING

    @property
    def conflict(self) -> bool:
        """A precondition does not hold, or the object exists already."""
        return self.status == _CONFLICT

    @property
    def expired(self) -> bool:
        """The resource version is too old: list afresh."""
        return self.status == _GONE

    @property
    def invalid(self) -> bool:
        """A rule of the API or of an admission policy forbids it."""
        return self.status == _INVALID


class TooBusyError(OverloadedError):
    """The server sheds load and went on doing so; nothing was done."""


class OutcomeUnknownError(HaversackError):
    """No answer, or one that does not say: perhaps it was done. Read again, then decide."""


class Lane(StrEnum):
    """Kinds of requests that must not hold each other up."""

    READ = "read"
    BIND = "bind"
    WRITE = "write"
    REPORT = "report"
    """Conditions and events: worth telling, never worth waiting for."""


@dataclass(frozen=True, slots=True)
class LaneLimit:
    """Bound of one lane; the official client has none of its own in Python.

    Attributes:
        in_flight: requests at once.
        per_s: requests a second in the long run.
        burst: requests that may come at once after a pause.
    """

    in_flight: int
    per_s: float
    burst: int


@dataclass(frozen=True, slots=True)
class Limits:
    """How long to wait for the server, and how hard to press it.

    Attributes:
        connect_s: for a connection, TLS included.
        reply_s: for a whole reply; must stay below the lease's renew period.
        list_s: for a whole page of a list.
        busy_tries: requests before a 429 is handed on.
        lanes: the bound of each lane.
    """

    connect_s: float = 3.0
    reply_s: float = 8.0
    list_s: float = 60.0
    busy_tries: int = 4
    lanes: Mapping[Lane, LaneLimit] = field(
        default_factory=lambda: {
            Lane.READ: LaneLimit(16, 500.0, 200),
            Lane.BIND: LaneLimit(32, 2000.0, 500),
            Lane.WRITE: LaneLimit(16, 500.0, 200),
            Lane.REPORT: LaneLimit(8, 100.0, 200),
        }
    )


Answered = Callable[[str, Lane, int, float], None]
"""Told of every reply: HTTP method, lane, status (0 for none) and seconds it took."""


def _untold(_method: str, _lane: Lane, _status: int, _took_s: float) -> None:
    """Nobody measures."""


class _Gate:
    """Admits a lane's requests: so many at once, so many a second."""

    def __init__(self, limit: LaneLimit) -> None:
        self._slots = asyncio.Semaphore(limit.in_flight)
        self._gap_s = 1.0 / limit.per_s
        self._slack_s = limit.burst * self._gap_s
        self._next_s = float("-inf")

    @asynccontextmanager
    async def pass_through(self) -> AsyncIterator[None]:
        """Wait for a turn, keep it while the block runs."""
        async with self._slots:
            now_s = asyncio.get_running_loop().time()
            self._next_s = max(self._next_s, now_s - self._slack_s) + self._gap_s
            if self._next_s > now_s:
                await asyncio.sleep(self._next_s - now_s)
            yield


@dataclass(frozen=True, slots=True)
class _Request:
    """What is sent, and how long the answer may take."""

    method: str
    path: str
    times: aiohttp.ClientTimeout
    query: Mapping[str, str] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    data: bytes | None = None


class ApiServer:
    """One API server, over one pool of connections. Use it as `async with ApiServer(...)`.

    Every request raises RejectedError, TooBusyError, UnreachableError or OutcomeUnknownError as
    the module says.

    Args:
        access: where it is and how we prove who we are.
        limits: timeouts and bounds.
        answered: told of every reply, for metrics.
        sleep: waits before a repeated request.
    """

    def __init__(
        self,
        access: Access,
        limits: Limits | None = None,
        *,
        answered: Answered = _untold,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._access = access
        self._limits = limits or Limits()
        self._answered = answered
        self._sleep = sleep
        self._gates = {lane: _Gate(limit) for lane, limit in self._limits.lanes.items()}
        self._renewing = asyncio.Lock()
        self._renewed_s = float("-inf")
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(
            limit=0,  # the lanes bound requests; watches come on top
            ssl=self._access.ssl_context or True,
            keepalive_timeout=60.0,
        )
        self._session = aiohttp.ClientSession(connector=connector, auto_decompress=True)
        self._renewed_s = asyncio.get_running_loop().time()
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._session is not None
        await self._session.close()
        self._session = None

    async def get(self, path: str, query: Mapping[str, str] | None = None) -> Document:
        """The object at `path`."""
        return await self._ask("GET", path, Lane.READ, query=query)

    async def list(self, path: str, query: Mapping[str, str] | None = None) -> Document:
        """One page of a list; the next one is asked for with its `metadata.continue`."""
        return await self._ask("GET", path, Lane.READ, query=query, reply_s=self._limits.list_s)

    async def post(
        self,
        path: str,
        body: Document,
        *,
        query: Mapping[str, str] | None = None,
        lane: Lane = Lane.WRITE,
    ) -> Document:
        """Create what `body` says."""
        return await self._ask("POST", path, lane, query=query, body=body)

    async def put(self, path: str, body: Document) -> Document:
        """Replace the object at `path`; conflicts unless the resource version in `body` holds.

        A conflict may also be the second sending of a request whose first one was served: the
        client library repeats PUT, DELETE and GET by itself where a connection is lost.
        """
        return await self._ask("PUT", path, Lane.WRITE, body=body)

    async def patch(
        self, path: str, body: object, *, kind: str = MERGE_PATCH, lane: Lane = Lane.WRITE
    ) -> Document:
        """Change parts of the object at `path`; `kind` is the patch's content type."""
        return await self._ask("PATCH", path, lane, body=body, content_type=kind)

    async def delete(self, path: str, options: Document | None = None) -> Document:
        """Delete the object at `path`; `options` are DeleteOptions."""
        return await self._ask("DELETE", path, Lane.WRITE, body=options)

    async def lines(
        self, path: str, query: Mapping[str, str], *, silence_s: float
    ) -> AsyncGenerator[bytes, None]:
        """The lines of a reply that goes on, such as a watch; a line cut short is left out.

        Args:
            path: what to read.
            query: parameters of the watch.
            silence_s: without a byte for so long, the connection counts as lost.
        """
        rest = b""
        async with aclosing(self.chunks(path, query, silence_s=silence_s)) as chunks:
            async for chunk in chunks:
                *whole, rest = (rest + chunk).split(b"\n")
                for line in whole:
                    if line:
                        yield line

    async def chunks(
        self, path: str, query: Mapping[str, str], *, silence_s: float
    ) -> AsyncGenerator[bytes, None]:
        """The bytes of a reply that goes on, as they come.

        Nothing is repeated here, but credentials that the server refuses are read afresh, so that
        the next call may pass.

        Args:
            path: what to read.
            query: its parameters.
            silence_s: without a byte for so long, the connection counts as lost.
        """
        await self._keep_fresh()
        times = aiohttp.ClientTimeout(
            total=None, sock_connect=self._limits.connect_s, sock_read=silence_s
        )
        request = _Request("GET", path, times, query, {"Accept-Encoding": "identity"})
        sent = self._access.headers()
        async with self._reply(request) as reply:
            if reply.status == _UNAUTHORIZED:
                await self._renew(sent)
            if reply.status >= _REFUSED:
                raise _refusal(reply, await reply.read())
            try:
                async for chunk in reply.content.iter_any():
                    yield chunk
            finally:
                # Whoever leaves a stream does not wait for the server's TLS farewell.
                if reply.connection is not None and reply.connection.transport is not None:
                    reply.connection.transport.abort()

    async def _ask(
        self,
        method: str,
        path: str,
        lane: Lane,
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
        content_type: str = "application/json",
        reply_s: float | None = None,
    ) -> Document:
        """Ask until there is an answer; repeats only what the server says it did not do."""
        await self._keep_fresh()
        times = aiohttp.ClientTimeout(
            total=reply_s or self._limits.reply_s, sock_connect=self._limits.connect_s
        )
        if body is None:
            request = _Request(method, path, times, query)
        else:
            headers = {"Content-Type": content_type}
            request = _Request(method, path, times, query, headers, orjson.dumps(body))
        renewed, tries = False, 0
        while True:
            async with self._gates[lane].pass_through():
                sent = self._access.headers()
                status, answer = await self._once(request, lane)
            if not isinstance(answer, HaversackError):
                return answer
            if status == _UNAUTHORIZED and not renewed and await self._renew(sent):
                renewed = True
                continue
            tries += 1
            if not isinstance(answer, TooBusyError) or tries >= self._limits.busy_tries:
                raise answer
            await self._sleep(min(answer.retry_after_s, _LONGEST_PAUSE_S))

    async def _once(self, request: _Request, lane: Lane) -> tuple[int, Document | HaversackError]:
        """One request: the reply's status and document, or the error that it means."""
        clock = asyncio.get_running_loop().time
        began_s, status = clock(), 0
        try:
            async with self._reply(request) as reply:
                content = await reply.read()
                status = reply.status
                if status >= _REFUSED:
                    return status, _refusal(reply, content)
                return status, _document(content)
        finally:
            self._answered(request.method, lane, status, clock() - began_s)

    @asynccontextmanager
    async def _reply(self, request: _Request) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send; yield the reply; turn what the network does into our errors."""
        assert self._session is not None, "use it as `async with ApiServer(...)`"
        access = self._access
        try:
            async with self._session.request(
                request.method,
                access.base_url + request.path,
                params=request.query,
                data=request.data,
                headers={**request.headers, **access.headers()},
                timeout=request.times,
                proxy=access.proxy,
                server_hostname=access.server_name,
                allow_redirects=False,
            ) as reply:
                yield reply
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise UnreachableError(
                f"no API server answers at {access.base_url}: {error}"
            ) from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise OutcomeUnknownError(
                f"{request.method} {request.path}: {type(error).__name__} {error}"
            ) from error

    async def _keep_fresh(self) -> None:
        """Look after credentials that expire, at most once a minute."""
        now_s = asyncio.get_running_loop().time()
        if now_s - self._renewed_s < _CREDENTIALS_AGE_S or self._renewing.locked():
            return
        async with self._renewing:
            self._renewed_s = now_s
            await self._read_credentials(refused=False)

    async def _renew(self, refused: dict[str, str]) -> bool:
        """Read credentials that the server refused afresh; whether it makes sense to ask again."""
        async with self._renewing:
            if self._access.headers() != refused:
                return True  # another request has done it meanwhile
            return await self._read_credentials(refused=True)

    async def _read_credentials(self, *, refused: bool) -> bool:
        try:
            return await asyncio.to_thread(self._access.renew, refused=refused)
        except ConfigurationError as error:
            log.warning("credentials cannot be renewed; keeping the old ones", why=str(error))
            return False


def _document(content: bytes) -> Document:
    """The JSON object of a reply. Raises OutcomeUnknownError when it is none."""
    try:
        document = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise OutcomeUnknownError(f"the reply is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise OutcomeUnknownError("the reply is not a JSON object")
    return document


def _refusal(reply: aiohttp.ClientResponse, content: bytes) -> HaversackError:
    """The error that a reply of status 400 or above means."""
    status = reply.status
    document: object = {}
    if reply.content_type == "application/json":
        try:
            document = orjson.loads(content)
        except orjson.JSONDecodeError:
            document = {}  # the text itself is shown below
    told = document if isinstance(document, dict) else {}
    message = str(told.get("message") or content[:500].decode(errors="replace").strip())
    details = told.get("details") or {}
    if status >= _BROKEN:
        return OutcomeUnknownError(f"{reply.method} {reply.url.path}: {status} {message}")
    # A 429 with causes is about the object (a disruption budget), not about load.
    if status == _BUSY and not details.get("causes"):
        wait_s = _retry_after_s(reply.headers.get("Retry-After"), details)
        return TooBusyError(message, retry_after_s=wait_s)
    return RejectedError(status, str(told.get("reason") or ""), message)


def _retry_after_s(header: str | None, details: Mapping[str, Any]) -> float:
    """Seconds the server wants us to wait; 1 when it gives no number."""
    for told in (header, details.get("retryAfterSeconds")):
        try:
            return max(float(told), 0.0)  # type: ignore[arg-type] # None and text fall through
        except (TypeError, ValueError):
            continue
    return 1.0
