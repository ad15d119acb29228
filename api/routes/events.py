"""Committed changes as server-sent events, replayed from the journal and then as they happen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

import orjson
from fastapi import APIRouter, Header, Query, Request
from starlette.responses import Response, StreamingResponse

from api.dependencies import API, Context, JobReader, context
from api.render import event_out
from api.streams import RECHECK_S, Pulse, until_trouble
from scheduler import service
from scheduler.errors import FieldProblem, InvalidRequestError
from scheduler.model.access import Actor

router = APIRouter(prefix=API, tags=["events"])

_BATCH = 500
_PACE_S = 0.1
"""A stream looks at the journal at most this often, however fast commits come."""
_REVISION_MAX = 2**53


@router.get("/events", responses={200: {"content": {"text/event-stream": {}}}})
async def events(
    request: Request,
    actor: JobReader,
    since: Annotated[
        int | None, Query(ge=0, le=_REVISION_MAX, description="Replay what came after it.")
    ] = None,
    last_event_id: Annotated[str | None, Header(max_length=32)] = None,
) -> Response:
    """Changes after `since` (or the Last-Event-ID header; from now on by default), without end."""
    parts = context(request)
    if last_event_id is not None:
        if not (last_event_id.isascii() and last_event_id.isdigit()):
            problem = FieldProblem("header.Last-Event-ID", "expected a revision number")
            raise InvalidRequestError("a parameter is not valid", problems=(problem,))
        since = int(last_event_id)
    head = await parts.database.read(service.head_revision)
    # A revision from a store that has been restored to the past would never be reached.
    start = head if since is None else min(since, head)
    return StreamingResponse(
        until_trouble(_stream(request, parts, actor, start)),
        media_type="text/event-stream",
        headers={"X-Accel-Buffering": "no"},
    )


async def _stream(
    request: Request, parts: Context, actor: Actor, revision: int
) -> AsyncIterator[bytes]:
    """Entries after `revision`. Holds one batch in memory; a slow client only slows itself."""
    pulse = Pulse(parts.clock, lambda: parts.gate.still_honoured(request))
    yield b"retry: 2000\n\n"
    while not parts.commits.closed:
        after = revision
        entries, head = await parts.database.read(
            lambda tx, after=after: (  # type: ignore[misc]  # a default binds the loop's value
                service.events_after(tx, actor, after, limit=_BATCH),
                service.head_revision(tx),
            )
        )
        for entry in entries:
            yield b"id: %d\nevent: %s\ndata: %s\n\n" % (
                entry.revision,
                entry.kind.encode(),
                orjson.dumps(event_out(entry)),
            )
        if entries:
            pulse.told()
        if len(entries) == _BATCH:
            revision = entries[-1].revision
            continue
        revision = head
        if pulse.heartbeat_due():
            yield b": still here\n\n"
        if not await pulse.may_go_on():
            return
        await asyncio.sleep(_PACE_S)
        await parts.commits.wait_after(revision, RECHECK_S)
