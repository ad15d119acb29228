"""Which way a pod takes to its node, and what stands in the way of the direct one.

A pod that only asks for what the model knows is bound directly. One with other needs must also be
judged by kube-scheduler's own plugins: it is gated, its node chosen, and then it is let go with the
node pinned. That way is open only to pods made for it, with our gate and kube-scheduler's name, for
neither can be given to a pod later. All other pods with such needs are refused, and told why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from scheduler.execution.kubernetes import labels
from scheduler.execution.kubernetes.constraints import Need
from scheduler.execution.kubernetes.pods import Pod
from scheduler.execution.kubernetes.raw import Json, mapping, mappings, text, texts

_ONE_POD = "ReadWriteOncePod"
_IMPLICIT_DEVICE_CLASS = "deviceclass.resource.kubernetes.io/"


class Path(StrEnum):
    """How a pod gets to its node."""

    DIRECT = "direct"
    GATE_AND_PIN = "gate-and-pin"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Route:
    """The path of a pod, and the needs that decided it; none for a plain pod bound directly."""

    path: Path
    needs: tuple[Need, ...] = ()

    @property
    def why(self) -> str:
        """One sentence for people."""
        if self.path is Path.DIRECT:
            return "asks for nothing but what Haversack itself judges"
        fields = ", ".join(need.field for need in self.needs)
        if self.path is Path.GATE_AND_PIN:
            return f"kube-scheduler judges {fields}" if fields else "has our scheduling gate"
        return "; ".join(map(str, self.needs))


@dataclass(frozen=True, slots=True)
class Claim:
    """What a PersistentVolumeClaim means for the choice of a node.

    Attributes:
        bound: it has its volume.
        late: its volume is made or chosen only after a pod has a node (WaitForFirstConsumer).
        placed: its volume can be reached from some nodes only.
        one_pod: only one pod may use it at a time.
        counted: its driver limits how many volumes a node takes.
    """

    bound: bool
    late: bool = False
    placed: bool = False
    one_pod: bool = False
    counted: bool = False


Claims = Callable[[str, str], Claim | None]
"""A claim by namespace and name; None if there is none."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What is around a pod that its own spec does not say.

    Attributes:
        claim: looks up a PersistentVolumeClaim.
        dra_resources: extended resources that only DRA serves: device classes name them, and no
            node has them in its allocatable.
        repelling: placed pods with required anti-affinity, see `Pod.constraints`.
    """

    claim: Claims
    dra_resources: frozenset[str] = frozenset()
    repelling: tuple[Pod, ...] = ()


def route_of(pod: Pod, around: Surroundings, scheduler_name: str = labels.SCHEDULER_NAME) -> Route:
    """Which path a waiting pod takes.

    The direct one is for pods of our `scheduler_name` without other needs; gate and pin for pods
    left to kube-scheduler with our gate.
    """
    needs = tuple(needs_of(pod, around))
    gated = labels.PLACEMENT_GATE in pod.gates
    if pod.scheduler_name == labels.KUBE_SCHEDULER_NAME and gated:
        return Route(Path.GATE_AND_PIN, needs)
    if pod.scheduler_name != scheduler_name:
        return Route(Path.REFUSED, (_not_ours(scheduler_name),))
    if gated:
        return Route(Path.REFUSED, (_gate_without_kube_scheduler(),))
    return Route(Path.REFUSED, needs) if needs else Route(Path.DIRECT)


def path_of(pod: Pod) -> str:
    """The path of a pod that is placed, and why, as its annotation says it."""
    if pod.scheduler_name != labels.KUBE_SCHEDULER_NAME:
        return Path.DIRECT.value
    claims = (f"PersistentVolumeClaim {name}" for name in pod.claims)
    judged = ", ".join((*(need.field for need in pod.constraints.needs), *claims))
    return f"{Path.GATE_AND_PIN}: kube-scheduler judges {judged or 'it too'}"


def needs_of(pod: Pod, around: Surroundings) -> Iterator[Need]:
    """What the pod asks for that we do not model, here and now."""
    yield from pod.constraints.needs
    for name in pod.claims:
        yield from _volume_needs(pod, name, around.claim)
    named = [name for name, _ in pod.extras]
    for name in (*((pod.gpu_resource,) if pod.gpu_resource else ()), *named):
        if name in around.dra_resources or name.startswith(_IMPLICIT_DEVICE_CLASS):
            yield Need(f"the request for {name}, which only DRA serves here")
    for other in around.repelling:
        if other.ref != pod.ref and _repels(other, pod):
            yield Need(f"the required anti-affinity of pod {other.ref.namespace}/{other.ref.name}")
            return


def dra_resources(device_classes: Iterable[Json], offered: Iterable[str]) -> frozenset[str]:
    """Extended resources that only DRA serves.

    Args:
        device_classes: the cluster's DeviceClass objects.
        offered: names of the resources that some node has in its allocatable.
    """
    names = (text(mapping(each.get("spec")).get("extendedResourceName")) for each in device_classes)
    return frozenset(name for name in names if name) - frozenset(offered)


def claim_of(
    claim: Json, volume: Json | None, storage_class: Json | None, counted: frozenset[str]
) -> Claim:
    """What a claim means; total over any input.

    Args:
        claim: the PersistentVolumeClaim.
        volume: the PersistentVolume it is bound to, None if unknown or unbound.
        storage_class: its class, None if it has none; an unknown one counts as late.
        counted: CSI drivers for which some node's CSINode has a limit.
    """
    spec = mapping(claim.get("spec"))
    bound = mapping(claim.get("status")).get("phase") == "Bound" and bool(spec.get("volumeName"))
    mode = text(mapping(storage_class).get("volumeBindingMode")) or "Immediate"
    return Claim(
        bound=bound,
        late=mode != "Immediate" or (storage_class is None and bool(spec.get("storageClassName"))),
        placed=bound and (volume is None or _placed(volume)),
        one_pod=_ONE_POD in texts(spec.get("accessModes")),
        counted=text(mapping(mapping(mapping(volume).get("spec")).get("csi")).get("driver"))
        in counted,
    )


def counted_drivers(csi_nodes: Iterable[Json]) -> frozenset[str]:
    """CSI drivers that limit how many of their volumes some node takes."""
    return frozenset(
        text(driver.get("name"))
        for node in csi_nodes
        for _, driver in mappings(mapping(node.get("spec")).get("drivers"))
        if mapping(driver.get("allocatable")).get("count") is not None
    )


def _placed(volume: Json) -> bool:
    """By node affinity, or by the labels that the VolumeZone plugin reads."""
    if mapping(mapping(volume.get("spec")).get("nodeAffinity")).get("required"):
        return True
    named = mapping(mapping(volume.get("metadata")).get("labels"))
    return any(
        key.startswith(("topology.kubernetes.io/", "failure-domain.beta.kubernetes.io/"))
        for key in named
    )


def _volume_needs(pod: Pod, name: str, claims: Claims) -> Iterator[Need]:
    claim, field = claims(pod.ref.namespace, name), f"PersistentVolumeClaim {name}"
    if claim is None:
        yield Need(field, "it does not exist (yet) or cannot be read; create it")
    elif not claim.bound and claim.late:
        yield Need(f"{field}, which gets its volume only with a node (WaitForFirstConsumer)")
    elif not claim.bound:
        yield Need(field, "it has no volume yet; the pod is placed once it is bound")
    elif claim.placed:
        yield Need(f"{field}, whose volume only some nodes reach")
    elif claim.one_pod:
        yield Need(f"{field}, which is {_ONE_POD}")
    elif claim.counted:
        yield Need(f"{field}, whose driver limits the volumes of a node")


def _repels(other: Pod, pod: Pod) -> bool:
    named = dict(pod.labels)
    return any(each.repels(pod.ref.namespace, named) for each in other.constraints.repulsions)


def _not_ours(scheduler_name: str) -> Need:
    return Need(
        "spec.schedulerName", f"it is another scheduler's; {scheduler_name} is the name we serve"
    )


def _gate_without_kube_scheduler() -> Need:
    return Need(
        "spec.schedulingGates",
        f"the gate {labels.PLACEMENT_GATE} goes with schedulerName {labels.KUBE_SCHEDULER_NAME};"
        " create the pod without the gate, or with that name",
    )
