"""What the API and the job file look like, for machines."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from api.dependencies import API, ClusterReader, Json
from scheduler.jobspec import job_schema

router = APIRouter(prefix=API, tags=["schema"])


@router.get("/openapi.json")
async def openapi(request: Request, _: ClusterReader) -> Response:
    """This API as OpenAPI 3.1."""
    return Json(request.app.openapi())


@router.get("/schemas/job")
async def job(_: ClusterReader) -> Response:
    """JSON Schema (draft 2020-12) of the job file."""
    return Json(job_schema())
