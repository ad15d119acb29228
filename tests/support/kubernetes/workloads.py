"""Workloads as their owners write them, and the pods that their controllers make of them.

Shapes of objects, labels, annotations, names and owner references are those of the public API types
and documentation of Kubernetes (batch/v1, scheduling.k8s.io/v1alpha2), kubernetes-sigs/jobset,
kubernetes-sigs/lws, kubernetes-sigs/scheduler-plugins, kubeflow/training-operator (v1),
ray-project/kuberay and volcano-sh/volcano. A test plays the controller: it stores the object, and
makes from what the server answers what the controller would make.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from support.kubernetes.resources import Resource

Json = dict[str, Any]

JOBS = Resource("batch", "v1", "jobs", "Job")
JOB_SETS = Resource("jobset.x-k8s.io", "v1alpha2", "jobsets", "JobSet")
PYTORCH_JOBS = Resource("kubeflow.org", "v1", "pytorchjobs", "PyTorchJob")
RAY_CLUSTERS = Resource("ray.io", "v1", "rayclusters", "RayCluster")
RAY_JOBS = Resource("ray.io", "v1", "rayjobs", "RayJob")
VOLCANO_JOBS = Resource("batch.volcano.sh", "v1alpha1", "jobs", "Job")
VOLCANO_GROUPS = Resource("scheduling.volcano.sh", "v1beta1", "podgroups", "PodGroup")
COSCHEDULING_GROUPS = Resource("scheduling.x-k8s.io", "v1alpha1", "podgroups", "PodGroup")
LEADER_WORKER_SETS = Resource(
    "leaderworkerset.x-k8s.io", "v1", "leaderworkersets", "LeaderWorkerSet"
)
NATIVE_GROUPS = Resource("scheduling.k8s.io", "v1alpha2", "podgroups", "PodGroup")
STATEFUL_SETS = Resource("apps", "v1", "statefulsets", "StatefulSet")

CUSTOM = (
    JOB_SETS,
    PYTORCH_JOBS,
    RAY_CLUSTERS,
    RAY_JOBS,
    VOLCANO_JOBS,
    VOLCANO_GROUPS,
    COSCHEDULING_GROUPS,
    LEADER_WORKER_SETS,
)
"""Kinds that a plain server does not have."""

Store = Callable[[Resource, Json], Json]
"""Stores an object in the namespace; what the server made of it."""


def definition(resource: Resource) -> Json:
    """The smallest CustomResourceDefinition that serves the kind; any field is taken."""
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": resource.qualified,
            # Groups under k8s.io are protected: the server wants to be told that this is known.
            "annotations": {"api-approved.kubernetes.io": "unapproved, test only"},
        },
        "spec": {
            "group": resource.group,
            "scope": "Namespaced",
            "names": {
                "plural": resource.plural,
                "singular": resource.kind.lower(),
                "kind": resource.kind,
            },
            "versions": [
                {
                    "name": resource.version,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": schema},
                    "subresources": {"status": {}},
                }
            ],
        },
    }


@dataclass(frozen=True, slots=True)
class Workload:
    """What a user applies, and the pods that come of it.

    Attributes:
        resource: its kind.
        document: as the user writes it.
        expand: its controller: stores what stands between it and its pods, and makes those from
            the stored object; in the order of their ranks.
    """

    resource: Resource
    document: Json
    expand: Callable[[Store, Json], list[Json]]

    def pods(self, store: Store) -> list[Json]:
        """Store the object; the pods that its controller would make."""
        return self.expand(store, store(self.resource, self.document))


def indexed_job(name: str, spec: Json, size: int, **fields: Any) -> Workload:
    """An Indexed Job; `fields` of its spec beside, or in place of, its own."""
    document = _object(JOBS, name, {**_job_spec(spec, size), **fields})
    return Workload(JOBS, document, lambda _, stored: job_pods(stored))


def job_set(name: str, spec: Json, jobs: int, pods: int) -> Workload:
    """A JobSet of `jobs` replicas of one Indexed Job of `pods` pods each."""
    template = {"spec": {**_job_spec(spec, pods), "backoffLimit": 0}}
    replicated = {"name": "workers", "replicas": jobs, "template": template}
    document = _object(JOB_SETS, name, {"replicatedJobs": [replicated]})

    def expand(store: Store, stored: Json) -> list[Json]:
        children = [store(JOBS, each) for each in _child_jobs(stored)]
        return [pod for child in children for pod in job_pods(child)]

    return Workload(JOB_SETS, document, expand)


def pytorch_job(name: str, spec: Json, workers: int) -> Workload:
    """A PyTorchJob of Kubeflow's training operator: one master and its workers."""
    replicas = {
        role: {"replicas": count, "restartPolicy": "OnFailure", "template": {"spec": spec}}
        for role, count in (("Master", 1), ("Worker", workers))
    }
    for each in replicas.values():
        each["template"] = copy.deepcopy(each["template"])
    document = _object(PYTORCH_JOBS, name, {"pytorchReplicaSpecs": replicas})
    return Workload(PYTORCH_JOBS, document, lambda _, stored: _pytorch_pods(stored))


