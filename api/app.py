"""The application: routes, refusals and middleware put together. Builds, holds no logic."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from pydantic import TypeAdapter
from starlette.types import ASGIApp, Receive, Scope, Send
from typing_extensions import override

from api import errors
from api.dependencies import Context, permission_of
from api.middleware import BodyBound, HostCheck, InFlight, RequestContext
from api.problems import MEDIA_TYPE
from api.routes import (
    audit,
    decisions,
    events,
    gpus,
    health,
    jobs,
    logs,
    nodes,
    pods,
    queues,
    schema,
    sessions,
    tenants,
    tokens,
)
from api.schemas import ProblemOut
from api.security import Gate, Tickets
from api.streams import Commits
from scheduler.clock import Clock
from scheduler.ids import IdSource
from scheduler.model.ports import LogReader
from scheduler.model.runtime import Runtime
from scheduler.observability import Metrics
from scheduler.service import Limits
from scheduler.service.census import live_jobs, open_intents
from scheduler.settings import Settings
from scheduler.store.database import Database

_ROUTERS: tuple[APIRouter, ...] = tuple(
    module.router
    for module in (
        jobs,
        logs,
        pods,
        queues,
        nodes,
        gpus,
        decisions,
        events,
        tokens,
        tenants,
        audit,
        sessions,
        health,
        schema,
    )
)


_LOG_THREADS = 32
"""Pieces of logs that are read at once."""
_REFUSAL = {
    "description": "A refusal, as an RFC 9457 problem with a stable `code`.",
    "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
}


class Application(FastAPI):
    """FastAPI inside our middleware, which sees every request first and every answer last."""

    context: Context
    _entrance: ASGIApp | None = None

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if self._entrance is None:
            self._entrance = self._with_middleware(super().__call__)
        await self._entrance(scope, receive, send)

    def _with_middleware(self, inner: ASGIApp) -> ASGIApp:
        parts = self.context
        api = parts.settings.api
        app: ASGIApp = InFlight(inner, api)
        app = HostCheck(app, api)
        app = BodyBound(app, api.body_bytes_max)
        return RequestContext(app, parts.clock, parts.ids, parts.metrics)

    @override
    def openapi(self) -> dict[str, Any]:
        """OpenAPI 3.1 of every route, with how to authenticate and what a refusal looks like."""
        if self.openapi_schema is None:
            document = super().openapi()
            components = document.setdefault("components", {})
            components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
            problem = TypeAdapter(ProblemOut).json_schema(
                ref_template="#/components/schemas/{model}"
            )
            components.setdefault("schemas", {}).update(problem.pop("$defs", {}))
            components["schemas"]["Problem"] = problem
            document["security"] = [{"token": []}]
            for path in document["paths"].values():
                for operation in path.values():
                    operation["responses"].pop("422", None)  # FastAPI's own error shape
                    operation["responses"]["default"] = _REFUSAL
        assert self.openapi_schema is not None
        return self.openapi_schema

    def stop_streams(self) -> None:
        """End every open stream, so that a shutdown need not wait. From the event loop."""
        self.context.commits.close()


def api_routes(app: FastAPI) -> Iterator[APIRoute]:
    """Every route of the application.

    Raises:
        AssertionError: something is mounted that is not an API route, so nobody checks it.
    """
    for route in app.routes:
        assert isinstance(route, APIRoute), f"{route} is not an API route"
        yield route


def create_app(
    *,
    database: Database,
    clock: Clock,
    ids: IdSource,
    settings: Settings,
    log_reader: LogReader,
    runtime: Runtime,
    wake: Callable[[], None],
    readiness: Callable[[], Mapping[str, str]],
    warnings: Callable[[], Mapping[str, str]],
    pod_waits: Callable[[str, str], str],
    metrics: Metrics | None = None,
) -> Application:
    """The whole HTTP edge as one ASGI application.

    Args:
        database: the open store.
        clock: wall time for records, monotonic time for limits.
        ids: makes job, token and request ids.
        settings: the sections `api` and `queue` are read.
        log_reader: reads what ranks printed; called in worker threads.
        runtime: says which jobs can be run.
        wake: called on the event loop after a change that the scheduler should look at.
        readiness: troubles by part; empty text means that the part works.
        warnings: safeguards that are missing, by part; empty text means that none is.
        pod_waits: why a pod, by namespace and name, waits outside every job; empty text means that
            nothing is known of it.
        metrics: where requests are counted; a fresh one if None.

    Raises:
        AssertionError: a route declares no permission (a programming error).
    """
    commits = Commits()
    database.on_commit(commits.announce)
    app = _without_parts(commits)
    app.context = Context(
        database=database,
        clock=clock,
        ids=ids,
        settings=settings,
        log_reader=log_reader,
        log_threads=ThreadPoolExecutor(_LOG_THREADS, "logs"),
        runtime=runtime,
        wake=wake,
        readiness=readiness,
        warnings=warnings,
        pod_waits=pod_waits,
        metrics=metrics if metrics is not None else Metrics(),
        gate=Gate(database, clock),
        tickets=Tickets(clock),
        commits=commits,
        limits=Limits(
            waiting_jobs_max=settings.queue.waiting_jobs_max,
            idempotency_keep_s=settings.queue.idempotency_keep_s,
        ),
    )
    app.context.metrics.watch_jobs(lambda: database.read_sync(live_jobs))
    app.context.metrics.watch_intents(lambda: database.read_sync(open_intents))
    return app


def _without_parts(commits: Commits) -> Application:
    """The application with all its routes, each with a permission, but nothing behind them."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        commits.close()
        # Reads under way end by themselves, within seconds.
        app.context.log_threads.shutdown(wait=False, cancel_futures=True)

    app = Application(
        title="Haversack",
        version=health.VERSION,
        summary="A GPU cluster scheduler that proves how good each decision is.",
        lifespan=lifespan,
        openapi_url=None,  # served by our own route, to those who have a token
        docs_url=None,  # the stock pages load scripts from a CDN
        redoc_url=None,
        redirect_slashes=False,
    )
    errors.install(app)
    for router in _ROUTERS:
        # Not include_router: it nests, and a flat list is what the permission check can walk.
        app.router.routes.extend(router.routes)
    for route in api_routes(app):
        assert permission_of(route) is not None, f"{route.path} declares no permission"
    return app
