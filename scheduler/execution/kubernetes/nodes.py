"""Nodes of a cluster, and what they are to the model.

What a node offers is its `allocatable` less what pods that are not ours take of it. Readiness and
pressure count through taints alone, as in kube-scheduler; `spec.unschedulable` is a taint as well.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache

from scheduler.execution.kubernetes import labels, quantity
from scheduler.execution.kubernetes.boards import gpus_of
from scheduler.execution.kubernetes.levels import ALL_LEVELS, Levels, price_class_of
from scheduler.execution.kubernetes.pods import Pod
from scheduler.execution.kubernetes.raw import Json, mapping, mappings, pairs, text
from scheduler.execution.kubernetes.requests import EXTRAS_MAX, GPUS_MAX, MACHINE_MAX
from scheduler.model.node import NO_LINKS, Gpu, Links, Node, PriceClass, shared_label
from scheduler.model.quantity import NodeId, Resources
from scheduler.model.site import Amounts, Effect, Taint, implied_capacity

_GPUS_PER_NODE_MAX = 4096
"""Shares of GPUs included; a node that says more is cut, with a warning."""


@dataclass(frozen=True, slots=True)
class KubeNode:
    """One node of the cluster.

    Attributes:
        capacity: what it offers to all pods; `gpus` equals `len(self.gpus)`.
        extras: the other resources in their own units, `pods` among them; sorted.
        gpu_resource: the resource that its GPUs are, or "".
        labels: all of them, and `labels.GPU_RESOURCE`; sorted.
        clique: its NVLink fabric that spans nodes, or "".
        ready: its Ready condition; only to look at.
        warnings: what in it could not be read, and how that was taken.
        version: its resourceVersion; equal nodes may differ in it.
    """

    uid: str
    name: str
    capacity: Resources
    extras: Amounts = ()
    gpus: tuple[Gpu, ...] = ()
    links: Links = NO_LINKS
    gpu_resource: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    taints: tuple[Taint, ...] = ()
    rack: str = ""
    zone: str = ""
    clique: str = ""
    price_class: PriceClass = PriceClass.RESERVED
    ready: bool = True
    warnings: tuple[str, ...] = ()
    version: str = field(default="", compare=False)

    @property
    def id(self) -> NodeId:
        """Its uid: a node that comes back under the same name is another one."""
        return NodeId(self.uid)


@dataclass(frozen=True, slots=True)
class External:
    """What pods that are not ours take of a node.

    Attributes:
        extras: everything but CPU and memory, GPUs too, under the names of their resources.
    """

    cpu_milli: int = 0
    memory_mib: int = 0
    extras: Amounts = ()


NO_EXTERNAL = External()


def external_of(pods: Iterable[Pod]) -> External:
    """What these pods of one node take of it; those that have ended take nothing."""
    cpu_milli = memory_mib = 0
    extras: Counter[str] = Counter()
    for pod in pods:
        if pod.phase.terminal:
            continue
        cpu_milli += pod.needs.cpu_milli
        memory_mib += pod.needs.memory_mib
        extras.update(dict(pod.extras))
        if pod.gpu_resource:
            extras[pod.gpu_resource] += pod.needs.gpus
    return External(cpu_milli, memory_mib, tuple(sorted(extras.items())))


def node_of(raw: Json, levels: Levels = ALL_LEVELS) -> KubeNode:
    """The node in an object as `orjson` parses it; total over any input.

    Args:
        raw: the object.
        levels: which labels say where it stands.
    """
    metadata, spec, status = (mapping(raw.get(key)) for key in ("metadata", "spec", "status"))
    warnings: list[str] = []
    offer = _offer(mapping(status.get("allocatable")), warnings)
    gpu_resource = max(labels.GPU_RESOURCES, key=lambda name: offer.get(name, 0))
    count = offer.pop(gpu_resource, 0)
    if count > _GPUS_PER_NODE_MAX:
        warnings.append(f"status.allocatable[{gpu_resource}]: {count}; cut to {_GPUS_PER_NODE_MAX}")
        count = _GPUS_PER_NODE_MAX
    gpu_resource = gpu_resource if count else ""
    written = dict(pairs(metadata.get("labels")))
    uid = text(metadata.get("uid"))
    topology = text(mapping(metadata.get("annotations")).get(labels.TOPOLOGY))
    found = gpus_of(uid, count, written, topology)
    if gpu_resource:
        written[labels.GPU_RESOURCE] = gpu_resource
    return KubeNode(
        uid=uid,
        name=text(metadata.get("name")),
        capacity=Resources(count, offer.pop(labels.CPU, 0), offer.pop(labels.MEMORY, 0)),
        extras=_shared_extras(tuple(sorted((name, n) for name, n in offer.items() if n))),
        gpus=found.gpus,
        links=_shared_links(found.links),
        gpu_resource=gpu_resource,
        labels=tuple(shared_label(*label) for label in sorted(written.items())),
        taints=_taints(spec, warnings),
        rack=levels.rack_of(written),
        zone=levels.zone_of(written),
        clique=written.get(labels.GPU_CLIQUE, ""),
        price_class=price_class_of(written),
        ready=_is_ready(status),
        warnings=(*warnings, *found.warnings),
        version=text(metadata.get("resourceVersion")),
    )


def model_node(kube: KubeNode, external: External = NO_EXTERNAL) -> Node:
    """The node as the allocator sees it.

    Which GPUs the others use is not known, only how many. So as many are marked `external`, from
    the highest index down; the store, which knows what our attempts hold, moves marks off those.

    Args:
        kube: the node.
        external: what pods that are not ours take of it.
    """
    taken = dict(external.extras)
    gpus_taken = taken.pop(kube.gpu_resource, 0) if kube.gpu_resource else 0
    return Node(
        id=kube.id,
        name=kube.name,
        capacity=Resources(
            len(kube.gpus),
            max(0, kube.capacity.cpu_milli - external.cpu_milli),
            max(0, kube.capacity.memory_mib - external.memory_mib),
        ),
        gpus=_marked(kube.gpus, gpus_taken),
        links=kube.links,
        price_class=kube.price_class,
        rack=kube.rack,
        zone=kube.zone,
        labels=kube.labels,
        taints=kube.taints,
        extras=_left(kube.extras, taken),
    )


def _marked(gpus: tuple[Gpu, ...], taken: int) -> tuple[Gpu, ...]:
    if not taken:
        return gpus
    theirs = {gpu.index for gpu in gpus[-taken:]}
    return tuple(replace(gpu, external=True) if gpu.index in theirs else gpu for gpu in gpus)


def _left(extras: Amounts, taken: dict[str, int]) -> Amounts:
    if not taken:
        return extras
    offered = dict(extras)
    names = sorted(offered.keys() | {name for name in taken if implied_capacity(name)})
    return tuple(
        (name, max(0, offered.get(name, implied_capacity(name)) - taken.get(name, 0)))
        for name in names
    )


def _offer(allocatable: Json, warnings: list[str]) -> dict[str, int]:
    """Amounts in the model's units: CPU in thousandths, memory in MiB, others as they are."""
    found: dict[str, int] = {}
    for name, value in allocatable.items():
        if name.startswith(labels.ATTACHABLE_VOLUMES):
            continue  # kube-scheduler reads them from CSINode
        try:
            amount = quantity.nanos(value)
        except quantity.QuantityError as error:
            warnings.append(f"status.allocatable[{name}]: {error}; taken as none")
            continue
        # One less than the most a pod may ask for: what is absurd on both sides does not fit.
        if name == labels.CPU:
            size, most = quantity.milli(amount), MACHINE_MAX - 1
        elif name == labels.MEMORY:
            size, most = quantity.mib_offered(amount), MACHINE_MAX - 1
        elif name in labels.GPU_RESOURCES:
            size, most = quantity.offered(amount), GPUS_MAX - 1
        else:
            size, most = quantity.offered(amount), EXTRAS_MAX - 1
        found[sys.intern(name)] = max(0, min(size, most))
    return found


