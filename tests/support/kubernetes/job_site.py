"""A daemon that runs jobs of its own on a cluster, and a kubelet that carries them out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.daemon import DaemonProcess, job_document
from support.kubernetes.client import Json
from support.kubernetes.deployment import Deployment, daemon_on, deployed
from support.kubernetes.ground import Ground
from support.kubernetes.kubelet import Kubelet, running_kubelet

IMAGE = "registry.example/train:1"
FINALIZER = "haversack.dev/exit-status"


@dataclass(frozen=True, slots=True)
class Site:
    """A daemon on a cluster, and the kubelet of two nodes of it."""

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
    nodes = [on.node(name, gpus=gpus, cpu="4", memory="8Gi") for name, gpus in (("a", 0), ("b", 2))]
    with running_kubelet(ground.access, nodes, folder=folder / "pods") as kubelet:
        on.daemon.start(failpoints=failpoints)
        try:
            yield Site(on, kubelet)
        finally:
            stopped = on.daemon.stop()
            on.clear()
    assert stopped == 0
    assert "Traceback" not in on.daemon.log_file.read_text()


def job(name: str, script: str, tasks: int = 1, **spec: Any) -> dict[str, object]:
    document = job_document(name, ["sh", "-c", script], tasks=tasks, **spec)
    document["spec"]["task"]["image"] = IMAGE  # type: ignore[index]
    return document
