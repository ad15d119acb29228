"""How many pods belong together, as the objects say that made them.

Each kind says it in its own words; here they become one value. Sources: the public API types of
batch/v1 Job, scheduling.k8s.io PodGroup (v1alpha2 of Kubernetes 1.36, v1beta1 of 1.37),
kubernetes-sigs/scheduler-plugins, volcano-sh/volcano, kubernetes-sigs/jobset, kubernetes-sigs/lws,
kubeflow/training-operator, kubeflow/mpi-operator and ray-project/kuberay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from scheduler.execution.kubernetes import labels
from scheduler.execution.kubernetes.raw import Json, mapping, mappings, text, whole

SIZE_MAX: Final = 1_000_000
"""No gang is larger; a number beyond it reads as this."""


@dataclass(frozen=True, slots=True, order=True)
class OwnerKey:
    """Which object: its API group without a version, for servers differ in those."""

    group: str
    kind: str
    namespace: str
    name: str

    @property
    def said(self) -> str:
        """As people write it: `podgroup.scheduling.k8s.io/team/llama`."""
        return f"{self.resource}/{self.namespace}/{self.name}"

    @property
    def resource(self) -> str:
        """Its kind as people write it: `podgroup.scheduling.k8s.io`."""
        return f"{self.kind.lower()}.{self.group}" if self.group else self.kind.lower()


@dataclass(frozen=True, slots=True)
class Owner:
    """What an object says about the pods made for it.

    Attributes:
        size: how many must start together; 1 when they need not.
        roles: sizes by name, of an object that starts its parts one after the other: a gang over
            all of them would wait forever for pods that are not made before the first ones run.
        priority: of the whole group, if the object has one.
        topology_keys: node labels whose value all pods must share.
        problem: why its size cannot be told, or "".
    """

    key: OwnerKey
    uid: str
    size: int = 1
    roles: tuple[tuple[str, int], ...] = ()
    priority: int | None = None
    topology_keys: tuple[str, ...] = ()
    problem: str = ""


def owner_of(raw: Json) -> Owner | None:
    """What an object says, or None for a kind that groups no pods; total over any input."""
    metadata, spec = mapping(raw.get("metadata")), mapping(raw.get("spec"))
    version, kind = text(raw.get("apiVersion")), text(raw.get("kind"))
    group = version.partition("/")[0] if "/" in version else ""
    read = _mpi_operator if version == _MPI_OPERATOR else _READERS.get((group, kind))
    if read is None:
        return None
    key = OwnerKey(group, kind, text(metadata.get("namespace")), text(metadata.get("name")))
    return read(key, metadata, spec)


def known(group: str, kind: str) -> bool:
    """Whether `owner_of` reads that kind, whatever its version."""
    return (group, kind) in _READERS


def _bounded(value: object, default: int = 0) -> int:
    return max(0, min(whole(value, default), SIZE_MAX))


def _sized(key: OwnerKey, metadata: Json, size: int, field: str) -> Owner:
    uid = text(metadata.get("uid"))
    if size > 0:
        return Owner(key, uid, size)
    return Owner(key, uid, problem=f"{key.said} has no {field} of at least 1")


def _native_pod_group(key: OwnerKey, metadata: Json, spec: Json) -> Owner:
    policy, uid = mapping(spec.get("schedulingPolicy")), text(metadata.get("uid"))
    gang = policy.get("gang")
    size = _bounded(mapping(gang).get("minCount")) if isinstance(gang, dict) else 1
    constraints = mapping(spec.get("schedulingConstraints"))
    topology = (text(each.get("key")) for _, each in mappings(constraints.get("topology")))
    # Admission writes 0 where nobody has named a class; the pods' own classes count then.
    priority = whole(spec.get("priority"), 0) or None
    return Owner(
        key,
        uid,
        size=max(size, 1),
        priority=priority,
        topology_keys=tuple(sorted({each for each in topology if each})),
        problem="" if size else f"{key.said} has no spec.schedulingPolicy.gang.minCount above 0",
    )


def _min_member(key: OwnerKey, metadata: Json, spec: Json) -> Owner:
    return _sized(key, metadata, _bounded(spec.get("minMember")), "spec.minMember")


def _job(key: OwnerKey, metadata: Json, spec: Json) -> Owner:
    """A gang if all of its pods run at the same time and each has its place, as upstream."""
    parallelism, completions = _bounded(spec.get("parallelism"), 1), spec.get("completions")
    whole_set = spec.get("completionMode") == "Indexed" and completions == parallelism
    return Owner(key, text(metadata.get("uid")), size=parallelism if whole_set else 1)


def _job_set(key: OwnerKey, metadata: Json, spec: Json) -> Owner:
    roles: list[tuple[str, int]] = []
    ordered = mapping(spec.get("startupPolicy")).get("startupPolicyOrder") == "InOrder"
    for _, replicated in mappings(spec.get("replicatedJobs")):
        job = mapping(mapping(replicated.get("template")).get("spec"))
        pods = _bounded(job.get("parallelism"), 1)
        pods = min(pods, _bounded(job.get("completions"), pods))
        size = min(pods * _bounded(replicated.get("replicas"), 1), SIZE_MAX)
        roles.append((text(replicated.get("name")), size))
        ordered = ordered or bool(replicated.get("dependsOn"))
    total = sum(size for _, size in roles)
    found = _sized(key, metadata, min(total, SIZE_MAX), "spec.replicatedJobs with a size")
    return Owner(key, found.uid, found.size, tuple(roles) if ordered else (), problem=found.problem)


def _kubeflow(key: OwnerKey, metadata: Json, spec: Json) -> Owner:
    policy = mapping(mapping(spec.get("runPolicy")).get("schedulingPolicy"))
    size = _bounded(policy.get("minAvailable"))
    if not size:
        specs = (value for name, value in spec.items() if name.endswith("ReplicaSpecs"))
        replicas = (mapping(each) for roles in specs for each in mapping(roles).values())
        size = sum(_bounded(each.get("replicas"), 1) for each in replicas)
    return _sized(key, metadata, min(size, SIZE_MAX), "replicas")


def _mpi_operator(key: OwnerKey, metadata: Json, spec: Json) -> Owner:
    """The launcher is the pod of a Job, and a pod alone: the workers are the gang."""
    found = _kubeflow(key, metadata, spec)
    return replace(found, size=max(1, found.size - 1))


def _ray_cluster(key: OwnerKey, metadata: Json, spec: Json) -> Owner:
    """A gang only if asked for: Ray grows, and its head need not wait for all workers."""
    if not mapping(metadata.get("labels")).get(labels.RAY_GANG):
        return Owner(key, text(metadata.get("uid")))
    grows = spec.get("enableInTreeAutoscaling") is True
    workers = sum(
        _ray_replicas(group, grows=grows) * max(1, _bounded(group.get("numOfHosts"), 1))
        for _, group in mappings(spec.get("workerGroupSpecs"))
        if group.get("suspend") is not True
    )
    return _sized(key, metadata, min(1 + workers, SIZE_MAX), "replicas")


def _ray_replicas(group: Json, *, grows: bool) -> int:
    """Those that are made at once: all but what an autoscaler may add later."""
    least = _bounded(group.get("minReplicas"))
    if grows or group.get("replicas") is None:
        return least
    most = _bounded(group.get("maxReplicas"), SIZE_MAX)
    return min(max(_bounded(group.get("replicas")), least), most)


def _leader_worker_set(key: OwnerKey, metadata: Json, spec: Json) -> Owner:
    """With LeaderReady the workers are made only once the leader runs."""
    size = _bounded(mapping(spec.get("leaderWorkerTemplate")).get("size"), 1)
    one_by_one = spec.get("startupPolicy") == "LeaderReady"
    return _sized(key, metadata, 1 if one_by_one else size, "spec.leaderWorkerTemplate.size")


_MPI_OPERATOR: Final = "kubeflow.org/v2beta1"
"""Of MPIJobs of kubeflow/mpi-operator; those of the training operator are v1."""
_KUBEFLOW_KINDS: Final = ("JAXJob", "MPIJob", "PaddleJob", "PyTorchJob", "TFJob", "XGBoostJob")
_READERS: Final[Mapping[tuple[str, str], Callable[[OwnerKey, Json, Json], Owner]]] = (
    MappingProxyType(
        {
            ("scheduling.k8s.io", "PodGroup"): _native_pod_group,
            ("scheduling.x-k8s.io", "PodGroup"): _min_member,
            ("scheduling.volcano.sh", "PodGroup"): _min_member,
            ("batch", "Job"): _job,
            ("jobset.x-k8s.io", "JobSet"): _job_set,
            ("ray.io", "RayCluster"): _ray_cluster,
            ("leaderworkerset.x-k8s.io", "LeaderWorkerSet"): _leader_worker_set,
            **{("kubeflow.org", kind): _kubeflow for kind in _KUBEFLOW_KINDS},
        }
    )
)
