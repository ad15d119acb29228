"""Pods as we keep them: the few fields that matter, out of some 3 KiB of JSON each.

A cluster has tens of thousands of pods, all of which are watched, for all of them take room. So
what pods of one template share is kept once, and what a pod has of its own is kept small.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import lru_cache

from typing_extensions import override

from scheduler.execution.kubernetes import labels
from scheduler.execution.kubernetes.constraints import NO_CONSTRAINTS, Constraints
from scheduler.execution.kubernetes.raw import (
    Json,
    instant,
    mapping,
    mappings,
    pairs,
    text,
    texts,
    whole,
)
from scheduler.execution.kubernetes.templates import template_of
from scheduler.model.quantity import Resources, UtcSeconds
from scheduler.model.site import Amounts, Site

_NEVER = UtcSeconds(0.0)


@dataclass(frozen=True, slots=True, order=True)
class PodRef:
    """Which pod: its name may be used again, its uid never."""

    namespace: str
    name: str
    uid: str

    @override
    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}/{self.uid}"

    @classmethod
    def parse(cls, written: str) -> PodRef:
        """The pod that `str()` wrote.

        Raises:
            ValueError: it is no `namespace/name/uid`.
        """
        parts = written.split("/")
        if len(parts) != 3 or not all(parts):  # noqa: PLR2004 - the three of the message
            raise ValueError(f"{written!r} is no namespace/name/uid")
        return cls(*parts)


class Phase(StrEnum):
    """A pod's `status.phase`. UNKNOWN also stands for any that we do not know."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    UNKNOWN = "Unknown"

    @property
    def terminal(self) -> bool:
        """Whether its containers have ended for good and its room is free."""
        return self in (Phase.SUCCEEDED, Phase.FAILED)


@dataclass(frozen=True, slots=True)
class Owner:
    """The controller of a pod."""

    api_version: str
    kind: str
    name: str
    uid: str

    @property
    def group(self) -> str:
        """The API group, "" for the core's."""
        return self.api_version.partition("/")[0] if "/" in self.api_version else ""


@dataclass(frozen=True, slots=True)
class Scheduled:
    """The condition PodScheduled."""

    status: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Exit:
    """How one container ended.

    Attributes:
        code: exit status; 128 + n if signal n ended it and the runtime says no more.
        signal: the signal, if the runtime names it, else 0.
        reason: such as `Completed`, `Error` or `OOMKilled`.
    """

    container: str
    code: int
    signal: int
    reason: str


@dataclass(frozen=True, slots=True)
class Ending:
    """Why and how a pod ended.

    Attributes:
        reason: the kubelet's, such as `Evicted` or `OutOfcpu`; mostly "".
        exits: of init containers, then containers, in the order of its status.
        finished_at: the last container's end; 0 if unknown.
    """

    reason: str
    message: str
    exits: tuple[Exit, ...]
    finished_at: UtcSeconds

    @property
    def exit_code(self) -> int | None:
        """The first failure's exit status, 0 if all went well, None if none is known."""
        codes = [each.code for each in self.exits]
        return next((code for code in codes if code), 0) if codes else None


