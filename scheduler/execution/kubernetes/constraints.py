"""What a pod's spec asks of the place it runs in.

Node selectors, required node affinity and tolerations become a `Site`. What we do not
model becomes a `Need` with a remedy, and what is only preferred is listed as a wish we do not read;
nothing is dropped in silence. Rules: Kubernetes 1.36, plugins NodeAffinity, TaintToleration,
InterPodAffinity, PodTopologySpread, VolumeRestrictions and DynamicResources.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from typing_extensions import override

from scheduler.execution.kubernetes import labels
from scheduler.execution.kubernetes.raw import Json, mapping, mappings, pairs, text, texts
from scheduler.model.site import (
    ANYWHERE,
    NODE_NAME_FIELD,
    Operator,
    Requirement,
    Site,
    Term,
    Toleration,
    TolerationOperator,
    whole_number,
)

_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
_PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
_TO_KUBE_SCHEDULER: Final = (
    f"leave schedulerName to {labels.KUBE_SCHEDULER_NAME} and create the pod with the scheduling"
    f" gate {labels.PLACEMENT_GATE}: Haversack then chooses the node and kube-scheduler's own"
    " plugins judge it"
)
DISKS = frozenset(
    {"awsElasticBlockStore", "azureDisk", "cinder", "gcePersistentDisk", "iscsi", "rbd"}
)
"""Volumes that kube-scheduler lets only some pods of a node share."""
_TOLERATION_OPERATORS = frozenset({"", *TolerationOperator})


@dataclass(frozen=True, slots=True, order=True)
class Need:
    """Something a pod asks for that we do not model.

    Attributes:
        field: the path of the field in the pod.
        remedy: what its owner can do, as the end of a sentence.
    """

    field: str
    remedy: str = _TO_KUBE_SCHEDULER

    @override
    def __str__(self) -> str:
        return f"{self.field} is not modelled; {self.remedy}"


@dataclass(frozen=True, slots=True)
class Repulsion:
    """A required anti-affinity term: pods it matches may not share a domain with its owner.

    Attributes:
        topology_key: the node label whose equal values make a domain.
        requirements: all must be met by the other pod's labels.
        namespaces: those of the other pod; empty is any (a namespace selector counts as any).
    """

    topology_key: str
    requirements: tuple[Requirement, ...]
    namespaces: tuple[str, ...]

    def repels(self, namespace: str, pod_labels: Json) -> bool:
        """Whether a pod of that namespace with those labels must stay away."""
        if self.namespaces and namespace not in self.namespaces:
            return False
        return all(each.met_by(pod_labels) for each in self.requirements)


@dataclass(frozen=True, slots=True)
class Constraints:
    """What the spec asks of a place. Pods of one template have equal ones, kept once.

    Attributes:
        site: which nodes will do, but for `nodeName`, which is a pod's own.
        needs: what we do not model, whatever the cluster looks like.
        wishes: preferences that have no effect here, as field paths.
        problems: field path and fault of each part that could not be read; it then suits no node.
        repulsions: required anti-affinity, which also keeps later pods away.
    """

    site: Site = ANYWHERE
    needs: tuple[Need, ...] = ()
    wishes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    repulsions: tuple[Repulsion, ...] = ()


NO_CONSTRAINTS = Constraints()


def constraints_of(spec: Json, namespace: str, gpu_resource: str) -> Constraints:
    """What the pod asks of its place; total over any input.

    Args:
        spec: the pod's `spec`.
        namespace: the pod's, which its anti-affinity is about unless it says otherwise.
        gpu_resource: the resource its GPUs are, or ""; nodes of other makers will not do.
    """
    problems: list[str] = []
    affinity = mapping(spec.get("affinity"))
    site = Site(
        selector=_selector(spec, gpu_resource),
        terms=_terms(mapping(affinity.get("nodeAffinity")).get(_REQUIRED), problems),
        tolerations=tuple(sorted(set(_tolerations(spec)))),
    )
    return _shared(
        Constraints(
            site,
            tuple(_needs(spec, affinity)),
            tuple(_wishes(spec, affinity)),
            tuple(problems),
            tuple(_repulsions(affinity, namespace)),
        )
    )


@lru_cache(maxsize=16_384)
def _shared(constraints: Constraints) -> Constraints:
    """The first value equal to this one: thousands of pods are made from one template."""
    return constraints


def _selector(spec: Json, gpu_resource: str) -> tuple[tuple[str, str], ...]:
    asked = pairs(spec.get("nodeSelector"))
    return tuple(sorted((*asked, (labels.GPU_RESOURCE, gpu_resource)))) if gpu_resource else asked


def _terms(required: object, problems: list[str]) -> tuple[Term, ...] | None:
    """None without a demand. A term that cannot be read is met by no node, as upstream.

    That is a fault of the pod only where it leaves no other term.
    """
    if not isinstance(required, dict):
        return None
    path = f"spec.affinity.nodeAffinity.{_REQUIRED}.nodeSelectorTerms"
    found: set[Term] = set()
    faults: list[list[str]] = []
    for at, term in mappings(required.get("nodeSelectorTerms")):
        wrong: list[str] = []
        labelled, named = (
            tuple(_requirements(term, kind, f"{path}[{at}]", wrong))
            for kind in ("matchExpressions", "matchFields")
        )
        found.add(Term(labelled, named))
        faults.append(wrong)
    if all(faults):
        problems += (fault for wrong in faults for fault in wrong)
    return tuple(sorted(found))


def _requirements(term: Json, kind: str, path: str, problems: list[str]) -> Iterator[Requirement]:
    for at, written in mappings(term.get(kind)):
        requirement = requirement_of(written)
        if requirement is None or (kind == "matchFields" and not _on_name(requirement)):
            problems.append(f"{path}.{kind}[{at}]: no node can meet what it says")
            requirement = _never(text(written.get("key")))
        yield requirement


def requirement_of(written: Json) -> Requirement | None:
    """One `matchExpressions` entry of a node or label selector; None if it breaks the rules."""
    key, values = text(written.get("key")), texts(written.get("values"))
    try:
        operator = Operator(text(written.get("operator")))
    except ValueError:
        return None
    match operator:
        case Operator.IN | Operator.NOT_IN:
            valid = bool(values)
        case Operator.EXISTS | Operator.DOES_NOT_EXIST:
            valid = not values
        case Operator.GREATER | Operator.LESS:
            valid = len(values) == 1 and whole_number(values[0]) is not None
    return Requirement(key, operator, tuple(sorted(set(values)))) if valid and key else None


def _on_name(requirement: Requirement) -> bool:
    return (
        requirement.key == NODE_NAME_FIELD
        and requirement.operator in (Operator.IN, Operator.NOT_IN)
        and len(requirement.values) == 1
    )


def _never(key: str) -> Requirement:
    return Requirement(key, Operator.IN)


def _tolerations(spec: Json) -> Iterator[Toleration]:
    for _, written in mappings(spec.get("tolerations")):
        try:
            operator = TolerationOperator(text(written.get("operator")) or TolerationOperator.EQUAL)
        except ValueError:
            continue  # a comparison: `_needs` names it
        key, effect = text(written.get("key")), text(written.get("effect"))
        exists = operator is TolerationOperator.EXISTS
        yield Toleration(key, operator, "" if exists else text(written.get("value")), effect)


def _needs(spec: Json, affinity: Json) -> Iterator[Need]:
    for kind in ("podAffinity", "podAntiAffinity"):
        if mapping(affinity.get(kind)).get(_REQUIRED):
            yield Need(f"spec.affinity.{kind}.{_REQUIRED}")
    for at, spread in mappings(spec.get("topologySpreadConstraints")):
        if spread.get("whenUnsatisfiable") != "ScheduleAnyway":
            yield Need(f"spec.topologySpreadConstraints[{at}]")
    if spec.get("resourceClaims"):
        yield Need("spec.resourceClaims")
    for at, volume in mappings(spec.get("volumes")):
        yield from (Need(f"spec.volumes[{at}].{disk}") for disk in sorted(DISKS & volume.keys()))
    for at, toleration in mappings(spec.get("tolerations")):
        if text(toleration.get("operator")) not in _TOLERATION_OPERATORS:
            yield Need(f"spec.tolerations[{at}].operator")


def _wishes(spec: Json, affinity: Json) -> Iterator[str]:
    for kind in ("nodeAffinity", "podAffinity", "podAntiAffinity"):
        if mapping(affinity.get(kind)).get(_PREFERRED):
            yield f"spec.affinity.{kind}.{_PREFERRED}"
    for at, spread in mappings(spec.get("topologySpreadConstraints")):
        if spread.get("whenUnsatisfiable") == "ScheduleAnyway":
            yield f"spec.topologySpreadConstraints[{at}]"


def _repulsions(affinity: Json, namespace: str) -> Iterator[Repulsion]:
    for _, term in mappings(mapping(affinity.get("podAntiAffinity")).get(_REQUIRED)):
        if not isinstance(term.get("labelSelector"), dict):
            continue  # no selector matches no pod
        found = list(selected(mapping(term.get("labelSelector"))))
        named = texts(term.get("namespaces"))
        anywhere = isinstance(term.get("namespaceSelector"), dict)
        yield Repulsion(
            text(term.get("topologyKey")),
            tuple(sorted(set(found))),
            () if anywhere else tuple(sorted(set(named))) or (namespace,),
        )


def selected(selector: Json) -> Iterator[Requirement]:
    """A label selector's parts. One that cannot be read is left out: more is selected then."""
    for key, value in pairs(selector.get("matchLabels")):
        yield Requirement(key, Operator.IN, (value,))
    for _, written in mappings(selector.get("matchExpressions")):
        requirement = requirement_of(written)
        if requirement is not None:
            yield requirement
