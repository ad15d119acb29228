"""Jobs: submit, list, look at, and the four verbs that change them."""

from __future__ import annotations

import asyncio
import difflib
from typing import Annotated, Protocol

from fastapi import APIRouter, Header, Query, Request
from starlette.responses import Response

from api.dependencies import (
    API,
    IfMatch,
    JobReader,
    JobWriter,
    Json,
    PageCursor,
    PageLimit,
    context,
    etag,
    json_bytes,
)
from api.render import explanation_out, history_out, job_detail_out, job_out, page_out
from api.schemas import (
    ExplanationOut,
    HistoryOut,
    JobDetailOut,
    JobOut,
    ListOut,
    PageOut,
    SubmittedOut,
)
from scheduler import service
from scheduler.errors import FieldProblem, InvalidRequestError
from scheduler.ids import IdSource
from scheduler.jobspec import job_schema, parse_job_json
from scheduler.model.access import Actor
from scheduler.model.job import JobSpec
from scheduler.model.lifecycle import JobState
from scheduler.model.quantity import JobId, TenantId, UtcSeconds
from scheduler.model.view import SORTS, JobFilter, JobView, SubmitResult
from scheduler.store.database import Transaction

router = APIRouter(prefix=API, tags=["jobs"])

_PARSE_IN_LOOP_BYTES = 8_192
"""Larger documents are parsed in a thread: finding the line of an error may take a while."""

_PLAIN = r"^[^\x00-\x1f\x7f]+$"
_POD = r"^[a-z0-9.-]+/[a-z0-9.-]+$"
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="The same key and body make one job, however often they are sent.",
    ),
]


async def _parse(body: bytes) -> tuple[JobSpec, str]:
    if len(body) <= _PARSE_IN_LOOP_BYTES:
        return parse_job_json(body)
    return await asyncio.to_thread(parse_job_json, body)


@router.post(
    "/jobs",
    status_code=201,
    responses={201: {"model": SubmittedOut}},
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": job_schema()}},
        }
    },
)
async def submit(
    request: Request,
    actor: JobWriter,
    key: IdempotencyKey = None,
    dry_run: Annotated[bool, Query(alias="dryRun", description="Check, keep nothing.")] = False,  # noqa: FBT002 - FastAPI binds it by name
) -> Response:
    """Submit a job. 201 means that it is stored and synced to disk."""
    parts = context(request)
    began = parts.clock.monotonic_s()
    asked, document = await _parse(await json_bytes(request))
    spec = parts.runtime.fitted(asked)

    def command(tx: Transaction) -> SubmitResult:
        return service.submit(
            tx,
            actor,
            spec,
            document,
            idempotency_key=key,
            now=parts.clock.now(),
            ids=parts.ids,
            limits=parts.limits,
            dry_run=dry_run,
        )

    if dry_run:
        checked = await parts.database.read(command)
        return Json({**job_out(checked.job), "replayed": False, "dry_run": True})
    result = await parts.database.write(command, failpoint="submit")
    parts.wake()
    parts.metrics.job_submitted(parts.clock.monotonic_s() - began)
    return Json(
        {**job_out(result.job), "replayed": result.replayed, "dry_run": False},
        status_code=200 if result.replayed else 201,
        headers={"Location": f"{API}/jobs/{result.job.id}", **etag(result.job.version)},
    )


def _states(values: list[str]) -> tuple[JobState, ...]:
    """States of the query: repeated, or separated by commas; case does not matter."""
    named = [part.strip().upper() for value in values for part in value.split(",")]
    known = [state.value for state in JobState]
    wrong = [
        FieldProblem(
            "query.state",
            f"no state {name[:40]!r}; known: {', '.join(known)}",
            suggestion=next(iter(difflib.get_close_matches(name, known, n=1)), None),
        )
        for name in named[:20]
        if name and name not in known
    ]
    if wrong:
        raise InvalidRequestError("a parameter is not valid", problems=tuple(wrong))
    return tuple(dict.fromkeys(JobState(name) for name in named if name))


