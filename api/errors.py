"""Every refusal leaves as problem+json, and every denied change leaves an audit row."""

from __future__ import annotations

from http import HTTPStatus

import orjson
import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from api.dependencies import SAFE_METHODS, context, field_problems
from api.middleware import REQUEST_ID
from api.problems import MEDIA_TYPE, Problem, problem_of
from scheduler import service
from scheduler.errors import (
    ForbiddenError,
    HaversackError,
    InvalidRequestError,
    UnauthenticatedError,
)

log = structlog.get_logger(__name__)

_ACTION_MAX = 64


def respond(request: Request, problem: Problem) -> Response:
    """A problem as the answer to `request`."""
    return Response(
        orjson.dumps(problem.document(str(request.scope.get(REQUEST_ID, "")))),
        status_code=int(problem.status),
        headers=dict(problem.headers),
        media_type=MEDIA_TYPE,
    )


async def _ours(request: Request, error: Exception) -> Response:
    assert isinstance(error, HaversackError)
    denied = isinstance(error, ForbiddenError | UnauthenticatedError)
    if denied and request.method not in SAFE_METHODS:
        await _audit_denied(request, error)
    problem = problem_of(error)
    if problem.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        log.error(
            "request failed",
            request_id=request.scope.get(REQUEST_ID),
            path=request.url.path,
            code=error.code,
            why=str(error),
        )
    return respond(request, problem)


async def _audit_denied(request: Request, error: HaversackError) -> None:
    """Record the denial. It stands whether or not the store can take the row."""
    parts = context(request)
    actor = getattr(request.state, "actor", None)
    route = getattr(request.scope.get("route"), "path_format", "")
    action = f"{request.method} {route}"[:_ACTION_MAX]
    object_id = next(iter(request.path_params.values()), "")
    detail = {"code": error.code, "why": str(error)}
    try:
        await parts.database.write(
            lambda tx: service.audit_denied(
                tx, actor, action, str(object_id), detail, parts.clock.now()
            )
        )
    except HaversackError as trouble:
        log.warning("denial not audited", action=action, why=str(trouble))


async def _from_framework(request: Request, error: Exception) -> Response:
    """404 and 405 of the router."""
    assert isinstance(error, HTTPException)
    status = HTTPStatus(error.status_code)
    known = {
        HTTPStatus.NOT_FOUND: ("no-such-route", f"nothing is served at {request.url.path[:200]}"),
        HTTPStatus.METHOD_NOT_ALLOWED: (
            "method-not-allowed",
            f"{request.method} is not offered at {request.url.path[:200]}",
        ),
    }
    code, detail = known.get(status, ("http", str(error.detail)))
    return respond(
        request,
        Problem(
            status=status,
            code=code,
            title=status.phrase,
            detail=detail,
            hint="/api/v1/openapi.json lists every route",
            headers=tuple((name.lower(), value) for name, value in (error.headers or {}).items()),
        ),
    )


async def _invalid(request: Request, error: Exception) -> Response:
    """Query parameters and headers that FastAPI refused."""
    assert isinstance(error, RequestValidationError)
    refused = InvalidRequestError(
        "a parameter is not valid", problems=field_problems(error.errors())
    )
    return respond(request, problem_of(refused))


async def _unexpected(request: Request, error: Exception) -> Response:
    """A bug of ours: say nothing of it to the caller, everything to the log."""
    log.error(
        "unexpected error",
        request_id=request.scope.get(REQUEST_ID),
        path=request.url.path,
        exc_info=error,
    )
    return respond(
        request,
        Problem(
            status=HTTPStatus.INTERNAL_SERVER_ERROR,
            code="internal",
            title="The daemon failed",
            detail="an unexpected error; nothing of the request was acknowledged",
            hint="the daemon's log has the details under this request_id",
        ),
    )


def install(app: FastAPI) -> None:
    """Register the handlers."""
    app.add_exception_handler(HaversackError, _ours)
    app.add_exception_handler(HTTPException, _from_framework)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _unexpected)
