from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote, urlencode

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.clock import ManualClock
from support.edge import BASE, JOB, Edge, edge_over

from scheduler.model.access import Role
from scheduler.model.quantity import SYSTEM_TENANT
from scheduler.store.database import Database
from scheduler.tokens import new_token


def test_every_answer_carries_its_id_and_the_security_headers(edge: Edge) -> None:
    for path in ("/healthz", "/", "/nothing-here", "/api/v1/jobs"):
        answer = edge.call("GET", path)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-request-id"].startswith("r-")


def test_a_well_formed_request_id_is_kept_and_a_hostile_one_is_not(edge: Edge) -> None:
    kept = edge.call("GET", "/healthz", headers={"X-Request-Id": "abc-1"})
    dropped = edge.call("GET", "/healthz", headers={"X-Request-Id": 'a"b{}' * 40})

    assert kept.headers["x-request-id"] == "abc-1"
    assert dropped.headers["x-request-id"].startswith("r-")


def test_unknown_routes_and_wrong_methods_are_problems(edge: Edge) -> None:
    unknown = edge.call("GET", "/api/v1/nothing")
    wrong = edge.call("DELETE", "/api/v1/jobs/j-1", edge.token())
    verb = edge.call("GET", "/api/v1/jobs/j-1:cancel", edge.token())

    assert (unknown.status_code, unknown.json()["code"]) == (404, "no-such-route")
    assert (wrong.status_code, wrong.json()["code"]) == (405, "method-not-allowed")
    assert wrong.headers["allow"] == "GET"
    assert verb.status_code == 405
    assert unknown.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("base", ["http://evil.example", "http://127.0.0.1.evil.example:8470"])
def test_a_foreign_host_name_is_refused_except_for_probes(edge: Edge, base: str) -> None:
    answer = edge.call("GET", "/api/v1/jobs", edge.token(), base=base)

    assert (answer.status_code, answer.json()["code"]) == (421, "wrong-host")
    assert edge.call("GET", "/healthz", base=base).status_code == 200


def test_configured_and_loopback_names_are_served(
    sqlite_database: Database, clock: ManualClock
) -> None:
    edge = edge_over(sqlite_database, clock, allowed_hosts=("gpu.example",))
    for base in ("http://gpu.example", "http://LOCALHOST:1", "http://[::1]:8470"):
        assert edge.call("GET", "/", base=base).status_code == 200, base


def test_a_full_lane_answers_503_with_a_time_to_come_again(
    sqlite_database: Database, clock: ManualClock
) -> None:
    edge = edge_over(sqlite_database, clock, requests_in_flight_max=2)
    token = edge.token()
    inner: list[httpx.Response] = []

    def while_the_submission_is_open() -> None:
        for method, path in (("GET", "jobs"), ("POST", "jobs/j-1:cancel")):
            worker = threading.Thread(
                target=lambda: inner.append(edge.call(method, f"/api/v1/{path}", token))  # noqa: B023 - joined before the next turn
            )
            worker.start()
            worker.join()

    edge.on_wake = while_the_submission_is_open
    assert edge.call("POST", "/api/v1/jobs", token, body=JOB).status_code == 201
    read, cancel = inner
    assert (read.status_code, read.json()["code"]) == (503, "busy")
    assert 1 <= int(read.headers["retry-after"]) <= 4
    assert cancel.status_code == 404  # let in: a cancel always finds room
    assert edge.call("GET", "/api/v1/jobs", token).status_code == 200


def test_readiness_names_the_troubled_parts_only(edge: Edge) -> None:
    edge.troubles = {"store": "", "solver": "the worker died"}
    answer = edge.call("GET", "/readyz")
    edge.troubles = {"store": ""}

    assert answer.status_code == 503
    about = {"role": "leader", "warnings": {}}
    assert answer.json() == {"ready": False, "troubles": {"solver": "the worker died"}} | about
    assert edge.call("GET", "/readyz").json() == {"ready": True, "troubles": {}} | about


def test_a_missing_safeguard_is_a_warning_and_no_trouble(edge: Edge) -> None:
    edge.warnings = {"fence": "the policy is missing", "role label": ""}
    answer = edge.call("GET", "/readyz")

    assert answer.status_code == 200
    assert answer.json() == {
        "ready": True,
        "role": "leader",
        "troubles": {},
        "warnings": {"fence": "the policy is missing"},
    }


