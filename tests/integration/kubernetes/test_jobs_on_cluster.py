"""Jobs of our own on a cluster: submitted, made into pods, bound, run, read, and cleared away."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
            f"not {states}: {self.job(job_id)} {self.pods()}",
        )
        return self.job(job_id)

    def pods(self) -> list[Json]:
        return list(self.on.pods().values())

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
def site(ground: Ground, folder: Path, **settings: str) -> Iterator[Site]:
    daemon = DaemonProcess(folder / "none")
    on = deployed(ground, daemon)
    on.daemon = daemon_on(ground, folder, KUBERNETES__JOB_NAMESPACE=on.namespace, **settings)
    on.node("a", gpus=0, cpu="4", memory="8Gi")
    on.node("b", gpus=2, cpu="4", memory="8Gi")
    with running_kubelet(ground.access, folder=folder / "pods") as kubelet:
        on.daemon.start()
        try:
            yield Site(on, kubelet)
        finally:
            assert on.daemon.stop() == 0
            on.clear()
    assert "Traceback" not in on.daemon.log_file.read_text()


def job(name: str, script: str, tasks: int = 1, **spec: Any) -> dict[str, object]:
    document = job_document(name, ["sh", "-c", script], tasks=tasks, **spec)
    document["spec"]["task"]["image"] = IMAGE  # type: ignore[index]
    return document


def test_a_job_becomes_pods_runs_and_leaves_nothing_held(ground: Ground, tmp_path: Path) -> None:
    with site(ground, tmp_path) as here:
        script = "echo task $HAVERSACK_TASK_INDEX of $0 '$(HOSTNAME) costs 5$$'"
        job_id = here.submit(job("hello.world", script, tasks=3))
        done = here.until_state(job_id, "SUCCEEDED", "FAILED", "QUARANTINED")
        assert done["state"] == "SUCCEEDED", done
        here.until_let_go()
        pods = here.pods()
        assert len(pods) == 3
        assert all(pod["metadata"]["labels"]["haversack.dev/job"] == job_id for pod in pods)
        assert all(pod["metadata"]["name"].startswith("hello-world-a-") for pod in pods)
        for rank in range(3):
            said = f"task {rank} of sh $(HOSTNAME) costs 5$$\n"
            assert here.kubelet.log(pods[rank]["metadata"]["name"], here.on.namespace) == said
