"""Jobs of our own on a cluster: submitted, made into pods, bound, run, read, and cleared away."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.daemon import job_document
from support.kubernetes.ground import Ground
from support.kubernetes.job_site import Site, job, site
from support.tree import ROOT


@pytest.fixture(scope="module")
def here(shared_ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One for all tests that let the daemon live."""
    with site(shared_ground, tmp_path_factory.mktemp("jobs")) as running:
        yield running


def test_a_job_becomes_pods_runs_and_leaves_nothing_held(here: Site) -> None:
    script = "echo task $HAVERSACK_TASK_INDEX of $0 '$(HOSTNAME) costs 5$$'"
    job_id = here.submit(job("hello.world", script, tasks=3))
    done = here.until_state(job_id, "SUCCEEDED", "FAILED", "QUARANTINED")
    assert done["state"] == "SUCCEEDED", done
    here.until_let_go()
    pods = here.pods(job_id)
    assert len(pods) == 3
    assert all(pod["metadata"]["name"].startswith("hello-world-a-") for pod in pods)
    for rank in range(3):
        assert here.log(job_id, rank) == f"task {rank} of sh $(HOSTNAME) costs 5$$\n"


def test_logs_are_followed_while_the_job_runs_and_end_with_it(here: Site, tmp_path: Path) -> None:
    flag = tmp_path / "go"
    script = f"echo first; while ! test -e {flag}; do sleep 0.05; done; echo second"
    job_id = here.submit(job("talker", script))
    said = []
    with (
        here.on.daemon.http(timeout_s=60.0) as client,
        client.stream(
            "GET", f"/api/v1/jobs/{job_id}/logs", params={"rank": "all", "follow": "true"}
        ) as stream,
    ):
        for line in stream.iter_lines():
            record = json.loads(line) if line else {}
            if "data" in record:
                said.append((record["offset"], record["data"]))
                flag.touch()
            if "end" in record and "state" in record:
                assert record["state"] == "SUCCEEDED"
    assert "".join(text for _, text in said) == "first\nsecond\n"
    assert said[0] == (0, "first\n")
    with here.on.daemon.http() as client:
        rest = client.get(f"/api/v1/jobs/{job_id}/logs", params={"offset": 6}).json()
    assert (rest["data"], rest["next_offset"], rest["end"]) == ("second\n", 13, True)


def test_where_one_rank_fails_the_others_are_ended_and_its_code_is_told(here: Site) -> None:
    script = "test $HAVERSACK_TASK_INDEX = 1 && exit 7; exec sleep 600"
    job_id = here.submit(job("breaks", script, tasks=3))
    failed = here.until_state(job_id, "FAILED")
    assert (failed["exit_code"], failed["end_cause"]) == (7, "user")
    here.until_let_go()
    # Those that were deleted are gone; the one that failed tells why for a while.
    here.on.until(lambda: len(here.pods(job_id)) == 1, "pods of a broken gang stay")


def test_a_cancelled_job_gets_its_signal_and_its_grace(here: Site, tmp_path: Path) -> None:
    ready, saved = tmp_path / "ready", tmp_path / "saved"
    script = f"trap 'touch {saved}; exit 0' TERM; touch {ready}; while :; do sleep 0.05; done"
    job_id = here.submit(job("long", script))
    here.on.until(ready.exists, "it does not start")
    here.on.cancel(job_id)
    here.until_state(job_id, "CANCELLED", "SUCCEEDED")
    assert saved.exists()
    here.until_let_go()
    here.on.until(lambda: not here.pods(job_id), "pods of a cancelled job stay")


def test_a_job_that_cannot_become_pods_is_refused_by_field_and_remedy(here: Site) -> None:
    document = job_document("bare", ["true"], checkpoint={"signal": "SIGUSR1"})
    with here.on.daemon.http() as client:
        refused = client.post("/api/v1/jobs", json=document)
    assert refused.status_code == 422
    problems = {each["path"]: each["message"] for each in refused.json()["problems"]}
    assert "HAVERSACK_KUBERNETES__IMAGE" in problems["spec.task.image"]
    assert "SIGTERM" in problems["spec.checkpoint.signal"]


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_two_ranks_of_torch_train_together(here: Site) -> None:
    document = job("ddp", "", tasks=2, launcher="torch")
    task = document["spec"]["task"]  # type: ignore[index]
    task |= {
        "command": [sys.executable, str(ROOT / "docs" / "guide" / "examples" / "ddp.py")],
        "env": {"DDP_SECONDS": "0.5"},
    }
    done = here.until_state(here.submit(document), "SUCCEEDED", "FAILED", "QUARANTINED")
    said = [here.log(done["id"], rank) for rank in range(2)]
    assert done["state"] == "SUCCEEDED", said
    assert all("PARAMETERS AGREE on 2 ranks" in text for text in said)
    here.until_let_go()
