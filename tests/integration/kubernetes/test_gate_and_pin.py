"""Gate and pin: we choose the node, kube-scheduler judges it and binds.

On a real API server with kube-scheduler and the controllers that make pods and bind volumes; the
daemon has the rights of the base and of the components that the guide names for this, no others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from support.daemon import DaemonProcess
from support.kubernetes import objects
from support.kubernetes.applying import BASE, DEPLOY, apply, component, rendered
from support.kubernetes.client import JSON_PATCH, Client, Json
from support.kubernetes.deployment import Deployment
from support.kubernetes.ground import Ground
from support.kubernetes.kubelet import Pretence, running_kubelet
from support.kubernetes.real_server import (
    SERVICE_ACCOUNT,
    ControlPlane,
    NoControlPlaneError,
    control_plane,
)
from support.kubernetes.resources import PODS

pytestmark = pytest.mark.cluster

GATE = "haversack.dev/placement"
HOSTNAME = "kubernetes.io/hostname"
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
_COMPONENTS = ("admission", "preemption", "volumes", "resource-claims")
_CONTROLLERS = ("replicaset-controller", "persistentvolume-binder-controller")


@pytest.fixture(scope="module")
def own_plane() -> Iterator[ControlPlane]:
    """A control plane with kube-scheduler and our installation."""
    try:
        with control_plane(scheduler=True) as running:
            running.start_controllers(_CONTROLLERS)
            shipped = rendered(BASE)
            for name in _COMPONENTS:
                shipped += component(DEPLOY / "kubernetes" / "components" / name)
            for document in shipped:
                apply(running, document)
            yield running
    except NoControlPlaneError as error:
        pytest.skip(f"tests against a real API server do not run: {error}")


@pytest.fixture(scope="module")
def daemon(
    own_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DaemonProcess]:
    running = DaemonProcess(
        tmp_path_factory.mktemp("daemon") / "data",
        settings={
            "KUBERNETES__KUBECONFIG": str(own_plane.kubeconfig(SERVICE_ACCOUNT)),
            "KUBERNETES__FENCE": "required",
            "KUBERNETES__PIN_S": "0.5",
        },
        arguments=("--executor", "kubernetes"),
    )
    running.start()
    folder = tmp_path_factory.mktemp("kubelet")
    with running_kubelet(own_plane.access, folder=folder, pretence=Pretence()):
        yield running
    assert running.stop() == 0
    assert "Traceback" not in running.log_file.read_text()


@pytest.fixture
def opted_in(own_plane: ControlPlane, daemon: DaemonProcess) -> Iterator[Deployment]:
    """A namespace whose pods get our gate as they are made."""
    ground = Ground(own_plane.access, own_plane.access_as, own_plane.compact, real=True)
    deployment = Deployment(ground, daemon)
    namespace = objects.namespace(deployment.namespace)
    namespace["metadata"]["labels"] = {"haversack.dev/admission": "enabled"}
    deployment.ask("POST", "/api/v1/namespaces", namespace).ok()
    # A policy comes into force some time after it was stored.
    deployment.until(lambda: gates(_tried(deployment)) == [GATE], "the policy is not in force")
    yield deployment
    _sets_away(deployment)
    deployment.clear()


def _tried(deployment: Deployment) -> Json:
    """What would become of a pod that asks for GPUs."""
    path = PODS.path(deployment.namespace)
    return deployment.ask("POST", path, plain("try", namespace=""), dryRun="All").ok()


def plain(name: str, gpus: int = 1, **more: Any) -> Json:
    """A pod as its owner writes it, who knows nothing of us."""
    return objects.pod(name, gpus=gpus, scheduler="default-scheduler", **more)


def apart(**labels: str) -> Json:
    """Not on a node with such a pod."""
    term = {"topologyKey": HOSTNAME, "labelSelector": {"matchLabels": labels}}
    return {"podAntiAffinity": {REQUIRED: [term]}}


def gates(pod: Json) -> list[str]:
    return [gate["name"] for gate in pod["spec"].get("schedulingGates", ())]


def pins(pod: Json) -> list[list[Json]]:
    affinity = pod["spec"].get("affinity", {}).get("nodeAffinity", {})
    terms = affinity.get(REQUIRED, {}).get("nodeSelectorTerms", ())
    return [term.get("matchFields", []) for term in terms]


def pinned_to(node: str) -> Json:
    return {"key": "metadata.name", "operator": "In", "values": [node]}


def test_only_pods_that_ask_for_gpus_of_kube_scheduler_are_gated(opted_in: Deployment) -> None:
    prepared = {"initContainers": [{"name": "warm", "image": "registry.example/work:1"}]}
    prepared["initContainers"][0]["resources"] = {"limits": {"nvidia.com/gpu": "1"}}  # type: ignore[assignment]
    opted_in.create(
        [
            plain("asks"),
            plain("prepares", 0, **prepared),
            plain("small", 0, cpu="1"),
            plain("also", schedulingGates=[{"name": "example.org/quota"}]),
            objects.pod("direct", gpus=1),
            objects.pod("other", gpus=1, scheduler="somebody-else"),
        ]
    )
    found = {name: gates(pod) for name, pod in opted_in.pods().items()}
    assert found == {
        "asks": [GATE],
        "prepares": [GATE],
        "small": [],
        "also": ["example.org/quota", GATE],
        "direct": [],
        "other": [],
    }
    apart_from = objects.namespace(f"{opted_in.namespace}-not")
    opted_in.ask("POST", "/api/v1/namespaces", apart_from).ok()
    path = PODS.path(apart_from["metadata"]["name"])
    made = opted_in.ask("POST", path, plain("asks", namespace="")).ok()
    assert gates(made) == []
    opted_in.ask("DELETE", f"{path}/asks").ok()


def test_a_volume_that_waits_for_a_consumer_is_made_for_our_node(opted_in: Deployment) -> None:
    nodes = [opted_in.node(name, gpus=2) for name in ("a", "b")]
    _local_volumes(opted_in, nodes)
    claim = {"name": "data", "persistentVolumeClaim": {"claimName": "data"}}
    opted_in.create([plain("reads", volumes=[claim])])
    opted_in.until(lambda: opted_in.all_bound("reads", 1), "it was not bound")
    pod = opted_in.pods()["reads"]
    node = pod["spec"]["nodeName"]
    assert pins(pod) == [[pinned_to(node)]]
    marks = pod["metadata"]["annotations"]
    assert marks["haversack.dev/path"] == (
        "gate-and-pin: kube-scheduler judges PersistentVolumeClaim data"
    )
    path = f"/api/v1/namespaces/{opted_in.namespace}/persistentvolumeclaims/data"
    assert opted_in.ask("GET", path).ok()["spec"]["volumeName"] == f"pv-{node}"
    opted_in.until(lambda: "Pinned" in _events(opted_in, "reads"), "no event says how")
    assert f"Pinned to {node}" in _events(opted_in, "reads")["Pinned"]
    (job,) = opted_in.jobs()
    assert "gate-and-pin" in _explained(opted_in, job["id"])


def test_pods_that_keep_apart_end_up_apart(opted_in: Deployment) -> None:
    """We do not judge it and may pin two to one node; kube-scheduler refuses, the next try fits."""
    for name in ("a", "b"):
        opted_in.node(name, gpus=2)
    labels = {"app": opted_in.namespace}
    _keep(opted_in, "apart", 2, labels=labels, affinity=apart(**labels))
    opted_in.until(lambda: opted_in.all_bound("apart", 2), "they were not bound")
    where = opted_in.nodes_of("apart")
    assert len(set(where.values())) == 2
    for pod in opted_in.pods().values():
        assert pins(pod) == [[pinned_to(pod["spec"]["nodeName"])]]


def test_alternatives_of_node_affinity_and_a_spread_keep_their_meaning(
    opted_in: Deployment,
) -> None:
    opted_in.node("a", gpus=4, labels={"disk": "slow"})
    for name, disk in (("b", "fast"), ("c", "none")):
        opted_in.node(name, gpus=4, labels={"disk": disk})
    terms = [
        {"matchExpressions": [{"key": "disk", "operator": "In", "values": [disk]}]}
        for disk in ("fast", "none")
    ]
    spread = {
        "maxSkew": 1,
        "topologyKey": HOSTNAME,
        "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"spread": "me"}},
        "nodeTaintsPolicy": "Honor",
    }
    opted_in.create(
        [
            plain(
                "picky",
                labels={"spread": "me"},
                topologySpreadConstraints=[spread],
                affinity={"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": terms}}},
            )
        ]
    )
    opted_in.until(lambda: opted_in.all_bound("picky", 1), "it was not bound")
    pod = opted_in.pods()["picky"]
    node = pod["spec"]["nodeName"]
    assert not node.endswith("-a")
    assert pins(pod) == [[pinned_to(node)]] * 2
    found = pod["spec"]["affinity"]["nodeAffinity"][REQUIRED]["nodeSelectorTerms"]
    assert [term["matchExpressions"] for term in found] == [t["matchExpressions"] for t in terms]
    judged = pod["metadata"]["annotations"]["haversack.dev/path"]
    assert judged.endswith("spec.topologySpreadConstraints[0]")


def test_a_gang_of_which_one_is_refused_is_given_up_whole_and_tried_elsewhere(
    opted_in: Deployment,
) -> None:
    shunned, _ = opted_in.node("a", gpus=4), opted_in.node("b", gpus=4)
    shunning = {"noise": opted_in.namespace}
    opted_in.create([plain("loud", 0, labels=shunning, nodeName=shunned)])
    _keep(opted_in, "gang", 2, gpus=4, gang=True, affinity=apart(**shunning))
    given_up = "kube-scheduler does not bind pod gang-"
    opted_in.until(
        lambda: given_up in opted_in.daemon.log_file.read_text(), "nobody gave the gang up"
    )
    opted_in.until(lambda: _all_wait(opted_in, "gang", 2), "the gang was not given up whole")
    third = opted_in.node("c", gpus=4)
    opted_in.until(lambda: opted_in.all_bound("gang", 2), "the third node was not used")
    assert sorted(opted_in.nodes_of("gang").values()) == sorted([f"{shunned[:-1]}b", third])


def test_a_lone_pod_that_kube_scheduler_refuses_stays_and_says_why(opted_in: Deployment) -> None:
    node = opted_in.node("a", gpus=2)
    shunning = {"noise": opted_in.namespace}
    opted_in.create([plain("loud", 0, labels=shunning, nodeName=node)])
    opted_in.create([plain("alone", affinity=apart(**shunning))])
    opted_in.until(
        lambda: "anti-affinity" in _condition(opted_in, "alone")["message"], "it was not told"
    )
    pod = opted_in.pods()["alone"]
    assert (gates(pod), pins(pod)) == ([], [[pinned_to(node)]])
    assert _condition(opted_in, "alone")["reason"] == "Unschedulable"
    opted_in.delete("loud")
    opted_in.until(lambda: opted_in.all_bound("alone", 1), "it was not bound once it could be")


def test_one_that_does_not_fit_waits_behind_its_gate_and_is_told_by_us(
    opted_in: Deployment,
) -> None:
    opted_in.node("a", gpus=2)
    opted_in.create([plain("big", 4)])
    opted_in.until(lambda: "4" in _condition(opted_in, "big")["message"], "it was not told")
    assert _condition(opted_in, "big")["reason"] == "SchedulingGated"
    assert gates(opted_in.pods()["big"]) == [GATE]
    opted_in.node("b", gpus=4)
    opted_in.until(lambda: opted_in.all_bound("big", 1), "new room was not used")


def test_a_stale_leader_can_neither_pin_nor_take_the_gate_away(
    opted_in: Deployment, own_plane: ControlPlane
) -> None:
    opted_in.create([plain("held", 4)])
    lease = opted_in.ask(
        "GET", "/apis/coordination.k8s.io/v1/namespaces/haversack-system/leases/haversack-epoch"
    ).ok()
    epoch = lease["spec"]["leaseTransitions"]
    marked = "/metadata/annotations"
    for wrong in (epoch - 1, epoch + 1):
        mark: Json = {"op": "add", "path": marked, "value": {"haversack.dev/epoch": str(wrong)}}
        ungate: Json = {"op": "remove", "path": "/spec/schedulingGates"}
        for change in ([mark], [mark, ungate]):
            refused = _as_us(opted_in, own_plane, "held", change)
            assert (refused[0], "stale leader epoch" in refused[1]) == (422, True)
    right = {"op": "add", "path": marked, "value": {"haversack.dev/epoch": str(epoch)}}
    image = {"op": "replace", "path": "/spec/containers/0/image", "value": "registry.example/x"}
    status, why = _as_us(opted_in, own_plane, "held", [right, image])
    assert (status, "may not change the images" in why) == (422, True)
    assert _as_us(opted_in, own_plane, "held", [right])[0] == 200


def test_our_account_changes_no_pods_that_our_gate_does_not_hold(
    opted_in: Deployment, own_plane: ControlPlane
) -> None:
    opted_in.create([objects.pod("theirs", scheduler="default-scheduler")])
    label: Json = {"op": "add", "path": "/metadata/labels", "value": {"ours": "no"}}
    status, why = _as_us(opted_in, own_plane, "theirs", [label])
    assert (status, "only change pods that its gate holds" in why) == (422, True)
    jobs = Deployment(opted_in.ground, opted_in.daemon, namespace="haversack-jobs")
    jobs.ask("POST", "/api/v1/namespaces", objects.namespace(jobs.namespace)).ok()
    own = objects.pod("own", namespace=jobs.namespace, scheduler="default-scheduler")
    jobs.ask("POST", PODS.path(jobs.namespace), own).ok()
    assert _as_us(jobs, own_plane, "own", [label])[0] == 200
    jobs.clear()


def _as_us(
    opted_in: Deployment, plane: ControlPlane, name: str, patch: list[Json]
) -> tuple[int, str]:
    """Patch a pod with the daemon's own account: status and message."""

    async def patching() -> tuple[int, str]:
        async with Client(plane.access_as(SERVICE_ACCOUNT)) as client:
            reply = await client.patch(PODS.path(opted_in.namespace, name), patch, kind=JSON_PATCH)
            return reply.status, str(reply.body.get("message"))

    return asyncio.run(patching())


