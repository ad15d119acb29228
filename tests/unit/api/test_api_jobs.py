from __future__ import annotations

import json
from typing import Any

import pytest
from support.builders import node
from support.edge import JOB, Edge

from scheduler.model.lifecycle import JobState
from scheduler.model.quantity import JobId

JOBS = "/api/v1/jobs"


def job(name: str = "hello", **spec: Any) -> dict[str, Any]:
    return {
        **JOB,
        "metadata": {"name": name},
        "spec": {"task": {"command": ["true"]}, **spec},
    }


def test_a_submitted_job_is_answered_with_its_location_and_can_be_read_back(edge: Edge) -> None:
    token = edge.token()
    answer = edge.call("POST", JOBS, token, body=job())

    assert answer.status_code == 201, answer.text
    made = answer.json()
    assert made["state"] == "PENDING"
    assert made["replayed"] is False
    assert answer.headers["location"] == f"{JOBS}/{made['id']}"
    assert edge.woken == 1

    read = edge.call("GET", answer.headers["location"], token)
    assert read.status_code == 200
    assert read.headers["etag"] == f'"{made["version"]}"' == answer.headers["etag"]
    assert read.json()["document"] == job()
    assert read.json()["attempts"] == []


def test_a_dry_run_checks_and_keeps_nothing(edge: Edge) -> None:
    token = edge.token()
    answer = edge.call("POST", f"{JOBS}?dryRun=true", token, body=job())

    assert answer.status_code == 200
    assert answer.json()["dry_run"] is True
    assert edge.call("GET", JOBS, token).json()["items"] == []
    assert edge.woken == 0


def test_the_same_key_and_body_make_one_job_and_another_body_is_refused(edge: Edge) -> None:
    token = edge.token()
    key = {"Idempotency-Key": "k-1"}
    first = edge.call("POST", JOBS, token, body=job(), headers=key)
    again = edge.call("POST", JOBS, token, body=job(), headers=key)
    other = edge.call("POST", JOBS, token, body=job("other"), headers=key)

    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json()["id"] == first.json()["id"]
    assert again.json()["replayed"] is True
    assert other.status_code == 422
    assert other.json()["code"] == "idempotency-key-reused"


def test_an_unknown_field_is_named_with_line_column_and_suggestion(edge: Edge) -> None:
    text = json.dumps(job(), indent=1).replace('"command"', '"comand"')
    answer = edge.call("POST", JOBS, edge.token(), content=text.encode())

    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    [problem] = [p for p in answer.json()["problems"] if p["path"] == "spec.task.comand"]
    assert problem["suggestion"] == "command"
    assert text.splitlines()[problem["line"] - 1][problem["column"] - 1 :].startswith('"comand"')


def test_an_image_is_refused_where_commands_run_on_the_host(edge: Edge) -> None:
    body = job(task={"command": ["true"], "image": "registry.example/train:1"})
    answer = edge.call("POST", JOBS, edge.token(), body=body)

    assert answer.status_code == 422
    [problem] = answer.json()["problems"]
    assert problem["path"] == "spec.task.image"
    assert "Kubernetes executor" in problem["message"]


def test_an_impossible_job_is_refused_naming_the_limiting_dimension(edge: Edge) -> None:
    body = job(task={"command": ["true"], "gpus": 64})
    answer = edge.call("POST", JOBS, edge.token(), body=body)

    assert answer.status_code == 422
    assert answer.json()["code"] == "infeasible"
    assert answer.json()["dimension"] == "gpus"


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b'{"apiVersion": NaN}',
        b'{"apiVersion": Infinity}',
        b'{"spec": {"max_runtime_s": 1e999}}',
        b"[" * 5_000 + b"]" * 5_000,
        b'{"a":' * 5_000 + b"1" + b"}" * 5_000,
        b"\xff\xfe",
        b'{"metadata": {"name": "\\ud800"}}',
        b'{"metadata": {"name": "a\\u0000b"}}',
    ],
)
def test_what_is_no_job_is_refused_as_a_problem(edge: Edge, text: bytes) -> None:
    answer = edge.call("POST", JOBS, edge.token(), content=text)

    assert answer.status_code == 422, answer.text
    assert answer.json()["code"] == "invalid-request"
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


def test_a_body_over_the_bound_is_refused_declared_or_streamed(edge: Edge) -> None:
    large = b'{"x": "' + b"y" * 2_000_000 + b'"}'
    declared = edge.call("POST", JOBS, edge.token(), content=large)
    streamed = edge.call(
        "POST", JOBS, edge.token(), content=large, headers={"Content-Length": "100"}
    )

    for answer in (declared, streamed):
        assert answer.status_code == 413
        assert answer.json()["code"] == "too-large"


def test_a_body_not_declared_as_json_is_refused(edge: Edge) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = edge.call("POST", JOBS, edge.token(), body=job(), headers=headers)

    assert answer.status_code == 422
    assert answer.json()["problems"][0]["path"] == "header.Content-Type"


def test_listing_pages_filters_and_sorts(edge: Edge) -> None:
    token = edge.token()
    for index in range(5):
        edge.office.clock.advance(1)
        edge.call("POST", JOBS, token, body=job(f"job-{index}", priority=index))
    held = edge.call("GET", f"{JOBS}?name=job-3", token).json()["items"][0]["id"]
    edge.call("POST", f"{JOBS}/{held}:hold", token)

    def names(query: str) -> list[str]:
        return [item["name"] for item in edge.call("GET", f"{JOBS}?{query}", token).json()["items"]]

    assert names("limit=2") == ["job-4", "job-3"]
    assert names("sort=priority") == [f"job-{index}" for index in range(5)]
    assert names("state=held") == ["job-3"]
    assert names("state=HELD,PENDING&limit=1") == ["job-4"]
    page = edge.call("GET", f"{JOBS}?limit=2", token).json()
    after = edge.call("GET", f"{JOBS}?limit=2&cursor={page['next_cursor']}", token).json()
    assert [item["name"] for item in after["items"]] == ["job-2", "job-1"]