def test_metrics_count_requests_by_route_and_name_nobody(edge: Edge) -> None:
    token = edge.token(name="carol")
    made = edge.call("POST", "/api/v1/jobs", token, body=JOB).json()["id"]
    edge.call("GET", f"/api/v1/jobs/{made}", token)
    text = edge.call("GET", "/metrics", token).text

    assert (
        'haversack_http_requests_total{method="GET",route="/api/v1/jobs/{job_id}",status="200"}'
        " 1.0" in text
    )
    assert "haversack_submit_seconds_count 1.0" in text
    assert 'haversack_jobs{state="PENDING"} 1.0' in text
    assert 'haversack_intents_open{state="claimed"} 0.0' in text
    for name in (made, "carol", "default", "hello"):
        assert name not in text


def test_openapi_and_the_job_schema_need_a_token(edge: Edge) -> None:
    for path in ("/api/v1/openapi.json", "/api/v1/schemas/job"):
        assert edge.call("GET", path).status_code == 401
    document = edge.call("GET", "/api/v1/openapi.json", edge.token()).json()
    assert document["openapi"].startswith("3.1")
    cancel = document["paths"]["/api/v1/jobs/{job_id}:cancel"]["post"]
    assert "application/problem+json" in cancel["responses"]["default"]["content"]
    assert not _dangling(document)
    schema = edge.call("GET", "/api/v1/schemas/job", edge.token()).json()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def _dangling(document: dict[str, Any]) -> set[str]:
    """References of the document that lead nowhere within its components."""
    used = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)))
    return used - set(document["components"]["schemas"])


def test_a_body_that_trickles_in_is_not_waited_for(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.middleware.BODY_WITHIN_S", 0.0)

    async def trickle() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    async def call() -> httpx.Response:
        transport = httpx.ASGITransport(edge.app)
        headers = {"Authorization": f"Bearer {edge.token()}", "Content-Type": "application/json"}
        async with httpx.AsyncClient(transport=transport, base_url=BASE) as http:
            return await http.post("/api/v1/jobs", content=trickle(), headers=headers)

    answer = asyncio.run(call())
    assert answer.status_code == 422
    assert "took too long" in answer.json()["detail"]


@given(
    method=st.sampled_from(["GET", "POST", "PUT", "DELETE"]),
    middle=st.text(min_size=1, max_size=40),
    verb=st.sampled_from(["", ":cancel", "/logs", "/explain", "/history", ":cordon"]),
    kind=st.sampled_from(["jobs", "nodes", "gpus", "decisions", "tokens"]),
)
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_path_makes_the_daemon_fail(
    edge: Edge, method: str, middle: str, verb: str, kind: str
) -> None:
    path = f"/api/v1/{kind}/{quote(middle.encode('utf-8', 'surrogatepass'), safe='')}{verb}"
    answer = edge.call(method, path, _root(edge))

    assert answer.status_code in (404, 405, 422), (path, answer.text)
    assert answer.json()["code"] != "internal"


@given(
    name=st.text(max_size=80),
    value=st.text(max_size=80),
    header=st.sampled_from(["If-Match", "Idempotency-Key", "X-Haversack-Tenant", "Last-Event-ID"]),
)
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_query_or_header_makes_the_daemon_fail(
    edge: Edge, name: str, value: str, header: str
) -> None:
    query = urlencode(
        {"name": name, "cursor": value, "queue": value}, errors="surrogatepass", encoding="utf-8"
    )
    sent = {header: value.encode("ascii", "replace").decode().replace("\n", "").strip()}
    sent = {k: "".join(c for c in v if c.isprintable()) for k, v in sent.items()}
    answer = edge.call("GET", f"/api/v1/jobs?{query}", _root(edge), headers=sent)

    assert answer.status_code in (200, 404, 422), answer.text


_ROOTS: dict[int, str] = {}


def _root(edge: Edge) -> str:
    if id(edge) not in _ROOTS:
        _ROOTS.clear()
        _ROOTS[id(edge)] = edge.token(Role.ADMIN, SYSTEM_TENANT)
    return _ROOTS[id(edge)]


def test_a_mistyped_token_is_told_from_an_unknown_one(edge: Edge) -> None:
    mistyped = edge.call("GET", "/api/v1/jobs", "hvs_nonsense")
    unknown = edge.call("GET", "/api/v1/jobs", new_token())

    assert (mistyped.status_code, unknown.status_code) == (401, 401)
    assert "mistyped" in mistyped.json()["detail"]
    assert "unknown, expired or revoked" in unknown.json()["detail"]
    assert unknown.headers["www-authenticate"].startswith("Bearer")
