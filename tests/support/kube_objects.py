"""Objects of the Kubernetes API as `orjson` parses them: what a test does not name is plain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Raw = dict[str, Any]


def container(
    requests: Mapping[str, object] | None = None, name: str = "main", **fields: object
) -> Raw:
    return {"name": name, "resources": {"requests": dict(requests or {})}, **fields}


def sidecar(requests: Mapping[str, object], name: str = "sidecar", **fields: object) -> Raw:
    return container(requests, name, restartPolicy="Always", **fields)


def pod(
    name: str = "pod-0",
    *,
    namespace: str = "team",
    uid: str = "",
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
    owner: Raw | None = None,
    requests: Mapping[str, object] | None = None,
    node: str = "",
    status: Raw | None = None,
    metadata: Raw | None = None,
    **spec: object,
) -> Raw:
    """A pod of schedulerName haversack; further arguments are fields of its spec."""
    found: Raw = {
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": uid or f"uid-{name}",
            "resourceVersion": "7",
            "creationTimestamp": "2026-11-01T10:00:00Z",
            "labels": dict(labels or {}),
            "annotations": dict(annotations or {}),
            **({"ownerReferences": [owner]} if owner else {}),
            **(metadata or {}),
        },
        "spec": {
            "schedulerName": "haversack",
            "containers": [container(requests if requests is not None else {"cpu": "1"})],
            **spec,
        },
        "status": status or {"phase": "Running" if node else "Pending"},
    }
    if node:
        found["spec"]["nodeName"] = node
    return found


def owner(
    kind: str, name: str, *, api_version: str = "batch/v1", uid: str = "", **fields: object
) -> Raw:
    return {
        "apiVersion": api_version,
        "kind": kind,
        "name": name,
        "uid": uid or f"uid-{name}",
        "controller": True,
        **fields,
    }


def node(
    name: str = "node-0",
    *,
    uid: str = "",
    allocatable: Mapping[str, object] | None = None,
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
    taints: Sequence[Raw] = (),
    ready: str = "True",
    **spec: object,
) -> Raw:
    return {
        "metadata": {
            "name": name,
            "uid": uid or f"uid-{name}",
            "resourceVersion": "3",
            "labels": {"kubernetes.io/hostname": name, **(labels or {})},
            "annotations": dict(annotations or {}),
        },
        "spec": {"taints": list(taints), **spec},
        "status": {
            "allocatable": dict(
                allocatable
                if allocatable is not None
                else {"cpu": "64", "memory": "512Gi", "pods": "110", "nvidia.com/gpu": "8"}
            ),
            "conditions": [{"type": "Ready", "status": ready}],
        },
    }


def api_object(
    api_version: str, kind: str, name: str, spec: Raw, *, namespace: str = "team", uid: str = ""
) -> Raw:
    """An object of any kind: a Job, a PodGroup, a JobSet..."""
    return {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace, "uid": uid or f"uid-{name}"},
        "spec": spec,
    }


def training_pod(number: int) -> Raw:
    """One of a template's pods with all that a real server adds: about 3.5 KiB of JSON."""
    name = f"llama-pretrain-worker-{number:05d}"
    uid = f"3f2a9c1e-7d4b-4c8a-9e21-{number:012d}"
    return {
        "metadata": {
            "name": name,
            "generateName": "llama-pretrain-worker-",
            "namespace": "research-nlp",
            "uid": uid,
            "resourceVersion": str(8_412_331 + number),
            "creationTimestamp": "2026-11-01T10:00:00Z",
            "labels": {
                "app.kubernetes.io/name": "llama-pretrain",
                "app.kubernetes.io/component": "worker",
                "batch.kubernetes.io/controller-uid": "0b1c3a55-49f0-41a5-a2bc-8a2e1d0e55f7",
                "batch.kubernetes.io/job-completion-index": str(number),
                "batch.kubernetes.io/job-name": "llama-pretrain-worker",
                "haversack.dev/queue": "nlp",
            },
            "annotations": {
                "batch.kubernetes.io/job-completion-index": str(number),
                "cni.example.org/networks": '[{"name":"rail-0"},{"name":"rail-1"}]',
            },
            "ownerReferences": [
                owner("Job", "llama-pretrain-worker", blockOwnerDeletion=True),
            ],
            "finalizers": ["batch.kubernetes.io/job-tracking"],
        },
        "spec": _training_spec(number),
        "status": _training_status(number),
    }


