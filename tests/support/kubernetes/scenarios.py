"""Random clusters and pods for comparing schedulers: every field that a filter reads appears often.

Amounts, labels, taints and ports are drawn from few values, so that about as much fits as does not.
One seed gives one sequence of scenarios.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from support.kubernetes import objects
from support.kubernetes.objects import Json

NODES = 16
PLACED = 40
SCHEDULER = "haversack"
_FPGA = "example.com/fpga"
_GPU = "nvidia.com/gpu"
_HUGE = "hugepages-2Mi"
_DISK = "ephemeral-storage"
_CLASSES: tuple[tuple[str, Json, Json], ...] = (
    ("light", {"cpu": "150m", "memory": "100Mi"}, {}),
    ("heavy", {"cpu": "2500m", "memory": "3Gi", _DISK: "1Gi"}, {}),
    (
        "placed",
        {"cpu": "10m"},
        {
            "nodeSelector": {"disk": "ssd"},
            "tolerations": [{"key": "team", "operator": "Exists", "effect": "NoSchedule"}],
        },
    ),
)
_LABELS = {
    "zone": ("a", "b", "c"),
    "disk": ("ssd", "hdd"),
    "rank": ("1", "5", "9", "007", "high", ""),
    "big": ("9223372036854775807", "9223372036854775808", "100000000000000000"),
}
_TAINTS = (("team", "a"), ("team", "b"), ("spot", ""), ("maintenance", "true"))
_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
_ADDRESSES = ("", "0.0.0.0", "127.0.0.1", "10.0.0.7", "::", "::1")
_PROTOCOLS = ("TCP", "UDP", "SCTP")
_PORTS = (80, 443)


class Standing(StrEnum):
    """How a placed pod came to its node, and what it takes there."""

    FOREIGN = "foreign"
    OURS = "ours"
    ENDED = "ended"
    LEAVING = "leaving"
    RESIZING = "resizing"


_STANDING = {
    Standing.FOREIGN: 5,
    Standing.OURS: 5,
    Standing.ENDED: 1,
    Standing.LEAVING: 1,
    Standing.RESIZING: 2,
}
"""How often each is drawn."""


@dataclass(frozen=True, slots=True)
class Resize:
    """A pod that is being resized in place, as patches of its spec and its status."""

    spec: Json
    status: Json


@dataclass(frozen=True, slots=True)
class Placed:
    """A pod that is on a node already.

    Attributes:
        resize: for one that is being resized, how far that is.
    """

    body: Json
    node_name: str
    standing: Standing
    resize: Resize | None = None


@dataclass(frozen=True, slots=True)
class Population:
    """A cluster: its nodes, and pods on them."""

    nodes: tuple[Json, ...]
    placed: tuple[Placed, ...]


def runtime_classes() -> list[Json]:
    """The classes that pods name: overhead cannot be had without one."""
    return [
        {
            "apiVersion": "node.k8s.io/v1",
            "kind": "RuntimeClass",
            "metadata": {"name": name},
            "handler": "runc",
            "overhead": {"podFixed": overhead},
            **({"scheduling": scheduling} if scheduling else {}),
        }
        for name, overhead, scheduling in _CLASSES
    ]


class Scenarios:
    """Draws clusters and pods.

    Args:
        seed: of everything.
        prefix: of all names, as others may use the same cluster.

    Attributes:
        features: how often each was drawn, in pods that wait, nodes and pods that are placed.
    """

    def __init__(self, seed: int, prefix: str) -> None:
        self.features: Counter[str] = Counter()
        self._draw = random.Random(seed)
        self._prefix = prefix
        self._made = 0

    def population(self) -> Population:
        """A new cluster."""
        self._made += 1
        nodes = tuple(self._node(f"{self._prefix}-{self._made}-{i}") for i in range(NODES))
        names = [node["metadata"]["name"] for node in nodes]
        return Population(nodes, tuple(self._placed(names) for _ in range(PLACED)))

    def pod(self, nodes: Sequence[Json]) -> Json:
        """A pod that waits, and may name one of the nodes."""
        drawn = _PodDraw(self._draw, [node["metadata"]["name"] for node in nodes])
        chosen = self._draw.sample(sorted(_WAITING), self._draw.choice((1, 1, 2, 2, 3)))
        if self._draw.random() < 0.7:
            chosen += self._draw.sample(sorted(_TOLERATING), self._draw.choice((1, 2)))
        for name in chosen:
            ({**_WAITING, **_TOLERATING}[name])(drawn)
            self.features[f"pod {name}"] += 1
        return self._named(drawn.finished(), SCHEDULER)

    def _named(self, spec: Json, scheduler: str) -> Json:
        self._made += 1
        made = objects.pod(f"{self._prefix}-{self._made}", scheduler=scheduler)
        made["spec"].update(spec)
        return made

    def _node(self, name: str) -> Json:
        draw = self._draw
        extras: dict[str, str] = {}
        for resource, amounts in (
            (_DISK, ("10Gi", "20G")),
            (_FPGA, ("1", "2", "4")),
            (_HUGE, ("64Mi", "128Mi")),
        ):
            if draw.random() < 0.6:
                extras[resource] = draw.choice(amounts)
        labels = {
            key: draw.choice(values) for key, values in _LABELS.items() if draw.random() < 0.7
        }
        taints = [_taint(draw) for _ in range(draw.choice((0, 0, 0, 1, 2)))]
        taints = list({(each["key"], each["effect"]): each for each in taints}.values())
        made = objects.node(
            name,
            gpus=draw.choice((0, 0, 1, 2, 4)),
            cpu=draw.choice(("4", "7.5", "8", "15890m", "16")),
            memory=draw.choice(("8Gi", "16Gi", "16500000Ki", "34359738368", "31G")),
            pods=draw.choice((3, 5, 110, 110)),
            labels=labels,
            taints=taints,
            unschedulable=draw.random() < 0.1,
            extras=extras,
        )
        for effect in _EFFECTS:
            self.features[f"node taint {effect}"] += sum(t["effect"] == effect for t in taints)
        self.features["node unschedulable"] += made["spec"].get("unschedulable", False)
        self.features["node few pods"] += made["status"]["allocatable"]["pods"] != "110"
        return made

    def _placed(self, names: Sequence[str]) -> Placed:
        (standing,) = self._draw.choices(list(_STANDING), list(_STANDING.values()))
        drawn, resize = _PodDraw(self._draw, names), None
        if standing is Standing.RESIZING:
            resize = _resize(drawn)
        else:
            may_have = _ROOM if standing is not Standing.ENDED else _ROOM.keys() - _PORTED
            for name in self._draw.sample(sorted(may_have), self._draw.choice((1, 1, 2, 3))):
                _ROOM[name](drawn)
                self.features[f"placed {name}"] += 1
        self.features[f"placed {standing}"] += 1
        body = self._named(drawn.finished(), "nobody")
        return Placed(body, self._draw.choice(names), standing, resize)


def _taint(draw: random.Random) -> Json:
    key, value = draw.choice(_TAINTS)
    taint = {"key": key, "effect": draw.choice(_EFFECTS)}
    return {**taint, "value": value} if value else taint


class _PodDraw:
    """The spec of one pod while features are added to it."""

    def __init__(self, draw: random.Random, nodes: Sequence[str]) -> None:
        self.draw = draw
        self.nodes = nodes
        self.spec: Json = {"containers": [_container("main")]}
        self.terms: list[Json] = []

    def finished(self) -> Json:
        """The spec, whole."""
        if self.terms:
            required = {"nodeSelectorTerms": self.terms}
            key = "requiredDuringSchedulingIgnoredDuringExecution"
            self.spec["affinity"] = {"nodeAffinity": {key: required}}
        if "resources" in self.spec:
            _cover(self.spec)
        return self.spec

    def ask(
        self, container: Json, resource: str, amounts: Sequence[str], where: str = "requests"
    ) -> None:
        """Have a container ask for one of the amounts."""
        container["resources"].setdefault(where, {})[resource] = self.draw.choice(amounts)

    def more(self, kind: str, **fields: Any) -> Json:
        """One more container."""
        found: list[Json] = self.spec.setdefault(kind, [])
        found.append(_container(f"{kind.lower()}-{len(found)}", **fields))
        return found[-1]

    def require(self, operator: str, values: Callable[[str], Sequence[str]]) -> None:
        """A requirement on a label, in a new term or in one that is there."""
        key = self.draw.choice(sorted(_LABELS))
        written: Json = {"key": key, "operator": operator}
        if found := list(values(key)):
            written["values"] = found
        self.term().setdefault("matchExpressions", []).append(written)

    def on_name(self, operator: str) -> None:
        """A requirement on the node's name, which may be that of no node."""
        name = self.draw.choice([*self.nodes, "no-such-node"])
        written = {"key": "metadata.name", "operator": operator, "values": [name]}
        self.term().setdefault("matchFields", []).append(written)

    def term(self) -> Json:
        """A term of the affinity; each is one more chance of a node."""
        if not self.terms or self.draw.random() < 0.4:
            self.terms.append({})
        return self.draw.choice(self.terms)

    def values_of(self, key: str) -> list[str]:
        """Some values of a label."""
        known = [*_LABELS[key], "elsewhere"]
        return self.draw.sample(known, self.draw.choice((1, 2)))

    def tolerate(self, **toleration: Any) -> None:
        self.spec.setdefault("tolerations", []).append(toleration)

    def effect(self) -> dict[str, str]:
        return {"effect": self.draw.choice(_EFFECTS)}


