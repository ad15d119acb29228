"""What the tasks of a gang ask for together.

The model's tasks are equal. Pods of one gang may differ: a master beside its workers. Where they
want the same nodes, each task counts with the most that any of them needs of each resource, which
is safe and sometimes wasteful; a note says so. Where they want different nodes there is no such
task, and the gang waits with the difference as its reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from scheduler.execution.kubernetes import labels
from scheduler.execution.kubernetes.levels import Levels
from scheduler.execution.kubernetes.owners import Owner
from scheduler.execution.kubernetes.pods import Pod
from scheduler.model.job import Topology
from scheduler.model.quantity import Resources
from scheduler.model.site import Amounts, Operator, Requirement, Site, Term


class DisagreementError(ValueError):
    """The pods of a gang do not make one gang of equal tasks; the message says why."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a gang of equal tasks asks for.

    Attributes:
        needs: GPUs, CPU and memory of each task.
        extras: its other resources; sorted.
        site: which nodes will do for each.
        preempts: whether others may be stopped for it.
        queue: where it waits, "" when its pods do not say.
        notes: what was made equal that was not, and wishes that have no effect.
    """

    needs: Resources
    extras: Amounts
    site: Site
    priority: int
    preempts: bool
    topology: Topology
    queue: str
    notes: tuple[str, ...]


def asked_by(
    pods: Sequence[Pod], owner: Owner | None, levels: Levels, queue_labels: Sequence[str]
) -> Asked:
    """What the pods, at least one, ask for as one gang.

    Raises:
        DisagreementError: they ask for different nodes, queues or topologies, or for a topology
            that is not modelled.
    """
    notes: list[str] = []
    topology, keys = _topology(pods, owner, levels)
    return Asked(
        needs=_needs(pods, notes),
        extras=_extras(pods, notes),
        site=_with_keys(_site(pods), keys),
        priority=_priority(pods, owner, notes),
        preempts=all(pod.preempts for pod in pods),
        topology=topology,
        queue=_queue(pods, queue_labels),
        notes=(*notes, *_wishes(pods)),
    )


def _needs(pods: Sequence[Pod], notes: list[str]) -> Resources:
    most = Resources(
        max(pod.needs.gpus for pod in pods),
        max(pod.needs.cpu_milli for pod in pods),
        max(pod.needs.memory_mib for pod in pods),
    )
    for unit, of in (
        ("GPUs", [pod.needs.gpus for pod in pods]),
        ("thousandths of a core", [pod.needs.cpu_milli for pod in pods]),
        ("MiB", [pod.needs.memory_mib for pod in pods]),
    ):
        if min(of) < max(of):
            notes.append(f"pods ask for {min(of)} to {max(of)} {unit}; each counts with the most")
    return most


def _extras(pods: Sequence[Pod], notes: list[str]) -> Amounts:
    first = pods[0].extras
    if all(pod.extras is first or pod.extras == first for pod in pods):
        return first
    most: dict[str, int] = {}
    for pod in pods:
        for name, amount in pod.extras:
            most[name] = max(most.get(name, 0), amount)
    notes.append("pods ask for different further resources; each counts with the most")
    return tuple(sorted(most.items()))


def _site(pods: Sequence[Pod]) -> Site:
    """The one site of all; a pod without GPUs may as well sit where the others find theirs."""
    makers = sorted({pod.gpu_resource for pod in pods if pod.gpu_resource})
    if len(makers) > 1:
        raise DisagreementError(f"some of its pods ask for {makers[0]} and some for {makers[1]}")
    sites: dict[Site, Pod] = {}
    for pod in pods:
        site = pod.constraints.site
        plain = tuple(pair for pair in site.selector if pair[0] != labels.GPU_RESOURCE)
        sites.setdefault(replace(site, selector=plain), pod)
    if len(sites) > 1:
        raise DisagreementError(_difference(*list(sites.items())[:2]))
    (site,) = sites
    if not makers:
        return site
    return replace(site, selector=tuple(sorted((*site.selector, (labels.GPU_RESOURCE, makers[0])))))


def _difference(one: tuple[Site, Pod], other: tuple[Site, Pod]) -> str:
    (a, first), (b, second) = one, other
    if a.selector != b.selector:
        field = "spec.nodeSelector"
    elif a.terms != b.terms:
        field = "required node affinity"
    else:
        field = "spec.tolerations"
    return (
        f"pods {first.ref.name} and {second.ref.name} differ in {field}; tasks of one gang must ask"
        " for the same nodes"
    )


def _priority(pods: Sequence[Pod], owner: Owner | None, notes: list[str]) -> int:
    if owner is not None and owner.priority is not None:
        return owner.priority
    found = {pod.priority for pod in pods}
    if len(found) > 1:
        notes.append(f"pods have priorities {min(found)} to {max(found)}; the lowest counts")
    return min(found)


def _queue(pods: Sequence[Pod], queue_labels: Sequence[str]) -> str:
    found = {
        next((value for name in queue_labels if (value := pod.label(name))), "") for pod in pods
    }
    if len(found) > 1:
        raise DisagreementError(f"its pods name the queues {', '.join(map(repr, sorted(found)))}")
    return found.pop()


def _topology(
    pods: Sequence[Pod], owner: Owner | None, levels: Levels
) -> tuple[Topology, tuple[str, ...]]:
    """How close the tasks must be, and labels that each node must then have."""
    written = {pod.annotation(labels.TOPOLOGY) for pod in pods}
    if len(written) > 1:
        raise DisagreementError(f"its pods differ in annotation {labels.TOPOLOGY}")
    wish = written.pop()
    try:
        own = Topology(wish) if wish else Topology.ANY
    except ValueError:
        known = ", ".join(Topology)
        raise DisagreementError(
            f"annotation {labels.TOPOLOGY} is {wish[:64]!r}, not one of {known}"
        ) from None
    keys = owner.topology_keys if owner else ()
    if not keys:
        return own, ()
    hard = max((_level(key, levels) for key in keys), key=_CLOSENESS.index)
    return (own if own in _CLOSENESS and _closer(own, hard) else hard), keys


_CLOSENESS = (Topology.SAME_RACK, Topology.SAME_NODE, Topology.SAME_NVLINK)


def _closer(one: Topology, other: Topology) -> bool:
    return _CLOSENESS.index(one) >= _CLOSENESS.index(other)


def _level(key: str, levels: Levels) -> Topology:
    """The model's level for a label whose value all pods must share.

    A rack is told by the first label of the level that a node has, and each label lies within
    those that follow it: nodes of one rack share every label from there on.
    """
    if key == labels.HOSTNAME:
        return Topology.SAME_NODE
    if key in levels.rack:
        return Topology.SAME_RACK
    raise DisagreementError(
        f"its PodGroup wants all pods within one {key}, which is no configured level;"
        f" there are {', '.join((labels.HOSTNAME, *levels.rack))}"
    )


def _with_keys(site: Site, keys: Sequence[str]) -> Site:
    """The site, on nodes that have these labels."""
    if not keys:
        return site
    wanted = tuple(Requirement(key, Operator.EXISTS) for key in keys)
    terms = site.terms if site.terms is not None else (Term(),)
    return replace(
        site, terms=tuple(replace(term, labels=(*term.labels, *wanted)) for term in terms)
    )


def _wishes(pods: Sequence[Pod]) -> tuple[str, ...]:
    found = {wish for pod in pods for wish in pod.constraints.wishes}
    return tuple(f"{wish} is only preferred and has no effect" for wish in sorted(found))
