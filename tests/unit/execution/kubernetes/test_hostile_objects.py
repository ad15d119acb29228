"""Whatever an object looks like, reading it gives a value: a watch must not stop for one."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from support import kube_objects
from support.kube_objects import Raw, api_object, training_pod

from scheduler.execution.kubernetes.gangs import gangs_of, owner_keys
from scheduler.execution.kubernetes.nodes import External, external_of, model_node, node_of
from scheduler.execution.kubernetes.owners import owner_of
from scheduler.execution.kubernetes.pods import pod_of
from scheduler.execution.kubernetes.unmodelled import Surroundings, claim_of, route_of

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["1Gi", "1e9", "Always", "In", "2026-11-01T10:00:00Z", "9" * 80])
)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)

GANG_POD = kube_objects.pod(
    "p",
    labels={"haversack.dev/gang": "g", "haversack.dev/queue": "q"},
    annotations={"haversack.dev/gang-size": "2", "haversack.dev/topology": "any"},
    owner=kube_objects.owner("Job", "j"),
    volumes=[{"persistentVolumeClaim": {"claimName": "data"}}],
    affinity={
        "podAntiAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [
                {"topologyKey": "zone", "labelSelector": {"matchExpressions": [{"key": "a"}]}}
            ]
        },
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "Exists"}]}]
            }
        },
    },
)


def paths(value: object, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The place of every value inside."""
    if isinstance(value, dict):
        inside = value.items()
    elif isinstance(value, list):
        inside = dict(enumerate(value)).items()
    else:
        return [here]
    return [here, *(path for key, each in inside for path in paths(each, (*here, key)))]


@st.composite
def spoiled(draw: st.DrawFn, whole: Raw) -> Raw:
    """The object with something else in some of its places."""
    found = copy.deepcopy(whole)
    for path in draw(st.lists(st.sampled_from(paths(whole)[1:]), min_size=1, max_size=3)):
        at: Any = found
        try:
            for key in path[:-1]:
                at = at[key]
            at[path[-1]] = draw(JSON)
        except (KeyError, IndexError, TypeError):
            continue  # an earlier replacement took that place away
    return found


@settings(max_examples=150, deadline=None)
@given(spoiled(training_pod(3)) | spoiled(GANG_POD) | st.dictionaries(st.text(max_size=8), JSON))
def test_any_pod_is_read_routed_and_grouped(raw: Raw) -> None:
    pod = pod_of(raw)
    assert pod == pod_of(copy.deepcopy(raw))
    assert isinstance(hash(pod), int)
    assert pod.needs.gpus >= 0
    assert all(amount > 0 for _, amount in pod.extras)
    assert list(pod.extras) == sorted(pod.extras)
    route = route_of(pod, Surroundings(claim=lambda *_: None, repelling=(pod,)))
    assert route.why
    found = gangs_of([pod], {})
    assert owner_keys([pod]) == owner_keys([pod])
    assert all(waiting.reason for waiting in found.waiting)
    assert len(found.complete) + len(found.waiting) == pod.waiting
    assert all(isinstance(hash(gang.shape), int) for gang in found.complete)
    used = external_of([pod])
    assert min(used.cpu_milli, used.memory_mib) >= 0


@settings(max_examples=150, deadline=None)
@given(
    spoiled(
        kube_objects.node(
            labels={"nvidia.com/gpu.product": "NVIDIA-H200", "nvidia.com/gpu.memory": "1"},
            annotations={"haversack.dev/topology": '{"gpus":[{"uuid":"a"}],"nvlinks":[[0]]}'},
            taints=[{"key": "a", "effect": "NoSchedule"}],
        )
    )
    | st.dictionaries(st.text(max_size=8), JSON)
)
def test_any_node_is_read_and_modelled(raw: Raw) -> None:
    kube = node_of(raw)
    assert kube == node_of(copy.deepcopy(raw))
    node = model_node(kube, External(500, 500, (("nvidia.com/gpu", 3), ("pods", 4))))
    assert node.capacity.gpus == len(node.gpus)
    assert min(node.capacity.cpu_milli, node.capacity.memory_mib) >= 0
    assert len({gpu.id for gpu in node.gpus}) == len(node.gpus)
    assert all(amount >= 0 for _, amount in node.extras)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(
        [
            api_object(version, kind, "x", spec)
            for version, kind, spec in (
                (
                    "batch/v1",
                    "Job",
                    {"completionMode": "Indexed", "completions": 2, "parallelism": 2},
                ),
                ("jobset.x-k8s.io/v1alpha2", "JobSet", {"replicatedJobs": [{"replicas": 2}]}),
                (
                    "kubeflow.org/v1",
                    "PyTorchJob",
                    {"pytorchReplicaSpecs": {"Worker": {"replicas": 3}}},
                ),
                ("ray.io/v1", "RayCluster", {"workerGroupSpecs": [{"replicas": 2}]}),
                (
                    "scheduling.k8s.io/v1",
                    "PodGroup",
                    {"schedulingPolicy": {"gang": {"minCount": 2}}},
                ),
            )
        ]
    ).flatmap(spoiled)
)
def test_any_owner_is_read(raw: Raw) -> None:
    found = owner_of(raw)
    assert found is None or found.size >= 1


@settings(deadline=None)
@given(JSON, JSON, JSON)
def test_any_claim_is_read(spec: object, volume: object, storage_class: object) -> None:
    found = claim_of(
        {"spec": spec, "status": spec},
        volume if isinstance(volume, dict) else None,
        storage_class if isinstance(storage_class, dict) else None,
        frozenset(),
    )
    assert isinstance(found.bound, bool)