def training_node(number: int) -> Raw:
    """A node of eight GPUs with all that kubelet and feature discovery add: about 8 KiB of JSON."""
    name = f"gpu-node-{number:04d}"
    product = {"product": "NVIDIA-H100-80GB-HBM3", "count": "8", "memory": "81559"}
    labels = {f"nvidia.com/gpu.{key}": value for key, value in product.items()}
    labels |= {f"feature.node.kubernetes.io/cpu-cpuid.FEATURE{at}": "true" for at in range(60)}
    labels |= {
        "topology.kubernetes.io/zone": f"zone-{number // 1000}",
        "topology.kubernetes.io/rack": f"rack-{number // 32}",
    }
    offer = {
        "cpu": "190",
        "memory": "2000Gi",
        "pods": "110",
        "ephemeral-storage": "1800Gi",
        "nvidia.com/gpu": "8",
        "rdma/hca": "8",
    }
    found = node(name, uid=f"5b0c2d1e-1111-4c8a-9e21-{number:012d}", labels=labels)
    found["status"] = {
        "capacity": offer,
        "allocatable": dict(offer),
        "conditions": [
            {
                "type": kind,
                "status": "True" if kind == "Ready" else "False",
                "lastHeartbeatTime": "2026-11-01T10:00:00Z",
                "lastTransitionTime": "2026-10-01T10:00:00Z",
                "reason": f"Kubelet{kind}",
                "message": f"kubelet tells of {kind}",
            }
            for kind in ("MemoryPressure", "DiskPressure", "PIDPressure", "Ready")
        ],
        "addresses": [{"type": "InternalIP", "address": f"10.1.{number // 250}.{number % 250}"}],
        "nodeInfo": {
            "kubeletVersion": "v1.36.2",
            "architecture": "amd64",
            "machineID": f"{number:032x}",
        },
        "images": [
            {
                "names": [f"registry.example.org/team/image-{at}@sha256:{'3c' * 32}"],
                "sizeBytes": 9**9,
            }
            for at in range(25)
        ],
    }
    return found


def _training_spec(number: int) -> Raw:
    mounts = [
        {"name": "dshm", "mountPath": "/dev/shm"},
        {"name": "data", "mountPath": "/data", "readOnly": True},
        {"name": "kube-api-access-x7k2p", "mountPath": "/var/run/secrets", "readOnly": True},
    ]
    resources = {"cpu": "12", "memory": "180Gi", "nvidia.com/gpu": "1", "rdma/hca": "1"}
    return {
        "volumes": [
            {"name": "dshm", "emptyDir": {"medium": "Memory", "sizeLimit": "64Gi"}},
            {"name": "data", "hostPath": {"path": "/mnt/data", "type": "Directory"}},
            {
                "name": "kube-api-access-x7k2p",
                "projected": {
                    "sources": [
                        {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                        {"configMap": {"name": "kube-root-ca.crt"}},
                    ],
                    "defaultMode": 420,
                },
            },
        ],
        "containers": [
            {
                "name": "trainer",
                "image": "registry.example.org/research/llama-pretrain:2026-10-28",
                "command": ["torchrun", "--nnodes=64", "--nproc-per-node=1", "train.py"],
                "env": [
                    {"name": "NCCL_DEBUG", "value": "INFO"},
                    {"name": "NCCL_SOCKET_IFNAME", "value": "=eth0"},
                    {"name": "PET_MASTER_ADDR", "value": "llama-pretrain-worker-0.llama"},
                ],
                "resources": {"limits": dict(resources), "requests": dict(resources)},
                "volumeMounts": mounts,
                "terminationMessagePath": "/dev/termination-log",
                "terminationMessagePolicy": "File",
                "imagePullPolicy": "IfNotPresent",
            }
        ],
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 120,
        "dnsPolicy": "ClusterFirst",
        "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"},
        "serviceAccountName": "trainer",
        "serviceAccount": "trainer",
        "nodeName": f"gpu-node-{number % 500:04d}",
        "securityContext": {"runAsUser": 1000, "fsGroup": 1000},
        "schedulerName": "haversack",
        "tolerations": [
            {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
            {
                "key": "node.kubernetes.io/not-ready",
                "operator": "Exists",
                "effect": "NoExecute",
                "tolerationSeconds": 300,
            },
            {
                "key": "node.kubernetes.io/unreachable",
                "operator": "Exists",
                "effect": "NoExecute",
                "tolerationSeconds": 300,
            },
        ],
        "priority": 1000,
        "preemptionPolicy": "PreemptLowerPriority",
    }


def _training_status(number: int) -> Raw:
    return {
        "phase": "Running",
        "conditions": [
            {"type": kind, "status": "True", "lastTransitionTime": "2026-11-01T10:00:05Z"}
            for kind in ("PodScheduled", "Initialized", "ContainersReady", "Ready")
        ],
        "hostIP": "10.0.12.7",
        "podIP": f"10.128.{number // 250 % 250}.{number % 250}",
        "startTime": "2026-11-01T10:00:02Z",
        "qosClass": "Guaranteed",
        "containerStatuses": [
            {
                "name": "trainer",
                "ready": True,
                "restartCount": 0,
                "image": "registry.example.org/research/llama-pretrain:2026-10-28",
                "imageID": "registry.example.org/research/llama-pretrain@sha256:" + "9f" * 32,
                "containerID": "containerd://" + f"{number:064x}",
                "state": {"running": {"startedAt": "2026-11-01T10:00:04Z"}},
            }
        ],
    }
