"""Queues with their counts."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from api.dependencies import API, JobReader, Json, context
from api.render import queue_out
from api.schemas import ListOut, QueueOut
from scheduler import service

router = APIRouter(prefix=API, tags=["jobs"])


@router.get("/queues", responses={200: {"model": ListOut[QueueOut]}})
async def list_queues(request: Request, actor: JobReader) -> Response:
    """Queues of the actor's tenant; of every tenant for the system's principals."""
    queues = await context(request).database.read(lambda tx: service.list_queues(tx, actor))
    return Json({"items": [queue_out(queue) for queue in queues]})
