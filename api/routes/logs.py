"""What the ranks of a job printed: a piece, or a stream that follows to the end."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response, StreamingResponse

from api.dependencies import API, JobReader, Json, context
from api.logs import PIECE_BYTES, Follower, Wanted, ndjson, plain, ranks_of, read_piece
from api.schemas import LogOut, LogsOut
from api.streams import until_trouble
from scheduler import service
from scheduler.errors import FieldProblem, InvalidRequestError, NotFoundError
from scheduler.model.quantity import JobId
from scheduler.model.view import AttemptView

router = APIRouter(prefix=API, tags=["jobs"])

_LIMIT_MAX = 1_048_576
_OFFSET_MAX = 2**53
Rank = Annotated[
    str, Query(pattern=r"^(all|[0-9]{1,6})$", description="A rank's number, or `all`.")
]
AttemptNumber = Annotated[int | None, Query(ge=1, le=1_000_000)]
Offsets = Annotated[
    str | None,
    Query(
        max_length=65_536,
        pattern=r"^[0-9]{1,6}:[0-9]{1,15}(,[0-9]{1,6}:[0-9]{1,15})*$",
        description="Where a follower goes on: `rank:offset,...`.",
    ),
]


def _offsets(text: str | None, rank: int | None, offset: int) -> dict[int, int]:
    if text is None:
        return {} if rank is None else {rank: offset}
    pairs = (pair.split(":") for pair in text.split(","))
    return {int(rank): int(at) for rank, at in pairs}


def _wants_plain(request: Request) -> bool:
    return request.headers.get("accept", "").startswith("text/plain")


@router.get(
    "/jobs/{job_id:id}/logs",
    responses={
        200: {
            "description": (
                "A piece; with `rank=all` a piece of each; with `follow=true` a stream of pieces,"
                " `{attempt}` at each new attempt and `{end, state, exit_code}` at the very end."
            ),
            "model": LogOut | LogsOut,
        }
    },
)
async def logs(
    request: Request,
    actor: JobReader,
    job_id: str,
    rank: Rank = "0",
    offset: Annotated[int, Query(ge=0, le=_OFFSET_MAX)] = 0,
    limit: Annotated[int, Query(ge=1, le=_LIMIT_MAX)] = PIECE_BYTES,
    follow: Annotated[bool, Query()] = False,  # noqa: FBT002 - FastAPI binds it by name
    attempt: AttemptNumber = None,
    from_attempt: AttemptNumber = None,
    offsets: Offsets = None,
) -> Response:
    """Output of a job, from byte `offset` of a rank's stream."""
    parts = context(request)
    wanted_rank = None if rank == "all" else int(rank)
    attempts = await parts.database.read(lambda tx: service.job_attempts(tx, actor, JobId(job_id)))
    if follow:
        follower = Follower(
            parts,
            actor,
            JobId(job_id),
            Wanted(wanted_rank, attempt, from_attempt, _offsets(offsets, wanted_rank, offset)),
            lambda: parts.gate.still_honoured(request),
        )
        if _wants_plain(request):
            return StreamingResponse(
                until_trouble(plain(follower.records())), media_type="text/plain"
            )
        return StreamingResponse(
            until_trouble(ndjson(follower.records())), media_type="application/x-ndjson"
        )
    chosen = _choose(attempts, attempt, job_id)
    if wanted_rank is None:
        return await _all_ranks(request, chosen, limit)
    return await _one_rank(request, chosen, wanted_rank, offset, limit)


def _choose(
    attempts: tuple[AttemptView, ...], number: int | None, job_id: str
) -> AttemptView | None:
    if number is None:
        return max(attempts, key=lambda attempt: attempt.number, default=None)
    for attempt in attempts:
        if attempt.number == number:
            return attempt
    raise NotFoundError(
        f"job {job_id} has no attempt {number}",
        hint=f"it has {len(attempts)} so far; leave the attempt out for the latest",
    )


async def _one_rank(
    request: Request, attempt: AttemptView | None, rank: int, offset: int, limit: int
) -> Response:
    piece = None
    if attempt is not None:
        piece = await read_piece(context(request), attempt, rank, offset, limit)
        if piece is None and not attempt.live:
            raise NotFoundError(
                f"rank {rank} of attempt {attempt.number} has left no log",
                hint="it may never have started; `haversack describe` tells the job's story",
            )
    if piece is None:  # nothing has been printed yet
        piece = LogOut(
            rank=rank,
            attempt=attempt.number if attempt is not None else 0,
            offset=offset,
            next_offset=offset,
            end=False,
            data="",
        )
    if _wants_plain(request):
        headers = {"X-Haversack-Next-Offset": str(piece["next_offset"])}
        return Response(piece["data"], media_type="text/plain", headers=headers)
    return Json(piece)


async def _all_ranks(request: Request, attempt: AttemptView | None, limit: int) -> Response:
    if _wants_plain(request):
        raise InvalidRequestError(
            "rank=all is answered as JSON only",
            problems=(FieldProblem("query.rank", "name one rank for text/plain"),),
        )
    parts = context(request)
    pieces = []
    if attempt is not None:
        ranks = await ranks_of(parts, attempt.id)
        share = max(1024, limit // max(1, len(ranks)))
        read = [await read_piece(parts, attempt, rank, 0, share) for rank in ranks]
        pieces = [piece for piece in read if piece is not None]
    return Json({"attempt": None if attempt is None else attempt.number, "chunks": pieces})
