"""Shapes of the objects are those of the projects' public documentation."""

from __future__ import annotations

import pytest
from support.kube_objects import Raw, api_object

from scheduler.execution.kubernetes.owners import SIZE_MAX, Owner, OwnerKey, known, owner_of


def read(api_version: str, kind: str, spec: Raw) -> Owner:
    found = owner_of(api_object(api_version, kind, "llama", spec))
    assert found is not None
    assert found.key == OwnerKey(api_version.partition("/")[0], kind, "team", "llama")
    assert found.uid == "uid-llama"
    return found


@pytest.mark.parametrize(
    ("api_version", "kind", "spec", "size"),
    [
        ("scheduling.x-k8s.io/v1alpha1", "PodGroup", {"minMember": 8}, 8),
        ("scheduling.volcano.sh/v1beta1", "PodGroup", {"minMember": 4, "queue": "q"}, 4),
        (
            "scheduling.k8s.io/v1alpha2",
            "PodGroup",
            {"schedulingPolicy": {"gang": {"minCount": 16}}},
            16,
        ),
        ("scheduling.k8s.io/v1beta1", "PodGroup", {"schedulingPolicy": {"basic": {}}}, 1),
        ("batch/v1", "Job", {"completionMode": "Indexed", "completions": 4, "parallelism": 4}, 4),
        ("batch/v1", "Job", {"completionMode": "Indexed", "completions": 9, "parallelism": 4}, 1),
        ("batch/v1", "Job", {"completions": 4, "parallelism": 4}, 1),
        (
            "jobset.x-k8s.io/v1alpha2",
            "JobSet",
            {
                "replicatedJobs": [
                    {
                        "name": "workers",
                        "replicas": 2,
                        "template": {"spec": {"parallelism": 4, "completions": 4}},
                    },
                    {"name": "driver", "template": {"spec": {}}},
                ]
            },
            9,
        ),
        (
            "kubeflow.org/v1",
            "PyTorchJob",
            {
                "pytorchReplicaSpecs": {
                    "Master": {"replicas": 1, "template": {}},
                    "Worker": {"replicas": 3, "template": {}},
                }
            },
            4,
        ),
        (
            "kubeflow.org/v1",
            "PyTorchJob",
            {
                "runPolicy": {"schedulingPolicy": {"minAvailable": 2}},
                "pytorchReplicaSpecs": {"Worker": {"replicas": 3}},
            },
            2,
        ),
        (
            "kubeflow.org/v2beta1",
            "MPIJob",
            {"mpiReplicaSpecs": {"Launcher": {"replicas": 1}, "Worker": {"replicas": 4}}},
            4,
        ),
        (
            "kubeflow.org/v1",
            "MPIJob",
            {"mpiReplicaSpecs": {"Launcher": {"replicas": 1}, "Worker": {"replicas": 4}}},
            5,
        ),
        ("ray.io/v1", "RayCluster", {"workerGroupSpecs": [{"replicas": 7}]}, 1),
        (
            "leaderworkerset.x-k8s.io/v1",
            "LeaderWorkerSet",
            {"replicas": 3, "leaderWorkerTemplate": {"size": 4}},
            4,
        ),
        (
            "leaderworkerset.x-k8s.io/v1",
            "LeaderWorkerSet",
            {"startupPolicy": "LeaderReady", "leaderWorkerTemplate": {"size": 4}},
            1,
        ),
    ],
)
def test_sizes(api_version: str, kind: str, spec: Raw, size: int) -> None:
    found = read(api_version, kind, spec)
    assert found.size == size
    assert not found.problem


