"""`kubectl haversack get` against a daemon of canned answers."""

from __future__ import annotations

import json

import httpx
import pytest
import yaml
from support.fake_daemon import JOB_ID, Answer, FakeDaemon, detail, gpu, items, job, node, ok
from support.plugin import kubectl, listing

OTHER = "j-0000000000000002"


def test_jobs_of_the_current_namespace_in_plain_columns() -> None:
    daemon = listing(job("RUNNING"), job(name="a-much-longer-name", id=OTHER))
    head, first, second = kubectl(daemon, "get", "jobs").stdout.splitlines()
    assert head.split() == ["NAME", "ID", "STATUS", "QUEUE", "TASKS", "GPUS", "AGE"]
    assert first.split() == f"ddp-hello {JOB_ID} RUNNING default 2 2 5m".split()
    for column in ("ID", "STATUS", "QUEUE", "AGE"):
        assert head[head.index(column) - 1] == second[head.index(column) - 1] == " "
        assert second[head.index(column)] != " "
    assert daemon.requests[0].url.params["tenant"] == "default"


def test_other_namespaces_and_all_of_them() -> None:
    daemon = listing(job(tenant="team"))
    kubectl(daemon, "-n", "team", "get", "jobs")
    kubectl(daemon, "get", "jobs", "--namespace=team")
    everywhere = kubectl(daemon, "get", "jobs", "-A").stdout.splitlines()
    assert [request.url.params.get("tenant") for request in daemon.requests] == [
        "team",
        "team",
        None,
    ]
    assert [line.split()[0] for line in everywhere] == ["NAMESPACE", "team"]


def test_wide_names_and_headers() -> None:
    daemon = listing(job(message="why not"))
    wide = kubectl(daemon, "get", "jobs", "-o", "wide").stdout
    assert wide.splitlines()[0].split()[-3:] == ["ATTEMPTS", "EXIT-CODE", "MESSAGE"]
    assert wide.splitlines()[1].split()[-3:] == ["<none>", "why", "not"]
    assert kubectl(daemon, "get", "jobs", "-o", "name").stdout == f"job.haversack.dev/{JOB_ID}\n"
    assert len(kubectl(daemon, "get", "jobs", "--no-headers").stdout.splitlines()) == 1


@pytest.mark.parametrize("form", ["json", "yaml"])
def test_documents_are_lists_or_the_one_that_was_named(form: str) -> None:
    daemon = listing(job()).on("GET", f"jobs/{JOB_ID}", ok(detail()))
    listed = yaml.safe_load(kubectl(daemon, "get", "jobs", "-o", form).stdout)
    assert listed == {"kind": "JobList", "items": [job()]}
    one = yaml.safe_load(kubectl(daemon, "get", "job", JOB_ID, "-o", form).stdout)
    assert one["id"] == JOB_ID


def test_nothing_found_is_told_on_stderr_and_is_no_error() -> None:
    for arguments, told in (
        (("get", "jobs", "-n", "team"), "No resources found in team namespace.\n"),
        (("get", "jobs", "-A"), "No resources found.\n"),
    ):
        result = kubectl(listing(), *arguments)
        assert (result.exit_code, result.stdout, result.stderr) == (0, "", told)
    empty = kubectl(listing(), "get", "jobs", "-o", "json")
    assert (json.loads(empty.stdout)["items"], empty.stderr) == ([], "")


def test_fields_select_and_the_limit_is_told() -> None:
    daemon = listing(job(), job(id=OTHER))
    result = kubectl(
        daemon, "get", "jobs", "--field-selector", "state=PENDING,queue==q,name=n", "--limit", "1"
    )
    asked = dict(daemon.requests[0].url.params)
    assert (asked["state"], asked["queue"], asked["name"]) == ("PENDING", "q", "n")
    assert len(result.stdout.splitlines()) == 2
    assert "--limit 0" in result.stderr
    assert len(kubectl(daemon, "get", "jobs", "--limit", "0").stdout.splitlines()) == 3


def test_nodes_and_gpus_say_how_they_stand_and_who_has_them() -> None:
    theirs = gpu(1, job_id=None, job_name=None)
    free = gpu(2, job_id=None, job_name=None, in_use=False)
    daemon = (
        FakeDaemon()
        .on("GET", "nodes", items(node()))
        .on("GET", "gpus", items(gpu(0), theirs, free, gpu(3, node_name="gpu-8")))
    )
    row = kubectl(daemon, "get", "nodes").stdout.splitlines()[1]
    assert row.split() == ["gpu-7", "healthy,SchedulingDisabled", "3/8", "H100", "default", "10s"]
    rows = kubectl(daemon, "get", "gpus", "--field-selector", "node=gpu-7").stdout.splitlines()
    assert [line.split("H100")[1].strip() for line in rows[1:]] == [
        "llama",
        "<another tenant's>",
        "<none>",
    ]
    assert kubectl(daemon, "get", "gpu", "GPU-2", "-o", "name").stdout == (
        "gpu.haversack.dev/GPU-2\n"
    )


def test_queues_belong_to_namespaces() -> None:
    def queue(tenant: str) -> dict[str, object]:
        return {"name": "default", "tenant": tenant, "weight": 1.0, "waiting": 3, "running": 1,
                "held": 0}  # fmt: skip

    daemon = FakeDaemon().on("GET", "queues", items(queue("default"), queue("team")))
    assert kubectl(daemon, "get", "queue").stdout.splitlines()[1:] == [
        "default   3         1         0"
    ]
    assert len(kubectl(daemon, "get", "queues", "-A").stdout.splitlines()) == 3


def test_watching_prints_what_changes_below_the_first_table() -> None:
    def stop(_: httpx.Request) -> httpx.Response:
        raise KeyboardInterrupt

    steps: list[Answer] = [
        items(job()),
        items(job()),
        items(job("RUNNING", version=2), job(id=OTHER)),
        stop,
    ]
    event = 'id: 5\ndata: {"revision": 5, "kind": "job"}\n\n'
    daemon = FakeDaemon().on("GET", "jobs", *steps)
    daemon.on("GET", "events", httpx.Response(200, text=event))
    result = kubectl(daemon, "get", "jobs", "-w")
    assert result.exit_code == 0, result.output
    assert [line.split()[2] for line in result.stdout.splitlines()] == [
        "STATUS",
        "PENDING",
        "RUNNING",
        "PENDING",
    ]


def test_a_heartbeat_alone_is_no_news() -> None:
    def stop(_: httpx.Request) -> httpx.Response:
        raise KeyboardInterrupt

    later = node(seen_at="2027-01-15T08:00:00.000Z")
    daemon = FakeDaemon().on("GET", "nodes", items(node()), items(later), stop)
    daemon.on("GET", "events", httpx.Response(200, text='data: {"revision": 5}\n\n'))
    result = kubectl(daemon, "get", "nodes", "-w", "-o", "json")
    assert json.loads(result.stdout)["name"] == "gpu-7"
