"""What the API server makes of pods: defaults, what may change, binding, graceful deletion."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from support.kubernetes.refusals import Json, RefusedError, conflict, forbidden, invalid

SCHEDULED = "PodScheduled"
TERMINAL = ("Succeeded", "Failed")
_NO_EXECUTE_SECONDS = 300
_TOPOLOGY_LABELS = ("topology.kubernetes.io/zone", "topology.kubernetes.io/region")
_KNOWN_AMOUNTS = tuple(
    f"{part}.{name}"
    for part in ("limits", "requests")
    for name in ("cpu", "ephemeral-storage", "memory")
)
_FIXED = (
    "pod updates may not change fields other than `spec.containers[*].image`,"
    "`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only "
    "additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set "
    "to 1 if it was previously negative)"
)
_DEFAULTS: Json = {
    "restartPolicy": "Always",
    "terminationGracePeriodSeconds": 30,
    "dnsPolicy": "ClusterFirst",
    "securityContext": {},
    "schedulerName": "default-scheduler",
    "enableServiceLinks": True,
}
_CONTAINER_DEFAULTS: Json = {
    "resources": {},
    "terminationMessagePath": "/dev/termination-log",
    "terminationMessagePolicy": "File",
}


def created(document: Json, classes: Iterable[Json], now: str) -> Json:
    """A new pod as the server stores it: defaults, tolerations, priority, status.

    Args:
        document: what the client sent, with a name.
        classes: the PriorityClass objects.
        now: RFC 3339, seconds.

    Raises:
        RefusedError: 422 or 403, the pod is not valid or its priority not allowed.
    """
    name, sent = document["metadata"]["name"], document.get("spec") or {}
    if not sent.get("containers"):
        raise invalid("Pod", name, "spec.containers", "Required value")
    spec = {**_DEFAULTS, **sent}
    for field in ("containers", "initContainers"):
        if field in spec:
            spec[field] = [_container(container) for container in spec[field]]
            _check_environment(name, f"spec.{field}", spec[field])
    spec["tolerations"] = _tolerations(spec.get("tolerations") or [])
    spec |= _priority(name, sent, list(classes))
    status: Json = {"phase": "Pending", "qosClass": _service_class(spec["containers"])}
    if spec.get("schedulingGates"):
        if spec.get("nodeName"):
            why = "Forbidden: cannot be set until all schedulingGates have been cleared"
            raise invalid("Pod", name, "spec.nodeName", why)
        status["conditions"] = [_gated(now)]
    return {**document, "spec": spec, "status": status}


def _container(sent: Json) -> Json:
    tag = sent.get("image", "").rpartition("/")[2].partition(":")[2]
    pull = {"imagePullPolicy": "Always" if tag in ("", "latest") else "IfNotPresent"}
    container = {**_CONTAINER_DEFAULTS, **pull, **sent}
    limits = container["resources"].get("limits")
    if limits:
        requests = {**limits, **(container["resources"].get("requests") or {})}
        container["resources"] = {**container["resources"], "requests": requests}
    return container


def _check_environment(name: str, path: str, containers: list[Json]) -> None:
    """A container can learn its CPU and memory, but not its extended resources."""
    for place, container in enumerate(containers):
        for at, entry in enumerate(container.get("env") or ()):
            source = (entry.get("valueFrom") or {}).get("resourceFieldRef")
            if source is not None and source["resource"] not in _KNOWN_AMOUNTS:
                field = f"{path}[{place}].env[{at}].valueFrom.resourceFieldRef.resource"
                supported = ", ".join(f'"{one}"' for one in _KNOWN_AMOUNTS)
                why = f'Unsupported value: "{source["resource"]}": supported values: {supported}'
                raise invalid("Pod", name, field, why)


def _tolerations(sent: list[Json]) -> list[Json]:
    added = [
        {
            "key": key,
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": _NO_EXECUTE_SECONDS,
        }
        for key in ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
        if not any(
            one.get("key", "") in ("", key) and one.get("effect", "") in ("", "NoExecute")
            for one in sent
        )
    ]
    return [*sent, *added]


def _priority(name: str, sent: Json, classes: list[Json]) -> Json:
    wanted = sent.get("priorityClassName")
    if wanted:
        chosen = next((one for one in classes if one["metadata"]["name"] == wanted), None)
        if chosen is None:
            raise forbidden("pods", name, f"no PriorityClass with name {wanted} was found")
    else:
        chosen = next((one for one in classes if one.get("globalDefault")), None)
    value = chosen["value"] if chosen else 0
    if sent.get("priority", value) != value:
        raise forbidden(
            "pods",
            name,
            f"the integer value of priority ({sent['priority']}) must not be provided in pod spec; "
            f"priority admission controller computed {value} from the given PriorityClass name",
        )
    policy = (chosen or {}).get("preemptionPolicy", "PreemptLowerPriority")
    found = {"priority": value, "preemptionPolicy": sent.get("preemptionPolicy", policy)}
    return found | ({"priorityClassName": chosen["metadata"]["name"]} if chosen else {})


def _service_class(containers: list[Json]) -> str:
    kinds = ("cpu", "memory")
    asked = [
        container["resources"].get(part) or {}
        for container in containers
        for part in ("requests", "limits")
    ]
    if not any(kind in part for part in asked for kind in kinds):
        return "BestEffort"
    equal = all(
        container["resources"].get("limits", {}).get(kind) is not None
        and container["resources"]["limits"][kind] == container["resources"]["requests"][kind]
        for container in containers
        for kind in kinds
    )
    return "Guaranteed" if equal else "Burstable"


def _gated(now: str) -> Json:
    return {
        "type": SCHEDULED,
        "status": "False",
        "lastProbeTime": None,
        "lastTransitionTime": now,
        "reason": "SchedulingGated",
        "message": "Scheduling is blocked due to non-empty scheduling gates",
    }


def updated(old: Json, new: Json) -> Json:
    """The pod that an update makes: tolerations that everybody has come back.

    Raises:
        RefusedError: 422.
    """
    name, before = old["metadata"]["name"], old["spec"]
    after = {**new["spec"], "tolerations": _tolerations(new["spec"].get("tolerations") or [])}
    had = {gate["name"] for gate in before.get("schedulingGates") or ()}
    for place, gate in enumerate(after.get("schedulingGates") or ()):
        if gate["name"] not in had:
            rule = "Forbidden: only deletion is allowed, but found new scheduling gate"
            why = f"{rule} '{gate['name']}'"
            raise invalid("Pod", name, f"spec.schedulingGates[{place}].name", why)
    if _fixed(before, gated=bool(had)) != _fixed(after, gated=bool(had)):
        raise invalid("Pod", name, "spec", f"Forbidden: {_FIXED}")
    limit = before.get("activeDeadlineSeconds")
    if limit is not None and not 0 < (after.get("activeDeadlineSeconds") or 0) <= limit:
        why = f"Invalid value: must be less than or equal to previous value {limit}"
        raise invalid("Pod", name, "spec.activeDeadlineSeconds", why)
    if any(one not in after["tolerations"] for one in before.get("tolerations") or ()):
        raise invalid(
            "Pod",
            name,
            "spec.tolerations",
            "Forbidden: existing toleration can not be modified except its tolerationSeconds",
        )
    if had:
        _only_adds(name, before, after)
    return {**new, "spec": after}


def _fixed(spec: Json, *, gated: bool) -> Json:
    """The part of a spec that never changes."""
    free = ["tolerations", "activeDeadlineSeconds", "schedulingGates"]
    if gated:
        free += ["nodeSelector", "affinity"]
    fixed = {key: value for key, value in spec.items() if key not in free}
    for field in ("containers", "initContainers"):
        if field in fixed:
            fixed[field] = [{**container, "image": ""} for container in fixed[field]]
    return fixed


def _only_adds(name: str, before: Json, after: Json) -> None:
    """A gated pod's node selector and required node affinity may become stricter, not other."""
    kept = after.get("nodeSelector") or {}
    if any(kept.get(key) != value for key, value in (before.get("nodeSelector") or {}).items()):
        why = "Invalid value: only additions are allowed (no mutations or deletions)"
        raise invalid("Pod", name, "spec.nodeSelector", why)
    old, new = _required_terms(before), _required_terms(after)
    if not old:
        return
    where = (
        "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution"
        ".nodeSelectorTerms"
    )
    if len(old) != len(new):
        raise invalid(
            "Pod",
            name,
            where,
            "Invalid value: no additions/deletions to non-empty NodeSelectorTerms list are allowed",
        )
    for place, (term, changed) in enumerate(zip(old, new, strict=True)):
        empty = not term.get("matchExpressions") and not term.get("matchFields")
        if (empty and term != changed) or not all(
            (changed.get(part) or [])[: len(term.get(part) or [])] == (term.get(part) or [])
            for part in ("matchExpressions", "matchFields")
        ):
            why = "Invalid value: only additions are allowed (no mutations or deletions)"
            raise invalid("Pod", name, f"{where}[{place}]", why)


