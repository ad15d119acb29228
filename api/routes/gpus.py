"""GPUs: who holds which, and keeping new work off one."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from api.dependencies import API, ClusterOperator, ClusterReader, IfMatch, Json, context, etag
from api.render import gpu_out
from api.routes.nodes import wanted_cordon
from api.schemas import GpuOut, ListOut
from scheduler import service
from scheduler.model.quantity import GpuId

router = APIRouter(prefix=API, tags=["cluster"])


@router.get("/gpus", responses={200: {"model": ListOut[GpuOut]}})
async def list_gpus(request: Request, actor: ClusterReader) -> Response:
    """Every GPU."""
    gpus = await context(request).database.read(lambda tx: service.list_gpus(tx, actor))
    return Json({"items": [gpu_out(gpu) for gpu in gpus]})


@router.get("/gpus/{gpu_id:id}", responses={200: {"model": GpuOut}})
async def get_gpu(request: Request, actor: ClusterReader, gpu_id: str) -> Response:
    """One GPU."""
    gpu = await context(request).database.read(lambda tx: service.get_gpu(tx, actor, GpuId(gpu_id)))
    return Json(gpu_out(gpu), headers=etag(gpu.version))


@router.post("/gpus/{gpu_id:id}:cordon", responses={200: {"model": GpuOut}})
async def cordon_gpu(
    request: Request, actor: ClusterOperator, gpu_id: str, if_match: IfMatch = None
) -> Response:
    """Stop placing new work on a GPU, or allow it again; running work goes on."""
    parts = context(request)
    cordoned = await wanted_cordon(request)
    gpu = await parts.database.write(
        lambda tx: service.cordon_gpu(
            tx,
            actor,
            GpuId(gpu_id),
            cordoned=cordoned,
            now=parts.clock.now(),
            if_match=if_match,
        )
    )
    parts.wake()
    return Json(gpu_out(gpu), headers=etag(gpu.version))
