"""Every verb of `kubectl haversack` against a daemon of canned answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.fake_daemon import (
    JOB_ID,
    Answer,
    FakeDaemon,
    attempt,
    detail,
    gpu,
    items,
    job,
    ndjson,
    node,
    ok,
    problem,
)
from support.plugin import kubectl, listing

OTHER = "j-0000000000000002"
TOLD: dict[str, Any] = {
    "job_id": JOB_ID,
    "state": "PENDING",
    "summary": "It waits: needs 8 GPUs, 0 free; no job is ahead of it.",
    "reasons": [
        {
            "code": "waiting-capacity",
            "message": "needs 8 GPUs, 0 free",
            "dimension": "gpus",
            "need": 8.0,
            "free": 0.0,
            "largest_block": 0.0,
            "remedy": "wait, or free some",
        }
    ],
    "funnel": [{"filter": "present", "nodes_left": 2}],
    "ahead": 0,
    "decision_id": "d-7",
    "gap": 0.0,
    "evaluated_at": "2027-01-15T07:59:00.000Z",
}
GANG = {
    "apiVersion": "haversack.dev/v1",
    "kind": "PodGang",
    "members": ["team/w-0/u-0", "team/w-1/u-1"],
}
MOVE = {
    "seq": 1,
    "at": "2027-01-15T07:55:00.000Z",
    "from_state": None,
    "to_state": "PENDING",
    "event": "submit",
    "attempt_id": None,
    "detail": {},
}


# -- describe and explain -------------------------------------------------------------------------


def explained(found: object, **more: object) -> FakeDaemon:
    return (
        FakeDaemon()
        .on("GET", "jobs", items(job(tenant="team")))
        .on("GET", f"jobs/{JOB_ID}", ok(found))
        .on("GET", f"jobs/{JOB_ID}/explain", ok({**TOLD, **more}))
        .on("GET", f"jobs/{JOB_ID}/history", items(MOVE))
        .on("GET", "nodes/n-1", ok(node()))
    )


def test_describe_tells_request_pods_attempts_reasons_and_history() -> None:
    daemon = explained({**detail("RUNNING", attempt()), "document": GANG})
    text = kubectl(daemon, "describe", "job", "ddp-hello").stdout
    assert "Namespace:  default" in text
    assert "2 x (1 GPUs, 1.5 cores, 512 MiB)" in text
    pods = text[text.index("Pods:") : text.index("Attempt 1 (live):")].splitlines()
    assert [line.split() for line in pods[1:]] == [
        ["TASK", "NAME", "NODE", "GPUS"],
        ["0", "team/w-0", "gpu-7", "1"],
        ["1", "team/w-1", "<none>", "<none>"],
    ]
    assert "best fit" in text
    assert "waiting-capacity" in text
    assert text.splitlines()[-1].split() == ["5m", "submit", "PENDING", "<none>"]


def test_describe_tells_how_an_attempt_ended() -> None:
    how = {"rank": 1, "exit_code": None, "signal": 9}
    ended = attempt(live=False, ended_at="2027-01-15T08:00:00.000Z", end_cause="user", exit=how)
    daemon = explained(detail("FAILED", ended), reasons=[], funnel=[], decision_id=None)
    text = kubectl(daemon, "describe", f"job/{JOB_ID}").stdout
    assert "rank 1 killed by signal 9" in text
    assert '["python", "t.py"]' in text
    assert "Reasons" not in text


def test_describe_tells_what_is_used_of_a_node_and_by_whom() -> None:
    daemon = FakeDaemon().on("GET", "nodes/gpu-7", ok(node()))
    daemon.on("GET", "gpus", items(gpu(0), gpu(9, node_id="n-2")))
    text = kubectl(daemon, "describe", "node", "gpu-7").stdout
    assert "3.5/64" in text
    assert text.splitlines()[-1].split() == ["0", "GPU-0", "healthy", "H100", "llama"]
    assert "GPU-9" not in text


def test_explain_tells_every_reason_with_numbers_and_what_helps() -> None:
    text = kubectl(explained(detail("PENDING")), "explain", "ddp-hello").stdout
    assert text.startswith(f"job ddp-hello ({JOB_ID})\nStatus:  PENDING\nWhy:     It waits")
    head, row = text[text.index("REASON ") :].splitlines()[:2]
    assert head.split()[-3:] == ["LARGEST-BLOCK", "WHAT-HELPS", "WHY"]
    assert row.endswith("wait, or free some   needs 8 GPUs, 0 free")
    assert "d-7, 60s ago, proven gap 0.00%" in text


@pytest.mark.parametrize(
    "words", [("pod", "w-1", "-n", "team"), ("team/w-1",), ("pod/w-1", "-n", "team")]
)
def test_a_pod_of_a_gang_is_explained_as_its_gang(words: tuple[str, ...]) -> None:
    daemon = explained({**detail("PENDING"), "document": GANG})
    text = kubectl(daemon, "explain", *words).stdout
    assert text.startswith(f"pod team/w-1 is task 1 of 2 of job ddp-hello ({JOB_ID})\n")
    assert "wait, or free some" in text
    assert daemon.requests[0].url.params["pod"] == "team/w-1"


def test_a_pod_that_was_made_for_a_job_is_explained_as_its_task() -> None:
    name = "ddp-hello-a-0000000000000001-1"
    text = kubectl(explained(detail("RUNNING")), "explain", f"haversack-jobs/{name}").stdout
    assert text.startswith(f"pod haversack-jobs/{name} is task 1 of 2 of job ddp-hello ({JOB_ID})")


def test_a_pod_outside_every_job_is_explained_by_what_it_lacks() -> None:
    waits = ok({"namespace": "team", "name": "p", "reason": "waiting for 1 of 2 pods"})
    daemon = listing().on("GET", "pods/team/p", waits)
    for words in (("pod", "p"), ("p",)):
        result = kubectl(daemon, "explain", *words, "-n", "team")
        assert result.stdout == (
            "pod team/p waits outside every job\nWhy:     waiting for 1 of 2 pods\n"
        )


def test_what_is_neither_job_nor_pod_is_not_found() -> None:
    result = kubectl(listing(), "explain", "x")
    assert result.exit_code == 1
    assert 'Error from server (NotFound): jobs.haversack.dev "x" not found' in result.stderr
    result = kubectl(listing(), "explain", "pod", "x")
    assert 'Error from server (NotFound): pods "default/x" not found' in result.stderr
    assert "kubectl describe pod x -n default" in result.stderr
    result = kubectl(listing(), "explain", "job", "x")
    assert 'jobs.haversack.dev "x" not found' in result.stderr


# -- submit, cancel, logs -------------------------------------------------------------------------

JOB_FILE = """\
apiVersion: haversack.dev/v1alpha1
kind: Job
metadata: {name: ddp-hello}
spec: {task: {command: ["true"]}}
"""


def accepted(**changes: object) -> FakeDaemon:
    made = {**job(), "replayed": False, "dry_run": False, **changes}
    return FakeDaemon().on("POST", "jobs", ok(made, 201))


def test_submit_says_what_was_created_in_which_namespace(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(JOB_FILE)
    daemon = accepted()
    result = kubectl(daemon, "submit", "-f", str(path), "-n", "team")
    assert result.stdout == f"job.haversack.dev/ddp-hello created ({JOB_ID})\n"
    assert daemon.requests[0].headers["x-haversack-tenant"] == "team"
    named = kubectl(daemon, "submit", "-f", "-", "-o", "name", stdin=JOB_FILE)
    assert named.stdout == f"job.haversack.dev/{JOB_ID}\n"
    shown = kubectl(daemon, "submit", "-f", "-", "-o", "json", stdin=JOB_FILE)
    assert json.loads(shown.stdout)["id"] == JOB_ID
    again = kubectl(accepted(replayed=True), "submit", "-f", str(path), "--idempotency-key", "k")
    assert "unchanged" in again.stdout
    dry = kubectl(accepted(dry_run=True), "submit", "-f", str(path), "--dry-run=server")
    assert dry.stdout == "job.haversack.dev/ddp-hello created (server dry run)\n"


def test_a_wrong_job_file_is_told_with_line_and_suggestion(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(JOB_FILE.replace("command", "comand"))
    result = kubectl(accepted(), "submit", "-f", str(path))
    assert result.exit_code == 1
    assert result.stderr.startswith(f'error: error validating "{path}": ')
    assert "4:" in result.stderr
    assert "did you mean 'command'?" in result.stderr


def test_submit_and_its_usage() -> None:
    refused = problem(422, "infeasible", "task asks 800 gpus", dimension="gpus")
    daemon = FakeDaemon().on("POST", "jobs", refused)
    result = kubectl(daemon, "submit", "-f", "-", stdin=JOB_FILE)
    assert result.stderr.startswith("Error from server (Invalid): task asks 800 gpus")
    for arguments in ((), ("-f", "/none"), ("-f", "a", "-f", "b", "--idempotency-key", "k")):
        result = kubectl(accepted(), "submit", *arguments)
        assert (result.exit_code, result.stderr[:7]) == (1, "error: ")


def test_a_namespace_that_is_no_tenant_is_not_found() -> None:
    daemon = FakeDaemon().on("POST", "jobs", problem(404, "not-found", "no tenant 'team'"))
    result = kubectl(daemon, "submit", "-f", "-", "-n", "team", stdin=JOB_FILE)
    assert result.stderr.startswith('Error from server (NotFound): namespaces "team" not found')


def test_cancel_goes_on_past_what_it_cannot_find() -> None:
    daemon = (
        FakeDaemon()
        .on("GET", "jobs", items())
        .on("GET", f"jobs/{JOB_ID}", ok(detail()))
        .on("GET", f"jobs/{OTHER}", ok(detail(id=OTHER)))
        .on("POST", f"jobs/{JOB_ID}:cancel", ok(job("CANCELLED")))
        .on("POST", f"jobs/{OTHER}:cancel", ok(job("STOPPING", id=OTHER)))
    )
    result = kubectl(daemon, "cancel", "nope", f"job.haversack.dev/{JOB_ID}", OTHER)
    assert result.stdout.splitlines() == [
        "job.haversack.dev/ddp-hello cancelled",
        "job.haversack.dev/ddp-hello is being cancelled",
    ]
    assert result.exit_code == 1
    assert '"nope" not found' in result.stderr


def test_the_newest_of_a_name_counts_and_that_is_told() -> None:
    daemon = listing(job(), job(id=OTHER)).on("POST", f"jobs/{JOB_ID}:cancel", ok(job("STOPPING")))
    result = kubectl(daemon, "cancel", "ddp-hello")
    assert result.exit_code == 0
    assert f"Warning: several jobs are named ddp-hello; this is the newest, {JOB_ID}" in (
        result.stderr
    )


def test_logs_are_printed_and_followed_to_the_end_whatever_the_end() -> None:
    chunk = {
        "rank": 0,
        "attempt": 1,
        "offset": 0,
        "next_offset": 4,
        "end": True,
        "data": "one\n",
    }
    end = {"end": True, "state": "FAILED", "exit_code": 3, "end_cause": "user", "message": ""}
    daemon = FakeDaemon().on("GET", f"jobs/{JOB_ID}", ok(detail("RUNNING", attempt())))
    daemon.on("GET", f"jobs/{JOB_ID}/logs", ok(chunk))
    assert kubectl(daemon, "logs", JOB_ID, "--tail", "1").stdout == "one\n"
    daemon.on("GET", f"jobs/{JOB_ID}/logs", ndjson(chunk, end))
    result = kubectl(daemon, "logs", "-f", JOB_ID)
    assert (result.exit_code, result.stdout) == (0, "one\n")
    assert "FAILED, exit code 3" in result.stderr


def test_logs_before_the_start_and_wrong_usage() -> None:
    daemon = FakeDaemon().on("GET", f"jobs/{JOB_ID}", ok(detail("PENDING")))
    assert f"explain {JOB_ID}" in kubectl(daemon, "logs", JOB_ID).stderr
    for arguments in (("--rank", "x"), ("-f", "--tail", "1", "--rank", "all")):
        assert kubectl(daemon, "logs", JOB_ID, *arguments).exit_code == 1


# -- errors and help ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (problem(401, "unauthenticated", "this token is unknown"),
         "error: You must be logged in to the server (Unauthorized): this token is unknown"),
        (problem(403, "forbidden", "role viewer"), "Error from server (Forbidden): role viewer"),
        (problem(429, "overloaded", "slow down"), "Error from server (TooManyRequests): slow down"),
        (problem(503, "busy", "later"), "Error from server (ServiceUnavailable): later"),
        (problem(500, "internal", "bad \x1b[2J thing"),
         "Error from server (InternalError): bad  thing"),
        (httpx.ConnectError("refused"), "Unable to connect to the server: "),
    ],
)  # fmt: skip
def test_errors_are_worded_as_kubectl_words_them(answer: Answer, told: str) -> None:
    result = kubectl(FakeDaemon().on("GET", "jobs", answer), "get", "jobs")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(told)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("get", "error: You must specify the type of resource to get"),
        ("get pods", 'error: the server doesn\'t have a resource type "pods"'),
        ("get jobs nodes/x", "error: there is no need to name a type before TYPE/NAME"),
        ("get job/x node/y", "error: this command is about job, not about node"),
        ("get job/", "error: there is no name after 'job/'"),
        ("get job x -A", "error: what is named cannot be looked for in all namespaces"),
        ("get jobs --field-selector gpus=1", "error: jobs.haversack.dev cannot be selected"),
        ("get jobs --field-selector state!=RUNNING", "error: a field is selected by FIELD=VALUE"),
        ("get jobs -o table", "error: Invalid value for '--output'"),
        ("get jobs --foo", "error: No such option: --foo"),
        ("describe", "error: Missing argument"),
        ("describe ddp-hello", "error: say what 'ddp-hello' is"),
        ("describe pod x", "error: this command is about job and node, not about pod"),
        ("frobnicate", "error: No such command 'frobnicate'"),
    ],
)
def test_wrong_usage_is_told_before_anybody_is_asked(arguments: str, told: str) -> None:
    daemon = FakeDaemon()
    result = kubectl(daemon, *arguments.split())
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(told), result.stderr
    assert daemon.requests == []


def test_help_of_the_program_names_every_command() -> None:
    for arguments in ((), ("--help",)):
        result = kubectl(FakeDaemon(), *arguments)
        assert result.exit_code == 0
        for verb in ("get", "describe", "explain", "submit", "cancel", "logs"):
            assert f"\n  {verb} " in result.stdout
        assert "\n    -n, --namespace='':\n" in result.stdout


@pytest.mark.parametrize("verb", ["get", "describe", "explain", "submit", "cancel", "logs"])
def test_help_of_a_command_has_examples_options_and_usage(verb: str) -> None:
    text = kubectl(FakeDaemon(), verb, "-h").stdout
    assert text.index("Examples:\n  # ") < text.index(f"Usage:\n  kubectl haversack {verb}")
    assert "\n\n\n" not in text
    if verb == "logs":
        assert "\n    -f, --follow=false:\n" in text
        assert "\n    --tail=-1:\n" in text