def ray_job(name: str, spec: Json, workers: int) -> Workload:
    """A RayJob that asks for gang scheduling: its cluster is a head and its workers."""
    cluster = {
        "headGroupSpec": {"rayStartParams": {}, "template": {"spec": spec}},
        "workerGroupSpecs": [
            {
                "groupName": "gpu",
                "replicas": workers,
                "minReplicas": 1,
                "maxReplicas": workers,
                "rayStartParams": {},
                "template": {"spec": copy.deepcopy(spec)},
            }
        ],
    }
    document = _object(RAY_JOBS, name, {"entrypoint": "python a.py", "rayClusterSpec": cluster})
    document["metadata"]["labels"] = {"ray.io/gang-scheduling-enabled": "true"}

    def expand(store: Store, stored: Json) -> list[Json]:
        metadata = stored["metadata"]
        made = _object(RAY_CLUSTERS, f"{metadata['name']}-x7k2p", stored["spec"]["rayClusterSpec"])
        made["metadata"]["labels"] = {
            **metadata["labels"],
            "ray.io/originated-from-cr-name": metadata["name"],
            "ray.io/originated-from-crd": "RayJob",
        }
        made["metadata"]["ownerReferences"] = [_owner(stored)]
        return _ray_pods(store(RAY_CLUSTERS, made))

    return Workload(RAY_JOBS, document, expand)


def volcano_job(name: str, spec: Json, workers: int) -> Workload:
    """A Volcano Job of two tasks, a master and its workers, whose PodGroup wants all of them."""
    tasks = [
        {"name": task, "replicas": count, "template": {"spec": copy.deepcopy(spec)}}
        for task, count in (("master", 1), ("worker", workers))
    ]
    fields = {"minAvailable": 1 + workers, "schedulerName": "haversack", "tasks": tasks}
    document = _object(VOLCANO_JOBS, name, fields)

    def expand(store: Store, stored: Json) -> list[Json]:
        metadata, spec = stored["metadata"], stored["spec"]
        group = _object(
            VOLCANO_GROUPS,
            f"{metadata['name']}-{metadata['uid']}",
            {"minMember": spec["minAvailable"], "queue": "default"},
        )
        group["metadata"]["ownerReferences"] = [_owner(stored)]
        return _volcano_pods(stored, store(VOLCANO_GROUPS, group)["metadata"]["name"])

    return Workload(VOLCANO_JOBS, document, expand)


def leader_worker_set(name: str, spec: Json, size: int) -> Workload:
    """A LeaderWorkerSet of one group; its pods belong to StatefulSets."""
    template = {"size": size, "workerTemplate": {"spec": spec}}
    document = _object(LEADER_WORKER_SETS, name, {"replicas": 1, "leaderWorkerTemplate": template})

    def expand(store: Store, stored: Json) -> list[Json]:
        leaders = store(STATEFUL_SETS, _stateful_set(stored, name))
        workers = store(STATEFUL_SETS, _stateful_set(stored, f"{name}-0"))
        return _group_pods(stored, leaders, workers)

    return Workload(LEADER_WORKER_SETS, document, expand)


def coscheduled(name: str, spec: Json, size: int) -> Workload:
    """Pods that name a PodGroup of the coscheduling plugin."""
    document = _object(COSCHEDULING_GROUPS, name, {"minMember": size})
    mark = {"labels": {"scheduling.x-k8s.io/pod-group": name}}
    return Workload(
        COSCHEDULING_GROUPS,
        document,
        lambda _, __: [_pod(f"{name}-{at}", spec, mark) for at in range(size)],
    )


