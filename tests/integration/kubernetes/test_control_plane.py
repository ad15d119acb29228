"""The real control plane of the tests: found by the envtest convention, with all its programs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from support.kubernetes import objects
from support.kubernetes.client import Client, Json
from support.kubernetes.real_server import (
    SERVICE_ACCOUNT,
    ControlPlane,
    NoControlPlaneError,
    control_plane,
    program,
)
from support.kubernetes.resources import NODES, PODS

from scheduler.execution.kubernetes.access import load_access

_PATIENCE_S = 60.0


def test_programs_are_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("TEST_ASSET_ETCD", "TEST_ASSET_KUBE_APISERVER"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    with pytest.raises(NoControlPlaneError, match="KUBEBUILDER_ASSETS"), control_plane():
        pass
    for name in ("etcd", "elsewhere"):
        (tmp_path / name).touch(mode=0o755)
    assert program("etcd") == tmp_path / "etcd"
    monkeypatch.setenv("TEST_ASSET_KUBE_APISERVER", str(tmp_path / "elsewhere"))
    assert program("kube-apiserver") == tmp_path / "elsewhere"


def test_a_program_that_does_not_start_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho it is broken >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("TEST_ASSET_ETCD", str(broken))
    monkeypatch.setenv("TEST_ASSET_KUBE_APISERVER", str(broken))
    with pytest.raises(NoControlPlaneError, match="it is broken"), control_plane():
        pass


def _with(plane: ControlPlane, act: Callable[[Client], Awaitable[None]]) -> None:
    async def acting() -> None:
        async with Client(plane.access) as client:
            await act(client)

    asyncio.run(acting())


async def _until(look: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(_PATIENCE_S):
        while True:
            if await look():
                return
            await asyncio.sleep(0.1)


@pytest.mark.cluster
def test_its_users_come_with_kubeconfigs(plane: ControlPlane) -> None:
    async def ask(user: str) -> int:
        access = load_access(plane.kubeconfig(user))
        async with Client(access) as client:
            return (await client.get(NODES.path())).status

    assert asyncio.run(ask("admin")) == 200
    assert asyncio.run(ask(SERVICE_ACCOUNT)) == 403


@pytest.mark.cluster
def test_kube_scheduler_and_the_controllers_join_it(plane: ControlPlane) -> None:
    name, namespace = f"real-{os.getpid()}", f"real-{os.getpid()}"

    async def act(client: Client) -> None:
        (await client.post("/api/v1/namespaces", objects.namespace(namespace))).ok()
        (await client.post(NODES.path(), objects.node(name, gpus=4))).ok()
        container = objects.pod("x", gpus=1, scheduler="default-scheduler")["spec"]
        template = {"spec": {**container, "nodeSelector": {"kubernetes.io/hostname": name}}}
        job: Json = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": "two"},
            "spec": {"parallelism": 2, "completions": 2, "template": template},
        }
        (await client.post(f"/apis/batch/v1/namespaces/{namespace}/jobs", job)).ok()

        async def bound() -> bool:
            pods = (await client.get(PODS.path(namespace))).ok()["items"]
            return [pod["spec"].get("nodeName") for pod in pods] == [name] * 2

        await _until(bound)
        (await client.delete(NODES.path("", name))).ok()

    plane.start_scheduler()
    plane.start_controllers(["job-controller"])
    try:
        _with(plane, act)
    finally:
        plane.stop("kube-controller-manager")
        plane.stop("kube-scheduler")
    assert set(plane.pids) == {"etcd", "kube-apiserver"}
