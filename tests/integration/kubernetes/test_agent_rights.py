"""What the node agent may do on a real cluster: its own node's annotation, and nothing else."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from support.kubernetes import objects
from support.kubernetes.client import MERGE, Client, Json, Reply
from support.kubernetes.real_server import ControlPlane, program
from support.kubernetes.resources import NODES, PODS
from support.tree import ROOT

from scheduler.agent.advertise import Advertiser
from scheduler.execution.kubernetes.access import Access
from scheduler.execution.kubernetes.server import ApiServer
from scheduler.model.node import Gpu, Links, Node
from scheduler.model.quantity import GpuId, NodeId, Resources

pytestmark = pytest.mark.cluster

COMPONENT = ROOT / "deploy" / "kubernetes" / "components" / "agent"
NAMESPACE = "haversack-system"
TOPOLOGY = "haversack.dev/topology"
_PATIENCE_S = 60.0
_numbers = itertools.count(1)


class _Inventory:
    def nodes(self) -> tuple[Node, ...]:
        gpus = tuple(Gpu(GpuId(f"GPU-{i}"), i, "H200", 143771) for i in range(2))
        return (Node(NodeId("h"), "h", Resources(gpus=2), gpus, Links.uniform(2, 18, 450.0)),)


@dataclass(frozen=True)
class _Rig:
    """The component, applied; an agent's pod on node `own`.

    Attributes:
        access: with the token that a kubelet would mount into the agent's pod.
    """

    plane: ControlPlane
    access: Access
    own: str
    other: str

    def change(self, node: str, body: Json, part: str = "", **query: str) -> Reply:
        async def asking() -> Reply:
            async with Client(self.access) as client:
                path = NODES.path("", node, part)
                return await client.ask("PATCH", path, body, kind=MERGE, **query)

        return asyncio.run(asking())

    def node(self, name: str) -> Json:
        async def asking() -> Json:
            async with Client(self.plane.access) as client:
                return (await client.get(NODES.path(name=name))).ok()

        return asyncio.run(asking())


def _kubectl(plane: ControlPlane, *arguments: str) -> None:
    command = [str(program("kubectl")), "--kubeconfig", str(plane.kubeconfig()), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


async def _token(plane: ControlPlane, node: str, name: str) -> str:
    """The token of an agent's pod on a node."""
    made = objects.pod(
        name, namespace=NAMESPACE, nodeName=node, serviceAccountName="haversack-agent"
    )
    async with Client(plane.access) as client:
        await client.post("/api/v1/namespaces", objects.namespace(NAMESPACE))
        pod = (await client.post(PODS.path(NAMESPACE), made)).ok()
        bound = {"kind": "Pod", "apiVersion": "v1", "name": name, "uid": pod["metadata"]["uid"]}
        path = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/haversack-agent/token"
        request = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"boundObjectRef": bound, "expirationSeconds": 3600},
        }
        told = (await client.post(path, request)).ok()
        return str(told["status"]["token"])


@pytest.fixture(scope="module")
def rig(plane: ControlPlane) -> Iterator[_Rig]:
    """The agent's rights on the session's control plane."""
    own, other = (f"agent-{next(_numbers)}" for _ in range(2))

    async def nodes() -> None:
        async with Client(plane.access) as client:
            await client.post("/api/v1/namespaces", objects.namespace(NAMESPACE))
            for name in (own, other):
                made = objects.node(name, gpus=2)
                made["metadata"]["annotations"] = {"somebody": "else"}
                (await client.post(NODES.path(), made)).ok()

    asyncio.run(nodes())
    files = [
        word
        for name in ("service-account", "rights", "own-node")
        for word in ("-f", str(COMPONENT / f"{name}.yaml"))
    ]
    _kubectl(plane, "apply", "--server-side", "--validate=false", *files)
    pod = "haversack-agent-x"
    token = asyncio.run(_token(plane, own, pod))
    context = plane.access.ssl_context
    made = _Rig(plane, Access(plane.url, ssl_context=context, token=token), own, other)
    _until_taken_up(made)
    yield made
    _kubectl(plane, "delete", "--wait=false", *files)
    _kubectl(plane, "delete", "node", own, other)
    _kubectl(plane, "-n", NAMESPACE, "delete", "pod", pod, "--force", "--wait=false")


def _until_taken_up(rig: _Rig) -> None:
    """A policy takes the server a moment: until then other nodes may be changed too."""
    limit = time.monotonic() + _PATIENCE_S
    while rig.change(rig.other, {"metadata": {"labels": {"a": "b"}}}, dryRun="All").status < 300:
        assert time.monotonic() < limit, "the policy is not in force"
        time.sleep(0.1)


def test_an_agent_annotates_its_own_node(rig: _Rig) -> None:
    async def advertising() -> bool:
        async with ApiServer(rig.access) as server:
            return await Advertiser(server, rig.own, take_inventory=_Inventory).advertise()

    assert asyncio.run(advertising())
    annotations = rig.node(rig.own)["metadata"]["annotations"]
    assert '"uuid":"GPU-1"' in annotations[TOPOLOGY]
    assert annotations["somebody"] == "else"


def test_another_node_is_not_its_own(rig: _Rig) -> None:
    body = {"metadata": {"annotations": {TOPOLOGY: "x"}}}
    assert "only the node that it runs on" in rig.change(rig.other, body).body["message"]


@pytest.mark.parametrize(
    "body",
    [
        {"spec": {"unschedulable": True}},
        {"metadata": {"labels": {"a": "b"}}},
        {"metadata": {"annotations": {"a": "b"}}},
        {"metadata": {"annotations": {"somebody": None}}},
        {"metadata": {"annotations": {"somebody": "other"}}},
        {"metadata": {"finalizers": ["a/b"]}},
    ],
)
def test_of_its_own_node_nothing_else_is_changed(rig: _Rig, body: Json) -> None:
    assert "nothing but the annotation" in rig.change(rig.own, body).body["message"]


def test_the_status_is_out_of_reach(rig: _Rig) -> None:
    reply = rig.change(rig.own, {"status": {"capacity": {"nvidia.com/gpu": "9"}}}, "status")
    assert reply.status == 403
