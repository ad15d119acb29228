"""Jobs of our own on a cluster: submitted, made into pods, bound, run, read, and cleared away."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.daemon import DaemonProcess, job_document
from support.kubernetes.client import Json
from support.kubernetes.deployment import Deployment, daemon_on, deployed
from support.kubernetes.ground import Ground
from support.kubernetes.kubelet import Kubelet, running_kubelet
from support.tree import ROOT

IMAGE = "registry.example/train:1"
FINALIZER = "haversack.dev/exit-status"


@dataclass
class Site:
    """A daemon, its cluster, and a kubelet that runs what is bound there."""

    on: Deployment
    kubelet: Kubelet

    def submit(self, document: dict[str, object]) -> str:
        with self.on.daemon.http() as client:
            made = client.post("/api/v1/jobs", json=document)
            assert made.status_code == 201, made.text
            return str(made.json()["id"])

    def job(self, job_id: str) -> Json:
        with self.on.daemon.http() as client:
            found: Json = client.get(f"/api/v1/jobs/{job_id}").json()
            return found

    def log(self, job_id: str, rank: int) -> str:
        with self.on.daemon.http() as client:
            found = client.get(f"/api/v1/jobs/{job_id}/logs", params={"rank": rank})
            found.raise_for_status()
            return str(found.json()["data"])

    def until_state(self, job_id: str, *states: str) -> Json:
        self.on.until(
            lambda: self.job(job_id)["state"] in states,
            f"not {states}: {self.job(job_id)} {self.pods(job_id)}",
        )
        return self.job(job_id)

    def pods(self, job_id: str = "") -> list[Json]:
        """Those that are there, of one job or of all."""
        return [
            pod
            for pod in self.on.pods().values()
            if job_id in ("", pod["metadata"]["labels"]["haversack.dev/job"])
        ]

    def services(self) -> list[Json]:
        path = f"/api/v1/namespaces/{self.on.namespace}/services"
        return list(self.on.ask("GET", path).ok()["items"])

    def until_let_go(self) -> None:
        self.on.until(
            lambda: (
                not self.services()
                and not any(FINALIZER in p["metadata"].get("finalizers", ()) for p in self.pods())
            ),
            f"something is left: {self.services()} {self.pods()}",
        )


@contextlib.contextmanager
def site(ground: Ground, folder: Path, *, failpoints: str = "") -> Iterator[Site]:
    on = deployed(ground, DaemonProcess(folder / "none"))
    on.daemon = daemon_on(ground, folder, KUBERNETES__JOB_NAMESPACE=on.namespace)
    on.node("a", gpus=0, cpu="4", memory="8Gi")
    on.node("b", gpus=2, cpu="4", memory="8Gi")
    with running_kubelet(ground.access, folder=folder / "pods") as kubelet:
        on.daemon.start(failpoints=failpoints)
        try:
            yield Site(on, kubelet)
        finally:
            stopped = on.daemon.stop()
            on.clear()
    assert stopped == 0
    assert "Traceback" not in on.daemon.log_file.read_text()


@pytest.fixture(scope="module")
def here(shared_ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One for all tests that let the daemon live."""
    with site(shared_ground, tmp_path_factory.mktemp("jobs")) as running:
        yield running


def job(name: str, script: str, tasks: int = 1, **spec: Any) -> dict[str, object]:
    document = job_document(name, ["sh", "-c", script], tasks=tasks, **spec)
    document["spec"]["task"]["image"] = IMAGE  # type: ignore[index]
    return document


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


@pytest.mark.parametrize("point", ["create-after-send@3", "exit-seen"])
def test_every_task_runs_once_wherever_the_daemon_dies(
    ground: Ground, tmp_path: Path, point: str
) -> None:
    name, _, nth = point.partition("@")
    runs = tmp_path / "runs"
    armed = f"{name}=kill" + (f"@{nth}" if nth else "")
    with site(ground, tmp_path, failpoints=armed) as here:
        with contextlib.suppress(httpx.TransportError):  # it may die before it has answered
            here.submit(job("once", f"echo $HAVERSACK_TASK_INDEX >> {runs}", tasks=3))
        assert here.on.daemon.wait_dead(), "the failpoint was not met"
        here.on.daemon.start()
        with here.on.daemon.http() as client:
            (job_id,) = [each["id"] for each in client.get("/api/v1/jobs").json()["items"]]
        here.until_state(job_id, "SUCCEEDED")
        here.until_let_go()
        assert sorted(runs.read_text().split()) == ["0", "1", "2"]
        assert len(here.pods(job_id)) == 3


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