def _taints(spec: Json, warnings: list[str]) -> tuple[Taint, ...]:
    found: set[Taint] = set()
    for at, written in mappings(spec.get("taints")):
        key, value = text(written.get("key")), text(written.get("value"))
        try:
            effect = Effect(text(written.get("effect")))
        except ValueError:
            effect = Effect.NO_SCHEDULE
            warnings.append(f"spec.taints[{at}].effect: unknown; taken as {effect}")
        found.add(Taint(key, value, effect))
    if spec.get("unschedulable") is True:
        found.add(Taint(labels.UNSCHEDULABLE_TAINT, "", Effect.NO_SCHEDULE))
    return _shared_taints(tuple(sorted(found)))


def _is_ready(status: Json) -> bool:
    conditions = [each for _, each in mappings(status.get("conditions"))]
    return any(each.get("type") == "Ready" and each.get("status") == "True" for each in conditions)


# A cluster has few kinds of node: the first value equal to this one stands for all.


@lru_cache(maxsize=512)
def _shared_links(links: Links) -> Links:
    return links


@lru_cache(maxsize=512)
def _shared_extras(extras: Amounts) -> Amounts:
    return extras


@lru_cache(maxsize=512)
def _shared_taints(taints: tuple[Taint, ...]) -> tuple[Taint, ...]:
    return taints
