"""Listing, describing, explaining and changing jobs."""

from __future__ import annotations

import json

import httpx
import pytest
import yaml
from support.fake_daemon import JOB_ID, FakeDaemon, attempt, detail, items, job, ok, problem

OTHER = "j-0000000000000002"
HISTORY = {
    "seq": 1,
    "at": "2027-01-15T07:55:00.000Z",
    "from_state": None,
    "to_state": "PENDING",
    "event": "submit",
    "attempt_id": None,
    "detail": {},
}


def listing(*jobs: object) -> FakeDaemon:
    return FakeDaemon().on("GET", "jobs", items(*jobs))


def test_the_table_has_upper_case_headers_and_age_last() -> None:
    result = listing(job("RUNNING", simulated=True)).run("jobs")
    head, row = result.stdout.splitlines()
    assert head.split() == [
        "ID",
        "NAME",
        "QUEUE",
        "STATE",
        "PRIO",
        "TASKS",
        "GPUS",
        "ATTEMPTS",
        "AGE",
    ]
    assert row.split() == [*f"{JOB_ID} ddp-hello default RUNNING 50 2 2 (simulated) 0 5m".split()]


def test_no_row_ever_loses_its_end() -> None:
    long = "m" * 500
    assert long in listing(job(message=long)).run("jobs", "-o", "wide").stdout


@pytest.mark.parametrize("form", ["json", "yaml"])
def test_documents_hold_all_fields_in_an_envelope(form: str) -> None:
    text = listing(job()).run("jobs", "-o", form).stdout
    assert yaml.safe_load(text) == {"kind": "JobList", "items": [job()]}


def test_json_lines_and_names() -> None:
    daemon = listing(job(), job(id=OTHER))
    lines = daemon.run("jobs", "-o", "jsonl").stdout.splitlines()
    assert [json.loads(line)["id"] for line in lines] == [JOB_ID, OTHER]
    assert daemon.run("jobs", "-o", "name").stdout == f"{JOB_ID}\n{OTHER}\n"
    assert json.loads(daemon.run("jobs", "--json").stdout)["kind"] == "JobList"


def test_filters_sort_and_limit_are_done_by_the_daemon() -> None:
    daemon = listing()
    result = daemon.run(
        *[
            "jobs",
            "--state",
            "running",
            "--state",
            "HELD",
            "--queue",
            "q",
            "--name",
            "n",
            "--sort",
            "priority",
            "--limit",
            "7",
        ]
    )
    assert dict(daemon.requests[0].url.params) == {
        "state": "RUNNING,HELD",
        "queue": "q",
        "name": "n",
        "sort": "priority",
        "limit": "7",
    }
    assert result.exit_code == 0
    assert "no jobs like that" in result.stderr


def test_all_goes_through_the_pages() -> None:
    pages = [
        ok({"items": [job()], "next_cursor": "c"}),
        ok({"items": [job(id=OTHER)], "next_cursor": None}),
    ]
    daemon = FakeDaemon().on("GET", "jobs", *pages)
    assert daemon.run("jobs", "--all", "-o", "name").stdout == f"{JOB_ID}\n{OTHER}\n"
    assert daemon.requests[1].url.params["cursor"] == "c"


def test_more_pages_are_hinted_at() -> None:
    daemon = FakeDaemon().on("GET", "jobs", ok({"items": [job()], "next_cursor": "c"}))
    assert "--all" in daemon.run("jobs", "--limit", "1").stderr


@pytest.mark.parametrize("arguments", [("--state", "asleep"), ("--limit", "0")])
def test_wrong_usage_is_2(arguments: tuple[str, ...]) -> None:
    assert listing().run("jobs", *arguments).exit_code == 2


def test_watching_through_a_pipe_writes_each_change_once() -> None:
    def stop(_: httpx.Request) -> httpx.Response:
        raise KeyboardInterrupt

    daemon = FakeDaemon().on(
        "GET", "jobs", items(job()), items(job()), items(job("RUNNING", version=2)), stop
    )
    result = daemon.run("jobs", "--watch")
    assert [json.loads(line)["state"] for line in result.stdout.splitlines()] == [
        "PENDING",
        "RUNNING",
    ]
    assert result.exit_code == 0


