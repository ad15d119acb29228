from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest
from support.builders import job_spec, node
from support.edge import BASE, JOB, Edge

from api.client import Client
from scheduler.errors import (
    BusyError,
    ConflictError,
    ForbiddenError,
    HaversackError,
    IdempotencyError,
    InfeasibleError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    PreconditionError,
    TooLargeError,
    UnauthenticatedError,
    UnreachableError,
)
from scheduler.model.access import Role
from scheduler.model.lifecycle import JobState
from scheduler.model.quantity import SYSTEM_TENANT, JobId


@pytest.fixture
def client(edge: Edge) -> Iterator[Client]:
    with edge.client(edge.root) as opened:
        yield opened


def test_every_method_reaches_its_route(edge: Edge, client: Client) -> None:
    made = client.submit(JOB, idempotency_key="k")
    assert client.submit(json.dumps(JOB), idempotency_key="k")["replayed"] is True
    assert client.submit(json.dumps(JOB).encode(), dry_run=True)["dry_run"] is True
    assert client.job(made["id"])["document"] == JOB
    assert client.hold(made["id"], if_match=made["version"])["state"] == "HELD"
    assert client.release(made["id"])["state"] == "PENDING"
    assert client.explain(made["id"])["state"] == "PENDING"
    assert client.cancel(made["id"])["state"] == "CANCELLED"
    assert [move["event"] for move in client.history(made["id"])][1:] == [
        "hold",
        "release",
        "cancel",
    ]
    assert [job["id"] for job in client.all_jobs(states=("CANCELLED",))] == [made["id"]]
    assert client.jobs(states=("PENDING", "RUNNING"))["items"] == []
    assert client.queues()[0]["name"] == "default"
    assert client.node("n0")["id"] == "n-n0"
    assert len(client.nodes()) == 2
    assert len(client.gpus()) == 12
    assert client.cordon_node("n-n0", cordoned=True)["cordoned"] is True
    assert client.cordon_gpu("GPU-n0-0", cordoned=True)["cordoned"] is True
    assert client.gpu("GPU-n0-0")["cordoned"] is True
    assert client.decisions()["items"] == []
    assert client.create_tenant("red")["id"] == "red"
    assert {tenant["name"] for tenant in client.tenants()} >= {"red", "default"}
    issued = client.create_token("ci", "user", tenant="red", expires_in_s=60)
    assert issued["token"].startswith("hvs_")
    assert issued["id"] in {token["id"] for token in client.tokens()}
    assert client.revoke_token(issued["id"])["revoked_at"] is not None
    assert client.audit()["items"][0]["action"] == "tokens.revoke"
    assert client.session()["login_url"].startswith(f"{BASE}/login?ticket=")
    assert client.health()["status"] == "ok"
    assert client.job_schema()["title"] == "JobDocument"
    edge.pods = {"team/p": "waiting for 1 of 2 pods"}
    assert client.pod("team", "p")["reason"] == "waiting for 1 of 2 pods"
    edge.troubles = {"solver": "down"}
    told = client.ready()
    assert (told["ready"], told["role"], told["troubles"]) == (False, "leader", {"solver": "down"})


def test_listing_all_goes_through_every_page(edge: Edge) -> None:
    for index in range(7):
        edge.office.submit(spec=job_spec(f"job-{index}", gpus=0))

    asked: list[str] = []
    with edge.client(edge.root) as client:
        first = client.jobs(limit=3)
        asked += [job["name"] for job in first["items"]]
        second = client.jobs(limit=3, cursor=first["next_cursor"])
        asked += [job["name"] for job in second["items"]]
        assert [job["name"] for job in client.all_jobs()][:6] == asked


def test_refusals_come_back_as_our_errors(edge: Edge, client: Client) -> None:
    made = client.submit(JOB, idempotency_key="k")
    with pytest.raises(NotFoundError, match="no job"):
        client.job("j-0")
    with pytest.raises(ConflictError):
        client.release(made["id"])
    with pytest.raises(PreconditionError):
        client.hold(made["id"], if_match=99)
    with pytest.raises(IdempotencyError):
        client.submit({**JOB, "metadata": {"name": "other"}}, idempotency_key="k")
    with pytest.raises(InfeasibleError) as infeasible:
        client.submit({**JOB, "spec": {"task": {"command": ["x"], "gpus": 99}}})
    assert infeasible.value.dimension == "gpus"
    with pytest.raises(InvalidRequestError) as invalid:
        client.submit({**JOB, "spce": {}})
    assert invalid.value.problems[0].suggestion == "spec"
    assert invalid.value.problems[0].line == 1
    with pytest.raises(TooLargeError):
        client.submit("x" * 2_000_000)
    with edge.client("hvs_wrong") as stranger, pytest.raises(UnauthenticatedError) as refused:
        stranger.nodes()
    assert refused.value.hint
    with edge.client(edge.token(Role.VIEWER)) as viewer, pytest.raises(ForbiddenError):
        viewer.submit(JOB)


