"""Probes and metrics."""

from __future__ import annotations

import asyncio
from importlib.metadata import version

from fastapi import APIRouter, Request
from starlette.responses import Response

from api.dependencies import Anybody, Json, MetricsReader, context
from api.schemas import HealthOut, ReadyOut

router = APIRouter(tags=["health"])

VERSION = version("haversack")


@router.get("/healthz", responses={200: {"model": HealthOut}})
async def healthz(_: Anybody) -> Response:
    """The process answers."""
    return Json({"status": "ok", "version": VERSION})


@router.get("/readyz", responses={200: {"model": ReadyOut}, 503: {"model": ReadyOut}})
async def readyz(request: Request, _: Anybody) -> Response:
    """Whether every part works; 503 names the parts that do not."""
    parts = context(request)
    troubles = {part: why for part, why in parts.readiness().items() if why}
    answer: ReadyOut = {
        "ready": not troubles,
        "role": "leader",
        "troubles": troubles,
        "warnings": {part: why for part, why in parts.warnings().items() if why},
    }
    return Json(answer, status_code=503 if troubles else 200)


@router.get("/metrics", responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request, _: MetricsReader) -> Response:
    """Prometheus text exposition; no metric names a tenant."""
    # Some values are counted in the database when they are asked for.
    text = await asyncio.to_thread(context(request).metrics.render)
    return Response(text, media_type="text/plain; version=0.0.4")
