"""What a pod takes of its node, computed as kube-scheduler computes it.

Rules (`PodRequests` in `k8s.io/component-helpers/resource`, Kubernetes 1.36), resource by resource:

1. requests of the containers and of sidecars (init containers with `restartPolicy: Always`) add;
2. while starting, each init container runs beside the sidecars before it; the peak of that counts
   if it is more;
3. requests of the pod itself (`spec.resources`) replace the result for CPU, memory and huge pages;
4. `spec.overhead` comes on top.

A running container may be resized in place: until that is done it counts with the most of what is
asked for, what it has and what was promised; an infeasible wish does not count. Limits never count:
the API server has written them into the requests where those were absent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from scheduler.execution.kubernetes import labels, quantity
from scheduler.execution.kubernetes.raw import Json, mapping, mappings, text
from scheduler.model.quantity import Resources
from scheduler.model.site import Amounts

Nanos = dict[str, int]
"""Billionths of each resource's unit by its name."""

MACHINE_MAX: Final = 2**31 - 1
"""Thousandths of a core, or MiB. No machine has as much; more counts as this."""
GPUS_MAX: Final = 2**20
EXTRAS_MAX: Final = 2**50

_POD_LEVEL = (labels.CPU, labels.MEMORY)


@dataclass(frozen=True, slots=True)
class Requests:
    """What one pod takes.

    Attributes:
        needs: GPUs of `gpu_resource`, CPU and memory, each rounded up.
        gpu_resource: the resource that its GPUs are, or "" without any.
        extras: all other resources in their own units (bytes, pieces) and one of `pods`; sorted.
        problems: field path and fault of each amount that could not be taken as written.
    """

    needs: Resources
    gpu_resource: str
    extras: Amounts
    problems: tuple[str, ...] = ()


def requests_of(spec: Json, status: Json) -> Requests:
    """What the pod takes; total over any input, see `Requests.problems`.

    An amount that cannot be read counts as none and one that is absurd as the most there is.

    Args:
        spec: the pod's `spec`.
        status: its `status`, for resizes in place.
    """
    reading = _Reading(status)
    return _modelled(reading.pod(spec), reading.problems)


class _Reading:
    """Adds up one pod."""

    def __init__(self, status: Json) -> None:
        self.problems: list[str] = []
        self._status = status
        self._containers = {
            text(each.get("name")): each
            for kind in ("containerStatuses", "initContainerStatuses")
            for _, each in mappings(status.get(kind))
        }
        self._infeasible = _resize_infeasible(status)

    def pod(self, spec: Json) -> Nanos:
        total = self._containers_of(spec)
        overhead = self._amounts(spec.get("overhead"), "spec.overhead")
        total.update(self._pod_level(spec, overhead))
        _add(total, overhead)
        return total

    def _containers_of(self, spec: Json) -> Nanos:
        total: Nanos = {}
        for at, container in mappings(spec.get("containers")):
            _add(total, self._container(container, f"spec.containers[{at}]", resizable=True))
        beside: Nanos = {}
        peak: Nanos = {}
        for at, container in mappings(spec.get("initContainers")):
            sidecar = container.get("restartPolicy") == "Always"
            own = self._container(container, f"spec.initContainers[{at}]", resizable=sidecar)
            if sidecar:
                _add(total, own)
                _add(beside, own)
                _raise_to(peak, beside)
            else:
                _add(own, beside)
                _raise_to(peak, own)
        _raise_to(total, peak)
        return total

    def _container(self, container: Json, path: str, *, resizable: bool) -> Nanos:
        resources = mapping(container.get("resources"))
        asked = self._amounts(resources.get("requests"), f"{path}.resources.requests")
        seen = self._containers.get(text(container.get("name")))
        if not resizable or seen is None or not isinstance(seen.get("resources"), dict):
            return asked
        return self._resized(asked, seen, f"status of {path}")

    def _resized(self, asked: Nanos, seen: Json, path: str) -> Nanos:
        most = {} if self._infeasible else asked
        actual = mapping(seen.get("resources")).get("requests")
        _raise_to(most, self._amounts(actual, f"{path}.resources.requests"))
        _raise_to(most, self._amounts(seen.get("allocatedResources"), f"{path}.allocatedResources"))
        return most

    def _pod_level(self, spec: Json, overhead: Nanos) -> Nanos:
        """Requests of the pod as a whole; its status includes the overhead, its spec does not."""
        asked = self._amounts(
            mapping(spec.get("resources")).get("requests"), "spec.resources.requests"
        )
        if not any(map(_is_pod_level, asked)):
            return {}
        if self._status.get("resources") or self._status.get("allocatedResources"):
            asked = self._resized(asked, _without(self._status, overhead), "status")
        return {name: amount for name, amount in asked.items() if _is_pod_level(name)}

    def _amounts(self, written: object, path: str) -> Nanos:
        found: Nanos = {}
        for name, value in mapping(written).items():
            try:
                amount = quantity.nanos(value)
            except quantity.QuantityError as error:
                self.problems.append(f"{path}[{name}]: {error}")
                continue
            if amount < 0:
                self.problems.append(f"{path}[{name}]: {value} is negative")
            else:
                found[name] = amount
        return found


def _without(status: Json, overhead: Nanos) -> Json:
    """The pod's status with the overhead taken off, as nanos written out again."""
    actual = mapping(mapping(status.get("resources")).get("requests"))
    promised = mapping(status.get("allocatedResources"))
    return {
        "resources": {"requests": _less(actual, overhead)},
        "allocatedResources": _less(promised, overhead),
    }


def _less(amounts: Json, overhead: Nanos) -> dict[str, object]:
    left = dict(amounts)
    for name in amounts.keys() & overhead.keys():
        try:
            left[name] = f"{max(0, quantity.nanos(amounts[name]) - overhead[name])}n"
        except quantity.QuantityError:
            continue  # reported when it is read
    return left


def _is_pod_level(name: str) -> bool:
    return name in _POD_LEVEL or name.startswith(labels.HUGEPAGES)


def _resize_infeasible(status: Json) -> bool:
    for _, condition in mappings(status.get("conditions")):
        if condition.get("type") == "PodResizePending":
            return condition.get("reason") == "Infeasible"
    return False


def _add(total: Nanos, more: Mapping[str, int]) -> None:
    for name, amount in more.items():
        total[name] = total.get(name, 0) + amount


def _raise_to(total: Nanos, floor: Mapping[str, int]) -> None:
    for name, amount in floor.items():
        if amount > total.get(name, -1):
            total[name] = amount


def _modelled(total: Nanos, problems: list[str]) -> Requests:
    gpu_resource = next((name for name in labels.GPU_RESOURCES if total.get(name)), "")

    def bounded(name: str, amount: int, most: int) -> int:
        if amount > most:
            problems.append(f"requests of {name}: {amount} is more than any node has")
        return min(amount, most)

    needs = Resources(
        bounded(gpu_resource, quantity.needed(total.pop(gpu_resource, 0)), GPUS_MAX),
        bounded(labels.CPU, quantity.milli(total.pop(labels.CPU, 0)), MACHINE_MAX),
        bounded(labels.MEMORY, quantity.mib_needed(total.pop(labels.MEMORY, 0)), MACHINE_MAX),
    )
    extras = Counter({labels.PODS: 1})
    for name, amount in total.items():
        if amount and name != labels.PODS:
            extras[name] = bounded(name, quantity.needed(amount), EXTRAS_MAX)
    return Requests(needs, gpu_resource, tuple(sorted(extras.items())), tuple(problems))