@dataclass(frozen=True, slots=True)
class Pod:
    """One pod.

    Attributes:
        needs: GPUs, CPU and memory it takes of its node, rounded up.
        extras: the rest: one of `pods`, host ports, `ephemeral-storage`, devices; sorted.
        gpu_resource: the resource that its GPUs are, or "".
        preempts: whether others may be stopped for it (`preemptionPolicy`).
        priority_class: the PriorityClass its priority comes from, or "".
        labels: all of them while it waits for a node, and of our own, as affinity and disruption
            budgets may be about any; of others on nodes those that we read; sorted.
        annotations: those that we read; sorted.
        gates: names of its scheduling gates.
        group: name of the PodGroup in `spec.schedulingGroup`, or "".
        claims: names of the PersistentVolumeClaims it mounts.
        ending: set once its phase is terminal.
        disruption: reason of a true DisruptionTarget condition, or "".
        problems: what in it could not be read; such a pod is not placed.
        grace_s: its `terminationGracePeriodSeconds`.
        dropped: it was deleted before it ran, and only a finalizer keeps the object.
        kept: our own finalizer does.
        version: its resourceVersion, only good as a precondition; equal pods may differ in it.
    """

    ref: PodRef
    node_name: str
    phase: Phase
    scheduler_name: str
    priority: int
    preempts: bool
    needs: Resources
    extras: Amounts
    gpu_resource: str
    constraints: Constraints = NO_CONSTRAINTS
    labels: tuple[tuple[str, str], ...] = ()
    annotations: tuple[tuple[str, str], ...] = ()
    owner: Owner | None = None
    gates: tuple[str, ...] = ()
    group: str = ""
    claims: tuple[str, ...] = ()
    deleting: bool = False
    created_at: UtcSeconds = _NEVER
    started_at: UtcSeconds = _NEVER
    scheduled: Scheduled | None = None
    ending: Ending | None = None
    disruption: str = ""
    problems: tuple[str, ...] = ()
    grace_s: int = 30
    priority_class: str = ""
    dropped: bool = False
    kept: bool = False
    version: str = field(default="", compare=False)

    @property
    def site(self) -> Site:
        """Which nodes will do: the one it is on, once it is on one."""
        site = self.constraints.site
        return replace(site, node_name=self.node_name) if self.node_name else site

    @property
    def takes_room(self) -> bool:
        """Whether it counts against its node: also while it is being deleted."""
        return bool(self.node_name) and not self.over

    @property
    def over(self) -> bool:
        """Whether nothing of it runs, or ever will."""
        return self.phase.terminal or self.dropped

    @property
    def waiting(self) -> bool:
        """Whether it wants a node of us: none yet, not ended, not being deleted.

        One that is left to kube-scheduler does so only while our gate holds it.
        """
        if self.node_name or self.phase.terminal or self.deleting:
            return False
        left = self.scheduler_name == labels.KUBE_SCHEDULER_NAME
        return not left or labels.PLACEMENT_GATE in self.gates

    @property
    def done(self) -> bool:
        """Whether all its containers have ended well."""
        return self.phase is Phase.SUCCEEDED

    @property
    def ready(self) -> bool:
        """Whether it may be placed now: no gate but our own holds it."""
        return self.waiting and not self.held_by

    @property
    def held_by(self) -> tuple[str, ...]:
        """Others' scheduling gates; ours is lifted by us when its place is known."""
        return tuple(gate for gate in self.gates if gate != labels.PLACEMENT_GATE)

    def label(self, name: str) -> str:
        """The label's value, or ""."""
        return dict(self.labels).get(name, "")

    def annotation(self, name: str) -> str:
        """The annotation's value, or ""."""
        return dict(self.annotations).get(name, "")


_LABELS_READ = frozenset(
    {
        labels.QUEUE,
        labels.GANG,
        labels.JOB,
        labels.ATTEMPT,
        labels.COMPLETION_INDEX,
        labels.POD_INDEX,
        labels.COSCHEDULING_GROUP,
        labels.VOLCANO_INDEX,
        labels.JOBSET_NAME,
        labels.JOBSET_REPLICATED_JOB,
        labels.JOBSET_JOB_INDEX,
        labels.JOBSET_ATTEMPT,
        labels.KUBEFLOW_JOB,
        labels.KUBEFLOW_REPLICA_TYPE,
        labels.KUBEFLOW_INDEX,
        labels.LWS_NAME,
        labels.LWS_GROUP,
        labels.LWS_INDEX,
    }
)
_ANNOTATIONS_READ = frozenset(
    {
        labels.GANG_SIZE,
        labels.EPOCH,
        labels.JOB,
        labels.ATTEMPT,
        labels.GPUS,
        labels.TASKS,
        labels.RANK,
        labels.MARKED,
        labels.TOPOLOGY,
        *labels.VOLCANO_GROUPS,
        labels.VOLCANO_MIN_MEMBER,
        labels.VOLCANO_INDEX,
        labels.COMPLETION_INDEX,
        labels.LWS_SIZE,
    }
)


def pod_of(raw: Json) -> Pod:
    """The pod in an object as `orjson` parses it; total over any input.

    What cannot be read goes to `Pod.problems` with its field path. The result shares nothing
    mutable with `raw`; `tests/benchmarks/bench_pod_memory.py` measures its size and cost.
    """
    metadata, spec, status = (mapping(raw.get(key)) for key in ("metadata", "spec", "status"))
    namespace = sys.intern(text(metadata.get("namespace")))
    node_name = sys.intern(text(spec.get("nodeName")))
    template = template_of(spec, status, namespace)
    phase = _phase(status)
    ref = PodRef(namespace, text(metadata.get("name")), text(metadata.get("uid")))
    return Pod(
        ref=ref,
        node_name=node_name,
        phase=phase,
        scheduler_name=sys.intern(text(spec.get("schedulerName")) or labels.KUBE_SCHEDULER_NAME),
        priority=whole(spec.get("priority")),
        preempts=spec.get("preemptionPolicy") != "Never",
        needs=template.needs,
        extras=template.extras,
        gpu_resource=template.gpu_resource,
        constraints=template.constraints,
        labels=_labels(metadata, everything=not node_name or _ours(metadata, spec)),
        annotations=_picked(metadata.get("annotations"), _ANNOTATIONS_READ),
        owner=_owner(metadata),
        gates=tuple(
            sys.intern(text(gate.get("name"))) for _, gate in mappings(spec.get("schedulingGates"))
        ),
        group=text(mapping(spec.get("schedulingGroup")).get("podGroupName")),
        claims=tuple(_claims(spec, ref.name)),
        deleting=metadata.get("deletionTimestamp") is not None,
        created_at=instant(metadata.get("creationTimestamp")),
        started_at=instant(status.get("startTime")),
        scheduled=_scheduled(status),
        ending=_ending(status) if phase.terminal else None,
        disruption=_disruption(status),
        problems=template.problems,
        grace_s=max(0, whole(spec.get("terminationGracePeriodSeconds"), 30)),
        dropped=phase is Phase.PENDING and _deleted(metadata),
        priority_class=sys.intern(text(spec.get("priorityClassName"))),
        kept=labels.EXIT_STATUS in texts(metadata.get("finalizers")),
        version=text(metadata.get("resourceVersion")),
    )