def _required_terms(spec: Json) -> list[Json]:
    affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    terms: list[Json] = required.get("nodeSelectorTerms") or []
    return terms


def checked_binding(name: str, binding: Json) -> None:
    """Whether a Binding is well formed.

    Raises:
        RefusedError: 400 or 500, as the server has it.
    """
    if binding.get("metadata", {}).get("name") != name:
        raise RefusedError(400, "BadRequest", "name in URL does not match name in Binding object")
    target = binding.get("target") or {}
    if target.get("kind", "") not in ("", "Node"):
        kind = target["kind"]
        why = f'target.kind: Unsupported value: "{kind}": supported values: "Node", "<empty>"'
        raise RefusedError(500, "", why)
    if not target.get("name"):
        raise RefusedError(500, "", "target.name: Required value")


def bound(pod: Json, binding: Json, node: Json | None, now: str) -> Json:
    """The pod after a Binding; capacity and the node's existence are nobody's concern here.

    Args:
        pod: as stored.
        binding: what was posted; its uid and resourceVersion are preconditions.
        node: the Node object, if there is one: its zone and region become labels.
        now: RFC 3339, seconds.

    Raises:
        RefusedError: 409.
    """
    name, metadata = pod["metadata"]["name"], pod["metadata"]
    for field, shown in (("uid", "UID"), ("resourceVersion", "ResourceVersion")):
        wanted = binding["metadata"].get(field)
        if wanted and wanted != metadata[field]:
            why = (
                f"StorageError: invalid object, Code: 4, Key: /registry/pods/"
                f"{metadata['namespace']}/{name}, ResourceVersion: 0, AdditionalErrorMsg: "
                f"Precondition failed: {shown} in precondition: {wanted}, {shown} in object meta: "
                f"{metadata[field]}"
            )
            raise conflict("pods", name, why)
    if "deletionTimestamp" in metadata:
        raise conflict(
            "pods/binding", name, f"pod {name} is being deleted, cannot be assigned to a host"
        )
    if pod["spec"].get("nodeName"):
        why = f'pod {name} is already assigned to node "{pod["spec"]["nodeName"]}"'
        raise conflict("pods/binding", name, why)
    if pod["spec"].get("schedulingGates"):
        raise conflict("pods/binding", name, f"pod {name} has non-empty .spec.schedulingGates")
    zone = {} if node is None else node["metadata"].get("labels") or {}
    labels = {
        **(metadata.get("labels") or {}),
        **{key: zone[key] for key in _TOPOLOGY_LABELS if key in zone},
        **(binding["metadata"].get("labels") or {}),
    }
    annotations = {
        **(metadata.get("annotations") or {}),
        **(binding["metadata"].get("annotations") or {}),
    }
    filled = {"labels": labels, "annotations": annotations}
    status = {key: value for key, value in pod["status"].items() if key != "nominatedNodeName"}
    condition = {
        "type": SCHEDULED,
        "status": "True",
        "lastProbeTime": None,
        "lastTransitionTime": now,
    }
    return {
        **pod,
        "metadata": {**metadata, **{key: value for key, value in filled.items() if value}},
        "spec": {**pod["spec"], "nodeName": binding["target"]["name"]},
        "status": {**status, "conditions": with_condition(status.get("conditions"), condition)},
    }


