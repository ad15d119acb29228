"""What routes are given: the daemon's parts, the actor, and bodies read within their bounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, TypeVar

import orjson
from fastapi import Depends, Header, Query, Request
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from typing_extensions import override

from api.security import Gate, Tickets
from api.streams import Commits
from scheduler.clock import Clock
from scheduler.errors import FieldProblem, ForbiddenError, InvalidRequestError
from scheduler.ids import IdSource
from scheduler.model.access import Actor, Permission
from scheduler.model.ports import LogReader
from scheduler.model.runtime import Runtime
from scheduler.observability import Metrics
from scheduler.service import Limits
from scheduler.settings import Settings
from scheduler.store.database import Database

API = "/api/v1"
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True, slots=True)
class Context:
    """The daemon's parts as the API sees them; one per application.

    Attributes:
        log_threads: where `log_reader` is called. It may wait for seconds, so these are threads
            of its own: those of the event loop also look up names and renew credentials.
    """

    database: Database
    clock: Clock
    ids: IdSource
    settings: Settings
    log_reader: LogReader
    log_threads: ThreadPoolExecutor
    runtime: Runtime
    wake: Callable[[], None]
    readiness: Callable[[], Mapping[str, str]]
    warnings: Callable[[], Mapping[str, str]]
    pod_waits: Callable[[str, str], str]
    metrics: Metrics
    gate: Gate
    tickets: Tickets
    commits: Commits
    limits: Limits


def context(request: Request) -> Context:
    """The parts of the application that serves `request`."""
    found = request.app.context
    assert isinstance(found, Context)
    return found


class Requires:
    """A route's declared permission, as the dependency that authenticates and checks it.

    Every route has exactly one: `api.app.create_app` refuses to build an application otherwise.
    """

    def __init__(self, permission: Permission) -> None:
        self.permission = permission

    async def __call__(self, request: Request) -> Actor:
        """The actor of the request.

        Raises:
            UnauthenticatedError: no identity, or none that is honoured.
            ForbiddenError: its role does not grant the permission, or it may only read.
        """
        actor = await context(request).gate.actor(request)
        request.state.actor = actor
        if actor.read_only and request.method not in SAFE_METHODS:
            raise ForbiddenError(
                "this session may only read", hint="use the command line with a token of your own"
            )
        if not actor.may(self.permission):
            raise ForbiddenError(
                f"role {actor.role} of tenant {actor.tenant} does not grant {self.permission}",
                hint="ask an administrator for a token with another role",
            )
        return actor


class Public(Requires):
    """A route that anybody may call. Says nothing of who calls."""

    def __init__(self) -> None:
        super().__init__(Permission.PUBLIC)

    @override
    async def __call__(self, request: Request) -> None:  # type: ignore[override]
        """Let everybody pass."""


def permission_of(route: APIRoute) -> Permission | None:
    """The permission a route declares; None unless there is exactly one."""
    declared = [
        dependency.call.permission
        for dependency in route.dependant.dependencies
        if isinstance(dependency.call, Requires)
    ]
    return declared[0] if len(declared) == 1 else None


_P = Permission
JobReader = Annotated[Actor, Depends(Requires(_P.JOBS_READ))]
JobWriter = Annotated[Actor, Depends(Requires(_P.JOBS_WRITE))]
ClusterReader = Annotated[Actor, Depends(Requires(_P.CLUSTER_READ))]
ClusterOperator = Annotated[Actor, Depends(Requires(_P.CLUSTER_OPERATE))]
AuditReader = Annotated[Actor, Depends(Requires(_P.AUDIT_READ))]
TokenAdmin = Annotated[Actor, Depends(Requires(_P.TOKENS_ADMIN))]
TenantAdmin = Annotated[Actor, Depends(Requires(_P.TENANTS_ADMIN))]
MetricsReader = Annotated[Actor, Depends(Requires(_P.METRICS_READ))]
SessionHolder = Annotated[Actor, Depends(Requires(_P.SESSION))]
Anybody = Annotated[None, Depends(Public())]


class _Identifier(Convertor[str]):
    """A path segment that is one of our ids or names; never holds a `:`, which starts a verb."""

    regex = "[A-Za-z0-9._-]{1,253}"

    @override
    def convert(self, value: str) -> str:
        """As it is."""
        return value

    @override
    def to_string(self, value: str) -> str:
        """As it is."""
        return value


register_url_convertor("id", _Identifier())


class Json(Response):
    """A JSON answer, by orjson. NaN becomes null."""

    media_type = "application/json"

    @override
    def render(self, content: object) -> bytes:
        """The body."""
        return orjson.dumps(content)


def etag(version: int) -> dict[str, str]:
    """The ETag header of an object at `version`."""
    return {"ETag": f'"{version}"'}


def _if_match(
    if_match: Annotated[str | None, Header(max_length=64, description='`"<version>"` or *')] = None,
) -> int | None:
    if if_match is None or if_match.strip() == "*":
        return None
    text = if_match.strip()
    digits = text[1:-1]
    if not (text[:1] == text[-1:] == '"' and digits.isascii() and digits.isdigit()):
        raise InvalidRequestError(
            "If-Match must be one ETag of ours",
            problems=(FieldProblem("header.If-Match", 'expected "<version>", in quotes'),),
            hint="send the ETag header of the object as you read it",
        )
    return int(digits)


IfMatch = Annotated[int | None, Depends(_if_match)]
PageLimit = Annotated[int, Query(ge=1, le=1000, description="Items per page.")]
PageCursor = Annotated[
    str | None,
    Query(min_length=1, max_length=512, pattern=r"^[\x21-\x7e]+$", description="next_cursor."),
]


class Body(BaseModel):
    """Base of small request bodies: unknown fields are errors, nothing is converted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


B = TypeVar("B", bound=Body)


async def json_bytes(request: Request) -> bytes:
    """The JSON body of a request, unparsed.

    Raises:
        InvalidRequestError: not declared as JSON, or broken off.
        TooLargeError: over the bound (from the middleware, while it streams in).
    """
    declared = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if declared != "application/json":
        raise InvalidRequestError(
            f"the body must be JSON, not {declared[:80] or 'undeclared'!r}",
            problems=(FieldProblem("header.Content-Type", "expected application/json"),),
            hint="send the header `Content-Type: application/json`",
        )
    try:
        return await request.body()
    except ClientDisconnect as gone:
        raise InvalidRequestError("the request body broke off or took too long") from gone


async def read_body(request: Request, model: type[B]) -> B:
    """The body as `model`. NaN, Infinity and deep nesting are refused by the parser.

    Raises:
        InvalidRequestError: not JSON, or not of this shape.
        TooLargeError: over the bound.
    """
    try:
        return model.model_validate(orjson.loads(await json_bytes(request)))
    except orjson.JSONDecodeError as error:
        problem = FieldProblem("", f"not JSON: {error.msg}", error.lineno, error.colno)
        raise InvalidRequestError("the body is not JSON", problems=(problem,)) from error
    except ValidationError as error:
        raise InvalidRequestError(
            "the body is not as expected", problems=field_problems(error.errors())
        ) from error


def field_problems(errors: object) -> tuple[FieldProblem, ...]:
    """The error list of pydantic as field problems; at most 50."""
    assert isinstance(errors, list | tuple)
    return tuple(
        FieldProblem(".".join(str(part) for part in error["loc"]), str(error["msg"]))
        for error in errors[:50]
    )
