"""What happens to every request before a route sees it. Plain ASGI, cheapest refusal first.

Order: request id and response headers, body bound, Host check, in-flight lanes, then the
application, whose routes authenticate.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import MutableMapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.problems import MEDIA_TYPE, Problem, problem_of
from scheduler.clock import Clock
from scheduler.errors import BusyError, TooLargeError
from scheduler.ids import IdSource
from scheduler.observability import Metrics
from scheduler.settings import ApiSettings

REQUEST_ID = "haversack.request_id"
"""Scope key of the request's id."""
BODY_WITHIN_S = 30.0
PROBES = ("/healthz", "/readyz")

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cache-control", b"no-store"),
)


def header(scope: Scope, name: bytes) -> bytes | None:
    """First header of that (lower-case) name."""
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return None


async def send_problem(scope: Scope, send: Send, problem: Problem) -> None:
    """Answer with a problem; the connection is closed where the body was not read."""
    body = orjson.dumps(problem.document(scope.get(REQUEST_ID, "")))
    headers = [
        (b"content-type", MEDIA_TYPE.encode()),
        (b"content-length", str(len(body)).encode()),
        *((name.encode(), value.encode()) for name, value in problem.headers),
    ]
    await send({"type": "http.response.start", "status": int(problem.status), "headers": headers})
    await send({"type": "http.response.body", "body": body})


class RequestContext:
    """Gives each request an id, each answer its security headers, and counts both."""

    def __init__(self, app: ASGIApp, clock: Clock, ids: IdSource, metrics: Metrics) -> None:
        self._app, self._clock, self._ids, self._metrics = app, clock, ids, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = header(scope, b"x-request-id")
        well_formed = given is not None and _REQUEST_ID.fullmatch(given)
        request_id = given.decode() if given and well_formed else self._ids.new("r")
        scope[REQUEST_ID] = request_id
        began = self._clock.monotonic_s()
        status = 500

        async def decorated(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _decorate(message, request_id)
            await send(message)

        try:
            await self._app(scope, receive, decorated)
        finally:
            route = getattr(scope.get("route"), "path_format", "none")
            streamed = lane_of(scope) is Lane.STREAM
            self._metrics.request_finished(
                route=route,
                method=scope["method"] if route != "none" else "other",
                status=status,
                duration_s=None if streamed else self._clock.monotonic_s() - began,
            )


def _decorate(message: MutableMapping[str, Any], request_id: str) -> None:
    headers = list(message.get("headers", ()))
    present = {name for name, _ in headers}
    headers.extend(pair for pair in _HEADERS if pair[0] not in present)
    headers.append((b"x-request-id", request_id.encode()))
    message["headers"] = headers


class BodyBound:
    """Refuses bodies over the bound, by their declared length or as soon as they exceed it.

    A body that trickles in for longer than `BODY_WITHIN_S` ends as if the client had gone.
    """

    def __init__(self, app: ASGIApp, bytes_max: int) -> None:
        self._app, self._bytes_max = app, bytes_max

    def _too_large(self) -> TooLargeError:
        return TooLargeError(
            f"the request body is larger than {self._bytes_max} bytes",
            hint="a job file holds references, not data: put large inputs on storage",
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with a counted `receive`."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = header(scope, b"content-length")
        if declared is not None and declared.isdigit() and int(declared) > self._bytes_max:
            await send_problem(scope, send, problem_of(self._too_large()))
            return
        taken, complete = 0, False
        deadline = asyncio.get_running_loop().time() + BODY_WITHIN_S

        async def counted() -> Message:
            nonlocal taken, complete
            if complete:
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                return {"type": "http.disconnect"}
            if message["type"] == "http.request":
                taken += len(message.get("body", b""))
                complete = not message.get("more_body", False)
                if taken > self._bytes_max:
                    raise self._too_large()
            return message

        await self._app(scope, counted, send)


class HostCheck:
    """Refuses requests for names that are not ours: the defence against DNS rebinding."""

    def __init__(self, app: ASGIApp, settings: ApiSettings) -> None:
        self._app = app
        bound = {settings.host.lower()} - {"0.0.0.0", "::", ""}  # noqa: S104 - compared, not bound
        self._allowed = {"localhost", "127.0.0.1", "::1"} | bound
        self._allowed |= {name.lower() for name in settings.allowed_hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on if its Host is ours. Probes name pods by address: let them."""
        if scope["type"] == "http" and scope["path"] not in PROBES:
            name = _host_name(header(scope, b"host") or b"")
            if name not in self._allowed:
                problem = Problem(
                    status=421,
                    code="wrong-host",
                    title="This name is not served here",
                    detail=f"the Host header names {name[:255]!r}",
                    hint="add it to HAVERSACK_API__ALLOWED_HOSTS if it is yours",
                )
                await send_problem(scope, send, problem)
                return
        await self._app(scope, receive, send)


def _host_name(value: bytes) -> str:
    text = value.decode("latin-1").strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") <= 1 else text


class Lane(StrEnum):
    """What a request is, for the in-flight bound: the first are refused last."""

    URGENT = "urgent"
    READ = "read"
    SUBMIT = "submit"
    STREAM = "stream"


_SHARE = {Lane.URGENT: 1.0, Lane.READ: 0.9, Lane.SUBMIT: 0.75}
"""How full the bound may be for a lane to get in: probes and cancels always find room."""


def lane_of(scope: Scope) -> Lane:
    """The lane of a request, from its path alone. O(1)."""
    path: str = scope["path"]
    if path in PROBES or path.endswith((":cancel", ":hold")):
        return Lane.URGENT
    if scope["method"] not in ("GET", "HEAD", "OPTIONS"):
        return Lane.SUBMIT
    if path.endswith("/events") or (path.endswith("/logs") and b"follow=" in scope["query_string"]):
        return Lane.STREAM
    return Lane.READ


@dataclass(slots=True)
class _Count:
    requests: int = 0
    streams: int = 0


class InFlight:
    """Bounds what is open at once; the rest is told to come again, at jittered times."""

    def __init__(self, app: ASGIApp, settings: ApiSettings) -> None:
        self._app = app
        self._requests_max = settings.requests_in_flight_max
        self._streams_max = settings.event_streams_max
        self._open = _Count()

    def _full(self, lane: Lane) -> bool:
        if lane is Lane.STREAM:
            return self._open.streams >= self._streams_max
        return self._open.requests >= max(1, int(self._requests_max * _SHARE[lane]))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on if its lane has room."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        lane = lane_of(scope)
        if self._full(lane):
            refusal = BusyError(
                f"too many {'streams' if lane is Lane.STREAM else 'requests'} are open",
                # Jitter spreads the second attempts; no secret depends on it.
                retry_after_s=random.uniform(1, 4),  # noqa: S311
                hint="try again after the time in Retry-After",
            )
            await send_problem(scope, send, problem_of(refusal))
            return
        kind = "streams" if lane is Lane.STREAM else "requests"
        setattr(self._open, kind, getattr(self._open, kind) + 1)
        try:
            await self._app(scope, receive, send)
        finally:
            setattr(self._open, kind, getattr(self._open, kind) - 1)
