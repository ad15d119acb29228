"""`submit`: what is sent, what is printed where, and the codes that mirror the job."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
from support.fake_daemon import JOB_ID, FakeDaemon, attempt, detail, job, ok, problem

from scheduler.jobspec import parse_job_yaml

GOOD = """\
apiVersion: haversack.dev/v1alpha1
kind: Job
metadata: {name: ddp-hello}
spec: {tasks: 2, task: {gpus: 1, command: [python, train.py]}}
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "job.yaml"
    path.write_text(GOOD)
    return str(path)


def accepting(**more: bool) -> FakeDaemon:
    made = {**job(), "replayed": False, "dry_run": False, **more}
    return FakeDaemon().on("POST", "jobs", ok(made, 201))


def test_the_id_is_the_only_data_and_hints_go_to_stderr(file: str) -> None:
    daemon = accepting()
    result = daemon.run("submit", "-f", file)
    assert result.exit_code == 0
    assert result.stdout == f"{JOB_ID}\n"
    assert "ddp-hello submitted" in result.stderr
    assert f"haversack logs -f {JOB_ID}" in result.stderr
    assert daemon.requests[0].content.decode() == parse_job_yaml(GOOD)[1]
    assert len(daemon.requests[0].headers["idempotency-key"]) == 32


def test_stdin_json_output_and_a_key_of_ones_own() -> None:
    daemon = accepting(replayed=True)
    result = daemon.run("submit", "-f", "-", "--json", "--idempotency-key", "k1", stdin=GOOD)
    assert json.loads(result.stdout)["id"] == JOB_ID
    assert "before, with this idempotency key" in result.stderr
    assert daemon.requests[0].headers["idempotency-key"] == "k1"


def test_a_bad_file_is_told_with_file_line_column_and_never_sent(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(GOOD.replace("tasks: 2", "tasks: 2, quue: a"))
    daemon = accepting()
    result = daemon.run_with({}, "submit", "-f", str(path))  # no token: checked before that
    assert result.exit_code == 2
    assert f"  at {path}:4:18 spec.quue: unknown field (did you mean 'queue'?)" in result.stderr
    assert result.stderr.startswith("error: the job file has 1 problem")
    assert daemon.requests == []


def test_what_only_the_daemon_knows_is_placed_in_the_file_too(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(GOOD.replace("tasks: 2", "queue: nope"))
    told = {"path": "spec.queue", "message": "no queue 'nope'", "line": 1, "column": 90}
    refusal = problem(422, "invalid-request", "no such queue", problems=[told])
    result = FakeDaemon().on("POST", "jobs", refusal).run("submit", "-f", str(path))
    assert result.exit_code == 2
    assert f"  at {path}:4:15 spec.queue: no queue 'nope'" in result.stderr


def test_a_json_file_is_read_as_json(tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    path.write_text(parse_job_yaml(GOOD)[1].replace('"tasks":2', '"tasks":NaN'))
    result = accepting().run("submit", "-f", str(path))
    assert result.exit_code == 2
    assert "NaN" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("-f", "/nonexistent/job.yaml"),
        (),
        ("-f", "-", "--wait=forever"),
        ("-f", "-", "--timeout", "3"),
        ("-f", "-", "--dry-run", "--wait"),
    ],
)
def test_wrong_usage_is_2(arguments: tuple[str, ...]) -> None:
    assert accepting().run("submit", *arguments, stdin=GOOD).exit_code == 2


def test_a_dry_run_says_so_and_prints_no_id(file: str) -> None:
    daemon = accepting(dry_run=True)
    result = daemon.run("submit", "-f", file, "--dry-run")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "nothing was stored" in result.stderr
    assert daemon.requests[0].url.params["dryRun"] == "true"


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (problem(422, "infeasible", "no node has 9 GPUs", dimension="gpus"), 6),
        (problem(413, "too-large", "too large"), 6),
        (problem(422, "invalid-request", "no such queue"), 2),
        (problem(422, "idempotency-key-reused", "reused"), 5),
        (problem(401, "unauthenticated", "unknown token"), 4),
        (problem(403, "forbidden", "viewers may not"), 4),
        (problem(429, "overloaded", "queue is full"), 1),
        (problem(503, "storage-unavailable", "disk full"), 1),
        (httpx.ConnectError("refused"), 7),
        (httpx.ReadTimeout("slow"), 8),
    ],
)
def test_refusals_map_to_exit_codes(
    file: str, answer: httpx.Response | Exception, code: int
) -> None:
    result = FakeDaemon().on("POST", "jobs", answer).run("submit", "-f", file)
    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")


