"""Why a job waits: one record for each class of jobs left waiting, with the numbers behind it.

Reasons are worked out per job shape, in a few operations on columns, so the cost grows neither with
the length of the queue nor much with the cluster. Every filter that nodes pass is counted in a
funnel; the reasons start at the first filter that leaves too little.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from scheduler.allocation.given import Given
from scheduler.allocation.limits import Quotas, Reserves
from scheduler.allocation.reach import Reach, Reaches, View, fits_when_empty
from scheduler.allocation.shortage import Yielding, whereabouts
from scheduler.model.columns import Ints
from scheduler.model.counting import emptied
from scheduler.model.job import JobShape, WaitingJob
from scheduler.model.plan import (
    FunnelStep,
    Placement,
    Reason,
    ReasonCode,
    Waiting,
)
from scheduler.model.quantity import WHOLE_GPU_MILLI, TenantId, UtcSeconds
from scheduler.model.site import resource_label, unit_size
from scheduler.model.snapshot import Snapshot

_LABELS = {"gpus": "GPUs", "cpu_milli": "m CPU", "memory_mib": "MiB memory"}
_TAINTS_NAMED = 3


@dataclass(frozen=True, slots=True)
class Verdict:
    """What holds a shape back; `reasons` is empty when it fits what is free now."""

    reasons: tuple[Reason, ...]
    funnel: tuple[FunnelStep, ...]


def explain(
    snapshot: Snapshot,
    placements: Sequence[Placement],
    now: UtcSeconds,
    held_back: Callable[[str], str | None] | None = None,
) -> tuple[Waiting, ...]:
    """The records for the only plan of a snapshot; see `Explainer.explain`."""
    return Explainer(snapshot).explain(placements, now, held_back)


class Explainer:
    """Explains one plan after the other for one snapshot: what they share is worked out once."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._began: dict[JobShape, bool] = {}

    @cached_property
    def _before(self) -> Reaches:
        """What is free before any plan."""
        return Reaches(self._snapshot.columns.free)

    @cached_property
    def _when_empty(self) -> Reaches:
        """What would be free if nothing ran and all were well."""
        return Reaches(emptied(self._snapshot.columns.table), closed_too=True)

    def explain(
        self,
        placements: Sequence[Placement],
        now: UtcSeconds,
        held_back: Callable[[str], str | None] | None = None,
    ) -> tuple[Waiting, ...]:
        """Reason records for every class with a job that the plan leaves waiting, by class key.

        The numbers are those after the plan, so that they stay true until capacity changes: what is
        placed is taken, and who is evicted holds its place until it is gone. A class that would
        have fitted before the plan is told that it was outbid.

        Args:
            placements: what the plan starts.
            now: the cycle's instant.
            held_back: tells of a class that the line holds back, whatever room there is, why; None
                for a class that lacks room.

        Returns:
            one record per class; each has a reason. O(waiting jobs + shapes * nodes with something
            free), in numpy.
        """
        placed = frozenset(placement.job_id for placement in placements)
        left: dict[str, list[WaitingJob]] = {}
        for job in self._snapshot.waiting.values():
            if job.id not in placed:
                left.setdefault(job.class_key, []).append(job)
        if not left:
            return ()
        given = Given.of(placements, self._snapshot)
        later = self._before
        if placements:
            later = Reaches(given.left(self._snapshot.columns.free))
        limits = _Limits(self._snapshot, given)
        found: dict[JobShape, _Found] = {}
        records = []
        for class_key, jobs in sorted(left.items()):
            shape = jobs[0].shape
            why = None if held_back is None else held_back(class_key)
            if why is not None:
                reasons = _backoff(jobs, now) or (_behind(why, jobs[0]),)
                records.append(Waiting(class_key, reasons))
                continue
            known = found.get(shape)
            if known is None:
                known = found[shape] = self._found(shape, later)
            records.append(_record(class_key, jobs, self._prioritised(known, jobs), limits, now))
        return tuple(records)

    @cached_property
    def _yielding(self) -> Yielding:
        """Who holds GPUs and might be stopped."""
        return Yielding(self._snapshot.columns.table, self._snapshot.live.values())

    def _prioritised(self, found: _Found, jobs: Sequence[WaitingJob]) -> _Found:
        """What is known of a shape, and what the best of its jobs might be given by others."""
        verdict, shape = found.verdict, found.view.shape
        if not verdict.reasons or not shape.per_task.gpus:
            return found
        first, *others = verdict.reasons
        if first.code is not ReasonCode.WAITING_CAPACITY or first.dimension != "gpus":
            return found
        priority, missing = max(job.priority for job in jobs), int(first.need - first.free)
        told = self._yielding.told(found.view.reach, priority, missing)
        first = replace(first, message=f"{first.message}; {told}")
        return replace(found, verdict=replace(verdict, reasons=(first, *others)))

    def _found(self, shape: JobShape, later: Reaches) -> _Found:
        view = later.view(shape)
        verdict = _judge(view, self._when_empty)
        outbid = later is not self._before and bool(verdict.reasons) and self._starts(shape)
        return _Found(view, verdict, outbid)

    def _starts(self, shape: JobShape) -> bool:
        """Whether the shape could have started before any plan."""
        starts = self._began.get(shape)
        if starts is None:
            starts = self._began[shape] = self._before.view(shape).starts()
        return starts


