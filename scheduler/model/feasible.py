"""Could this gang ever start here? Judged against the nodes as declared, all of them empty.

The answer is deliberately generous: health, cordons, taints and use are ignored, and per-node
counts are exact only resource by resource of identical tasks, which is what a gang is. So a refusal
is a proof, and everything that is not refused may wait.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from scheduler.model.job import JobShape, Topology
from scheduler.model.node import Gpu, Node
from scheduler.model.plan import Reason, ReasonCode
from scheduler.model.quantity import WHOLE_GPU_MILLI
from scheduler.model.site import implied_capacity, resource_label, unit_size

_UNITS = {"gpus": "gpus", "cpu_milli": "thousandths of a cpu", "memory_mib": "MiB of memory"}
"""Dimension -> how a message names its amount; in the order in which nodes are filtered."""


_UNBOUNDED = 2**31
"""Tasks that a node holds when they need nothing."""


@dataclass(frozen=True, slots=True)
class _Offer:
    """What an empty node, or one NVLink domain of it, could give a shape.

    Attributes:
        gpus: acceptable GPUs of each model, since a task's GPUs are of one; for a shape that shares
            GPUs, the shares that all of them hold, as one number.
        others: of all other dimensions.
    """

    gpus: tuple[int, ...]
    others: Mapping[str, int]

    def largest(self, dimension: str) -> int:
        """The most of a dimension in one piece."""
        return max(self.gpus, default=0) if dimension == "gpus" else self.others[dimension]

    def total(self, dimension: str) -> int:
        """All there is of a dimension."""
        return sum(self.gpus) if dimension == "gpus" else self.others[dimension]

    def tasks(self, needs: Mapping[str, int]) -> int:
        """Tasks that fit when each takes these amounts, its GPUs all of one model."""
        counts = [
            sum(gpus // need for gpus in self.gpus)
            if dimension == "gpus"
            else self.others[dimension] // need
            for dimension, need in needs.items()
            if need > 0
        ]
        return min(counts, default=_UNBOUNDED)


def never_fits(shape: JobShape, nodes: Sequence[Node]) -> Reason | None:
    """The reason why `shape` cannot start even on empty `nodes`, or None when it could.

    An elastic gang is judged by its smallest size.

    Args:
        shape: what the gang asks.
        nodes: every present node, whatever its health. Without nodes nothing can be proved, so
            the answer is None: nodes may still join.

    Returns:
        A `NEVER_FITS` reason whose `dimension` is `gpus`, `cpu_milli`, `memory_mib`, the name of a
        further resource, or `nodes` (the gang as a whole needs more nodes, or others than there
        are), or None. Numbers of a shape that shares GPUs are in shares.

    Cost: O(nodes x GPUs per node); `same-nvlink` adds the domain search, O(GPUs**2) per node.
    """
    if not nodes:
        return None
    pool = [node for node in nodes if shape.pool is None or node.pool == shape.pool]
    if not pool:
        return Reason(
            ReasonCode.NEVER_FITS,
            f"no node belongs to pool {shape.pool!r} (dimension nodes)",
            dimension="nodes",
            need=1,
        )
    if shape.site.demands:
        pool = [node for node in pool if shape.site.selects(node.name, dict(node.labels))]
        if not pool:
            return _nobody_selected(shape, nodes)
    offers = [_offer(shape, node) for node in pool]
    reason = _models_missing(shape, offers) or _piece_too_big(shape, "task", 1, offers)
    if reason is not None:
        return reason
    if shape.topology.one_node:
        return _one_node_too_small(shape, pool, offers)
    if shape.topology is Topology.SAME_RACK:
        return _too_few(shape, _racks(pool, offers), "one rack")
    return _too_few(shape, [offers], "all nodes together")


def _nobody_selected(shape: JobShape, nodes: Sequence[Node]) -> Reason:
    """No node of the pool is one that the site asks for; names a demand that no node meets."""
    site = shape.site
    missing = [each for each in site.selector if all(each not in n.labels for n in nodes)]
    if site.node_name and all(node.name != site.node_name for node in nodes):
        message = f"there is no node {site.node_name}"
    elif missing:
        (key, value), *_ = missing
        message = f"no node matches its node selector: none has the label {key}={value}"
    elif site.selector or site.node_name:
        message = "no node matches its node selector"
    else:
        message = "no node matches its node affinity"
    return Reason(ReasonCode.NEVER_FITS, f"{message} (dimension nodes)", dimension="nodes", need=1)


def _needs(shape: JobShape) -> dict[str, int]:
    """What one task takes of an offer, by dimension: of a shared GPU, one share."""
    need = shape.per_task
    return {
        "gpus": 1 if shape.gpu_milli else need.gpus,
        "cpu_milli": need.cpu_milli,
        "memory_mib": need.memory_mib,
        **dict(shape.extras),
    }


def _unit(shape: JobShape, dimension: str) -> str:
    if dimension == "gpus" and shape.gpu_milli:
        return f"shares of {shape.gpu_milli} thousandths of a gpu"
    return _UNITS.get(dimension) or resource_label(dimension)


def _offer(shape: JobShape, node: Node, gpus: Iterable[Gpu] | None = None) -> _Offer:
    """What the empty node could give this shape, all its GPUs or these."""
    models = Counter(
        gpu.model
        for gpu in (node.gpus if gpus is None else gpus)
        if not shape.gpu_models or gpu.model in shape.gpu_models
    )
    counts = tuple(models.values())
    if shape.gpu_milli:
        counts = (sum(counts) * (WHOLE_GPU_MILLI // shape.gpu_milli),)
    others = {"cpu_milli": node.capacity.cpu_milli, "memory_mib": node.capacity.memory_mib}
    if shape.extras:
        offered = dict(node.extras)
        for name, _ in shape.extras:
            others[name] = offered.get(name, implied_capacity(name))
    return _Offer(counts, others)


def _models_missing(shape: JobShape, offers: Sequence[_Offer]) -> Reason | None:
    """GPUs are asked, of named models, and nobody has one."""
    need = _needs(shape)["gpus"] * shape.tasks
    if not need or not shape.gpu_models or any(offer.largest("gpus") for offer in offers):
        return None
    return Reason(
        ReasonCode.NEVER_FITS,
        f"no node has a GPU of model {' or '.join(shape.gpu_models)} (dimension gpus)",
        dimension="gpus",
        need=need,
    )


def _piece_too_big(
    shape: JobShape, asker: str, tasks: int, offers: Sequence[_Offer], place: str = "node"
) -> Reason | None:
    """So many tasks must sit in one of `offers`; names the first dimension that rules out all."""
    left = list(offers)
    passed: list[str] = []
    for dimension, each in _needs(shape).items():
        one = unit_size(dimension)
        wanted = each * tasks
        largest = max(offer.largest(dimension) for offer in left)
        if wanted > largest:
            among = f" that has enough {' and '.join(passed)}" if passed else ""
            return Reason(
                ReasonCode.NEVER_FITS,
                f"{asker} asks {-(-wanted // one)} {_unit(shape, dimension)}; the largest "
                f"{place}{among} has {largest // one} (dimension {dimension})",
                dimension=dimension,
                need=-(-wanted // one),
                free=sum(offer.total(dimension) for offer in left) // one,
                largest_block=largest // one,
            )
        if wanted:
            left = [offer for offer in left if offer.largest(dimension) >= wanted]
            if len(left) < len(offers):
                passed.append(dimension)
    return None


def _one_node_too_small(
    shape: JobShape, pool: Sequence[Node], offers: Sequence[_Offer]
) -> Reason | None:
    """The gang must sit on one node, for `same-nvlink` inside one of its NVLink domains."""
    asker = f"the gang of {shape.tasks} tasks with topology {shape.topology}"
    if shape.topology is Topology.SAME_NVLINK and _needs(shape)["gpus"]:
        inside = [offer for node in pool for offer in _domains(shape, node)]
        return _piece_too_big(shape, asker, shape.tasks, inside, place="NVLink domain of a node")
    return _piece_too_big(shape, asker, shape.tasks, offers)


def _domains(shape: JobShape, node: Node) -> list[_Offer]:
    """What each NVLink domain of the node offers; without link data each GPU is alone."""
    domains = node.links.domains() or [frozenset({gpu.index}) for gpu in node.gpus]
    return [
        _offer(shape, node, [gpu for gpu in node.gpus if gpu.index in domain])
        for domain in domains or [frozenset()]
    ]


def _racks(pool: Sequence[Node], offers: Sequence[_Offer]) -> list[list[_Offer]]:
    """Offers by rack; a node whose rack is unknown shares it with nobody."""
    racks: dict[str, list[_Offer]] = {}
    alone: list[list[_Offer]] = []
    for node, offer in zip(pool, offers, strict=True):
        if node.rack:
            racks.setdefault(node.rack, []).append(offer)
        else:
            alone.append([offer])
    return [*racks.values(), *alone]


def _too_few(shape: JobShape, groups: Sequence[Sequence[_Offer]], where: str) -> Reason | None:
    """No group of nodes holds all tasks at once, though each task alone fits some node."""
    need = _needs(shape)
    rooms = [sum(offer.tasks(need) for offer in group) for group in groups]
    room = max(rooms)
    if room >= shape.tasks:
        return None
    best = groups[rooms.index(room)]
    dimension = _limiting(shape, best)
    if dimension is None:
        return Reason(
            ReasonCode.NEVER_FITS,
            f"the gang asks {shape.tasks} tasks at once; {where} can hold {room} (dimension nodes)",
            dimension="nodes",
            need=shape.tasks,
            free=room,
            largest_block=room,
        )
    unit, one = _unit(shape, dimension), unit_size(dimension)
    per_task = -(-need[dimension] // one)
    total = sum(offer.total(dimension) for offer in best) // one
    return Reason(
        ReasonCode.NEVER_FITS,
        f"the gang asks {shape.tasks} tasks x {per_task} {unit} = {shape.tasks * per_task}; "
        f"{where} can hold {room} such tasks, of {total} {unit} (dimension {dimension})",
        dimension=dimension,
        need=shape.tasks * per_task,
        free=total,
        largest_block=max(offer.largest(dimension) for offer in best) // one,
    )


def _limiting(shape: JobShape, offers: Sequence[_Offer]) -> str | None:
    """The dimension that alone admits too few tasks, scarcest first; None when only all do."""
    rooms = {
        dimension: sum(offer.tasks({dimension: need}) for offer in offers)
        for dimension, need in _needs(shape).items()
        if need > 0
    }
    scarce = min(rooms, key=rooms.__getitem__, default=None)
    return scarce if scarce is not None and rooms[scarce] < shape.tasks else None