def test_unreachable_tells_how_to_start_one(file: str) -> None:
    result = FakeDaemon().on("POST", "jobs", httpx.ConnectError("no")).run("submit", "-f", file)
    assert "haversack up" in result.stderr


def test_a_lost_answer_gives_the_key_to_try_again_with(file: str) -> None:
    daemon = FakeDaemon().on("POST", "jobs", httpx.ReadError("reset"))
    result = daemon.run("submit", "-f", file)
    key = daemon.requests[0].headers["idempotency-key"]
    assert result.exit_code == 7
    assert f"--idempotency-key {key}" in result.stderr


@pytest.mark.parametrize(("state", "code"), [("SUCCEEDED", 0), ("FAILED", 100), ("CANCELLED", 102)])
def test_wait_follows_the_phases_and_mirrors_the_end(file: str, state: str, code: int) -> None:
    daemon = accepting().on("GET", "nodes/n-1", ok({"name": "box"}))
    daemon.on(
        "GET",
        f"jobs/{JOB_ID}",
        ok(detail("PENDING")),
        ok(detail("ASSIGNED", attempt(), version=2)),
        ok(detail("RUNNING", attempt(), version=3)),
        ok(detail(state, attempt(live=False), version=4, message="rank 1 exited 3", exit_code=3)),
    )
    result = daemon.run("submit", "-f", file, "--wait")
    assert result.exit_code == code
    assert result.stdout == f"{JOB_ID}\n"
    told = [line for line in result.stderr.splitlines() if line.startswith("ddp-hello: ")]
    assert told[:3] == [
        "ddp-hello: queued",
        "ddp-hello: placed (attempt 1 on box)",
        "ddp-hello: running (attempt 1 on box)",
    ]
    assert ("rank 1 exited 3" in result.stderr) == (state == "FAILED")


def test_wait_with_json_prints_the_job_once_as_it_ended(file: str) -> None:
    daemon = accepting().on("GET", f"jobs/{JOB_ID}", ok(detail("SUCCEEDED")))
    result = daemon.run("submit", "-f", file, "--wait", "--json")
    assert json.loads(result.stdout)["state"] == "SUCCEEDED"


def test_a_timeout_is_101_and_the_job_goes_on(file: str) -> None:
    daemon = accepting().on("GET", f"jobs/{JOB_ID}", ok(detail("RUNNING", attempt())))
    result = daemon.run("submit", "-f", file, "--wait", "--timeout", "30")
    assert result.exit_code == 101
    assert "still running after 30s" in result.stderr


def test_wait_survives_a_restart_of_the_daemon_but_not_for_ever(file: str) -> None:
    gone = httpx.ConnectError("restarting")
    back = accepting().on("GET", f"jobs/{JOB_ID}", gone, gone, ok(detail("SUCCEEDED")))
    assert back.run("submit", "-f", file, "--wait").exit_code == 0
    away = accepting().on("GET", f"jobs/{JOB_ID}", gone)
    assert away.run("submit", "-f", file, "--wait").exit_code == 7


@pytest.mark.parametrize(
    ("cause", "code"), [("preempted", 103), ("completed", 0), ("cancelled", 102), ("user", 100)]
)
def test_waiting_for_the_attempt_mirrors_its_cause(file: str, cause: str, code: int) -> None:
    ended = attempt(live=False, ended_at="2027-01-15T08:00:00.000Z", end_cause=cause)
    daemon = accepting().on("GET", f"jobs/{JOB_ID}", ok(detail("PENDING", ended)))
    assert daemon.run("submit", "-f", file, "--wait=attempt").exit_code == code


def test_a_preempted_job_is_waited_for_without_the_attempt_form(file: str) -> None:
    ended = attempt(live=False, ended_at="2027-01-15T08:00:00.000Z", end_cause="preempted")
    daemon = accepting().on(
        "GET", f"jobs/{JOB_ID}", ok(detail("PENDING", ended)), ok(detail("SUCCEEDED", ended))
    )
    assert daemon.run("submit", "-f", file, "--wait").exit_code == 0


def test_ctrl_c_detaches_and_says_how_to_come_back(file: str) -> None:
    def interrupted(_: httpx.Request) -> httpx.Response:
        raise KeyboardInterrupt

    daemon = accepting().on("GET", f"jobs/{JOB_ID}", interrupted)
    result = daemon.run("submit", "-f", file, "--wait")
    assert result.exit_code == 101
    assert f"haversack logs -f {JOB_ID}" in result.stderr
    assert f"haversack cancel {JOB_ID}" in result.stderr
