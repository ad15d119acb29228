"""Why a job waits: one record for each class of jobs left waiting, with the numbers behind it.

Reasons are worked out per job shape, so the cost does not grow with the length of the queue.
Every filter that nodes pass is counted in a funnel; the reasons start at the first filter that
leaves too little.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from scheduler.allocation.feasibility import ANY_DOMAIN, Site, rack_of, sites_of
from scheduler.model.feasible import never_fits
from scheduler.model.job import JobShape, Topology, WaitingJob
from scheduler.model.node import Node
from scheduler.model.plan import FunnelStep, Placement, Reason, ReasonCode, Waiting
from scheduler.model.quantity import Resources, UtcSeconds
from scheduler.model.snapshot import Snapshot

_LABELS = {"gpus": "GPUs", "cpu_milli": "m CPU", "memory_mib": "MiB memory"}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What holds a shape back; `reasons` is empty when it fits what is free now."""

    reasons: tuple[Reason, ...]
    funnel: tuple[FunnelStep, ...]


def explain(
    snapshot: Snapshot,
    sites: Sequence[Site],
    placements: Sequence[Placement],
    now: UtcSeconds,
) -> tuple[Waiting, ...]:
    """Reason records for every class with a job that the plan leaves waiting, by class key.

    The numbers are those after the plan, so that they stay true until capacity changes; a class
    that would have fitted before it is told that it was outbid.

    Args:
        snapshot: what was decided on.
        sites: what was free before the plan.
        placements: what the plan starts.
        now: the cycle's instant.

    Returns:
        one record per class; each has a reason. O(shapes * nodes + waiting jobs).
    """
    placed_ids = frozenset(placement.job_id for placement in placements)
    after = sites_of(snapshot, placements) if placements else sites
    left: dict[str, list[WaitingJob]] = {}
    for job in snapshot.waiting.values():
        if job.id not in placed_ids:
            left.setdefault(job.class_key, []).append(job)
    verdicts: dict[JobShape, tuple[Verdict, bool]] = {}
    nodes = tuple(snapshot.nodes.values())
    records = []
    for class_key, jobs in sorted(left.items()):
        shape = jobs[0].shape
        if shape not in verdicts:
            verdict = judge(shape, nodes, after)
            outbid = bool(placements) and not judge(shape, nodes, sites).reasons
            verdicts[shape] = verdict, outbid
        records.append(_record(class_key, jobs, *verdicts[shape], now))
    return tuple(records)


def _record(
    class_key: str,
    jobs: Sequence[WaitingJob],
    verdict: Verdict,
    outbid: bool,  # noqa: FBT001 - private, one caller
    now: UtcSeconds,
) -> Waiting:
    reasons = list(verdict.reasons)
    if all(job.eligible_at > now for job in jobs):
        # No number of seconds: it would make a new record of every look at the clock.
        reasons.insert(0, Reason(ReasonCode.BACKOFF, "the backoff before its next attempt runs"))
    elif not reasons:
        reasons.append(_behind("it fits, but is beyond the part of the queue looked at", jobs[0]))
    elif outbid:
        reasons.append(_behind("it would have fitted, but jobs worth more took the place", jobs[0]))
    return Waiting(class_key, tuple(reasons), verdict.funnel)


def _behind(message: str, job: WaitingJob) -> Reason:
    need = job.shape.total
    dimension, amount = ("gpus", need.gpus) if need.gpus else ("cpu_milli", need.cpu_milli)
    return Reason(ReasonCode.BEHIND_PRIORITY, message, dimension, amount)


def judge(shape: JobShape, nodes: Sequence[Node], sites: Sequence[Site]) -> Verdict:
    """Why `shape` cannot start on what is free, as if it were alone. O(nodes * GPUs)."""
    impossible = never_fits(shape, nodes)
    in_pool = [node for node in nodes if shape.pool is None or node.pool == shape.pool]
    with_model = [node for node in in_pool if _has_model(shape, node)]
    open_nodes = {site.node.id: site for site in sites}
    usable = [open_nodes[node.id] for node in with_model if node.id in open_nodes]
    room = [site for site in usable if _tasks_on(shape, site)]
    funnel = (
        FunnelStep("present", len(nodes)),
        FunnelStep("pool", len(in_pool)),
        FunnelStep("gpu-model", len(with_model)),
        FunnelStep("schedulable", len(usable)),
        FunnelStep("one-task-fits", len(room)),
    )
    if impossible is not None:
        return Verdict((impossible,), funnel)
    if not usable:
        return Verdict((_no_usable_node(nodes, in_pool, with_model, shape),), funnel)
    return Verdict(tuple(_shortages(shape, usable)), funnel)


def _has_model(shape: JobShape, node: Node) -> bool:
    if not shape.per_task.gpus:
        return True
    return any(not shape.gpu_models or gpu.model in shape.gpu_models for gpu in node.gpus)


def _no_usable_node(
    nodes: Sequence[Node], in_pool: Sequence[Node], with_model: Sequence[Node], shape: JobShape
) -> Reason:
    if not nodes:
        message = "the cluster has no nodes yet"
    elif not in_pool:
        message = f"no node is in pool {shape.pool}"
    elif not with_model:
        message = f"no node offers {' or '.join(shape.gpu_models) or 'a GPU'}"
    else:
        message = f"all {len(with_model)} nodes that could take it are cordoned or unhealthy"
    return Reason(ReasonCode.BLOCKED_BY_CONFIG, message, "nodes", 1, 0, 0)


