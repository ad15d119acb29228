"""The HTTP edge over a fresh store, called in process: no socket, the clock moves when told to."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import uvicorn
from starlette.types import ASGIApp, Message
from support.clock import ManualClock
from support.usecases import ROOT, Office
from typing_extensions import override

from api.app import Application, create_app
from api.client import Client
from scheduler import service
from scheduler.execution.local.runtime import HostRuntime
from scheduler.model.access import Role
from scheduler.model.execution import LogChunk
from scheduler.model.quantity import DEFAULT_TENANT, SYSTEM_TENANT, AttemptId, TenantId, UtcSeconds
from scheduler.settings import ApiSettings, Settings
from scheduler.store.database import Database
from scheduler.tokens import digest, new_token

BASE = "http://127.0.0.1:8470"
JOB: dict[str, Any] = {
    "apiVersion": "haversack.dev/v1alpha1",
    "kind": "Job",
    "metadata": {"name": "hello"},
    "spec": {"task": {"command": ["true"]}},
}


class FakeLogs:
    """Logs kept in memory, by (attempt, rank); `ended` names the attempts that print no more."""

    def __init__(self) -> None:
        self.text: dict[tuple[AttemptId, int], bytes] = {}
        self.ended: set[AttemptId] = set()

    def ranks(self, attempt_id: AttemptId) -> list[int]:
        return sorted(rank for attempt, rank in self.text if attempt == attempt_id)

    def read(self, attempt_id: AttemptId, rank: int, offset: int, limit: int) -> LogChunk:
        whole = self.text.get((attempt_id, rank))
        if whole is None:
            raise LookupError(f"no rank {rank} of {attempt_id}")
        data = whole[offset : offset + limit]
        after = offset + len(data)
        return LogChunk(
            rank, offset, after, data, end=attempt_id in self.ended and after >= len(whole)
        )


class InProcess(httpx.BaseTransport):
    """Calls an ASGI application, one event loop a request; the whole answer is read."""

    def __init__(self, app: ASGIApp, address: str = "127.0.0.1") -> None:
        self._inner = httpx.ASGITransport(app, raise_app_exceptions=False, client=(address, 4711))

    @override
    def handle_request(self, request: httpx.Request) -> httpx.Response:
        async def answer() -> httpx.Response:
            response = await self._inner.handle_async_request(request)
            body = await response.aread()
            return httpx.Response(response.status_code, headers=response.headers, content=body)

        return asyncio.run(answer())


@dataclass
class Edge:
    """One application and the store behind it.

    Attributes:
        troubles: what readiness answers.
        warnings: what it warns of.
        pods: why pods, by `namespace/name`, wait outside every job.
        woken: how often the scheduler was woken.
        on_wake: called on the event loop, while the waking request is still open.
    """

    office: Office
    logs: FakeLogs = field(default_factory=FakeLogs)
    settings: Settings = field(default_factory=Settings)
    troubles: dict[str, str] = field(default_factory=dict)
    warnings: dict[str, str] = field(default_factory=dict)
    pods: dict[str, str] = field(default_factory=dict)
    woken: int = 0
    on_wake: Callable[[], None] | None = None

    def __post_init__(self) -> None:
        self.app: Application = create_app(
            database=self.office.database,
            clock=self.office.clock,
            ids=self.office.ids,
            settings=self.settings,
            log_reader=self.logs,
            runtime=HostRuntime(),
            wake=self._wake,
            readiness=lambda: self.troubles,
            warnings=lambda: self.warnings,
            pod_waits=lambda namespace, name: self.pods.get(f"{namespace}/{name}", ""),
        )

    def _wake(self) -> None:
        self.woken += 1
        if self.on_wake is not None:
            self.on_wake()

    def token(
        self,
        role: Role = Role.USER,
        tenant: TenantId = DEFAULT_TENANT,
        *,
        name: str | None = None,
        read_only: bool = False,
        expires_in_s: float | None = None,
    ) -> str:
        """A fresh token of a principal named after its role."""
        text, now = new_token(), self.office.now
        self.office.write(
            lambda tx: service.create_token(
                tx,
                ROOT,
                tenant=tenant,
                name=name or f"{role}-of-{tenant}",
                role=role,
                description="",
                expires_at=None if expires_in_s is None else UtcSeconds(now + expires_in_s),
                sha256_hex=digest(text),
                read_only=read_only,
                now=now,
                ids=self.office.ids,
            )
        )
        return text

    @property
    def root(self) -> str:
        """A token of the system's administrator."""
        return self.token(Role.ADMIN, SYSTEM_TENANT)

    def call(
        self,
        method: str,
        path: str,
        token: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        body: object = None,
        content: bytes | None = None,
        address: str = "127.0.0.1",
        base: str = BASE,
    ) -> httpx.Response:
        """One request; `body` is sent as JSON, `content` as it is, declared as JSON."""
        sent = dict(headers or {})
        if token is not None:
            sent["Authorization"] = f"Bearer {token}"
        if content is None and body is not None:
            content = json.dumps(body).encode()
        if content is not None:
            sent.setdefault("Content-Type", "application/json")
        with httpx.Client(transport=InProcess(self.app, address), base_url=base) as http:
            return http.request(method, path, headers=sent, content=content)

    def client(self, token: str, **options: Any) -> Client:
        """Our own client on this application."""
        return Client(BASE, token, transport=InProcess(self.app), **options)


def edge_over(database: Database, clock: ManualClock, **api: Any) -> Edge:
    """The edge over an open store; `api` changes the section of that name."""
    return Edge(Office(database, clock), settings=Settings(api=ApiSettings(**api)))


@contextmanager
def serving(edge: Edge) -> Iterator[str]:
    """The base URL of a real server that runs `edge` in a thread, on a free port."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(edge.app, log_config=None, lifespan="on", timeout_graceful_shutdown=5)
    )
    loop = asyncio.new_event_loop()

    def serve() -> None:
        loop.run_until_complete(server.serve(sockets=[listener]))
        loop.close()

    thread = threading.Thread(target=serve)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        loop.call_soon_threadsafe(edge.app.stop_streams)
        server.should_exit = True
        thread.join(15)
        listener.close()
        assert not thread.is_alive()


@asynccontextmanager
async def opened_stream(
    app: ASGIApp,
    path: str,
    token: str,
    *,
    query: str = "",
    headers: Mapping[str, str] | None = None,
) -> AsyncIterator[AsyncIterator[bytes]]:
    """The pieces of a streamed answer as they come; leaving it hangs up."""
    pieces: asyncio.Queue[bytes | None] = asyncio.Queue()
    gone = asyncio.Event()
    sent = {"host": "127.0.0.1", "authorization": f"Bearer {token}", **(headers or {})}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(k.lower().encode(), v.encode()) for k, v in sent.items()],
        "client": ("127.0.0.1", 4711),
        "server": ("127.0.0.1", 8470),
    }
    asked = False

    async def receive() -> Message:
        nonlocal asked
        if not asked:
            asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            if message.get("body"):
                await pieces.put(message["body"])
            if not message.get("more_body", False):
                await pieces.put(None)

    async def received() -> AsyncIterator[bytes]:
        while (piece := await pieces.get()) is not None:
            yield piece

    async def serve() -> None:
        await app(scope, receive, send)

    serving = asyncio.create_task(serve())
    try:
        yield received()
    finally:
        gone.set()
        await asyncio.wait_for(serving, 10)
