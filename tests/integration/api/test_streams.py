"""Streams over time: replay, heartbeats, ends. They pace themselves: these tests wait a little."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from support.builders import job_spec, node
from support.clock import ManualClock
from support.edge import JOB, Edge, edge_over, opened_stream
from support.usecases import BLUE, RED, actor

from scheduler import service
from scheduler.model.access import Role
from scheduler.model.execution import RankExit
from scheduler.model.lifecycle import EndCause, JobEvent, JobState
from scheduler.model.quantity import AttemptId, JobId
from scheduler.store.database import Database

EVENTS = "/api/v1/events"
LIMIT_S = 20.0


@pytest.fixture
def edge(sqlite_database: Database, clock: ManualClock) -> Edge:
    made = edge_over(sqlite_database, clock, event_streams_max=2)
    made.office.nodes(node("n0", 4))
    return made


async def events(pieces: AsyncIterator[bytes]) -> AsyncIterator[dict[str, Any]]:
    """Server-sent events; comments come as {"comment": ...}."""
    buffer = b""
    async for piece in pieces:
        buffer += piece
        while b"\n\n" in buffer:
            block, buffer = buffer.split(b"\n\n", 1)
            lines = block.decode().split("\n")
            if lines[0].startswith(":"):
                yield {"comment": lines[0]}
            fields = dict(line.split(": ", 1) for line in lines if not line.startswith(":"))
            if "id" in fields:
                data = json.loads(fields["data"])
                assert int(fields["id"]) == data["revision"]
                assert fields["event"] == data["kind"]
                yield data


async def lines(pieces: AsyncIterator[bytes]) -> AsyncIterator[dict[str, Any] | None]:
    """Records of an ndjson stream; None is a heartbeat."""
    buffer = b""
    async for piece in pieces:
        buffer += piece
        while b"\n" in buffer:
            line, buffer = buffer.split(b"\n", 1)
            yield json.loads(line) if line else None


def test_events_are_replayed_and_then_come_as_they_are_committed(edge: Edge) -> None:
    token = edge.token()
    first = edge.office.submit(spec=job_spec(gpus=0))

    async def scenario() -> None:
        async with (
            asyncio.timeout(LIMIT_S),
            opened_stream(edge.app, EVENTS, token, query="since=0") as pieces,
        ):
            seen = events(pieces)
            async for event in seen:
                if event["object_id"] == first.id:
                    break
            second = await asyncio.to_thread(edge.office.submit, spec=job_spec(gpus=0))
            event = await anext(seen)
            assert event["object_id"] == second.id
            assert event["revision"] == second.revision

    asyncio.run(scenario())


def test_a_client_that_was_away_misses_nothing_and_sees_nothing_twice(edge: Edge) -> None:
    token = edge.token()
    made = [edge.office.submit(spec=job_spec(gpus=0)) for _ in range(4)]

    async def scenario() -> None:
        async with (
            asyncio.timeout(LIMIT_S),
            opened_stream(
                edge.app, EVENTS, token, headers={"Last-Event-ID": str(made[1].revision)}
            ) as pieces,
        ):
            seen = events(pieces)
            assert [(await anext(seen))["object_id"] for _ in range(2)] == [made[2].id, made[3].id]

    asyncio.run(scenario())


def test_no_event_crosses_tenants(edge: Edge) -> None:
    for tenant in (RED, BLUE):
        edge.office.tenant(tenant)
    red = edge.token(Role.USER, RED)
    head = edge.office.read(service.head_revision)
    edge.office.submit(actor(BLUE), job_spec("secret", gpus=0))
    mine = edge.office.submit(actor(RED), job_spec(gpus=0))

    async def scenario() -> None:
        async with (
            asyncio.timeout(LIMIT_S),
            opened_stream(edge.app, EVENTS, red, query=f"since={head}") as pieces,
        ):
            assert (await anext(events(pieces)))["object_id"] == mine.id

    asyncio.run(scenario())


def test_a_quiet_stream_shows_that_it_lives_and_ends_when_its_token_is_revoked(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.routes.events.RECHECK_S", 0.05)
    token = edge.token(expires_in_s=60)

    async def scenario() -> None:
        async with asyncio.timeout(LIMIT_S), opened_stream(edge.app, EVENTS, token) as pieces:
            seen = events(pieces)
            opened = asyncio.ensure_future(anext(seen))
            await asyncio.sleep(0.3)
            edge.office.clock.advance(16)
            assert (await opened)["comment"] == ": still here"
            edge.office.clock.advance(60)
            assert [event async for event in seen] in ([], [{"comment": ": still here"}])

    asyncio.run(scenario())


def test_streams_are_bounded_and_end_when_the_daemon_stops(edge: Edge) -> None:
    token = edge.token()

    async def scenario() -> None:
        async with asyncio.timeout(LIMIT_S):
            async with (
                opened_stream(edge.app, EVENTS, token) as one,
                opened_stream(edge.app, EVENTS, token) as two,
            ):
                assert await anext(one) == await anext(two) == b"retry: 2000\n\n"
                async with opened_stream(edge.app, EVENTS, token) as refused:
                    assert json.loads(await anext(refused))["code"] == "busy"
                edge.app.stop_streams()
                assert [piece async for piece in one] == []
                assert [piece async for piece in two] == []

    asyncio.run(scenario())


def test_logs_are_followed_from_before_the_start_over_a_requeue_to_the_end(edge: Edge) -> None:
    token, office, box = edge.token(), edge.office, node("n0", 4)
    job = edge.call(
        "POST", "/api/v1/jobs", token, body={**JOB, "spec": {"task": {"command": ["x"], "gpus": 1}}}
    ).json()
    job_id = JobId(job["id"])

    def start() -> AttemptId:
        office.bring_to(job_id, JobState.RUNNING, box)
        return office.read(lambda tx: service.job_attempts(tx, actor(), job_id))[-1].id

    async def scenario() -> None:
        path = f"/api/v1/jobs/{job_id}/logs"
        async with (
            asyncio.timeout(LIMIT_S),
            opened_stream(edge.app, path, token, query="follow=true&rank=all") as pieces,
        ):
            seen = lines(pieces)
            attempt = await asyncio.to_thread(start)
            edge.logs.text[attempt, 0] = b"one\n"
            record = await anext(seen)
            assert record is not None
            assert (record["rank"], record["attempt"], record["data"]) == (0, 1, "one\n")
            edge.logs.text[attempt, 1] = b"two\n"
            assert (await anext(seen) or {})["rank"] == 1
            edge.logs.text[attempt, 0] += b"last\n"
            await asyncio.to_thread(office.events, job_id, JobEvent.SILENCE, JobEvent.PROVE_DEATH)
            await asyncio.to_thread(office.end, job_id, JobEvent.REQUEUE, EndCause.LOST)
            record = await anext(seen)
            assert record is not None
            assert (record["offset"], record["data"]) == (4, "last\n")
            attempt = await asyncio.to_thread(start)
            edge.logs.text[attempt, 0] = b"again\n"
            assert await anext(seen) == {"attempt": 2}
            assert (await anext(seen) or {})["data"] == "again\n"
            await asyncio.to_thread(
                office.end, job_id, JobEvent.EXIT_FAILED, EndCause.USER, RankExit(0, 3, None)
            )
            end = await anext(seen)
            assert end is not None
            assert (end["end"], end["state"], end["exit_code"]) == (True, "FAILED", 3)
            assert [record async for record in seen] == []

    asyncio.run(scenario())


def test_one_attempt_is_followed_to_its_own_end(edge: Edge) -> None:
    token, office, box = edge.token(), edge.office, node("n0", 4)
    job = office.submit(spec=job_spec(gpus=1))
    office.bring_to(job.id, JobState.LOST, box)
    [attempt] = office.read(lambda tx: service.job_attempts(tx, actor(), job.id))
    edge.logs.text[attempt.id, 0] = b"gone"
    office.end(job.id, JobEvent.REQUEUE, EndCause.LOST)

    answer = edge.call("GET", f"/api/v1/jobs/{job.id}/logs?follow=true&attempt=1", token)
    first, last = (json.loads(line) for line in answer.text.splitlines())
    assert first["data"] == "gone"
    assert last["end"] is True
    assert last["state"] == "PENDING"


def test_text_is_followed_as_text_by_those_who_ask_for_it(edge: Edge) -> None:
    token, office = edge.token(), edge.office
    job = office.submit(spec=job_spec(gpus=1))
    office.bring_to(job.id, JobState.SUCCEEDED, node("n0", 4))
    [attempt] = office.read(lambda tx: service.job_attempts(tx, actor(), job.id))
    text = "grüße\n" * 40_000  # more than one piece, with characters cut in two
    edge.logs.text[attempt.id, 0] = text.encode()

    answer = edge.call(
        "GET", f"/api/v1/jobs/{job.id}/logs?follow=true", token, headers={"Accept": "text/plain"}
    )
    assert answer.headers["content-type"].startswith("text/plain")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.text == text