def _ours(metadata: Json, spec: Json) -> bool:
    """Whether we schedule it, or have marked it."""
    return spec.get("schedulerName") == labels.SCHEDULER_NAME or labels.JOB in mapping(
        metadata.get("annotations")
    )


def _deleted(metadata: Json) -> bool:
    """Whether whoever had to agree to its deletion has: but for finalizers it would be gone."""
    leaving = metadata.get("deletionTimestamp") is not None
    return leaving and not whole(metadata.get("deletionGracePeriodSeconds"))


@lru_cache(maxsize=4096)
def _shared_pairs(found: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """The first value equal to this one."""
    return found


@lru_cache(maxsize=4096)
def _shared_owner(owner: Owner) -> Owner:
    """The first value equal to this one."""
    return owner


_PHASES = {"": Phase.PENDING, **{phase.value: phase for phase in Phase}}


def _phase(status: Json) -> Phase:
    return _PHASES.get(text(status.get("phase")), Phase.UNKNOWN)


def _labels(metadata: Json, *, everything: bool) -> tuple[tuple[str, str], ...]:
    """All labels are looked at while other pods' anti-affinity may still speak against a node."""
    written = mapping(metadata.get("labels"))
    return _picked(written, frozenset(written) if everything else _LABELS_READ)


def _picked(written: object, wanted: frozenset[str]) -> tuple[tuple[str, str], ...]:
    found = mapping(written)
    if found.keys().isdisjoint(wanted):
        return ()
    kept = ((key, value) for key, value in pairs(found) if key in wanted)
    return _shared_pairs(tuple((sys.intern(key), sys.intern(value)) for key, value in kept))


def _owner(metadata: Json) -> Owner | None:
    for _, reference in mappings(metadata.get("ownerReferences")):
        if reference.get("controller") is True:
            return _shared_owner(
                Owner(*(text(reference.get(key)) for key in ("apiVersion", "kind", "name", "uid")))
            )
    return None


def _claims(spec: Json, pod_name: str) -> Iterator[str]:
    """Names of claims; one for an `ephemeral` volume is made by the controller, named like this."""
    for _, volume in mappings(spec.get("volumes")):
        claim = text(mapping(volume.get("persistentVolumeClaim")).get("claimName"))
        if claim:
            yield claim
        elif isinstance(volume.get("ephemeral"), dict):
            yield f"{pod_name}-{text(volume.get('name'))}"


def _scheduled(status: Json) -> Scheduled | None:
    for _, condition in mappings(status.get("conditions")):
        if condition.get("type") == "PodScheduled":
            found = (text(condition.get(key)) for key in ("status", "reason", "message"))
            return _shared_scheduled(Scheduled(*found))
    return None


@lru_cache(maxsize=1024)
def _shared_scheduled(scheduled: Scheduled) -> Scheduled:
    """The first value equal to this one."""
    return scheduled


def _disruption(status: Json) -> str:
    for _, condition in mappings(status.get("conditions")):
        if condition.get("type") == "DisruptionTarget" and condition.get("status") == "True":
            return text(condition.get("reason")) or "unknown"
    return ""


def _ending(status: Json) -> Ending:
    exits: list[Exit] = []
    finished = _NEVER
    for kind in ("initContainerStatuses", "containerStatuses"):
        for _, container in mappings(status.get(kind)):
            ended = mapping(container.get("state")).get("terminated")
            if not isinstance(ended, dict):
                continue
            code, signal = whole(ended.get("exitCode")), whole(ended.get("signal"))
            name, reason = text(container.get("name")), text(ended.get("reason"))
            exits.append(Exit(name, code, signal, reason))
            finished = max(finished, instant(ended.get("finishedAt")))
    return Ending(text(status.get("reason")), text(status.get("message")), tuple(exits), finished)
