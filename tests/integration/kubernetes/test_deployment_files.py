"""What deploy/ ships: complete, equal to the code where it repeats it, with enough rights."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.daemon import DaemonProcess
from support.kubernetes import objects
from support.kubernetes.applying import (
    BASE,
    COMPONENTS,
    DEPLOY,
    OVERLAYS,
    apply,
    component,
    documents,
    remove,
    rendered,
)
from support.kubernetes.deployment import Deployment, deployed
from support.kubernetes.ground import Ground
from support.kubernetes.kubelet import running_kubelet
from support.kubernetes.real_server import SERVICE_ACCOUNT, ControlPlane
from support.kubernetes.resources import LEASES, PRIORITY_CLASSES
from support.tree import ROOT

from scheduler.execution.kubernetes.fence import (
    LEASE,
    Fence,
    lease_manifest,
    pins_binding_manifest,
    pins_policy_manifest,
    policy_binding_manifest,
    policy_manifest,
)
from scheduler.execution.kubernetes.server import ApiServer, RejectedError


@pytest.mark.parametrize("folder", [BASE, *COMPONENTS, *OVERLAYS], ids=lambda folder: folder.name)
def test_a_kustomization_names_every_file_beside_it(folder: Path) -> None:
    (kustomization,) = documents(folder / "kustomization.yaml")
    beside = {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml"}
    patches = {each["path"] for each in kustomization.get("patches", ())}
    assert {name for name in kustomization["resources"] if ".." not in name} | patches == beside


def test_the_fence_is_the_one_in_the_code() -> None:
    assert documents(BASE / "fence.yaml") == [
        policy_manifest(SERVICE_ACCOUNT),
        policy_binding_manifest(),
        pins_policy_manifest(SERVICE_ACCOUNT),
        pins_binding_manifest(),
    ]


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
        for document in documents(path)
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
        ("leases", "create"),
        ("leases", "update"),
        ("leases", "patch"),
    }


@pytest.fixture(scope="module")
def applied(plane: ControlPlane) -> Iterator[ControlPlane]:
    """A cluster with the base applied."""
    shipped = rendered(BASE)
    for document in shipped:
        apply(plane, document)
    yield plane
    for document in reversed(shipped):
        if document["kind"] != "Namespace":  # one that is going would refuse the next test's
            remove(plane, document)


@pytest.mark.cluster
def test_the_server_accepts_every_manifest(applied: ControlPlane) -> None:
    for document in [*rendered(BASE), *(each for c in COMPONENTS for each in component(c))]:
        # What is in a namespace is refused while that is not there, even in a rehearsal.
        made = {} if document["kind"] == "Namespace" else {"dryRun": "All"}
        apply(applied, document, **made)


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
            ready = client.get("/readyz").json()
        assert ready == {"ready": True, "role": "leader", "troubles": {}, "warnings": {}}
    finally:
        daemon.stop()


@pytest.mark.cluster
def test_the_base_rights_are_enough_to_make_the_lease_again_and_no_other(
    applied: ControlPlane,
) -> None:
    async def keeping(epoch: int) -> tuple[bool, int]:
        async with (
            ApiServer(applied.access) as admin,
            ApiServer(applied.access_as(SERVICE_ACCOUNT)) as server,
        ):
            leases = LEASES.path("haversack-system")
            await admin.delete(f"{leases}/{LEASE}")
            fence = Fence(server, holder="again")
            published = await fence.keep(epoch, _we_lead)
            with pytest.raises(RejectedError, match="cannot create"):
                await server.post(leases, lease_manifest(epoch, "again"))
            return published, await fence.read_epoch()

    # Above all that other tests on this cluster have published, and will.
    assert asyncio.run(keeping(7)) == (True, 7)


async def _we_lead() -> None:
    """We do."""


@pytest.mark.cluster
def test_with_the_component_for_jobs_one_runs_and_its_log_is_read(
    applied: ControlPlane, tmp_path: Path
) -> None:
    parts = component(DEPLOY / "kubernetes" / "components" / "jobs")
    for document in parts:
        apply(applied, document)
    daemon = DaemonProcess(
        tmp_path / "data",
        settings={"KUBERNETES__KUBECONFIG": str(applied.kubeconfig(SERVICE_ACCOUNT))},
        arguments=("--executor", "kubernetes"),
    )
    ground = Ground(applied.access, applied.access_as, applied.compact, real=True)
    deployment = Deployment(ground, daemon, namespace="haversack-jobs")
    deployment.node("a", gpus=0)
    task = {"command": ["sh", "-c", "echo made"], "image": "registry.example/x", "cpus": 0.1}
    job = {
        "apiVersion": "haversack.dev/v1alpha1",
        "kind": "Job",
        "metadata": {"name": "made"},
        "spec": {"tasks": 2, "launcher": "none", "task": task},
    }
    with running_kubelet(applied.access, folder=tmp_path / "pods"):
        daemon.start()
        try:
            with daemon.http() as client:
                made = f"/api/v1/jobs/{client.post('/api/v1/jobs', json=job).json()['id']}"
                deployment.until(
                    lambda: client.get(made).json()["state"] == "SUCCEEDED", "it did not run"
                )
                assert client.get(f"{made}/logs", params={"rank": 1}).json()["data"] == "made\n"
            deployment.until(
                lambda: (
                    not any("finalizers" in pod["metadata"] for pod in deployment.pods().values())
                ),
                "it was not let go",
            )
        finally:
            daemon.stop()
            deployment.clear()
            for document in reversed(parts):
                if document["kind"] != "Namespace":
                    remove(applied, document)


@pytest.mark.cluster
def test_with_the_component_for_preemption_lower_priorities_yield(
    applied: ControlPlane, tmp_path: Path
) -> None:
    parts = component(DEPLOY / "kubernetes" / "components" / "preemption")
    for document in parts:
        apply(applied, document)
    daemon = DaemonProcess(
        tmp_path / "data",
        settings={
            "KUBERNETES__KUBECONFIG": str(applied.kubeconfig(SERVICE_ACCOUNT)),
            "QUEUE__POLICY": "priority-preempt",
        },
        arguments=("--executor", "kubernetes"),
    )
    ground = Ground(applied.access, applied.access_as, applied.compact, real=True)
    deployment = deployed(ground, daemon)
    deployment.node("a", gpus=1)
    urgent = objects.priority_class(deployment.namespace, 9)
    deployment.ask("POST", PRIORITY_CLASSES.path(), urgent).ok()
    daemon.start()
    try:
        deployment.create([objects.pod("low", gpus=1)])
        deployment.until(lambda: deployment.all_bound("low", 1), "it was not bound")
        deployment.create([objects.pod("high", gpus=1, priorityClassName=deployment.namespace)])
        deployment.until(
            lambda: "deletionTimestamp" in deployment.pods()["low"]["metadata"], "it stayed"
        )
        deployment.delete("low")
        deployment.until(lambda: deployment.all_bound("high", 1), "it did not take the place")
    finally:
        daemon.stop()
        deployment.clear()
        for document in reversed(parts):
            remove(applied, document)


def _told(deployment: Deployment, name: str) -> bool:
    conditions = deployment.pods()[name]["status"].get("conditions", ())
    return any(each["type"] == "PodScheduled" and each.get("message") for each in conditions)