def natively_grouped(name: str, spec: Json, size: int, **fields: Any) -> Workload:
    """Pods that name a PodGroup of Kubernetes itself; `fields` of its spec beside the policy."""
    document = _object(
        NATIVE_GROUPS, name, {"schedulingPolicy": {"gang": {"minCount": size}}, **fields}
    )
    grouped = {**spec, "schedulingGroup": {"podGroupName": name}}
    return Workload(
        NATIVE_GROUPS,
        document,
        lambda _, __: [_pod(f"{name}-{at}", grouped, {}) for at in range(size)],
    )


def job_pods(job: Json) -> list[Json]:
    """What the Job controller makes of a stored Job, all of its parallel pods at once."""
    metadata, spec = job["metadata"], job["spec"]
    name = metadata["name"]
    template = spec["template"]
    given = template.get("metadata") or {}
    labels = {
        **given.get("labels", {}),
        "batch.kubernetes.io/controller-uid": metadata["uid"],
        "batch.kubernetes.io/job-name": name,
        "controller-uid": metadata["uid"],
        "job-name": name,
    }
    found = []
    for index in range(spec["parallelism"]):
        marks: Json = {"labels": dict(labels), "annotations": dict(given.get("annotations", {}))}
        own = copy.deepcopy(template["spec"])
        stem = f"{name}-"
        if spec.get("completionMode") == "Indexed":
            place = {"batch.kubernetes.io/job-completion-index": str(index)}
            marks = {key: {**value, **place} for key, value in marks.items()}
            own["hostname"] = stem = f"{name}-{index}"
            stem = f"{stem}-"
        pod = _pod(f"{stem}k8s{index:02d}", own, marks, job)
        pod["metadata"]["finalizers"] = ["batch.kubernetes.io/job-tracking"]
        found.append(pod)
    return found


def _child_jobs(job_set: Json) -> list[Json]:
    """The Jobs that the JobSet controller makes, with the marks it puts on their pods."""
    metadata = job_set["metadata"]
    jobs = []
    for replicated in job_set["spec"]["replicatedJobs"]:
        for index in range(replicated["replicas"]):
            marks = {
                "jobset.sigs.k8s.io/jobset-name": metadata["name"],
                "jobset.sigs.k8s.io/jobset-uid": metadata["uid"],
                "jobset.sigs.k8s.io/replicatedjob-name": replicated["name"],
                "jobset.sigs.k8s.io/replicatedjob-replicas": str(replicated["replicas"]),
                "jobset.sigs.k8s.io/global-replicas": str(replicated["replicas"]),
                "jobset.sigs.k8s.io/job-index": str(index),
                "jobset.sigs.k8s.io/job-global-index": str(index),
                "jobset.sigs.k8s.io/restart-attempt": "0",
            }
            name = f"{metadata['name']}-{replicated['name']}-{index}"
            spec = copy.deepcopy(replicated["template"]["spec"])
            spec["template"]["metadata"] = {"labels": marks, "annotations": marks}
            spec["template"]["spec"]["subdomain"] = metadata["name"]
            job = _object(JOBS, name, spec)
            job["metadata"] |= {
                "labels": dict(marks),
                "annotations": dict(marks),
                "ownerReferences": [_owner(job_set)],
            }
            jobs.append(job)
    return jobs


def _pytorch_pods(job: Json) -> list[Json]:
    name = job["metadata"]["name"]
    found = []
    for role, replica in job["spec"]["pytorchReplicaSpecs"].items():
        for index in range(replica["replicas"]):
            labels = {
                "training.kubeflow.org/job-name": name,
                "training.kubeflow.org/operator-name": "pytorchjob-controller",
                "training.kubeflow.org/replica-type": role.lower(),
                "training.kubeflow.org/replica-index": str(index),
            }
            if role == "Master":
                labels["training.kubeflow.org/job-role"] = "master"
            spec = {**replica["template"]["spec"], "restartPolicy": replica["restartPolicy"]}
            if role == "Worker":  # they look for the master's name before they start
                spec["initContainers"] = [{"name": "init-pytorch", "image": "alpine:3.10"}]
            pod = _pod(f"{name}-{role.lower()}-{index}", spec, {"labels": labels}, job)
            found.append(pod)
    return found


