"""Tenants: the border of isolation and billing."""

from __future__ import annotations

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from api.dependencies import API, Body, Json, TenantAdmin, context, read_body
from api.render import tenant_out
from api.schemas import ListOut, TenantOut
from scheduler import service

router = APIRouter(prefix=API, tags=["administration"])


class NewTenant(Body):
    """Body of a tenant request."""

    name: str = Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")


@router.get("/tenants", responses={200: {"model": ListOut[TenantOut]}})
async def list_tenants(request: Request, actor: TenantAdmin) -> Response:
    """Every tenant."""
    tenants = await context(request).database.read(lambda tx: service.list_tenants(tx, actor))
    return Json({"items": [tenant_out(tenant) for tenant in tenants]})


@router.post("/tenants", status_code=201, responses={201: {"model": TenantOut}})
async def create_tenant(request: Request, actor: TenantAdmin) -> Response:
    """Add a tenant with its default queue."""
    parts = context(request)
    wanted = await read_body(request, NewTenant)
    view = await parts.database.write(
        lambda tx: service.create_tenant(
            tx, actor, wanted.name, now=parts.clock.now(), ids=parts.ids
        )
    )
    return Json(tenant_out(view), status_code=201)