@pytest.mark.parametrize(
    ("query", "path"),
    [
        ("state=RUNING", "query.state"),
        ("sort=nmae", "query.sort"),
        ("limit=0", "query.limit"),
        ("limit=x", "query.limit"),
        ("limit=99999", "query.limit"),
        ("name=%00", "query.name"),
        ("pod=lonely", "query.pod"),
        ("pod=team/%25", "query.pod"),
        ("cursor=%0a", "query.cursor"),
    ],
)
def test_a_wrong_parameter_is_named(edge: Edge, query: str, path: str) -> None:
    answer = edge.call("GET", f"{JOBS}?{query}", edge.token())

    assert answer.status_code == 422
    assert answer.json()["problems"][0]["path"] == path


@pytest.mark.parametrize("cursor", ["x", "e30", "AAAA", "...", "%22", "-1", "🦡", "a" * 512])
def test_a_cursor_that_is_not_ours_is_refused_never_an_error_of_ours(
    edge: Edge, cursor: str
) -> None:
    for path in ("jobs", "decisions", "audit"):
        answer = edge.call("GET", f"/api/v1/{path}?cursor={cursor}", edge.root)
        assert answer.status_code == 422, (path, answer.text)


def test_the_verbs_move_a_job_and_illegal_moves_conflict(edge: Edge) -> None:
    token = edge.token()
    made = edge.call("POST", JOBS, token, body=job()).json()["id"]

    def verb(name: str, **headers: str) -> tuple[int, str]:
        answer = edge.call("POST", f"{JOBS}/{made}:{name}", token, headers=headers)
        return answer.status_code, answer.json().get("state") or answer.json()["code"]

    assert verb("hold") == (200, "HELD")
    assert verb("release") == (200, "PENDING")
    assert verb("requeue") == (409, "conflict")
    assert verb("cancel") == (200, "CANCELLED")
    assert verb("cancel") == (200, "CANCELLED")
    assert verb("hold") == (409, "conflict")
    moves = edge.call("GET", f"{JOBS}/{made}/history", token).json()["items"]
    assert [move["to_state"] for move in moves] == ["PENDING", "HELD", "PENDING", "CANCELLED"]


def test_a_stale_if_match_is_refused_and_a_fresh_one_passes(edge: Edge) -> None:
    token = edge.token()
    made = edge.call("POST", JOBS, token, body=job())
    path = made.headers["location"]
    stale = edge.call("POST", f"{path}:hold", token, headers={"If-Match": '"999"'})
    broken = edge.call("POST", f"{path}:hold", token, headers={"If-Match": "999"})
    fresh = edge.call("POST", f"{path}:hold", token, headers={"If-Match": made.headers["etag"]})

    assert (stale.status_code, stale.json()["code"]) == (412, "precondition-failed")
    assert broken.status_code == 422
    assert fresh.status_code == 200


def test_an_attempt_is_shown_with_its_gpus_and_its_reason(edge: Edge) -> None:
    token = edge.token()
    made = edge.call("POST", JOBS, token, body=job(task={"command": ["true"], "gpus": 1})).json()
    edge.office.bring_to(JobId(made["id"]), JobState.RUNNING, node("n0", 4), gpus=(2,))

    read = edge.call("GET", f"{JOBS}/{made['id']}", token).json()
    assert read["state"] == "RUNNING"
    [attempt] = read["attempts"]
    assert attempt["tasks"][0]["gpu_ids"] == ["GPU-n0-2"]
    gpus = edge.call("GET", "/api/v1/gpus", token).json()["items"]
    assert {gpu["id"] for gpu in gpus if gpu["job_id"] == made["id"]} == {"GPU-n0-2"}
    decision = edge.call("GET", f"/api/v1/decisions/{attempt['decision_id']}", token).json()
    assert decision["bound"] == 2.0


def test_a_waiting_job_is_explained(edge: Edge) -> None:
    token = edge.token()
    made = edge.call("POST", JOBS, token, body=job()).json()["id"]
    explanation = edge.call("GET", f"{JOBS}/{made}/explain", token).json()

    assert explanation["state"] == "PENDING"
    assert explanation["summary"]
    assert [reason["code"] for reason in explanation["reasons"]] == ["pending-evaluation"]
    assert explanation["reasons"][0]["remedy"] == "moments"


def test_a_simulated_node_is_said_to_be_simulated(edge: Edge) -> None:
    nodes = edge.call("GET", "/api/v1/nodes", edge.token()).json()["items"]

    assert {found["name"]: found["simulated"] for found in nodes} == {"n0": False, "v0": True}


def test_cordoning_is_undone_by_its_body(edge: Edge) -> None:
    root = edge.root
    for path in ("nodes/n-n0", "nodes/n0", "gpus/GPU-n0-1"):
        cordoned = edge.call("POST", f"/api/v1/{path}:cordon", root)
        undone = edge.call("POST", f"/api/v1/{path}:cordon", root, body={"cordoned": False})
        wrong = edge.call("POST", f"/api/v1/{path}:cordon", root, body={"cordoned": "yes"})
        assert (cordoned.status_code, cordoned.json().get("cordoned")) == (200, True), path
        assert undone.json()["cordoned"] is False
        assert wrong.status_code == 422
