"""Why a job waits: one record for each class of jobs left waiting, with the numbers behind it.

Reasons are worked out per job shape, in a few operations on columns, so the cost grows neither with
the length of the queue nor much with the cluster. Every filter that nodes pass is counted in a
funnel; the reasons start at the first filter that leaves too little.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain

import numpy as np

from scheduler.allocation.limits import Quotas, Reserves
from scheduler.model.columns import Floats, Free, Ints, NodeTable
from scheduler.model.counting import (
    counts,
    emptied,
    in_domains,
    in_pool,
    model_codes,
    offering,
)
from scheduler.model.feasible import never_fits
from scheduler.model.job import JobShape, Topology, WaitingJob, Worker
from scheduler.model.plan import (
    FunnelStep,
    Placement,
    Reason,
    ReasonCode,
    TaskPlacement,
    Waiting,
)
from scheduler.model.quantity import WHOLE_GPU_MILLI, UtcSeconds
from scheduler.model.snapshot import Snapshot

_SHAPES_KEPT = 4_096
"""Shapes whose verdict on the empty cluster is remembered."""
_LABELS = {"gpus": "GPUs", "cpu_milli": "m CPU", "memory_mib": "MiB memory"}


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
    """Reason records for every class with a job that the plan leaves waiting, by class key.

    The numbers are those after the plan, so that they stay true until capacity changes: what is
    placed is taken, and who is evicted holds its place until it is gone. A class that would have
    fitted before the plan is told that it was outbid.

    Args:
        snapshot: what was decided on.
        placements: what the plan starts.
        now: the cycle's instant.
        held_back: tells of a class that the line holds back, whatever room there is, why; None for
            a class that lacks room.

    Returns:
        one record per class; each has a reason. O(waiting jobs + shapes * nodes), in numpy.
    """
    placed = frozenset(placement.job_id for placement in placements)
    left: dict[str, list[WaitingJob]] = {}
    for job in snapshot.waiting.values():
        if job.id not in placed:
            left.setdefault(job.class_key, []).append(job)
    if not left:
        return ()
    before = snapshot.columns
    earlier = later = _Reaches(before.free)
    if placements:
        started = chain.from_iterable(placement.tasks for placement in placements)
        later = _Reaches(before.changed((), started).free)
    limits = _Limits(snapshot, placements)
    verdicts: dict[JobShape, tuple[Verdict, bool]] = {}
    records = []
    for class_key, jobs in sorted(left.items()):
        shape = jobs[0].shape
        why = None if held_back is None else held_back(class_key)
        if why is not None:
            reasons = _backoff(jobs, now) or (_behind(why, jobs[0]),)
            records.append(Waiting(class_key, reasons))
            continue
        if shape not in verdicts:
            verdict = _judge(later.view(shape), snapshot)
            outbid = later is not earlier and verdict.reasons and earlier.view(shape).starts()
            verdicts[shape] = verdict, bool(outbid)
        records.append(_record(class_key, jobs, *verdicts[shape], limits, later, now))
    return tuple(records)


class _Limits:
    """What the terms leave after the plan."""

    def __init__(self, snapshot: Snapshot, placements: Sequence[Placement]) -> None:
        self._quotas = Quotas(snapshot)
        self._reserves = Reserves(snapshot)
        self._spare: Ints | None = None
        self._beside: dict[JobShape, int] = {}
        if not self._quotas:
            return
        for placement in placements:
            job = snapshot.waiting.get(placement.job_id)
            if job is not None:
                self._quotas.take(job.tenant, sum(_milli_of(placement.tasks)))

    def reasons(self, job: WaitingJob, reaches: _Reaches, *, fits: bool) -> Iterator[Reason]:
        """Which of them keeps `job` waiting; headroom only matters where it would fit."""
        need = job.shape.gpu_milli_total
        if not self._quotas.admits(job.tenant, need):
            left = self._quotas.left(job.tenant) or 0
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
        if job.shape not in self._beside:
            self._beside[job.shape] = self._tasks_beside_headroom(reaches.view(job.shape))
        tasks = self._beside[job.shape]
        if tasks < job.shape.tasks:
            yield Reason(
                ReasonCode.RESERVED_HEADROOM,
                f"{tasks} of its {job.shape.tasks} tasks would fit beside the GPUs that are "
                "reserved as headroom",
                *_in_tasks(job.shape, job.shape.tasks, tasks, tasks),
            )

    def _tasks_beside_headroom(self, view: _View) -> int:
        reach = view.reach
        if self._spare is None:
            self._spare = self._reserves.spare(reach.free)
        spare = self._spare[list(reach.codes)][:, reach.rows]
        cap = (spare // max(1, view.worker.needs.gpus)).sum(axis=0)
        return int(np.minimum(view.tasks, cap).sum())


def _milli_of(tasks: Sequence[TaskPlacement]) -> Iterator[int]:
    return (len(task.gpu_ids) * task.gpu_milli for task in tasks)


def _record(
    class_key: str,
    jobs: Sequence[WaitingJob],
    verdict: Verdict,
    outbid: bool,  # noqa: FBT001 - private, one caller
    limits: _Limits,
    reaches: _Reaches,
    now: UtcSeconds,
) -> Waiting:
    reasons = list(verdict.reasons)
    reasons += limits.reasons(jobs[0], reaches, fits=not reasons)
    if backoff := _backoff(jobs, now):
        reasons = [*backoff, *reasons]
    elif not reasons:
        reasons.append(_behind("it fits, but is beyond the part of the queue looked at", jobs[0]))
    elif outbid:
        reasons.append(_behind("it would have fitted, but jobs worth more took the place", jobs[0]))
    return Waiting(class_key, tuple(reasons), verdict.funnel)


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


class _Reach:
    """The nodes that shapes of one pool and GPU models may use, and what is free on them.

    Attributes:
        codes: model codes that they accept.
        in_pool, offering: how many nodes are of the pool, and of those have such GPUs.
        rows: of those the ones that take new work; all of them with `closed_too`.
    """

    def __init__(self, worker: Worker, free: Free, *, closed_too: bool = False) -> None:
        self.free = free
        self.codes = model_codes(free.table, worker)
        inside = in_pool(free.table, worker)
        offers = inside & offering(free.table, worker, self.codes)
        self.in_pool, self.offering = int(inside.sum()), int(offers.sum())
        self.rows = np.flatnonzero(offers if closed_too else offers & free.table.open)
        self._named = bool(worker.gpu_models)
        self._amounts: dict[str, tuple[float, float]] = {}

    def amount(self, dimension: str) -> tuple[float, float]:
        """What is free of a dimension: in all, and the most on one node.

        Of GPUs those that are accepted; `shares` counts parts of GPUs too, in GPUs, and the most of
        one GPU.
        """
        if dimension not in self._amounts:
            on_node, largest = self._free_of(dimension)
            self._amounts[dimension] = float(on_node.sum()), float(largest.max(initial=0))
        return self._amounts[dimension]

    def _free_of(self, dimension: str) -> tuple[Floats, Floats]:
        free, rows = self.free, self.rows
        if dimension == "shares":
            gpu = free.gpu[rows] / WHOLE_GPU_MILLI
            if self._named and free.table.mixed:
                gpu = np.where(np.isin(free.table.gpu_model[rows], self.codes), gpu, 0.0)
            return gpu, gpu
        if dimension == "gpus":
            found = free.whole[list(self.codes)][:, rows].sum(axis=0)
        else:
            found = free.cpu[rows] if dimension == "cpu_milli" else free.memory[rows]
        return found, found


class _View:
    """What of a reach one shape can use, task by task.

    Attributes:
        worker: one task.
        tasks: (rows,) tasks that fit each node.
    """

    def __init__(self, shape: JobShape, reach: _Reach) -> None:
        self.shape, self.reach = shape, reach
        self.worker = _task_of(shape)
        self.tasks = counts(reach.free, self.worker, reach.codes, reach.rows)

    def starts(self) -> bool:
        """Whether the gang could start here, alone."""
        return int(self.tasks.sum()) >= self.shape.tasks and not self.too_far()

    def too_far(self) -> tuple[str, Ints] | None:
        """What the gang must share, and the tasks that fit each such place, when none holds all."""
        found = self._places()
        return found if found is not None and found[1].max(initial=0) < self.shape.tasks else None

    def _places(self) -> tuple[str, Ints] | None:
        shape, free, codes, rows = self.shape, self.reach.free, self.reach.codes, self.reach.rows
        if shape.topology is Topology.SAME_RACK:
            room = np.bincount(free.table.rack[rows], weights=self.tasks, minlength=1)
            return "rack", room.astype(np.int64)
        if shape.topology is Topology.SAME_NVLINK and self.worker.milli:
            inside = in_domains(free, self.worker, codes, rows)
            others = replace(self.worker, needs=replace(self.worker.needs, gpus=0), gpu_milli=0)
            most = counts(free, others, codes, rows)
            return "NVLink domain", np.minimum(inside, most[:, None]).reshape(-1)
        if shape.topology.one_node:
            if not self.worker.needs.gpus or not free.table.mixed:
                return "node", self.tasks
            names = free.table.models
            narrow = [(code, replace(self.worker, gpu_models=(names[code],))) for code in codes]
            return "node", np.concatenate(
                [counts(free, worker, (code,), rows) for code, worker in narrow]
            )
        return None


class _Reaches:
    """Reaches into one state of the cluster, each worked out once."""

    def __init__(self, free: Free) -> None:
        self.free = free
        self._known: dict[object, _Reach] = {}

    def view(self, shape: JobShape) -> _View:
        """What `shape` can use."""
        worker = _task_of(shape)
        key = (worker.pool, worker.gpu_models, worker.milli > 0)
        if key not in self._known:
            self._known[key] = _Reach(worker, self.free)
        return _View(shape, self._known[key])


def _fits_when_empty(table: NodeTable, shape: JobShape) -> bool:
    """Whether the shape could start if nothing ran and all nodes and GPUs were well."""
    known = _empty_verdicts(table)
    fits = known.get(shape)
    if fits is None:
        if len(known) >= _SHAPES_KEPT:
            known.clear()
        reach = _Reach(_task_of(shape), emptied(table), closed_too=True)
        fits = known[shape] = _View(shape, reach).starts()
    return fits


@lru_cache(maxsize=2)
def _empty_verdicts(table: NodeTable) -> dict[JobShape, bool]:
    """What is known of `table`. Few tables: every cordon makes a new one, and each is large."""
    del table  # the key
    return {}


def _task_of(shape: JobShape) -> Worker:
    """One task as a worker of its own."""
    return Worker(
        shape.per_task,
        shape.gpu_milli,
        shape.gpu_models if shape.per_task.gpus or shape.gpu_milli else (),
        shape.pool,
    )


def _judge(view: _View, snapshot: Snapshot) -> Verdict:
    """Why a shape cannot start on what is free, as if it were alone."""
    shape, reach = view.shape, view.reach
    funnel = (
        FunnelStep("present", len(reach.free.table.nodes)),
        FunnelStep("pool", reach.in_pool),
        FunnelStep("gpu-model", reach.offering),
        FunnelStep("schedulable", reach.rows.size),
        FunnelStep("one-task-fits", int(np.count_nonzero(view.tasks))),
    )
    if view.starts():
        return Verdict((), funnel)
    if not _fits_when_empty(reach.free.table, shape):
        impossible = never_fits(shape, tuple(snapshot.nodes.values()))
        if impossible is not None:
            return Verdict((impossible,), funnel)
    if not reach.rows.size:
        return Verdict((_no_usable_node(reach, shape),), funnel)
    return Verdict(tuple(_shortages(view)), funnel)


def _no_usable_node(reach: _Reach, shape: JobShape) -> Reason:
    if not reach.free.table.nodes:
        message = "the cluster has no nodes yet"
    elif not reach.in_pool:
        message = f"no node is in pool {shape.pool}"
    elif not reach.offering:
        message = f"no node offers {' or '.join(shape.gpu_models) or 'a GPU'}"
    else:
        message = f"all {reach.offering} nodes that could take it are cordoned or unhealthy"
    return Reason(ReasonCode.BLOCKED_BY_CONFIG, message, "nodes", 1, 0, 0)


def _shortages(view: _View) -> Iterator[Reason]:
    """Reasons in the order people can act on them: amounts, then pieces, then closeness."""
    shape = view.shape
    short = [reason for each in _LABELS if (reason := _short(view, each)) is not None]
    if short:
        yield from short
        return
    tasks = int(view.tasks.sum())
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
    amount: int = getattr(shape.per_task, dimension)
    return amount * tasks


def _short(view: _View, dimension: str) -> Reason | None:
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
    return Reason(
        ReasonCode.WAITING_CAPACITY,
        f"needs {need:.10g} {_LABELS[dimension]}{models}, {have:.10g} free",
        dimension,
        need,
        have,
        largest,
    )


def _of(shape: JobShape, dimension: str) -> str:
    """What a reach calls the dimension that a shape draws on."""
    return "shares" if dimension == "gpus" and shape.gpu_milli else dimension


def _fragmented(view: _View) -> Reason:
    """Enough in total, but no node holds even one task."""
    shape = view.shape
    for dimension, label in _LABELS.items():
        need = _need(shape, dimension)
        total, largest = view.reach.amount(_of(shape, dimension))
        if need <= largest:
            continue
        if dimension == "gpus" and shape.gpu_milli:
            message = (
                f"no GPU has {shape.gpu_milli} thousandths free; "
                f"{total * WHOLE_GPU_MILLI:.10g} are free in all, "
                f"at most {largest * WHOLE_GPU_MILLI:.10g} of one GPU"
            )
        else:
            message = (
                f"each task needs {need:.10g} {label} on one node; {total:.10g} are free, "
                f"at most {largest:.10g} on one node"
            )
        return Reason(ReasonCode.FRAGMENTED, message, dimension, need, total, largest)
    dimension = _measure(shape)
    gpus = f"{shape.gpu_milli} thousandths of a GPU"
    if not shape.gpu_milli:
        gpus = f"{shape.per_task.gpus} GPUs of one model"
    return Reason(
        ReasonCode.FRAGMENTED,
        f"each resource is free somewhere, but none of {view.reach.rows.size} nodes has all that "
        f"one task needs ({gpus}, {shape.per_task.cpu_milli} m CPU, "
        f"{shape.per_task.memory_mib} MiB) at once",
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
