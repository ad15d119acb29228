"""Kubernetes objects as tests write them: plain dicts, as a client sends them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Json = dict[str, Any]

NAMESPACE = "default"


def _metadata(
    name: str, namespace: str, labels: Mapping[str, str], annotations: Mapping[str, str]
) -> Json:
    metadata: Json = {"name": name}
    if namespace:
        metadata["namespace"] = namespace
    if labels:
        metadata["labels"] = dict(labels)
    if annotations:
        metadata["annotations"] = dict(annotations)
    return metadata


def pod(
    name: str,
    *,
    namespace: str = NAMESPACE,
    gpus: int = 0,
    cpu: str = "",
    memory: str = "",
    scheduler: str = "haversack",
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
    gates: Sequence[str] = (),
    finalizers: Sequence[str] = (),
    command: Sequence[str] = (),
    env: Sequence[Json] = (),
    **spec: Any,
) -> Json:
    """A pod of one container; further fields of its spec by their Kubernetes names."""
    asked = {"nvidia.com/gpu": str(gpus) if gpus else "", "cpu": cpu, "memory": memory}
    limits = {key: value for key, value in asked.items() if value}
    container: Json = {"name": "main", "image": "registry.example/work:1"}
    if limits:
        container["resources"] = {"limits": limits}
    if command:
        container["command"] = list(command)
    if env:
        container["env"] = list(env)
    metadata = _metadata(name, namespace, labels or {}, annotations or {})
    if finalizers:
        metadata["finalizers"] = list(finalizers)
    full: Json = {"schedulerName": scheduler, "restartPolicy": "Never", "containers": [container]}
    if gates:
        full["schedulingGates"] = [{"name": gate} for gate in gates]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {**full, **spec}}


def gang(name: str, size: int, *, gang_size: int | None = None, **more: Any) -> list[Json]:
    """Pods `<name>-0` and on with our gang label and size (another size if given)."""
    labels = {**more.pop("labels", {}), "haversack.dev/gang": name}
    annotations = {
        **more.pop("annotations", {}),
        "haversack.dev/gang-size": str(size if gang_size is None else gang_size),
    }
    return [
        pod(f"{name}-{place}", labels=labels, annotations=annotations, **more)
        for place in range(size)
    ]


def node(
    name: str,
    *,
    gpus: int = 8,
    cpu: str = "64",
    memory: str = "512Gi",
    pods: int = 110,
    labels: Mapping[str, str] | None = None,
    taints: Sequence[Json] = (),
    unschedulable: bool = False,
    extras: Mapping[str, str] | None = None,
) -> Json:
    """A ready node with its capacity in the status, as a kubelet registers it."""
    amounts = {"cpu": cpu, "memory": memory, "pods": str(pods), **(extras or {})}
    if gpus:
        amounts["nvidia.com/gpu"] = str(gpus)
    all_labels = {"kubernetes.io/hostname": name, **(labels or {})}
    spec: Json = {}
    if taints:
        spec["taints"] = list(taints)
    if unschedulable:
        spec["unschedulable"] = True
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": _metadata(name, "", all_labels, {}),
        "spec": spec,
        "status": {
            "capacity": amounts,
            "allocatable": dict(amounts),
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
        },
    }


def namespace(name: str) -> Json:
    """A namespace."""
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


def binding(name: str, node_name: str, **metadata: Any) -> Json:
    """A Binding of a pod; `uid`, `resourceVersion`, `annotations`, `labels` as given."""
    return {
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": name, **metadata},
        "target": {"apiVersion": "v1", "kind": "Node", "name": node_name},
    }


def lease(name: str, *, namespace: str = NAMESPACE, holder: str = "", transitions: int = 0) -> Json:
    """A Lease of 15 s."""
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "holderIdentity": holder,
            "leaseDurationSeconds": 15,
            "leaseTransitions": transitions,
        },
    }


def event(name: str, about: Json, *, reason: str, note: str, kind: str = "Normal") -> Json:
    """An event of events.k8s.io about a stored object."""
    metadata = about["metadata"]
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": metadata["namespace"]},
        "eventTime": "2026-01-01T00:00:00.000000Z",
        "reportingController": "haversack.dev/scheduler",
        "reportingInstance": "test",
        "action": "Scheduling",
        "reason": reason,
        "type": kind,
        "note": note,
        "regarding": {
            "apiVersion": about["apiVersion"],
            "kind": about["kind"],
            "namespace": metadata["namespace"],
            "name": metadata["name"],
            "uid": metadata["uid"],
        },
    }


def priority_class(name: str, value: int, **fields: Any) -> Json:
    """A PriorityClass."""
    return {
        "apiVersion": "scheduling.k8s.io/v1",
        "kind": "PriorityClass",
        "metadata": {"name": name},
        "value": value,
        **fields,
    }


def disruption_budget(name: str, labels: Mapping[str, str], *, namespace: str = NAMESPACE) -> Json:
    """A PodDisruptionBudget over pods with these labels; its status is a controller's."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": dict(labels)}},
    }


def fence(
    name: str, lease_namespace: str, lease_name: str, *, namespaces: Sequence[str] = ()
) -> tuple[Json, Json]:
    """A policy that takes Bindings with the Lease's epoch only, and its binding.

    Args:
        name: of both.
        lease_namespace: where the Lease is.
        lease_name: which.
        namespaces: only pods of these; all if empty.
    """
    group = "admissionregistration.k8s.io/v1"
    epoch = "object.metadata.annotations['haversack.dev/epoch']"
    policy = {
        "apiVersion": group,
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": name},
        "spec": {
            "failurePolicy": "Fail",
            "paramKind": {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease"},
            "matchConstraints": {
                "resourceRules": [
                    {
                        "apiGroups": [""],
                        "apiVersions": ["v1"],
                        "operations": ["CREATE"],
                        "resources": ["pods/binding"],
                    }
                ]
            },
            "validations": [
                {
                    "expression": "has(object.metadata.annotations) && "
                    "'haversack.dev/epoch' in object.metadata.annotations && "
                    f"int({epoch}) == params.spec.leaseTransitions",
                    "message": "stale epoch",
                }
            ],
        },
    }
    rule: Json = {
        "policyName": name,
        "validationActions": ["Deny"],
        "paramRef": {
            "namespace": lease_namespace,
            "name": lease_name,
            "parameterNotFoundAction": "Deny",
        },
    }
    if namespaces:
        selector = {"key": "kubernetes.io/metadata.name", "operator": "In"}
        wanted = {"matchExpressions": [{**selector, "values": list(namespaces)}]}
        rule["matchResources"] = {"namespaceSelector": wanted}
    policy_binding = {
        "apiVersion": group,
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": name},
        "spec": rule,
    }
    return policy, policy_binding
