"""What scheduling cycles decided: value, proven bound, gap, placements, refusals."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from api.dependencies import API, JobReader, Json, PageCursor, PageLimit, context
from api.render import decision_detail_out, decision_out, page_out
from api.schemas import DecisionDetailOut, DecisionOut, PageOut
from scheduler import service
from scheduler.model.quantity import DecisionId

router = APIRouter(prefix=API, tags=["cluster"])


@router.get("/decisions", responses={200: {"model": PageOut[DecisionOut]}})
async def list_decisions(
    request: Request, actor: JobReader, limit: PageLimit = 20, cursor: PageCursor = None
) -> Response:
    """Decisions, newest first."""
    page = await context(request).database.read(
        lambda tx: service.list_decisions(tx, actor, cursor=cursor, limit=limit)
    )
    return Json(page_out(page, decision_out))


@router.get("/decisions/{decision_id:id}", responses={200: {"model": DecisionDetailOut}})
async def get_decision(request: Request, actor: JobReader, decision_id: str) -> Response:
    """One decision with its document."""
    decision = await context(request).database.read(
        lambda tx: service.get_decision(tx, actor, DecisionId(decision_id))
    )
    return Json(decision_detail_out(decision))