def _container(name: str, **fields: Any) -> Json:
    return {"name": name, "image": "registry.example/work:1", "resources": {}, **fields}


def _cover(spec: Json) -> None:
    """A pod's own requests may not be less than its containers': these then ask for none."""
    asked = spec["resources"]["requests"]
    for container in (*spec["containers"], *spec.get("initContainers", ())):
        for where in ("requests", "limits"):
            amounts = container["resources"].get(where, {})
            for resource in set(amounts) & set(asked):
                del amounts[resource]


# --- Features -------------------------------------------------------------------------------------


def _cpu(drawn: _PodDraw) -> None:
    drawn.ask(drawn.spec["containers"][0], "cpu", ("100m", "0.5", "1", "2500m", "6", "12"))


def _memory(drawn: _PodDraw) -> None:
    amounts = ("256Mi", "1G", "2Gi", "6Gi", "7500000k", "20Gi")
    drawn.ask(drawn.spec["containers"][0], "memory", amounts)


def _limits_only(drawn: _PodDraw) -> None:
    container = drawn.more("containers")
    drawn.ask(container, "cpu", ("300m", "3"), "limits")
    drawn.ask(container, "memory", ("512Mi", "4Gi"), "limits")


def _many_containers(drawn: _PodDraw) -> None:
    for _ in range(drawn.draw.choice((2, 3))):
        container = drawn.more("containers")
        drawn.ask(container, "cpu", ("100m", "1", "2"))
        drawn.ask(container, "memory", ("128Mi", "1Gi", "3Gi"))