def _keep(
    opted_in: Deployment,
    name: str,
    count: int,
    *,
    affinity: Json,
    gpus: int = 1,
    gang: bool = False,
    labels: Mapping[str, str] | None = None,
) -> None:
    """A ReplicaSet, whose controller makes so many pods, and makes them anew."""
    made = objects.gang(name, count, gpus=gpus)[0] if gang else plain(name, gpus)
    made["spec"] |= {"affinity": affinity, "nodeSelector": opted_in.label}
    made["spec"] |= {"schedulerName": "default-scheduler", "restartPolicy": "Always"}
    selected = {"set": name, **(labels or {})}
    metadata = made["metadata"]
    metadata["labels"] = {**metadata.get("labels", {}), **selected}
    template = {"metadata": metadata, "spec": made["spec"]}
    spec = {"replicas": count, "selector": {"matchLabels": selected}, "template": template}
    kept = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": name}, "spec": spec}
    opted_in.ask("POST", _sets(opted_in), kept).ok()


def _sets(opted_in: Deployment) -> str:
    return f"/apis/apps/v1/namespaces/{opted_in.namespace}/replicasets"


def _sets_away(opted_in: Deployment) -> None:
    for kept in opted_in.ask("GET", _sets(opted_in)).ok()["items"]:
        path = f"{_sets(opted_in)}/{kept['metadata']['name']}"
        opted_in.ask("DELETE", path, {"propagationPolicy": "Background"}).ok()


