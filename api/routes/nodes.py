"""Nodes: what there is, what is used of it, and keeping new work off one."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from api.dependencies import (
    API,
    Body,
    ClusterOperator,
    ClusterReader,
    IfMatch,
    Json,
    context,
    etag,
    read_body,
)
from api.render import node_out
from api.schemas import ListOut, NodeOut
from scheduler import service
from scheduler.model.quantity import NodeId

router = APIRouter(prefix=API, tags=["cluster"])


class Cordon(Body):
    """Body of `:cordon`; false allows new work again."""

    cordoned: bool = True


async def wanted_cordon(request: Request) -> bool:
    """What a `:cordon` request asks for; no body means to cordon.

    Raises:
        InvalidRequestError: a body that is not `{"cordoned": true|false}`.
    """
    if request.headers.get("content-length", "0") == "0" and not await request.body():
        return True
    return (await read_body(request, Cordon)).cordoned


@router.get("/nodes", responses={200: {"model": ListOut[NodeOut]}})
async def list_nodes(request: Request, actor: ClusterReader) -> Response:
    """Every node."""
    nodes = await context(request).database.read(lambda tx: service.list_nodes(tx, actor))
    return Json({"items": [node_out(node) for node in nodes]})


@router.get("/nodes/{node_id:id}", responses={200: {"model": NodeOut}})
async def get_node(request: Request, actor: ClusterReader, node_id: str) -> Response:
    """One node, by id or name."""
    node = await context(request).database.read(lambda tx: service.get_node(tx, actor, node_id))
    return Json(node_out(node), headers=etag(node.version))


@router.post("/nodes/{node_id:id}:cordon", responses={200: {"model": NodeOut}})
async def cordon_node(
    request: Request, actor: ClusterOperator, node_id: str, if_match: IfMatch = None
) -> Response:
    """Stop placing new work on a node, or allow it again; running work goes on."""
    parts = context(request)
    cordoned = await wanted_cordon(request)
    node = await parts.database.write(
        lambda tx: service.cordon_node(
            tx,
            actor,
            NodeId(node_id),
            cordoned=cordoned,
            now=parts.clock.now(),
            if_match=if_match,
        )
    )
    parts.wake()
    return Json(node_out(node), headers=etag(node.version))
