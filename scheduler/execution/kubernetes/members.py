"""Which group a pod is part of, and which place it has in it.

Asked in this order, the first answer counts: our own label, the native `spec.schedulingGroup`, the
labels and annotations of other schedulers (coscheduling, Volcano), and the controller that made the
pod (JobSet, LeaderWorkerSet, Kubeflow, Ray, Job). A pod of none of them is alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from scheduler.execution.kubernetes import labels, owners
from scheduler.execution.kubernetes.owners import OwnerKey
from scheduler.execution.kubernetes.pods import Pod

_KUBEFLOW_FIRST: Final = ("master", "chief", "launcher", "scheduler", "server")
"""Replica types whose pods come before workers in rank order."""


@dataclass(frozen=True, slots=True)
class Membership:
    """A pod's group.

    Attributes:
        group: the same for all its pods and for no others: `gang/team/llama`.
        name: what people call it.
        owner: the object that says how many pods it has, if one does.
        role: the part of the object it belongs to, where parts may start one after the other.
        alone: a group of one, whatever others say.
        once: one object has made all its pods, and nobody else's carry its name.
    """

    group: str
    name: str
    owner: OwnerKey | None = None
    role: str = ""
    alone: bool = False
    once: bool = False


def membership(pod: Pod) -> Membership:
    """The group of a pod; about 2 us."""
    named, annotated = dict(pod.labels), dict(pod.annotations)
    namespace = pod.ref.namespace
    if own := named.get(labels.GANG):
        return Membership(f"gang/{namespace}/{own}", own)
    if pod.group:
        return _of(OwnerKey("scheduling.k8s.io", "PodGroup", namespace, pod.group))
    if coscheduling := named.get(labels.COSCHEDULING_GROUP):
        return _of(OwnerKey("scheduling.x-k8s.io", "PodGroup", namespace, coscheduling))
    for key in labels.VOLCANO_GROUPS:
        if volcano := annotated.get(key):
            return _of(OwnerKey("scheduling.volcano.sh", "PodGroup", namespace, volcano))
    return _made_by(pod, named) or Membership(
        f"pod/{namespace}/{pod.ref.name}/{pod.ref.uid}", pod.ref.name, alone=True
    )


def _of(key: OwnerKey, *, more: str = "", role: str = "", once: bool = False) -> Membership:
    return Membership(f"{key.said}{more}", key.name, key, role, once=once)


def _made_by(pod: Pod, named: dict[str, str]) -> Membership | None:
    namespace = pod.ref.namespace
    if job_set := named.get(labels.JOBSET_NAME):
        key = OwnerKey("jobset.x-k8s.io", "JobSet", namespace, job_set)
        attempt = named.get(labels.JOBSET_ATTEMPT, "0")
        role = named.get(labels.JOBSET_REPLICATED_JOB, "")
        return _of(key, more=f"/{attempt}", role=role, once=True)
    if leader := named.get(labels.LWS_NAME):
        key = OwnerKey("leaderworkerset.x-k8s.io", "LeaderWorkerSet", namespace, leader)
        return _of(key, more=f"/{named.get(labels.LWS_GROUP, '')}")
    made_by = pod.owner
    if made_by is None:
        return None
    key = OwnerKey(made_by.group, made_by.kind, namespace, made_by.name)
    if (made_by.group, made_by.kind) == ("batch", "Job"):
        # Only pods of an Indexed Job have an index; those of other Jobs take work as it comes.
        if labels.COMPLETION_INDEX not in {*named, *dict(pod.annotations)}:
            return _by_size(pod, key)
        return _of(key, more=f"/{made_by.uid}", once=True)
    if owners.known(made_by.group, made_by.kind):
        return _of(key, more=f"/{made_by.uid}", once=True)
    return _by_size(pod, key)


def _by_size(pod: Pod, key: OwnerKey) -> Membership | None:
    """Pods of a kind that we do not know are a gang if they say its size themselves."""
    if pod.owner is None or not pod.annotation(labels.GANG_SIZE):
        return None
    return Membership(f"{key.said}/{pod.owner.uid}", key.name)


def place(pod: Pod) -> tuple[object, ...]:
    """Sorts the pods of one group into rank order: by their indexes, then age, then name."""
    named = {**dict(pod.annotations), **dict(pod.labels)}

    def index(key: str) -> int:
        written = named.get(key, "")
        number = written.isascii() and written.isdigit() and len(written) <= 9  # noqa: PLR2004
        return int(written) if number else 0

    replica_type = named.get(labels.KUBEFLOW_REPLICA_TYPE, "").lower()
    return (
        replica_type not in _KUBEFLOW_FIRST,
        index(labels.JOBSET_JOB_INDEX),
        index(labels.KUBEFLOW_INDEX),
        index(labels.COMPLETION_INDEX),
        index(labels.LWS_INDEX),
        index(labels.VOLCANO_INDEX),
        index(labels.POD_INDEX),
        pod.created_at,
        pod.ref.name,
        pod.ref.uid,
    )
