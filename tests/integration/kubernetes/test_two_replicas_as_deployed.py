"""The overlay for PostgreSQL: taken by a real API server, and its rights are enough for two."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.kubernetes import objects
from support.kubernetes.applying import OVERLAYS, apply, documents, remove, rendered
from support.kubernetes.ground import Ground
from support.kubernetes.real_server import SERVICE_ACCOUNT, ControlPlane
from support.kubernetes.replicas import ready, replicas
from support.kubernetes.resources import PODS

NAMESPACE = "haversack-system"
(OVERLAY,) = (folder for folder in OVERLAYS if folder.name == "postgresql")


def test_further_rights_are_two_pods_by_name() -> None:
    role, _ = documents(OVERLAY / "role-rights.yaml")
    (rule,) = role["rules"]
    assert role["kind"] == "Role"
    assert rule["verbs"] == ["patch"]
    assert rule["resources"] == ["pods"]
    assert rule["resourceNames"] == ["haversack-0", "haversack-1"]


@pytest.fixture
def applied(plane: ControlPlane) -> Iterator[dict[str, dict[str, Any]]]:
    """The overlay on a cluster: its objects by kind, the last of each."""
    shipped = rendered(OVERLAY)
    yield {document["kind"]: apply(plane, document) for document in shipped}
    for document in reversed(shipped):
        if document["kind"] != "Namespace":  # one that is going would refuse the next test's
            remove(plane, document)


@pytest.mark.cluster
@pytest.mark.postgres
def test_the_overlay_is_taken_and_its_rights_are_enough(
    plane: ControlPlane, applied: dict[str, dict[str, Any]], tmp_path: Path, postgres_url: str
) -> None:
    daemons = applied["StatefulSet"]["spec"]
    assert daemons["replicas"] == 2
    assert "volumeClaimTemplates" not in daemons
    assert applied["PodDisruptionBudget"]["spec"]["minAvailable"] == 1
    assert "maxUnavailable" not in applied["PodDisruptionBudget"]["spec"]
    selector = applied["Service"]["spec"]["selector"]
    labels = daemons["template"]["metadata"]["labels"]
    assert selector == {**labels, "haversack.dev/role": "leader"}
    pods = [_pod(f"haversack-{place}", daemons["template"]) for place in range(2)]
    for pod in pods:
        apply(plane, pod)
    admin = Ground(plane.access, plane.access_as, plane.compact, real=True)
    with replicas(
        admin,
        tmp_path,
        postgres_url,
        account=_as_deployed(plane),
        KUBERNETES__FENCE="required",
        KUBERNETES__POD_NAME="haversack-{}",
    ) as pair:
        first, second = pair.leads, pair.waits

        def served() -> list[str]:
            chosen = ",".join(f"{key}={value}" for key, value in selector.items())
            found = first.ask("GET", PODS.path(NAMESPACE), labelSelector=chosen).ok()
            return [pod["metadata"]["name"] for pod in found["items"]]

        first.until(lambda: served() == ["haversack-0"], "the leader has no label")
        assert first.daemon.stop() == 0
        pair.turn()
        first.until(lambda: served() == ["haversack-1"], "the successor has no label")
        assert ready(second.daemon)["warnings"] == {}
        first.node("a", gpus=1)
        first.create([objects.pod("p", gpus=1)])
        first.until(lambda: first.all_bound("p", 1), "not bound under these rights")
        assert second.daemon.stop() == 0
    for pod in pods:
        remove(plane, pod)


def _as_deployed(plane: ControlPlane) -> Ground:
    return Ground(
        plane.access_as(SERVICE_ACCOUNT),
        plane.access_as,
        plane.compact,
        real=True,
        authority=plane.authority,
    )


def _pod(name: str, template: dict[str, Any]) -> dict[str, Any]:
    """What the StatefulSet would make, which the namespace's pod security must let in."""
    metadata = {"name": name, "namespace": NAMESPACE, "labels": template["metadata"]["labels"]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