def _resize(drawn: _PodDraw) -> Resize:
    """Somewhere between what it had, what was promised and what is wished for."""
    draw = drawn.draw
    amounts: list[Json] = [
        {"cpu": draw.choice(("100m", "1", "3")), "memory": draw.choice(("128Mi", "2G", "5Gi"))}
        for _ in range(4)
    ]
    before, wished, allocated, actual = amounts
    (container,) = drawn.spec["containers"]
    container["resources"] = {"requests": before}
    reason = draw.choice(("", "Deferred", "Infeasible"))
    pending = {"type": "PodResizePending", "status": "True", "reason": reason}
    seen = {
        "name": "main",
        "image": container["image"],
        "imageID": "",
        "ready": True,
        "restartCount": 0,
        "resources": {"requests": actual},
        "allocatedResources": allocated,
    }
    return Resize(
        {"containers": [{"name": "main", "resources": {"requests": wished}}]},
        {
            "phase": "Running",
            "conditions": [pending] if reason else [],
            "containerStatuses": [seen],
        },
    )


def _init(drawn: _PodDraw) -> None:
    container = drawn.more("initContainers")
    drawn.ask(container, "cpu", ("1", "4", "9"))
    drawn.ask(container, "memory", ("1Gi", "9Gi"))


def _sidecar(drawn: _PodDraw) -> None:
    container = drawn.more("initContainers", restartPolicy="Always")
    drawn.ask(container, "cpu", ("200m", "2"))
    drawn.ask(container, "memory", ("200Mi", "3Gi"))
    if drawn.draw.random() < 0.5:
        _init(drawn)


def _sidecar_port(drawn: _PodDraw) -> None:
    container = drawn.more("initContainers", restartPolicy="Always")
    container["ports"] = [_port(drawn.draw)]


def _overhead(drawn: _PodDraw) -> None:
    drawn.spec["runtimeClassName"] = drawn.draw.choice(("light", "heavy"))


def _class_scheduling(drawn: _PodDraw) -> None:
    drawn.spec["runtimeClassName"] = "placed"
    drawn.spec.pop("nodeSelector", None)  # it may not contradict that of the class


def _pod_level(drawn: _PodDraw) -> None:
    requests = {"cpu": drawn.draw.choice(("500m", "3", "7"))}
    if drawn.draw.random() < 0.7:
        requests["memory"] = drawn.draw.choice(("600Mi", "5Gi", "9G"))
    drawn.spec["resources"] = {"requests": requests}


def _gpus(drawn: _PodDraw) -> None:
    drawn.ask(drawn.spec["containers"][0], _GPU, ("1", "2", "4"), "limits")


def _devices(drawn: _PodDraw) -> None:
    drawn.ask(drawn.spec["containers"][0], _FPGA, ("1", "2"), "limits")
    if drawn.draw.random() < 0.3:
        drawn.ask(drawn.more("initContainers"), _FPGA, ("1", "3"), "limits")


def _hugepages(drawn: _PodDraw) -> None:
    container = drawn.more("containers")
    drawn.ask(container, _HUGE, ("2Mi", "64Mi", "100Mi"), "limits")
    drawn.ask(container, "cpu", ("100m",))


