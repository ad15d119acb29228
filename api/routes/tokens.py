"""Tokens: issue, list, revoke. The text of a token is shown once and stored nowhere."""

from __future__ import annotations

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from api.dependencies import API, Body, Json, TokenAdmin, context, read_body
from api.render import token_out
from api.schemas import ListOut, NewTokenOut, TokenOut
from scheduler import service
from scheduler.errors import FieldProblem, InvalidRequestError
from scheduler.model.access import Role
from scheduler.model.quantity import TenantId, UtcSeconds
from scheduler.tokens import digest, new_token

router = APIRouter(prefix=API, tags=["administration"])

_YEAR_S = 366 * 86_400
_NAME = r"^[A-Za-z0-9]([A-Za-z0-9._@-]*[A-Za-z0-9])?$"


class NewToken(Body):
    """Body of a token request. `tenant` defaults to the caller's own."""

    name: str = Field(min_length=1, max_length=64, pattern=_NAME)
    role: str
    tenant: str | None = Field(default=None, min_length=1, max_length=64, pattern=_NAME)
    description: str = Field(default="", max_length=256, pattern=r"^[^\x00-\x1f\x7f]*$")
    expires_in_s: float | None = Field(default=None, gt=0, le=10 * _YEAR_S)
    read_only: bool = False


@router.get("/tokens", responses={200: {"model": ListOut[TokenOut]}})
async def list_tokens(request: Request, actor: TokenAdmin) -> Response:
    """Tokens without their secrets."""
    tokens = await context(request).database.read(lambda tx: service.list_tokens(tx, actor))
    return Json({"items": [token_out(token) for token in tokens]})


@router.post("/tokens", status_code=201, responses={201: {"model": NewTokenOut}})
async def create_token(request: Request, actor: TokenAdmin) -> Response:
    """Issue a token; nobody grants above themselves."""
    parts = context(request)
    wanted = await read_body(request, NewToken)
    if wanted.role not in set(Role):
        known = ", ".join(Role)
        problem = FieldProblem("role", f"no role {wanted.role[:40]!r}; known: {known}")
        raise InvalidRequestError("the body is not as expected", problems=(problem,))
    token = new_token()
    now = parts.clock.now()
    expires_at = None if wanted.expires_in_s is None else UtcSeconds(now + wanted.expires_in_s)
    view = await parts.database.write(
        lambda tx: service.create_token(
            tx,
            actor,
            tenant=actor.tenant if wanted.tenant is None else TenantId(wanted.tenant),
            name=wanted.name,
            role=Role(wanted.role),
            description=wanted.description,
            expires_at=expires_at,
            sha256_hex=digest(token),
            read_only=wanted.read_only,
            now=now,
            ids=parts.ids,
        )
    )
    return Json({**token_out(view), "token": token}, status_code=201)


@router.post("/tokens/{token_id:id}:revoke", responses={200: {"model": TokenOut}})
async def revoke_token(request: Request, actor: TokenAdmin, token_id: str) -> Response:
    """Make a token worthless, within two seconds."""
    parts = context(request)
    view = await parts.database.write(
        lambda tx: service.revoke_token(tx, actor, token_id, now=parts.clock.now())
    )
    return Json(token_out(view))
