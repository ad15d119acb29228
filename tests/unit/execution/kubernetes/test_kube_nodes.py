from __future__ import annotations

import pytest
from support import kube_objects
from support.kube_objects import Raw, container

from scheduler.execution.kubernetes.levels import levels_of
from scheduler.execution.kubernetes.nodes import (
    NO_EXTERNAL,
    External,
    KubeNode,
    external_of,
    model_node,
    node_of,
)
from scheduler.execution.kubernetes.pods import Pod, pod_of
from scheduler.execution.kubernetes.requests import MACHINE_MAX
from scheduler.model.node import Health, PriceClass
from scheduler.model.quantity import Resources
from scheduler.model.site import PORT_WHOLE, Effect, Taint


def node(**fields: object) -> KubeNode:
    return node_of(kube_objects.node(**fields))  # type: ignore[arg-type] # any field of the spec


def bound(name: str, requests: Raw, **fields: object) -> Pod:
    fields = {"node": "node-0", "schedulerName": "default-scheduler", **fields}
    return pod_of(kube_objects.pod(name, requests=requests, **fields))  # type: ignore[arg-type] # as above


def test_a_gpu_node() -> None:
    found = node(
        allocatable={
            "cpu": "63500m",
            "memory": f"{512 * 2**20 - 1}Ki",
            "pods": "110",
            "nvidia.com/gpu": "2",
            "rdma/hca": "8",
            "ephemeral-storage": "100",
            "hugepages-2Mi": "0",
            "attachable-volumes-csi-x": "39",
        },
        labels={
            "nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB",
            "nvidia.com/gpu.memory": "81920",
            "topology.kubernetes.io/zone": "z1",
        },
    )
    assert found.capacity == Resources(2, 63_500, 512 * 1024 - 1), "memory is rounded down"
    assert found.extras == (("ephemeral-storage", 100), ("pods", 110), ("rdma/hca", 8))
    assert [gpu.id for gpu in found.gpus] == ["uid-node-0/gpu-0", "uid-node-0/gpu-1"]
    assert {(gpu.model, gpu.memory_mib) for gpu in found.gpus} == {("A100", 81_920)}
    assert (found.id, found.name, found.zone) == ("uid-node-0", "node-0", "z1")
    assert ("haversack.dev/gpu-resource", "nvidia.com/gpu") in found.labels
    assert list(found.labels) == sorted(found.labels)
    assert found.ready
    assert not found.warnings


def test_the_model_of_an_idle_node() -> None:
    found = model_node(node())
    assert found.capacity == Resources(8, 64_000, 512 * 1024)
    assert found.capacity.gpus == len(found.gpus)
    assert found.health is Health.HEALTHY
    assert found.schedulable
    assert found.extras == (("pods", 110),)


def test_readiness_counts_through_taints_alone() -> None:
    found = node(ready="False")
    assert not found.ready
    assert model_node(found).schedulable


def test_taints_and_unschedulable() -> None:
    found = node(
        taints=[
            {"key": "gpu", "value": "yes", "effect": "NoSchedule"},
            {"key": "soft", "effect": "PreferNoSchedule"},
            {"key": "odd", "effect": "NoDinner"},
        ],
        unschedulable=True,
    )
    assert found.taints == (
        Taint("gpu", "yes", Effect.NO_SCHEDULE),
        Taint("node.kubernetes.io/unschedulable", "", Effect.NO_SCHEDULE),
        Taint("odd", "", Effect.NO_SCHEDULE),
        Taint("soft", "", Effect.PREFER_NO_SCHEDULE),
    )
    assert found.warnings == ("spec.taints[2].effect: unknown; taken as NoSchedule",)
    assert model_node(found).taints == found.taints


def test_others_lower_what_a_node_offers() -> None:
    others = external_of(
        [
            bound("a", {"cpu": "4", "memory": "1Gi", "nvidia.com/gpu": "2"}),
            bound("b", {"cpu": "1"}, metadata={"deletionTimestamp": "2026-11-01T10:00:00Z"}),
            bound("c", {"cpu": "9", "nvidia.com/gpu": "4"}, status={"phase": "Succeeded"}),
        ]
    )
    assert others == External(5000, 1024, (("nvidia.com/gpu", 2), ("pods", 2)))
    found = model_node(node(), others)
    assert found.capacity == Resources(8, 59_000, 511 * 1024)
    assert dict(found.extras) == {"pods": 108}
    assert [gpu.external for gpu in found.gpus] == [False] * 6 + [True] * 2