def _ray_pods(cluster: Json) -> list[Json]:
    name, spec = cluster["metadata"]["name"], cluster["spec"]
    (workers,) = spec["workerGroupSpecs"]
    roles = [("head", "headgroup", spec["headGroupSpec"])]
    roles += [("worker", workers["groupName"], workers)] * workers["replicas"]
    found = []
    for at, (role, group, given) in enumerate(roles):
        labels = {
            "ray.io/cluster": name,
            "ray.io/node-type": role,
            "ray.io/group": group,
            "ray.io/identifier": f"{name}-{role}",
            "ray.io/is-ray-node": "yes",
        }
        pod_name = f"{name}-{'' if role == 'head' else f'{group}-'}{role}-q{at:03d}w"
        found.append(_pod(pod_name, given["template"]["spec"], {"labels": labels}, cluster))
    return found


def _volcano_pods(job: Json, group: str) -> list[Json]:
    name, namespace = job["metadata"]["name"], job["metadata"]["namespace"]
    found = []
    for task in job["spec"]["tasks"]:
        for index in range(task["replicas"]):
            shared = {
                "volcano.sh/job-name": name,
                "volcano.sh/job-version": "0",
                "volcano.sh/queue-name": "default",
                "volcano.sh/task-spec": task["name"],
                "volcano.sh/task-index": str(index),
            }
            marks = {
                "labels": {**shared, "volcano.sh/job-namespace": namespace},
                "annotations": {**shared, "scheduling.k8s.io/group-name": group},
            }
            spec = {**task["template"]["spec"], "schedulerName": job["spec"]["schedulerName"]}
            found.append(_pod(f"{name}-{task['name']}-{index}", spec, marks, job))
    return found


def _stateful_set(owner: Json, name: str) -> Json:
    labels = {"leaderworkerset.sigs.k8s.io/name": owner["metadata"]["name"]}
    template = owner["spec"]["leaderWorkerTemplate"]["workerTemplate"]["spec"]
    made = _object(
        STATEFUL_SETS,
        name,
        {
            "serviceName": owner["metadata"]["name"],
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {**template, "restartPolicy": "Always"},
            },
        },
    )
    made["metadata"]["ownerReferences"] = [_owner(owner)]
    return made


def _group_pods(leader_worker_set: Json, leaders: Json, workers: Json) -> list[Json]:
    name = leader_worker_set["metadata"]["name"]
    template = leader_worker_set["spec"]["leaderWorkerTemplate"]
    found = []
    for index in range(template["size"]):
        marks = {
            "labels": {
                "leaderworkerset.sigs.k8s.io/name": name,
                "leaderworkerset.sigs.k8s.io/group-index": "0",
                "leaderworkerset.sigs.k8s.io/worker-index": str(index),
            },
            "annotations": {"leaderworkerset.sigs.k8s.io/size": str(template["size"])},
        }
        spec = {**template["workerTemplate"]["spec"], "restartPolicy": "Always"}
        if index == 0:
            found.append(_pod(f"{name}-0", spec, marks, leaders))
        else:
            found.append(_pod(f"{name}-0-{index}", spec, marks, workers))
    return found


def _job_spec(spec: Json, size: int) -> Json:
    return {
        "completionMode": "Indexed",
        "completions": size,
        "parallelism": size,
        "template": {"spec": copy.deepcopy(spec)},
    }


def _object(resource: Resource, name: str, spec: Json) -> Json:
    return {
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "metadata": {"name": name},
        "spec": spec,
    }


def _owner(stored: Json) -> Json:
    return {
        "apiVersion": stored["apiVersion"],
        "kind": stored["kind"],
        "name": stored["metadata"]["name"],
        "uid": stored["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def _pod(
    name: str, spec: Json, marks: Mapping[str, Mapping[str, str]], owner: Json | None = None
) -> Json:
    metadata: Json = {"name": name, **{key: dict(value) for key, value in marks.items()}}
    if owner is not None:
        metadata["ownerReferences"] = [_owner(owner)]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": copy.deepcopy(spec),
    }