@dataclass(frozen=True, slots=True)
class _Found:
    """What is known of a shape after a plan; `outbid` when it would have fitted before."""

    view: View
    verdict: Verdict
    outbid: bool


class _Limits:
    """What the terms leave after the plan."""

    def __init__(self, snapshot: Snapshot, given: Given) -> None:
        self._quotas = Quotas(snapshot)
        self._reserves = Reserves(snapshot)
        self._spare: Ints | None = None
        self._caps: dict[tuple[Reach, int], Ints] = {}
        if not self._quotas:
            return
        taken: dict[TenantId, int] = {}
        for job, milli in zip(given.jobs, given.drawn.tolist(), strict=True):
            if job is not None:
                taken[job.tenant] = taken.get(job.tenant, 0) + milli
        for tenant, milli in taken.items():
            self._quotas.take(tenant, milli)

    def reasons(self, job: WaitingJob, view: View, *, fits: bool) -> Iterator[Reason]:
        """Which of them keeps `job` waiting; headroom only matters where it would fit."""
        need = job.shape.gpu_milli_total
        left = self._quotas.left(job.tenant) if need else None
        if left is not None and left < need:
            yield Reason(
                ReasonCode.WAITING_QUOTA,
                f"tenant {job.tenant} may take {left / WHOLE_GPU_MILLI:g} GPUs more by its quota, "
                f"the job needs {need / WHOLE_GPU_MILLI:g}",
                "gpus",
                need / WHOLE_GPU_MILLI,
                left / WHOLE_GPU_MILLI,
                left / WHOLE_GPU_MILLI,
            )
        if not fits or not self._reserves or not need:
            return
        tasks = self._tasks_beside_headroom(view)
        if tasks < job.shape.tasks:
            yield Reason(
                ReasonCode.RESERVED_HEADROOM,
                f"{tasks} of its {job.shape.tasks} tasks would fit beside the GPUs that are "
                "reserved as headroom",
                *_in_tasks(job.shape, job.shape.tasks, tasks, tasks),
            )

    def _tasks_beside_headroom(self, view: View) -> int:
        reach, each = view.reach, max(1, view.worker.needs.gpus)
        cap = self._caps.get((reach, each))
        if cap is None:
            if self._spare is None:
                self._spare = self._reserves.spare(reach.free)
            spare = self._spare[list(reach.codes)][:, reach.some]
            cap = self._caps[reach, each] = (spare // each).sum(axis=0)
        return int(np.minimum(view.tasks, cap).sum())


def _record(
    class_key: str,
    jobs: Sequence[WaitingJob],
    found: _Found,
    limits: _Limits,
    now: UtcSeconds,
) -> Waiting:
    reasons = list(found.verdict.reasons)
    reasons += limits.reasons(jobs[0], found.view, fits=not reasons)
    if backoff := _backoff(jobs, now):
        reasons = [*backoff, *reasons]
    elif not reasons:
        reasons.append(_behind("it fits, but is beyond the part of the queue looked at", jobs[0]))
    elif found.outbid:
        reasons.append(_behind("it would have fitted, but jobs worth more took the place", jobs[0]))
    return Waiting(class_key, tuple(reasons), found.verdict.funnel)


def _backoff(jobs: Sequence[WaitingJob], now: UtcSeconds) -> tuple[Reason, ...]:
    """The reason of a class of which nobody may start yet; () when somebody may."""
    if any(job.eligible_at <= now for job in jobs):
        return ()
    # No number of seconds: it would make a new record of every look at the clock.
    return (Reason(ReasonCode.BACKOFF, "the backoff before its next attempt runs"),)


def _behind(message: str, job: WaitingJob) -> Reason:
    dimension = _measure(job.shape)
    need = _need(job.shape, dimension, job.shape.tasks)
    return Reason(ReasonCode.BEHIND_PRIORITY, message, dimension, need)


def _measure(shape: JobShape) -> str:
    """The dimension a gang is measured in."""
    return "gpus" if shape.gpu_milli_total else "cpu_milli"


def _judge(view: View, when_empty: Reaches) -> Verdict:
    """Why a shape cannot start on what is free, as if it were alone."""
    shape, reach = view.shape, view.reach
    fitting = FunnelStep("one-task-fits", int(np.count_nonzero(view.tasks)))
    funnel = (*reach.funnel, fitting)
    if view.starts():
        return Verdict((), funnel)
    fits, impossible = fits_when_empty(shape, when_empty)
    if not fits and impossible is None and reach.tolerated and reach.kept_off.size:
        impossible = _tainted(reach, shape)
    if impossible is not None:
        return Verdict((impossible,), funnel)
    if not reach.rows.size:
        return Verdict((_no_usable_node(reach, shape),), funnel)
    return Verdict(tuple(_shortages(view)), funnel)


def _tainted(reach: Reach, shape: JobShape) -> Reason:
    """Nodes that would do are kept from it by their taints, and no other node will ever do."""
    nodes = [reach.free.table.nodes[row] for row in reach.kept_off.tolist()]
    found = (shape.site.untolerated(node.taints) for node in nodes)
    taints = Counter(taint.text for taint in found if taint is not None)
    common = sorted(taints, key=lambda taint: (-taints[taint], taint))[:_TAINTS_NAMED]
    if len(taints) == 1:
        have = f"have the taint {common[0]}, which it does not tolerate"
    else:
        counted = ", ".join(f"{taint} ({taints[taint]})" for taint in common)
        have = f"have taints that it does not tolerate: {counted}"
    count, demands = len(nodes), shape.site.demands
    if reach.tolerated:
        message = (
            f"the {reach.tolerated} nodes that it may use never hold it; {count} others {have}"
        )
    elif count == 1:
        only = "the only node that matches" if demands else "the only node"
        message = f"{only} {have.replace('have', 'has', 1)}"
    else:
        message = f"{count} nodes {'match' if demands else 'are there'}, all {have}"
    return Reason(ReasonCode.BLOCKED_BY_CONFIG, message, "nodes", 1, 0, 0)


def _no_usable_node(reach: Reach, shape: JobShape) -> Reason:
    if not reach.free.table.nodes:
        message = "the cluster has no nodes yet"
    elif not reach.in_pool:
        message = f"no node is in pool {shape.pool}"
    elif not reach.selected:
        message = "no node matches its node selector"
    elif not reach.tolerated:
        return _tainted(reach, shape)
    elif not reach.offering:
        message = f"no node offers {' or '.join(shape.gpu_models) or 'a GPU'}"
    else:
        message = f"all {reach.offering} nodes that could take it are cordoned or unhealthy"
    return Reason(ReasonCode.BLOCKED_BY_CONFIG, message, "nodes", 1, 0, 0)


def _shortages(view: View) -> Iterator[Reason]:
    """Reasons in the order people can act on them: amounts, then pieces, then closeness."""
    shape = view.shape
    short = [reason for each in _dimensions(shape) if (reason := _short(view, each)) is not None]
    if short:
        yield from short
        return
    tasks = view.total
    if not tasks:
        yield _fragmented(view)
    elif tasks < shape.tasks:
        yield Reason(
            ReasonCode.WAITING_GANG,
            f"{tasks} of the gang's {shape.tasks} tasks would fit now; all must start together",
            *_in_tasks(shape, shape.tasks, tasks, int(view.tasks.max())),
        )
    else:
        far = view.too_far()
        if far is not None:
            place, blocks = far
            largest = int(blocks.max(initial=0))
            yield Reason(
                ReasonCode.WAITING_TOPOLOGY,
                f"its {shape.tasks} tasks must share one {place}; at most {largest} fit one now",
                *_in_tasks(shape, shape.tasks, int(blocks.sum()), largest),
            )


def _need(shape: JobShape, dimension: str, tasks: int = 1) -> float:
    """What so many tasks need of a dimension."""
    if dimension == "gpus" and shape.gpu_milli:
        return shape.gpu_milli * tasks / WHOLE_GPU_MILLI
    if dimension in _LABELS:
        amount: int = getattr(shape.per_task, dimension)
        return amount * tasks
    return dict(shape.extras)[dimension] * tasks


def _dimensions(shape: JobShape) -> Iterator[str]:
    """All that the shape may draw on, in the order in which it is spoken of."""
    yield from _LABELS
    yield from (name for name, _ in shape.extras)


def _label(dimension: str) -> str:
    return _LABELS.get(dimension) or resource_label(dimension)


def _stated(dimension: str, need: float, *offers: float) -> tuple[float, ...]:
    """Amounts as people count them: what is needed, rounded up, and what is there, down."""
    one = unit_size(dimension)
    return (need, *offers) if one == 1 else (-(-need // one), *(offer // one for offer in offers))


def _short(view: View, dimension: str) -> Reason | None:
    shape = view.shape
    need = _need(shape, dimension, shape.tasks)
    if not need:
        return None
    have, largest = view.reach.amount(_of(shape, dimension))
    if need <= have:
        return None
    models = (
        f" ({' or '.join(shape.gpu_models)})" if dimension == "gpus" and shape.gpu_models else ""
    )
    need, have, largest = _stated(dimension, need, have, largest)
    message = f"needs {need:.10g} {_label(dimension)}{models}, {have:.10g} free"
    if dimension == "gpus" and shape.per_task.gpus:
        scattered = f", at most {largest:.10g} on one node" if largest < have else ""
        message = f"{message}{scattered}; {whereabouts(view, int(need - have))}"
    return Reason(
        ReasonCode.WAITING_CAPACITY,
        message,
        dimension,
        need,
        have,
        largest,
    )


def _of(shape: JobShape, dimension: str) -> str:
    """What a reach calls the dimension that a shape draws on."""
    return "shares" if dimension == "gpus" and shape.gpu_milli else dimension


def _fragmented(view: View) -> Reason:
    """Enough in total, but no node holds even one task."""
    shape = view.shape
    for dimension in _dimensions(shape):
        need = _need(shape, dimension)
        total, largest = view.reach.amount(_of(shape, dimension))
        if need <= largest:
            continue
        need, total, largest = _stated(dimension, need, total, largest)
        if dimension == "gpus" and shape.gpu_milli:
            message = (
                f"no GPU has {shape.gpu_milli} thousandths free; "
                f"{total * WHOLE_GPU_MILLI:.10g} are free in all, "
                f"at most {largest * WHOLE_GPU_MILLI:.10g} of one GPU"
            )
        else:
            message = (
                f"each task needs {need:.10g} {_label(dimension)} on one node; "
                f"{total:.10g} are free, "
                f"at most {largest:.10g} on one node"
            )
        return Reason(ReasonCode.FRAGMENTED, message, dimension, need, total, largest)
    dimension = _measure(shape)
    others = "".join(
        f", {_stated(name, amount)[0]} {_label(name)}" for name, amount in shape.extras
    )
    gpus = f"{shape.gpu_milli} thousandths of a GPU"
    if not shape.gpu_milli:
        gpus = f"{shape.per_task.gpus} GPUs of one model"
    return Reason(
        ReasonCode.FRAGMENTED,
        f"each resource is free somewhere, but none of {view.reach.rows.size} nodes has all that "
        f"one task needs ({gpus}, {shape.per_task.cpu_milli} m CPU, "
        f"{shape.per_task.memory_mib} MiB{others}) at once",
        dimension,
        _need(shape, dimension),
        *view.reach.amount(_of(shape, dimension)),
    )


def _in_tasks(
    shape: JobShape, need: int, free: int, largest: int
) -> tuple[str, float, float, float]:
    """(dimension, need, free, largest block) of so many tasks, in what they are measured in."""
    dimension = _measure(shape)
    return (
        dimension,
        _need(shape, dimension, need),
        _need(shape, dimension, free),
        _need(shape, dimension, largest),
    )
