"""The dashboard's front door: static files, one-time login links, the session cookie."""

from __future__ import annotations

from importlib.resources import files
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import RedirectResponse, Response

from api.dependencies import API, Anybody, Context, Json, SessionHolder, context
from api.schemas import SessionOut
from api.security import SESSION_COOKIE, SESSION_S, TICKET_S, session_token
from scheduler.errors import UnauthenticatedError
from scheduler.model.access import Actor
from scheduler.tokens import digest, new_token

router = APIRouter(tags=["dashboard"])

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self';"
    " frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
)
_TYPES = {
    "index.html": "text/html; charset=utf-8",
    "app.js": "text/javascript; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
}
_FILES = {name: files("api.dashboard").joinpath(name).read_bytes() for name in _TYPES}
_HEADERS = {"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache"}


def _static(name: str) -> Response:
    return Response(_FILES[name], media_type=_TYPES[name], headers=_HEADERS)


@router.get("/", include_in_schema=False)
async def index(_: Anybody) -> Response:
    """The page; it asks for a token if there is no session."""
    return _static("index.html")


@router.get("/app.js", include_in_schema=False)
async def script(_: Anybody) -> Response:
    """The page's module."""
    return _static("app.js")


@router.get("/style.css", include_in_schema=False)
async def style(_: Anybody) -> Response:
    """The page's style."""
    return _static("style.css")


async def _open_session(parts: Context, actor: Actor, response: Response, scheme: str) -> Response:
    """Store a read-only token for `actor` and hand it over as a cookie scripts cannot read."""
    token, now = new_token(), parts.clock.now()
    await parts.database.write(
        lambda tx: session_token(tx, actor, sha256_hex=digest(token), now=now, ids=parts.ids)
    )
    response.set_cookie(
        SESSION_COOKIE,
        token,
        max_age=SESSION_S,
        httponly=True,
        samesite="strict",
        secure=scheme == "https",
    )
    return response


@router.post(f"{API}/sessions", status_code=201, responses={201: {"model": SessionOut}})
async def create_session(
    request: Request,
    actor: SessionHolder,
    cookie: Annotated[bool, Query(description="Set the cookie at once.")] = False,  # noqa: FBT002 - FastAPI binds it by name
) -> Response:
    """A login link for a browser, good once within five minutes; or the cookie itself."""
    parts = context(request)
    if cookie:
        answer = Response(status_code=204)
        return await _open_session(parts, actor, answer, request.url.scheme)
    ticket = parts.tickets.issue(actor)
    url = f"{request.url.scheme}://{request.headers['host']}/login?ticket={ticket}"
    return Json({"login_url": url, "expires_in_s": TICKET_S}, status_code=201)


@router.get("/login", include_in_schema=False)
async def login(
    request: Request, _: Anybody, ticket: Annotated[str, Query(max_length=128)]
) -> Response:
    """Turn a login link into a session.

    Raises:
        UnauthenticatedError: the link was used before, is too old, or was never issued.
    """
    parts = context(request)
    actor = parts.tickets.redeem(ticket)
    if actor is None:
        raise UnauthenticatedError(
            "this login link is used up or too old", hint="`haversack dashboard` makes a new one"
        )
    return await _open_session(
        parts, actor, RedirectResponse("/", status_code=303), request.url.scheme
    )