def test_the_named_tenant_is_acted_for(edge: Edge, client: Client) -> None:
    client.create_tenant("red")
    with edge.client(edge.token(Role.ADMIN, SYSTEM_TENANT), tenant="red") as acting:
        assert acting.submit(JOB)["tenant"] == "red"


def test_log_pieces_are_read_by_offset(edge: Edge, client: Client) -> None:
    made = client.submit({**JOB, "spec": {"task": {"command": ["x"], "gpus": 1}}})["id"]
    assert client.logs(made) == {
        "rank": 0, "attempt": 0, "offset": 0, "next_offset": 0, "end": False, "data": "",
    }  # fmt: skip
    edge.office.bring_to(JobId(made), JobState.RUNNING, node("n0", 4))
    attempt = client.job(made)["attempts"][0]["id"]
    edge.logs.text[attempt, 0] = "héllo\n".encode() + b"\xff"  # type: ignore[index]
    edge.logs.text[attempt, 1] = b"other\n"  # type: ignore[index]

    assert client.logs(made, limit=2)["data"] == "h"
    assert client.logs(made, offset=1, limit=3)["data"] == "él"
    assert client.logs(made, offset=6)["data"] == "\n\N{REPLACEMENT CHARACTER}"
    assert [c["data"] for c in client.all_logs(made)["chunks"]][1] == "other\n"
    with pytest.raises(NotFoundError, match="no attempt 7"):
        client.logs(made, attempt=7)


def answering(*answers: httpx.Response | Exception) -> tuple[Client, list[httpx.Request]]:
    """A client whose daemon gives these answers in turn."""
    left, seen = list(answers), []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return Client(BASE, "hvs_x", transport=httpx.MockTransport(handle)), seen


def test_no_daemon_is_unreachable_and_names_the_address() -> None:
    client, _ = answering(httpx.ConnectError("refused"))
    with pytest.raises(UnreachableError, match=r"127\.0\.0\.1:8470.*refused"):
        client.health()


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (httpx.Response(502, text="<html>bad gateway</html>"), HaversackError),
        (httpx.Response(404, json=[1]), NotFoundError),
        (httpx.Response(429, headers={"Retry-After": "7"}), OverloadedError),
        (httpx.Response(503, headers={"Retry-After": "soon"}), BusyError),
        (httpx.Response(405, json={"problems": [None, {"path": "a"}]}), InvalidRequestError),
    ],
)
def test_an_answer_that_is_no_problem_of_ours_is_still_an_error_of_ours(
    answer: httpx.Response, kind: type[HaversackError]
) -> None:
    client, _ = answering(answer)
    with pytest.raises(kind) as raised:
        client.health()
    assert type(raised.value) is kind
    if answer.status_code == 429:
        assert isinstance(raised.value, OverloadedError)
        assert raised.value.retry_after_s == 7


def test_a_broken_log_stream_is_taken_up_where_it_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("api.client.RECONNECT_PAUSE_S", 0.0)
    chunk = {"rank": 0, "attempt": 1, "offset": 0, "next_offset": 5, "end": False, "data": "12345"}
    later = {**chunk, "attempt": 2, "next_offset": 3, "data": "abc"}
    end = {"end": True, "state": "SUCCEEDED", "exit_code": 0}

    def lines(*records: dict[str, object]) -> httpx.Response:
        return httpx.Response(200, text="\n" + "".join(json.dumps(r) + "\n" for r in records))

    client, seen = answering(
        lines(chunk),
        httpx.ReadError("gone"),
        httpx.Response(503),
        lines({"attempt": 2}, later),
        lines(end),
    )
    records = list(client.follow_logs("j-1"))

    assert records == [chunk, {"attempt": 2}, later, end]
    queries = [dict(request.url.params) for request in seen]
    assert "offsets" not in queries[0]
    assert queries[1]["offsets"] == "0:5"
    assert queries[3]["from_attempt"] == "1"
    assert (queries[4]["offsets"], queries[4]["from_attempt"]) == ("0:3", "2")


def test_a_stream_that_is_refused_says_why() -> None:
    client, _ = answering(httpx.Response(401, json={"code": "unauthenticated", "detail": "no"}))
    with pytest.raises(UnauthenticatedError, match="no"):
        list(client.follow_logs("j-1"))