@router.get("/jobs", responses={200: {"model": PageOut[JobOut]}})
async def list_jobs(
    request: Request,
    actor: JobReader,
    state: Annotated[list[str] | None, Query(max_length=20)] = None,
    queue: Annotated[str | None, Query(max_length=64, pattern=_PLAIN)] = None,
    name: Annotated[str | None, Query(max_length=128, pattern=_PLAIN)] = None,
    tenant: Annotated[str | None, Query(max_length=64, pattern=_PLAIN)] = None,
    pod: Annotated[
        str | None,
        Query(
            max_length=255,
            pattern=_POD,
            description="NAMESPACE/NAME of a pod: the jobs that have or had it.",
        ),
    ] = None,
    sort: Annotated[str, Query(description=f"One of {', '.join(SORTS)}.")] = "-submitted_at",
    limit: PageLimit = 100,
    cursor: PageCursor = None,
) -> Response:
    """Jobs, newest first unless `sort` says otherwise."""
    if sort not in SORTS:
        problem = FieldProblem(
            "query.sort",
            f"no order {sort[:40]!r}; known: {', '.join(SORTS)}",
            suggestion=next(iter(difflib.get_close_matches(sort, SORTS, n=1)), None),
        )
        raise InvalidRequestError("a parameter is not valid", problems=(problem,))
    wanted = JobFilter(
        states=_states(state or []),
        queue=queue,
        name=name,
        tenant=None if tenant is None else TenantId(tenant),
        pod=pod,
        sort=sort,
    )
    page = await context(request).database.read(
        lambda tx: service.list_jobs(tx, actor, wanted, cursor=cursor, limit=limit)
    )
    return Json(page_out(page, job_out))


@router.get("/jobs/{job_id:id}", responses={200: {"model": JobDetailOut}})
async def get_job(request: Request, actor: JobReader, job_id: str) -> Response:
    """One job with its attempts and its document as submitted."""
    wanted = JobId(job_id)
    job, attempts = await context(request).database.read(
        lambda tx: (
            service.get_job(tx, actor, wanted),
            service.job_attempts(tx, actor, wanted),
        )
    )
    return Json(job_detail_out(job, attempts), headers=etag(job.version))


@router.get("/jobs/{job_id:id}/history", responses={200: {"model": ListOut[HistoryOut]}})
async def history(request: Request, actor: JobReader, job_id: str) -> Response:
    """Every move of a job, oldest first."""
    moves = await context(request).database.read(
        lambda tx: service.job_history(tx, actor, JobId(job_id))
    )
    return Json({"items": [history_out(entry) for entry in moves]})


@router.get("/jobs/{job_id:id}/explain", responses={200: {"model": ExplanationOut}})
async def explain(request: Request, actor: JobReader, job_id: str) -> Response:
    """Why the job stands where it stands."""
    parts = context(request)
    explanation = await parts.database.read(
        lambda tx: service.explain(tx, actor, JobId(job_id), now=parts.clock.now())
    )
    return Json(explanation_out(explanation))


class _UseCase(Protocol):
    """A use case that moves a job: `service.cancel` and its like."""

    def __call__(
        self,
        tx: Transaction,
        actor: Actor,
        job_id: JobId,
        *,
        now: UtcSeconds,
        ids: IdSource,
        if_match: int | None,
    ) -> JobView:
        """The job after the move."""
        ...


async def _move(
    request: Request,
    actor: Actor,
    job_id: str,
    if_match: int | None,
    use_case: _UseCase,
    failpoint: str | None = None,
) -> Response:
    parts = context(request)
    job = await parts.database.write(
        lambda tx: use_case(
            tx, actor, JobId(job_id), now=parts.clock.now(), ids=parts.ids, if_match=if_match
        ),
        failpoint=failpoint,
    )
    parts.wake()
    return Json(job_out(job), headers=etag(job.version))


@router.post("/jobs/{job_id:id}:cancel", responses={200: {"model": JobOut}})
async def cancel(
    request: Request, actor: JobWriter, job_id: str, if_match: IfMatch = None
) -> Response:
    """Cancel a job; once this is answered it never starts again."""
    return await _move(request, actor, job_id, if_match, service.cancel, failpoint="cancel")


@router.post("/jobs/{job_id:id}:hold", responses={200: {"model": JobOut}})
async def hold(
    request: Request, actor: JobWriter, job_id: str, if_match: IfMatch = None
) -> Response:
    """Keep a waiting job from starting."""
    return await _move(request, actor, job_id, if_match, service.hold)


@router.post("/jobs/{job_id:id}:release", responses={200: {"model": JobOut}})
async def release(
    request: Request, actor: JobWriter, job_id: str, if_match: IfMatch = None
) -> Response:
    """Let a held or quarantined job wait for its turn again."""
    return await _move(request, actor, job_id, if_match, service.release)


@router.post("/jobs/{job_id:id}:requeue", responses={200: {"model": JobOut}})
async def requeue(
    request: Request, actor: JobWriter, job_id: str, if_match: IfMatch = None
) -> Response:
    """Send a job back to the queue."""
    return await _move(request, actor, job_id, if_match, service.requeue)
