"""Pods of a cluster that name us and are in no job."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from api.dependencies import API, JobReader, Json, context
from api.schemas import PodOut
from scheduler import service

router = APIRouter(prefix=API, tags=["jobs"])


@router.get("/pods/{namespace:id}/{pod:id}", responses={200: {"model": PodOut}})
async def get_pod(request: Request, actor: JobReader, namespace: str, pod: str) -> Response:
    """A pod that waits outside every job, and why: its gang is incomplete, or it is refused."""
    waits = context(request).pod_waits
    reason = service.explain_pod(actor, namespace, pod, waits=waits)
    found: PodOut = {"namespace": namespace, "name": pod, "reason": reason}
    return Json(found)