def _disk(drawn: _PodDraw) -> None:
    drawn.ask(drawn.spec["containers"][0], _DISK, ("500M", "4Gi", "11Gi"))


def _port(draw: random.Random) -> Json:
    number = draw.choice(_PORTS)
    port = {"containerPort": number, "hostPort": number, "protocol": draw.choice(_PROTOCOLS)}
    address = draw.choice(_ADDRESSES)
    return {**port, "hostIP": address} if address else port


def _host_port(drawn: _PodDraw) -> None:
    container = drawn.more("containers")
    found = [_port(drawn.draw) for _ in range(drawn.draw.choice((1, 2)))]
    unique = {(each["hostPort"], each["protocol"], each.get("hostIP")): each for each in found}
    container["ports"] = list(unique.values())


def _host_network(drawn: _PodDraw) -> None:
    drawn.spec["hostNetwork"] = True
    container = drawn.more("containers")
    container["ports"] = [{"containerPort": drawn.draw.choice(_PORTS)}]
    for other in (*drawn.spec["containers"], *drawn.spec.get("initContainers", ())):
        for port in other.get("ports", ()):
            port.pop("hostIP", None)


def _selector(drawn: _PodDraw) -> None:
    if drawn.spec.get("runtimeClassName") != "placed":
        key = drawn.draw.choice(sorted(_LABELS))
        drawn.spec["nodeSelector"] = {key: drawn.draw.choice(_LABELS[key])}


def _number(drawn: _PodDraw) -> str:
    return drawn.draw.choice(("0", "4", "5", "8", "+5", "9223372036854775807", "1" * 17, "high"))


_AFFINITY: Mapping[str, Callable[[_PodDraw], None]] = {
    "affinity In": lambda drawn: drawn.require("In", drawn.values_of),
    "affinity NotIn": lambda drawn: drawn.require("NotIn", drawn.values_of),
    "affinity Exists": lambda drawn: drawn.require("Exists", lambda _: ()),
    "affinity DoesNotExist": lambda drawn: drawn.require("DoesNotExist", lambda _: ()),
    "affinity Gt": lambda drawn: drawn.require("Gt", lambda _: (_number(drawn),)),
    "affinity Lt": lambda drawn: drawn.require("Lt", lambda _: (_number(drawn),)),
    "affinity name In": lambda drawn: drawn.on_name("In"),
    "affinity name NotIn": lambda drawn: drawn.on_name("NotIn"),
    "affinity empty term": lambda drawn: drawn.terms.append({}),
}
_ROOM: Mapping[str, Callable[[_PodDraw], None]] = {
    "cpu": _cpu,
    "memory": _memory,
    "limits only": _limits_only,
    "containers": _many_containers,
    "init container": _init,
    "sidecar": _sidecar,
    "overhead": _overhead,
    "pod level": _pod_level,
    "GPUs": _gpus,
    "devices": _devices,
    "hugepages": _hugepages,
    "ephemeral storage": _disk,
    "host port": _host_port,
    "host port of a sidecar": _sidecar_port,
    "host network": _host_network,
}
_PORTED = {"host port", "host port of a sidecar", "host network"}
"""Not of pods that end: placed pods may collide here, and kube-scheduler keeps a node's ports as a
set, so that the end of one pod would free those that another has still."""
_WAITING: Mapping[str, Callable[[_PodDraw], None]] = {
    **_ROOM,
    **_AFFINITY,
    "selector": _selector,
    "runtime class with scheduling": _class_scheduling,
}


def _equal(drawn: _PodDraw) -> None:
    key, value = drawn.draw.choice(_TAINTS)
    drawn.tolerate(key=key, operator="Equal", value=value, **drawn.effect())


def _forever(drawn: _PodDraw) -> None:
    key, _ = drawn.draw.choice(_TAINTS)
    drawn.tolerate(key=key, operator="Exists", effect="NoExecute", tolerationSeconds=30)


_TOLERATING: Mapping[str, Callable[[_PodDraw], None]] = {
    "tolerates Equal": _equal,
    "tolerates Exists": lambda drawn: drawn.tolerate(
        key=drawn.draw.choice(_TAINTS)[0], operator="Exists", **drawn.effect()
    ),
    "tolerates any effect": lambda drawn: drawn.tolerate(
        key=drawn.draw.choice(_TAINTS)[0], operator="Exists"
    ),
    "tolerates any key": lambda drawn: drawn.tolerate(operator="Exists", **drawn.effect()),
    "tolerates everything": lambda drawn: drawn.tolerate(operator="Exists"),
    "tolerates by default operator": lambda drawn: drawn.tolerate(
        key="maintenance", value="true", **drawn.effect()
    ),
    "tolerates for some time": _forever,
    "tolerates unschedulable": lambda drawn: drawn.tolerate(
        key="node.kubernetes.io/unschedulable", operator="Exists", effect="NoSchedule"
    ),
}