def evicted(pod: Json, now: str) -> Json:
    """The pod with the condition by which others know why it goes."""
    condition = {
        "type": "DisruptionTarget",
        "status": "True",
        "lastProbeTime": None,
        "lastTransitionTime": now,
        "reason": "EvictionByEvictionAPI",
        "message": "Eviction API: evicting",
    }
    conditions = pod["status"].get("conditions")
    for one in conditions or ():
        if one["type"] == condition["type"] and one["status"] == condition["status"]:
            condition["lastTransitionTime"] = one.get("lastTransitionTime", now)
    return {
        **pod,
        "status": {**pod["status"], "conditions": with_condition(conditions, condition)},
    }


def with_condition(conditions: Any, condition: Json) -> list[Json]:
    """The conditions with one of its type replaced or added."""
    kept = list(conditions or ())
    for place, one in enumerate(kept):
        if one["type"] == condition["type"]:
            return [*kept[:place], condition, *kept[place + 1 :]]
    return [*kept, condition]


def graceful(pod: Json, wanted_s: int | None, stamp: Callable[[int], str]) -> Json | None:
    """The pod on its way out; None when a deletion changes nothing about it.

    Args:
        pod: as stored.
        wanted_s: `gracePeriodSeconds` of the request.
        stamp: RFC 3339 time so many seconds from now.
    """
    metadata = pod["metadata"]
    first = "deletionTimestamp" not in metadata
    if not first:
        # What is on its way out already can only be hurried.
        if wanted_s is None or wanted_s >= metadata["deletionGracePeriodSeconds"]:
            return None
        grace = wanted_s
    elif not pod["spec"].get("nodeName") or pod["status"].get("phase") in TERMINAL:
        grace = 0
    else:
        own = pod["spec"].get("terminationGracePeriodSeconds", 0)
        grace = own if wanted_s is None else wanted_s
    return {
        **pod,
        "metadata": {
            **metadata,
            "generation": metadata.get("generation", 1) + first,
            "deletionTimestamp": stamp(grace),
            "deletionGracePeriodSeconds": grace,
        },
    }