@pytest.mark.parametrize(
    ("groups", "more", "size"),
    [
        ([{"replicas": 3, "numOfHosts": 2}], {}, 7),
        ([{"replicas": 9, "minReplicas": 1, "maxReplicas": 4}, {"minReplicas": 2}], {}, 7),
        ([{"replicas": 9, "minReplicas": 1}], {"enableInTreeAutoscaling": True}, 2),
        ([{"replicas": 3}, {"replicas": 3, "suspend": True}], {}, 4),
    ],
)
def test_a_ray_cluster_is_a_gang_of_what_it_starts_with_when_asked_for(
    groups: list[Raw], more: Raw, size: int
) -> None:
    raw = api_object("ray.io/v1", "RayCluster", "llama", {"workerGroupSpecs": groups, **more})
    raw["metadata"]["labels"] = {"ray.io/gang-scheduling-enabled": "true"}
    found = owner_of(raw)
    assert found is not None
    assert found.size == size


def test_a_native_groups_priority_counts_where_a_class_gave_it_one() -> None:
    """Admission writes 0 where none was named: that says nothing."""
    gang = {"schedulingPolicy": {"gang": {"minCount": 2}}}
    assert read("scheduling.k8s.io/v1alpha2", "PodGroup", {**gang, "priority": 0}).priority is None


@pytest.mark.parametrize(
    "order",
    [
        {"startupPolicy": {"startupPolicyOrder": "InOrder"}},
        {"dependsOn": [{"name": "driver", "status": "Ready"}]},
    ],
)
def test_parts_that_start_one_after_the_other_are_gangs_of_their_own(order: Raw) -> None:
    workers = {"name": "workers", "replicas": 2, "template": {"spec": {"parallelism": 4}}}
    driver = {"name": "driver", "replicas": 1, "template": {"spec": {}}}
    if "dependsOn" in order:
        workers.update(order)
        order = {}
    found = read(
        "jobset.x-k8s.io/v1alpha2", "JobSet", {"replicatedJobs": [driver, workers], **order}
    )
    assert found.roles == (("driver", 1), ("workers", 8))


def test_priority_and_topology_of_a_native_group() -> None:
    found = read(
        "scheduling.k8s.io/v1alpha2",
        "PodGroup",
        {
            "schedulingPolicy": {"gang": {"minCount": 2}},
            "schedulingConstraints": {"topology": [{"key": "example.org/rack"}]},
            "priority": 50,
        },
    )
    assert (found.priority, found.topology_keys) == (50, ("example.org/rack",))


@pytest.mark.parametrize(
    ("api_version", "kind", "spec"),
    [
        ("scheduling.x-k8s.io/v1alpha1", "PodGroup", {}),
        ("scheduling.x-k8s.io/v1alpha1", "PodGroup", {"minMember": "8"}),
        ("scheduling.volcano.sh/v1beta1", "PodGroup", {"minMember": -1}),
        ("scheduling.k8s.io/v1beta1", "PodGroup", {"schedulingPolicy": {"gang": {}}}),
        ("jobset.x-k8s.io/v1alpha2", "JobSet", {"replicatedJobs": None}),
        ("kubeflow.org/v1", "PyTorchJob", {"pytorchReplicaSpecs": []}),
    ],
)
def test_an_object_without_a_size_says_so(api_version: str, kind: str, spec: Raw) -> None:
    found = read(api_version, kind, spec)
    assert found.problem.startswith(f"{kind.lower()}.{api_version.partition('/')[0]}/team/llama")


def test_absurd_sizes_are_bounded() -> None:
    found = read("scheduling.x-k8s.io/v1alpha1", "PodGroup", {"minMember": 10**15})
    assert found.size == SIZE_MAX


def test_other_kinds_group_no_pods() -> None:
    assert owner_of(api_object("apps/v1", "ReplicaSet", "web", {"replicas": 3})) is None
    assert owner_of({}) is None
    assert known("batch", "Job")
    assert not known("apps", "Job")


def test_the_kind_as_people_write_it() -> None:
    assert OwnerKey("batch", "Job", "team", "llama").said == "job.batch/team/llama"
    assert OwnerKey("", "Thing", "team", "llama").said == "thing/team/llama"
