"""Who changed what, and what was denied."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from api.dependencies import API, AuditReader, Json, PageCursor, PageLimit, context
from api.render import audit_out, page_out
from api.schemas import AuditOut, PageOut
from scheduler import service

router = APIRouter(prefix=API, tags=["administration"])


@router.get("/audit", responses={200: {"model": PageOut[AuditOut]}})
async def list_audit(
    request: Request, actor: AuditReader, limit: PageLimit = 100, cursor: PageCursor = None
) -> Response:
    """Audit rows, newest first."""
    page = await context(request).database.read(
        lambda tx: service.list_audit(tx, actor, cursor=cursor, limit=limit)
    )
    return Json(page_out(page, audit_out))