def test_what_others_wrote_cannot_steer_the_terminal() -> None:
    evil = "\x1b]0;owned\x07\x1b[2J[red]x\u202e\n\r"
    result = listing(job(name=evil, message=evil)).run("jobs", "-o", "wide")
    assert "[red]x" in result.stdout
    assert "owned" not in result.stdout
    assert len(result.stdout.splitlines()) == 2
    assert not set(result.stdout) & set("\x1b\x07\r\u202e")
    assert (
        json.loads(listing(job(name=evil)).run("jobs", "--json").stdout)["items"][0]["name"] == evil
    )


def test_an_error_from_the_daemon_is_clean_too() -> None:
    daemon = FakeDaemon().on("GET", "jobs", problem(500, "internal", "bad \x1b[2J thing"))
    result = daemon.run("jobs")
    assert (result.exit_code, result.stderr) == (1, "error: bad  thing\n")


def test_describe_tells_request_attempts_and_history() -> None:
    ended = attempt(
        live=False,
        ended_at="2027-01-15T08:00:00.000Z",
        end_cause="user",
        exit={"rank": 1, "exit_code": None, "signal": 9},
    )
    found = detail("FAILED", ended, exit_code=137, message="rank 1 was killed")
    daemon = (
        FakeDaemon()
        .on("GET", f"jobs/{JOB_ID}", ok(found))
        .on("GET", f"jobs/{JOB_ID}/history", items(HISTORY))
    )
    text = daemon.run("describe", JOB_ID).stdout
    assert "2 x (1 GPUs, 1.5 cores, 512 MiB)" in text
    assert '["python", "t.py"]' in text
    assert "rank 1 killed by signal 9" in text
    assert "GPU-a" in text
    assert "submit" in text
    assert json.loads(daemon.run("describe", JOB_ID, "--json").stdout)["history"] == [HISTORY]


def test_explain_names_every_reason_with_its_numbers() -> None:
    reason = {
        "code": "fragmented",
        "message": "8 GPUs in one piece are free nowhere",
        "dimension": "gpus",
        "need": 8.0,
        "free": 11.0,
        "largest_block": 4.0,
    }
    told = {
        "job_id": JOB_ID,
        "state": "PENDING",
        "summary": "waits for 8 GPUs on one node",
        "reasons": [reason, {**reason, "code": "behind-priority"}],
        "funnel": [
            {"filter": "healthy", "nodes_left": 40},
            {"filter": "right model", "nodes_left": 6},
        ],
        "ahead": 3,
        "decision_id": "d-7",
        "gap": 0.001,
        "evaluated_at": "2027-01-15T07:59:00.000Z",
    }
    daemon = FakeDaemon().on("GET", f"jobs/{JOB_ID}/explain", ok(told))
    text = daemon.run("explain", JOB_ID).stdout
    assert text.startswith(f"{JOB_ID} PENDING: waits for 8 GPUs on one node\n")
    assert text.index("fragmented") < text.index("behind-priority")
    assert "40 after healthy -> 6 after right model" in text
    assert "Jobs ahead in the queue: 3" in text
    assert "d-7, 1m ago, proven gap 0.10%" in text
    assert daemon.run("explain", JOB_ID, "-o", "name").stdout == f"{JOB_ID}\n"


@pytest.mark.parametrize("verb", ["cancel", "hold", "release", "requeue"])
def test_verbs_act_on_each_job_and_print_its_state(verb: str) -> None:
    daemon = (
        FakeDaemon()
        .on("POST", f"jobs/{JOB_ID}:{verb}", ok(job("CANCELLED")))
        .on("POST", f"jobs/{OTHER}:{verb}", ok(job("STOPPING", id=OTHER)))
    )
    result = daemon.run(verb, JOB_ID, OTHER)
    assert result.stdout == f"{JOB_ID} CANCELLED\n{OTHER} STOPPING\n"
    assert result.exit_code == 0


def test_one_refusal_does_not_keep_the_others_from_being_done() -> None:
    daemon = (
        FakeDaemon()
        .on("POST", f"jobs/{JOB_ID}:hold", problem(409, "conflict", "it is RUNNING"))
        .on("POST", f"jobs/{OTHER}:hold", ok(job("HELD", id=OTHER)))
    )
    result = daemon.run("hold", JOB_ID, "j-000000000000000x", OTHER)
    assert result.exit_code == 5
    assert "it is RUNNING" in result.stderr
    assert result.stdout == f"{OTHER} HELD\n"
