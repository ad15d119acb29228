"""What pods of one template have in common, read once for all of them.

Thousands of pods are made from one template. What they take of a node and what they ask of a place
is most of the work of reading a pod, and the same for all: so it is remembered by the parts of the
object that decide it. Names of volumes, environments and commands, which may differ, do not.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import orjson

from scheduler.execution.kubernetes.constraints import DISKS, Constraints, constraints_of
from scheduler.execution.kubernetes.raw import Json, mappings, text, whole
from scheduler.execution.kubernetes.requests import requests_of
from scheduler.model.quantity import Resources
from scheduler.model.site import PORT_WHOLE, Amounts, port_amounts

_KEPT: Final = 4096
_PORT_MAX = 65_535
_APART = frozenset({"nodeName", "hostname", "containers", "initContainers", "volumes"})
"""Fields of the spec that pods of one template differ in, or that are kept in part only."""
_OF_CONTAINER = frozenset({"name", "resources", "ports", "restartPolicy"})
_OF_STATUS = frozenset({"name", "resources", "allocatedResources"})


@dataclass(frozen=True, slots=True)
class Template:
    """What a pod's template says of its place.

    Attributes:
        needs: GPUs, CPU and memory that each pod takes, rounded up.
        extras: the rest: one of `pods`, host ports, devices; sorted.
        gpu_resource: the resource that its GPUs are, or "".
        problems: what could not be read, with field paths.
    """

    needs: Resources
    extras: Amounts
    gpu_resource: str
    constraints: Constraints
    problems: tuple[str, ...]


def template_of(spec: Json, status: Json, namespace: str) -> Template:
    """The template that a pod was made from, as far as it decides on its place.

    Total over any input. About 10 us where another pod of it was read, else 60 us.

    Args:
        spec: the pod's `spec`.
        status: its `status`, for resizes in place.
        namespace: the pod's, which its anti-affinity is about.
    """
    try:
        return _read_once(orjson.dumps((_of_spec(spec), _of_status(status), namespace)))
    except TypeError:  # no JSON, such as an integer beyond 64 bits
        return _read(spec, status, namespace)


@lru_cache(maxsize=_KEPT)
def _read_once(written: bytes) -> Template:
    return _read(*orjson.loads(written))


def _read(spec: Json, status: Json, namespace: str) -> Template:
    asked = requests_of(spec, status)
    constraints = constraints_of(spec, namespace, asked.gpu_resource)
    ports, port_problems = _ports(spec)
    extras = tuple(sorted((*asked.extras, *ports))) if ports else asked.extras
    problems = (*asked.problems, *constraints.problems, *port_problems)
    return Template(asked.needs, extras, asked.gpu_resource, constraints, problems)


def _of_spec(spec: Json) -> Json:
    kept = {name: value for name, value in spec.items() if name not in _APART}
    for name in ("containers", "initContainers"):
        if name in spec:
            kept[name] = _each(spec[name], _OF_CONTAINER)
    if "volumes" in spec:
        kept["volumes"] = _each(spec["volumes"], DISKS)
    return kept


def _of_status(status: Json) -> Json:
    kept = {name: status[name] for name in _OF_STATUS if name in status}
    for name in ("containerStatuses", "initContainerStatuses"):
        if name in status:
            kept[name] = _each(status[name], _OF_STATUS)
    resizes = [
        condition
        for _, condition in mappings(status.get("conditions"))
        if condition.get("type") == "PodResizePending"
    ]
    return kept | {"conditions": resizes} if resizes else kept


def _each(written: Any, names: frozenset[str]) -> Any:
    """These fields of each object of a list; what is no list of objects stays as it is."""
    if not isinstance(written, list):
        return written
    return [
        {name: each[name] for name in names if name in each} if isinstance(each, dict) else each
        for each in written
    ]


def _ports(spec: Json) -> tuple[Amounts, tuple[str, ...]]:
    """Host ports of containers and sidecars; a pod's own ports do not collide with each other."""
    wanted: set[tuple[str, int, str]] = set()
    problems: list[str] = []
    for kind in ("containers", "initContainers"):
        for at, container in mappings(spec.get(kind)):
            if kind == "initContainers" and container.get("restartPolicy") != "Always":
                continue
            for number, port in mappings(container.get("ports")):
                host = port.get("hostPort")
                if not host:
                    continue
                if not 0 < whole(host) <= _PORT_MAX:
                    problems.append(f"spec.{kind}[{at}].ports[{number}].hostPort: no port number")
                    continue
                protocol = text(port.get("protocol")) or "TCP"
                wanted.add((protocol, whole(host), text(port.get("hostIP"))))
    total: Counter[str] = Counter()
    for protocol, number, address in wanted:
        total.update(dict(port_amounts(protocol, number, address)))
    bounded = ((name, min(amount, PORT_WHOLE)) for name, amount in total.items())
    return tuple(sorted(bounded)), tuple(problems)
