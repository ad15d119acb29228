"""What deploy/ ships: complete, equal to the code where it repeats it, with enough rights."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.daemon import DaemonProcess
from support.kubernetes import objects
from support.kubernetes.client import Client
from support.kubernetes.deployment import Deployment
from support.kubernetes.ground import Ground
from support.kubernetes.real_server import SERVICE_ACCOUNT, ControlPlane, program
from support.tree import ROOT

from scheduler.execution.kubernetes.fence import policy_binding_manifest, policy_manifest

DEPLOY = ROOT / "deploy"
BASE = DEPLOY / "kubernetes" / "base"
COMPONENTS = sorted((DEPLOY / "kubernetes" / "components").iterdir())


def _documents(path: Path) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all(path.read_text()) if each]


@pytest.mark.parametrize("folder", [BASE, *COMPONENTS], ids=lambda folder: folder.name)
def test_a_kustomization_names_every_file_beside_it(folder: Path) -> None:
    (kustomization,) = _documents(folder / "kustomization.yaml")
    beside = {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml"}
    assert set(kustomization["resources"]) == beside


def test_the_fence_is_the_one_in_the_code() -> None:
    policy, binding = _documents(BASE / "fence.yaml")
    assert policy == policy_manifest(SERVICE_ACCOUNT)
    assert binding == policy_binding_manifest()


def test_the_image_is_built_from_paths_that_exist() -> None:
    copied = [
        source
        for line in (DEPLOY / "container" / "Containerfile").read_text().splitlines()
        if line.startswith("COPY ")
        for source in line.split()[1:-1]
    ]
    assert copied
    assert [source for source in copied if not (ROOT / source).exists()] == []


def test_nobody_is_given_more_than_is_said() -> None:
    rights = {
        (group, resource, verb)
        for path in BASE.glob("*-rights.yaml")
        for document in _documents(path)
        for rule in document.get("rules", ())
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert not {right for right in rights if "*" in right}
    changing = {right for right in rights if right[2] not in ("get", "list", "watch")}
    assert {(resource, verb) for _, resource, verb in changing} == {
        ("pods/binding", "create"),
        ("pods/status", "patch"),
        ("events", "create"),
        ("events", "patch"),
        ("leases", "update"),
        ("leases", "patch"),
    }


@pytest.fixture(scope="module")
def applied(plane: ControlPlane) -> Iterator[ControlPlane]:
    """A cluster with the base applied."""
    documents = _rendered(BASE)
    for document in documents:
        _apply(plane, document)
    yield plane
    for document in reversed(documents):
        if document["kind"] != "Namespace":  # one that is going would refuse the next test's
            _delete(plane, document)


@pytest.mark.cluster
def test_the_server_accepts_every_manifest(applied: ControlPlane) -> None:
    for document in [*_rendered(BASE), *(each for c in COMPONENTS for each in _component(c))]:
        _apply(applied, document, dryRun="All")


@pytest.mark.cluster
def test_the_base_rights_are_enough_to_bind_under_the_fence(
    applied: ControlPlane, tmp_path: Path
) -> None:
    daemon = DaemonProcess(
        tmp_path / "data",
        settings={
            "KUBERNETES__KUBECONFIG": str(applied.kubeconfig(SERVICE_ACCOUNT)),
            "KUBERNETES__FENCE": "required",
        },
        arguments=("--executor", "kubernetes"),
    )
    ground = Ground(applied.access, applied.access_as, applied.compact, real=True)
    deployment = Deployment(ground, daemon)
    deployment.ask("POST", "/api/v1/namespaces", objects.namespace(deployment.namespace)).ok()
    daemon.start()
    try:
        deployment.node("a", gpus=4)
        deployment.create(objects.gang("fits", 2, gpus=2))
        deployment.until(lambda: deployment.all_bound("fits", 2), "not bound under these rights")
        deployment.create([objects.pod("waits", gpus=1)])
        deployment.until(lambda: _told(deployment, "waits"), "not told why it waits")
        with daemon.http() as client:
            assert client.get("/readyz").json() == {"ready": True, "troubles": {}}
    finally:
        daemon.stop()


def _told(deployment: Deployment, name: str) -> bool:
    conditions = deployment.pods()[name]["status"].get("conditions", ())
    return any(each["type"] == "PodScheduled" and each.get("message") for each in conditions)


def _rendered(folder: Path) -> list[dict[str, Any]]:
    """What kustomize makes of a folder."""
    done = subprocess.run(
        [program("kubectl"), "kustomize", str(folder)], capture_output=True, check=True, timeout=60
    )
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def _component(folder: Path) -> list[dict[str, Any]]:
    (kustomization,) = _documents(folder / "kustomization.yaml")
    return [each for name in kustomization["resources"] for each in _documents(folder / name)]


def _apply(plane: ControlPlane, document: dict[str, Any], **query: str) -> None:
    """Apply on the server's side; a field that it does not know is an error."""
    kind = "application/apply-patch+yaml"
    strict = {"fieldManager": "test", "fieldValidation": "Strict", "force": "true", **query}

    async def applying() -> None:
        async with Client(plane.access) as client:
            path = await _path(client, document)
            (await client.ask("PATCH", path, document, kind=kind, **strict)).ok()

    asyncio.run(applying())


def _delete(plane: ControlPlane, document: dict[str, Any]) -> None:
    async def deleting() -> None:
        async with Client(plane.access) as client:
            (await client.delete(await _path(client, document))).ok()

    asyncio.run(deleting())


async def _path(client: Client, document: dict[str, Any]) -> str:
    version, metadata = document["apiVersion"], document["metadata"]
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    resources = (await client.get(root)).ok()["resources"]
    (found,) = [
        each for each in resources if each["kind"] == document["kind"] and "/" not in each["name"]
    ]
    within = f"/namespaces/{metadata['namespace']}" if found["namespaced"] else ""
    return f"{root}{within}/{found['name']}/{metadata['name']}"