def _all_wait(opted_in: Deployment, prefix: str, count: int) -> bool:
    """Whether so many of them are there, gated, and nobody has a node."""
    found = [pod for name, pod in opted_in.pods().items() if name.startswith(prefix)]
    waiting = [pod for pod in found if gates(pod) == [GATE] and not pins(pod)]
    return len(found) == len(waiting) == count


def _local_volumes(opted_in: Deployment, nodes: list[str]) -> None:
    """A claim that waits for its consumer, and a volume for it on each of the nodes."""
    name = f"local-{opted_in.namespace}"
    storage_class = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": name},
        "provisioner": "kubernetes.io/no-provisioner",
        "volumeBindingMode": "WaitForFirstConsumer",
    }
    opted_in.ask("POST", "/apis/storage.k8s.io/v1/storageclasses", storage_class).ok()
    common = {"accessModes": ["ReadWriteOnce"], "storageClassName": name}
    for node in nodes:
        on_node = {"key": HOSTNAME, "operator": "In", "values": [node]}
        volume = {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": f"pv-{node}"},
            "spec": {
                **common,
                "capacity": {"storage": "1Gi"},
                "local": {"path": "/mnt/data"},
                "nodeAffinity": {
                    "required": {"nodeSelectorTerms": [{"matchExpressions": [on_node]}]}
                },
            },
        }
        opted_in.ask("POST", "/api/v1/persistentvolumes", volume).ok()
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "data"},
        "spec": {**common, "resources": {"requests": {"storage": "1Gi"}}},
    }
    path = f"/api/v1/namespaces/{opted_in.namespace}/persistentvolumeclaims"
    opted_in.ask("POST", path, claim).ok()


def _condition(opted_in: Deployment, name: str) -> Json:
    """The pod's PodScheduled condition."""
    conditions = opted_in.pods()[name]["status"].get("conditions", ())
    found = (each for each in conditions if each["type"] == "PodScheduled")
    return {"message": "", "reason": "", **next(found, {})}


def _events(opted_in: Deployment, name: str) -> dict[str, str]:
    """Notes of the pod's events by their reason."""
    path = f"/apis/events.k8s.io/v1/namespaces/{opted_in.namespace}/events"
    return {
        event["reason"]: event["note"]
        for event in opted_in.ask("GET", path).ok()["items"]
        if event["regarding"]["name"] == name
    }


def _explained(opted_in: Deployment, job_id: str) -> str:
    with opted_in.daemon.http() as client:
        found = client.get(f"/api/v1/jobs/{job_id}/explain")
        found.raise_for_status()
        return str(found.json()["summary"])