def test_a_node_that_is_overfull_offers_nothing() -> None:
    others = External(10**6, 10**7, (("nvidia.com/gpu", 12), ("pods", 200)))
    found = model_node(node(), others)
    assert found.capacity == Resources(8, 0, 0)
    assert dict(found.extras) == {"pods": 0}
    assert all(gpu.external for gpu in found.gpus)


def test_ports_of_others_are_gone_though_no_node_names_ports() -> None:
    ports = [{"hostPort": 80}, {"hostPort": 53, "hostIP": "10.0.0.1"}]
    others = external_of([bound("a", {}, containers=[container({}, ports=ports)])])
    found = dict(model_node(node(), others).extras)
    assert found == {
        "pods": 109,
        "port:TCP:53": PORT_WHOLE - 1,
        "port:TCP:53:10.0.0.1": 0,
        "port:TCP:80": 0,
    }


def test_resources_that_the_node_lacks_are_not_invented() -> None:
    assert dict(model_node(node(), External(extras=(("x/y", 3),))).extras) == {"pods": 110}


def test_a_node_with_gpus_of_two_makers_offers_the_fewer_as_devices() -> None:
    found = node(allocatable={"nvidia.com/gpu": "2", "amd.com/gpu": "4", "pods": "9"})
    assert (found.gpu_resource, found.capacity.gpus) == ("amd.com/gpu", 4)
    assert dict(found.extras)["nvidia.com/gpu"] == 2
    others = external_of([bound("a", {"nvidia.com/gpu": "1"})])
    left = model_node(found, others)
    assert dict(left.extras)["nvidia.com/gpu"] == 1
    assert not any(gpu.external for gpu in left.gpus)


def test_a_node_without_gpus() -> None:
    found = node(allocatable={"cpu": "4", "memory": "8Gi", "pods": "110"})
    assert (found.gpus, found.gpu_resource) == ((), "")
    assert "haversack.dev/gpu-resource" not in dict(found.labels)


def test_absurd_and_broken_amounts() -> None:
    found = node(allocatable={"cpu": "1E", "memory": "x", "nvidia.com/gpu": "1e9", "pods": "-5"})
    assert found.capacity.cpu_milli == MACHINE_MAX - 1
    assert found.capacity.memory_mib == 0
    assert len(found.gpus) == 4096
    assert len(found.warnings) == 2
    assert found.warnings[0].startswith("status.allocatable[memory]: ")


def test_levels_and_prices_of_a_node() -> None:
    found = node_of(
        kube_objects.node(
            labels={
                "topology.kubernetes.io/zone": "z1",
                "nvidia.com/gpu.clique": "c0ffee.1",
                "karpenter.sh/capacity-type": "spot",
            }
        ),
        levels_of(["nvlink-fabric"]),
    )
    assert (found.rack, found.clique) == ("z1/c0ffee.1", "c0ffee.1")
    assert found.price_class is PriceClass.SPOT
    made = model_node(found)
    assert (made.rack, made.zone, made.price_class) == ("z1/c0ffee.1", "z1", PriceClass.SPOT)


def test_heartbeats_do_not_make_a_node_another() -> None:
    raw = kube_objects.node()
    later = kube_objects.node()
    later["metadata"]["resourceVersion"] = "99"
    later["status"]["conditions"][0]["lastHeartbeatTime"] = "2026-11-01T10:00:00Z"
    assert node_of(raw) == node_of(later)
    assert model_node(node_of(raw)) == model_node(node_of(later), NO_EXTERNAL)


@pytest.mark.parametrize("raw", [{}, {"metadata": None, "spec": [], "status": "x"}])
def test_an_empty_object_is_a_node_that_offers_nothing(raw: Raw) -> None:
    found = node_of(raw)
    assert found.capacity == Resources()
    assert not found.ready
