"""Could this gang ever start here? Judged against the nodes as declared, all of them empty.

The answer is deliberately generous: health, cordons and use are ignored, and per-node counts are
exact only resource by resource of identical tasks, which is what a gang is. So a refusal is a
proof, and everything that is not refused may wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from scheduler.model.job import JobShape, Topology
from scheduler.model.node import Node
from scheduler.model.plan import Reason, ReasonCode
from scheduler.model.quantity import Resources

_UNITS = {"gpus": "gpus", "cpu_milli": "thousandths of a cpu", "memory_mib": "MiB of memory"}
"""Dimension -> how a message names its amount; in the order in which nodes are filtered."""


def never_fits(shape: JobShape, nodes: Sequence[Node]) -> Reason | None:
    """The reason why `shape` cannot start even on empty `nodes`, or None when it could.

    Args:
        shape: what the gang asks.
        nodes: every present node, whatever its health. Without nodes nothing can be proved, so
            the answer is None: nodes may still join.

    Returns:
        A `NEVER_FITS` reason whose `dimension` is `gpus`, `cpu_milli`, `memory_mib` or `nodes`
        (the gang as a whole needs more nodes), or None.

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
    offers = [_offer(shape, node) for node in pool]
    reason = _models_missing(shape, offers) or _piece_too_big("task", shape.per_task, offers)
    if reason is not None:
        return reason
    if shape.topology.one_node:
        return _one_node_too_small(shape, pool)
    if shape.topology is Topology.SAME_RACK:
        return _too_few(shape, _racks(shape, pool), "one rack")
    return _too_few(shape, [offers], "all nodes together")


def _acceptable(shape: JobShape, node: Node) -> frozenset[int]:
    """Indexes of the node's GPUs that the shape accepts."""
    return frozenset(
        gpu.index for gpu in node.gpus if not shape.gpu_models or gpu.model in shape.gpu_models
    )


def _offer(shape: JobShape, node: Node) -> Resources:
    """What the empty node could give this shape."""
    return replace(node.capacity, gpus=len(_acceptable(shape, node)))


def _models_missing(shape: JobShape, offers: Sequence[Resources]) -> Reason | None:
    """GPUs are asked, of named models, and nobody has one."""
    if not shape.per_task.gpus or not shape.gpu_models or any(offer.gpus for offer in offers):
        return None
    return Reason(
        ReasonCode.NEVER_FITS,
        f"no node has a GPU of model {' or '.join(shape.gpu_models)} (dimension gpus)",
        dimension="gpus",
        need=shape.total.gpus,
    )


def _piece_too_big(
    asker: str, need: Resources, offers: Sequence[Resources], place: str = "node"
) -> Reason | None:
    """`need` must sit in one piece of `offers`; names the first dimension that rules out all."""
    left = list(offers)
    passed: list[str] = []
    for dimension, unit in _UNITS.items():
        wanted = getattr(need, dimension)
        largest = max(getattr(offer, dimension) for offer in left)
        if wanted > largest:
            among = f" that has enough {' and '.join(passed)}" if passed else ""
            return Reason(
                ReasonCode.NEVER_FITS,
                f"{asker} asks {wanted} {unit}; the largest {place}{among} has {largest} "
                f"(dimension {dimension})",
                dimension=dimension,
                need=wanted,
                free=sum(getattr(offer, dimension) for offer in left),
                largest_block=largest,
            )
        if wanted:
            left = [offer for offer in left if getattr(offer, dimension) >= wanted]
            if len(left) < len(offers):
                passed.append(dimension)
    return None


def _one_node_too_small(shape: JobShape, pool: Sequence[Node]) -> Reason | None:
    """The gang must sit on one node, for `same-nvlink` inside one of its NVLink domains."""
    asker = f"the gang of {shape.tasks} tasks with topology {shape.topology}"
    if shape.topology is Topology.SAME_NVLINK and shape.per_task.gpus:
        offers = [
            replace(node.capacity, gpus=size)
            for node in pool
            for size in _domain_sizes(shape, node)
        ]
        return _piece_too_big(asker, shape.total, offers, place="NVLink domain of a node")
    return _piece_too_big(asker, shape.total, [_offer(shape, node) for node in pool])


def _domain_sizes(shape: JobShape, node: Node) -> list[int]:
    """Acceptable GPUs in each NVLink domain of the node; without link data each is alone."""
    acceptable = _acceptable(shape, node)
    sizes = [len(domain & acceptable) for domain in node.links.domains()]
    return sizes or [1] * len(acceptable) or [0]


def _racks(shape: JobShape, pool: Sequence[Node]) -> list[list[Resources]]:
    """Offers by rack; a node whose rack is unknown shares it with nobody."""
    racks: dict[str, list[Resources]] = {}
    alone: list[list[Resources]] = []
    for node in pool:
        if node.rack:
            racks.setdefault(node.rack, []).append(_offer(shape, node))
        else:
            alone.append([_offer(shape, node)])
    return [*racks.values(), *alone]


def _too_few(shape: JobShape, groups: Sequence[Sequence[Resources]], where: str) -> Reason | None:
    """No group of nodes holds all tasks at once, though each task alone fits some node."""
    rooms = [sum(shape.per_task.times_in(offer) for offer in group) for group in groups]
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
    unit, per_task = _UNITS[dimension], getattr(shape.per_task, dimension)
    amounts = [getattr(offer, dimension) for offer in best]
    return Reason(
        ReasonCode.NEVER_FITS,
        f"the gang asks {shape.tasks} tasks x {per_task} {unit} = {shape.tasks * per_task}; "
        f"{where} can hold {room} such tasks, of {sum(amounts)} {unit} (dimension {dimension})",
        dimension=dimension,
        need=shape.tasks * per_task,
        free=sum(amounts),
        largest_block=max(amounts),
    )


def _limiting(shape: JobShape, offers: Sequence[Resources]) -> str | None:
    """The dimension that alone admits too few tasks, scarcest first; None when only all do."""
    rooms = {
        dimension: sum(getattr(offer, dimension) // need for offer in offers)
        for dimension in _UNITS
        if (need := getattr(shape.per_task, dimension)) > 0
    }
    scarce = min(rooms, key=rooms.__getitem__, default=None)
    return scarce if scarce is not None and rooms[scarce] < shape.tasks else None