def _models_of(shape: JobShape, site: Site) -> tuple[str, ...]:
    if not shape.per_task.gpus:
        return ("",)
    return tuple(
        model for model in site.free_by_model if not shape.gpu_models or model in shape.gpu_models
    )


def _offer(shape: JobShape, site: Site, model: str, domain: int = ANY_DOMAIN) -> Resources:
    """What the site could give workers of the shape that use GPUs of `model`."""
    gpus = len(site.free_in(model, domain)) if shape.per_task.gpus else 0
    return Resources(gpus, site.free.cpu_milli, site.free.memory_mib)


def _tasks_on(shape: JobShape, site: Site) -> int:
    """Tasks that fit the site as it is now, upper bound over its models."""
    return sum(
        shape.per_task.times_in(_offer(shape, site, model)) for model in _models_of(shape, site)
    )


def _shortages(shape: JobShape, usable: Sequence[Site]) -> Iterable[Reason]:
    """Reasons in the order people can act on them: amounts, then pieces, then closeness."""
    free = _free_amounts(shape, usable)
    short = [_short(shape, dimension, free) for dimension in _LABELS]
    amounts = [reason for reason in short if reason is not None]
    if amounts:
        yield from amounts
        return
    tasks = sum(_tasks_on(shape, site) for site in usable)
    if not tasks:
        yield _fragmented(shape, usable, free)
    elif tasks < shape.tasks:
        yield Reason(
            ReasonCode.WAITING_GANG,
            f"{tasks} of the gang's {shape.tasks} tasks would fit now; all must start together",
            *_in_tasks(shape, shape.tasks, tasks, max(_tasks_on(shape, s) for s in usable)),
        )
    else:
        close = _closeness(shape, usable)
        if close is not None:
            yield close


def _free_amounts(shape: JobShape, usable: Sequence[Site]) -> Mapping[str, list[int]]:
    """Free amount of each dimension on every usable node."""
    return {
        "gpus": [
            sum(len(site.free_by_model[model]) for model in _models_of(shape, site))
            if shape.per_task.gpus
            else 0
            for site in usable
        ],
        "cpu_milli": [site.free.cpu_milli for site in usable],
        "memory_mib": [site.free.memory_mib for site in usable],
    }


def _short(shape: JobShape, dimension: str, free: Mapping[str, list[int]]) -> Reason | None:
    need = getattr(shape.total, dimension)
    have = sum(free[dimension])
    if need <= have:
        return None
    models = (
        f" ({' or '.join(shape.gpu_models)})" if dimension == "gpus" and shape.gpu_models else ""
    )
    return Reason(
        ReasonCode.WAITING_CAPACITY,
        f"needs {need} {_LABELS[dimension]}{models}, {have} free",
        dimension,
        need,
        have,
        max(free[dimension], default=0),
    )


def _fragmented(shape: JobShape, usable: Sequence[Site], free: Mapping[str, list[int]]) -> Reason:
    """Enough in total, but no node holds even one task."""
    for dimension, label in _LABELS.items():
        need = getattr(shape.per_task, dimension)
        largest = max(free[dimension])
        if need > largest:
            return Reason(
                ReasonCode.FRAGMENTED,
                f"each task needs {need} {label} on one node; {sum(free[dimension])} are free, "
                f"at most {largest} on one node",
                dimension,
                need,
                sum(free[dimension]),
                largest,
            )
    dimension = "gpus" if shape.per_task.gpus else "cpu_milli"
    return Reason(
        ReasonCode.FRAGMENTED,
        f"each resource is free somewhere, but none of {len(usable)} nodes has all that one task "
        f"needs ({shape.per_task.gpus} GPUs of one model, {shape.per_task.cpu_milli} m CPU, "
        f"{shape.per_task.memory_mib} MiB) at once",
        dimension,
        getattr(shape.per_task, dimension),
        sum(free[dimension]),
        max(free[dimension]),
    )


def _closeness(shape: JobShape, usable: Sequence[Site]) -> Reason | None:
    """The gang fits the cluster; does it fit as close together as it must be?"""
    if shape.topology is Topology.SAME_RACK:
        racks: dict[str, int] = {}
        for site in usable:
            rack = rack_of(site.node)
            racks[rack] = racks.get(rack, 0) + _tasks_on(shape, site)
        blocks, place = list(racks.values()), "rack"
    elif shape.topology is Topology.SAME_NVLINK and shape.per_task.gpus:
        blocks = [
            shape.per_task.times_in(_offer(shape, site, model, domain))
            for site in usable
            for model in _models_of(shape, site)
            for domain in range(len(site.domains))
        ]
        place = "NVLink domain"
    elif shape.topology.one_node:
        blocks = [
            shape.per_task.times_in(_offer(shape, site, model))
            for site in usable
            for model in _models_of(shape, site)
        ]
        place = "node"
    else:
        return None
    largest = max(blocks, default=0)
    if largest >= shape.tasks:
        return None
    return Reason(
        ReasonCode.WAITING_TOPOLOGY,
        f"its {shape.tasks} tasks must share one {place}; at most {largest} fit one now",
        *_in_tasks(shape, shape.tasks, sum(blocks), largest),
    )


def _in_tasks(shape: JobShape, need: int, free: int, largest: int) -> tuple[str, int, int, int]:
    """(dimension, need, free, largest block) of so many tasks, in their scarcest dimension."""
    dimension = "gpus" if shape.per_task.gpus else "cpu_milli"
    each = getattr(shape.per_task, dimension)
    return dimension, need * each, free * each, largest * each
