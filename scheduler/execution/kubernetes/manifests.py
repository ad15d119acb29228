"""A job of our own as Kubernetes objects: a pod for each task, and a Service for their names.

Pure: the same order makes the same objects, under the same names, whoever makes them and however
often. Names hold the attempt, so that no two attempts meet; ADR-0011 says why these are pods
rather than a Job's.
"""

from __future__ import annotations

import math
import zlib
from typing import Final

from scheduler.execution.contract import (
    default_environment,
    place_environment,
    torch_environment,
)
from scheduler.execution.kubernetes import labels
from scheduler.execution.kubernetes.runtime import tolerated
from scheduler.execution.kubernetes.server import Document
from scheduler.model.execution import LaunchOrder, LaunchTask
from scheduler.model.job import LauncherKind

CONTAINER: Final = "main"
_NAME_MAX = 38
"""With the attempt's id and a task's number a name stays below 63, as labels and hosts want it."""
_PORTS: Final = range(20_000, 30_000)
"""Below the ports that kernels hand out by themselves."""


def pod_name(order: LaunchOrder, index: int) -> str:
    """The name of a task's pod: `train-a-01k9zr5m3a7c2f4q-0`."""
    job = order.job_name.replace(".", "-")[:_NAME_MAX].strip("-")
    return f"{job}-{order.attempt_id}-{index}"


def host_name(order: LaunchOrder, index: int) -> str:
    """How the gang's pods reach this task's: `task-0.a-01k9zr5m3a7c2f4q`."""
    return f"task-{index}.{order.attempt_id}"


def master_port(order: LaunchOrder) -> int:
    """Where rank 0 listens; of its own, as some sites let pods share the network of their host."""
    return _PORTS[zlib.crc32(order.attempt_id.encode()) % len(_PORTS)]


def service_manifest(order: LaunchOrder, namespace: str, owner: Document) -> Document:
    """The headless Service that gives the pods names, before they are ready too.

    Args:
        order: the gang.
        namespace: where it runs.
        owner: the first pod, as the server returned it: the Service goes with it.
    """
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": order.attempt_id,
            "namespace": namespace,
            "labels": _labels(order),
            "ownerReferences": [_reference(owner)],
        },
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {labels.ATTEMPT: order.attempt_id},
        },
    }


def pod_manifest(
    order: LaunchOrder,
    task: LaunchTask,
    namespace: str,
    *,
    image: str,
    gpu_resource: str,
    owner: Document | None = None,
) -> Document:
    """The pod of a task. It names no node: the binding does, which stale leaders cannot make.

    Args:
        order: the gang.
        task: which of its tasks.
        namespace: where it runs.
        image: what it runs in.
        gpu_resource: the resource that the GPUs of its node are; "" where it has none.
        owner: the first task's pod as the server returned it; None for that one. What is left of a
            gang whose first pod is gone is collected by the cluster.
    """
    metadata: Document = {
        "name": pod_name(order, task.task_index),
        "namespace": namespace,
        "labels": _labels(order),
        "annotations": {labels.TASKS: str(len(order.tasks))},
        "finalizers": [labels.EXIT_STATUS],
    }
    if owner is not None:
        metadata["ownerReferences"] = [_reference(owner)]
    host, _, subdomain = host_name(order, task.task_index).partition(".")
    spec: Document = {
        "schedulerName": labels.SCHEDULER_NAME,
        "restartPolicy": "Never",
        "hostname": host,
        "subdomain": subdomain,
        "terminationGracePeriodSeconds": max(1, math.ceil(order.grace_s)),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
        "tolerations": [
            {"key": each.key, "operator": each.operator.value}
            for each in tolerated(gpus=bool(task.gpu_ids))
        ],
        "containers": [_container(order, task, image, gpu_resource)],
        # Workers of torch pass tensors through shared memory, of which containers get 64 MiB.
        "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory"}}],
    }
    if order.max_runtime_s is not None:
        spec["activeDeadlineSeconds"] = max(1, math.ceil(order.max_runtime_s))
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def _labels(order: LaunchOrder) -> dict[str, str]:
    return {
        "app.kubernetes.io/managed-by": "haversack",
        labels.JOB: order.job_id,
        labels.ATTEMPT: order.attempt_id,
        labels.JOB_NAME: order.job_name,
        labels.TENANT: order.tenant,
    }


def _reference(owner: Document) -> Document:
    metadata = owner["metadata"]
    return {"apiVersion": "v1", "kind": "Pod", "name": metadata["name"], "uid": metadata["uid"]}


def _container(order: LaunchOrder, task: LaunchTask, image: str, gpu_resource: str) -> Document:
    requests = {labels.CPU: f"{task.cpu_milli}m", labels.MEMORY: f"{task.memory_mib}Mi"}
    # Memory beyond its share is a neighbour's; CPU that nobody else wants is anybody's.
    limits = {labels.MEMORY: requests[labels.MEMORY]}
    if task.gpu_ids:
        requests[gpu_resource] = limits[gpu_resource] = str(len(task.gpu_ids))
    container: Document = {
        "name": CONTAINER,
        "image": image,
        "command": [_literal(word) for word in _command(order)],
        "env": [
            {"name": name, "value": _literal(value)}
            for name, value in sorted(_environment(order, task).items())
        ],
        "resources": {"requests": requests, "limits": limits},
        "securityContext": {"allowPrivilegeEscalation": False},
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],  # noqa: S108 - in the container
    }
    if order.workdir is not None:
        container["workingDir"] = order.workdir
    return container


def _command(order: LaunchOrder) -> tuple[str, ...]:
    """Several processes in one container are torchrun's work, so that they see all its GPUs."""
    several = order.launcher is LauncherKind.TORCH and order.processes > 1
    return ("torchrun", *order.command) if several else order.command


def _environment(order: LaunchOrder, task: LaunchTask) -> dict[str, str]:
    torch = order.launcher is LauncherKind.TORCH
    env = default_environment(task, order.processes if torch else 1)
    env |= dict(order.env)
    env |= place_environment(order, task)
    if not task.gpu_ids:
        # Images of CUDA ask the container runtime for all GPUs unless somebody says otherwise.
        env |= {"CUDA_VISIBLE_DEVICES": "", "NVIDIA_VISIBLE_DEVICES": "void"}
    if torch:
        port = str(master_port(order))
        env |= torch_environment(order, task, 0, master=host_name(order, 0))
        env |= {"MASTER_PORT": port, "PET_MASTER_PORT": port}
        if order.processes > 1:
            env["PET_NO_PYTHON"] = "1"  # the command is a program of any kind
    return env


def _literal(text: str) -> str:
    """Text that Kubernetes leaves as it is: it would replace `$(NAME)`, and halve `$$`."""
    return text.replace("$", "$$")
