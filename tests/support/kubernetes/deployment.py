"""A real daemon that schedules a cluster, fake or real, and what a user of that cluster does."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from support.daemon import DaemonProcess
from support.kubernetes import objects
from support.kubernetes.client import STRATEGIC, Client, Json, Reply
from support.kubernetes.ground import Ground
from support.kubernetes.real_server import ADMIN, OPERATOR
from support.kubernetes.resources import NODES, PODS

PATIENCE_S = 60.0
_numbers = itertools.count(1)


@dataclass
class Deployment:
    """One daemon on one cluster, in a namespace of its own.

    Attributes:
        label: nodes and pods of this deployment carry it, as others may use the same cluster.
    """

    ground: Ground
    daemon: DaemonProcess
    namespace: str = field(default_factory=lambda: f"e2e-{os.getpid()}-{next(_numbers)}")

    @property
    def label(self) -> dict[str, str]:
        return {"test": self.namespace}

    def ask(self, method: str, path: str, body: Any = None, **more: Any) -> Reply:
        """One request as an administrator."""

        async def asking() -> Reply:
            async with Client(self.ground.access) as client:
                return await client.ask(method, path, body, **more)

        return asyncio.run(asking())

    def node(self, name: str, **fields: Any) -> str:
        """A new node."""
        full = f"{self.namespace}-{name}"
        labels = {**self.label, **fields.pop("labels", {})}
        self.ask("POST", NODES.path(), objects.node(full, labels=labels, **fields)).ok()
        return full

    def create(self, documents: Sequence[Json]) -> None:
        """New pods, on this deployment's nodes."""

        async def creating() -> None:
            async with Client(self.ground.access) as client:
                for document in documents:
                    document["metadata"]["namespace"] = self.namespace
                    selector = document["spec"].setdefault("nodeSelector", {})
                    selector.update(self.label)
                    path = PODS.path(self.namespace)
                    (await client.post(path, document)).ok()

        asyncio.run(creating())

    def pods(self) -> dict[str, Json]:
        """The namespace's pods by name."""
        items = self.ask("GET", PODS.path(self.namespace)).ok()["items"]
        return {item["metadata"]["name"]: item for item in items}

    def nodes_of(self, prefix: str) -> dict[str, str]:
        """Where each pod of this prefix is bound; "" for nowhere."""
        return {
            name: pod["spec"].get("nodeName", "")
            for name, pod in self.pods().items()
            if name.startswith(prefix)
        }

    def end(self, name: str, phase: str, code: int) -> None:
        """What a kubelet says of a pod whose container has ended."""
        state = {"terminated": {"exitCode": code, "reason": "Completed" if not code else "Error"}}
        status = {"phase": phase, "containerStatuses": [{"name": "main", "state": state}]}
        path = PODS.path(self.namespace, name, "status")
        self.ask("PATCH", path, {"status": status}, kind=STRATEGIC).ok()

    def delete(self, name: str) -> None:
        """Take a pod away at once."""
        self.ask("DELETE", PODS.path(self.namespace, name), {"gracePeriodSeconds": 0}).ok()

    def jobs(self) -> list[Json]:
        """The daemon's jobs of this namespace's tenant."""
        with self.daemon.http() as client:
            found = client.get("/api/v1/jobs", params={"limit": 200})
            found.raise_for_status()
            items: list[Json] = found.json()["items"]
            return [item for item in items if item["tenant"] == self.namespace]

    def cancel(self, job_id: str) -> None:
        """Cancel a job through the daemon's API."""
        with self.daemon.http() as client:
            client.post(f"/api/v1/jobs/{job_id}:cancel").raise_for_status()

    def remove_node(self, full: str) -> None:
        """Take a node away."""
        self.ask("DELETE", NODES.path(name=full)).ok()

    def clear(self) -> None:
        """Leave nothing for whoever uses the cluster next."""
        for name in self.pods():
            self.ask("DELETE", PODS.path(self.namespace, name), {"gracePeriodSeconds": 0})
        found = self.ask("GET", NODES.path(), labelSelector=f"test={self.namespace}").ok()
        for node in found["items"]:
            self.remove_node(node["metadata"]["name"])

    def until(self, what: Callable[[], bool], why: str) -> None:
        """Wait until it is so.

        Raises:
            AssertionError: it was not in time; with the daemon's log.
        """
        deadline = time.monotonic() + PATIENCE_S
        while not what():
            assert time.monotonic() < deadline, f"{why}\n{self.daemon.log_tail()}"
            time.sleep(0.1)

    def all_bound(self, prefix: str, count: int) -> bool:
        """Whether so many pods of this prefix are there, all bound."""
        found = self.nodes_of(prefix)
        return len(found) == count and all(found.values())


def daemon_on(ground: Ground, folder: Path, **settings: str) -> DaemonProcess:
    """A daemon for the ground's cluster, not started yet."""
    return DaemonProcess(
        folder / "data",
        settings={"KUBERNETES__KUBECONFIG": str(kubeconfig(ground, folder)), **settings},
        arguments=("--executor", "kubernetes"),
    )


def deployed(ground: Ground, daemon: DaemonProcess) -> Deployment:
    """A deployment with its namespace."""
    deployment = Deployment(ground, daemon)
    deployment.ask("POST", "/api/v1/namespaces", objects.namespace(deployment.namespace)).ok()
    return deployment


def kubeconfig(ground: Ground, folder: Path) -> Path:
    """A kubeconfig file for a daemon: in an administrator's place it is the operator."""
    path = folder / "kubeconfig.yaml"
    cluster: dict[str, object] = {"server": ground.access.base_url}
    if ground.authority is not None:
        cluster["certificate-authority"] = str(ground.authority)
    access = ground.access
    if ground.real and access.headers() == ground.access_as(ADMIN).headers():
        access = ground.access_as(OPERATOR)
    token = access.headers()["Authorization"].removeprefix("Bearer ")
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": cluster}],
        "users": [{"name": "test", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "current-context": "test",
    }
    path.write_text(yaml.safe_dump(document))
    return path
