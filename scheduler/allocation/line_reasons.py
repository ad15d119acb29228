"""Why jobs wait under an admission that goes down the line."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import StrEnum

import numpy as np

from scheduler.allocation.room import Room
from scheduler.model.columns import NO_GPU, Floats, NodeTable
from scheduler.model.feasible import never_fits
from scheduler.model.job import JobShape, WaitingJob
from scheduler.model.plan import Reason, ReasonCode, Waiting
from scheduler.model.quantity import WHOLE_GPU_MILLI, JobId, UtcSeconds
from scheduler.model.snapshot import Snapshot


class Verdict(StrEnum):
    """What became of a class of jobs; the value is what its owner is told."""

    NO_ROOM = "no room"
    BEHIND = "the first in line does not fit, and nobody may pass it"
    RESERVED = "it would delay the first in line, which has a reservation"
    OUTRANKED = "jobs that come first hold the place"


def reasons_of(
    snapshot: Snapshot,
    room: Room,
    placed: Collection[JobId],
    verdicts: Mapping[str, Verdict],
    others: Verdict,
    now: UtcSeconds,
) -> tuple[Waiting, ...]:
    """One record for each class with a job left waiting, by class key.

    Args:
        snapshot: what was decided on.
        room: what is free after the plan.
        placed: jobs that start.
        verdicts: by class key, for classes that were looked at.
        others: the verdict of all others.
        now: the cycle's instant; whoever waits out a backoff is told so.

    Cost: O(waiting jobs), and O(nodes) for each shape without room.
    """
    left: dict[str, WaitingJob] = {}
    for job in snapshot.waiting.values():
        if job.id in placed:
            continue
        known = left.get(job.class_key)
        if known is None or (known.eligible_at > now >= job.eligible_at):
            left[job.class_key] = job
    shortage: dict[JobShape, Reason] = {}
    records = []
    for class_key, job in sorted(left.items()):
        verdict = verdicts.get(class_key, others)
        if job.eligible_at > now:
            reason = Reason(ReasonCode.BACKOFF, "the backoff before its next attempt runs")
        elif verdict is not Verdict.NO_ROOM:
            reason = Reason(ReasonCode.BEHIND_PRIORITY, str(verdict), *_amount(job.shape))
        else:
            if job.shape not in shortage:
                shortage[job.shape] = _shortage(job, snapshot, room)
            reason = shortage[job.shape]
        records.append(Waiting(class_key, (reason,)))
    return tuple(records)


def _amount(shape: JobShape) -> tuple[str, float]:
    """The dimension that a gang is measured in, and how much of it it needs."""
    if shape.gpu_milli_total:
        return "gpus", shape.gpu_milli_total / WHOLE_GPU_MILLI
    return ("cpu_milli", shape.total.cpu_milli)


def _shortage(job: WaitingJob, snapshot: Snapshot, room: Room) -> Reason:
    """What is missing: the amount, a piece large enough, or enough pieces."""
    shape = job.shape
    dimension, need = _amount(shape)
    if dimension == "gpus":
        free: Floats = room.free.milli / WHOLE_GPU_MILLI
    else:
        free = room.free.cpu.astype(np.float64)
    total, largest = float(free.sum()), float(free.max(initial=0))
    if not _could_ever_fit(job, room.table):
        impossible = never_fits(shape, tuple(snapshot.nodes.values()))
        if impossible is not None:
            return impossible
    numbers = (dimension, need, total, largest)
    if need > total:
        message = f"needs {need:g} {dimension}, {total:g} free"
        return Reason(ReasonCode.WAITING_CAPACITY, message, *numbers)
    fits = room.fits(shape.worker)
    workers = shape.tasks // shape.tasks_per_worker
    found = int(min(fits.sum(), workers))
    if not found:
        message = f"{total:g} {dimension} are free, but no node has what one task needs"
        return Reason(ReasonCode.FRAGMENTED, message, *numbers)
    if found < workers:
        message = f"{found} of the gang's {workers} pieces would fit now; all must start together"
        return Reason(ReasonCode.WAITING_GANG, message, *numbers)
    if not room.quotas.admits(job.tenant, shape.gpu_milli_total):
        message = "its tenant's quota is used up"
        return Reason(ReasonCode.WAITING_CAPACITY, message, *numbers)
    message = "it would fit, but not as close together as it must be, or only into kept headroom"
    return Reason(ReasonCode.WAITING_TOPOLOGY, message, *numbers)


def _could_ever_fit(job: WaitingJob, table: NodeTable) -> bool:
    """Whether empty nodes would surely hold it; a quick look before the exact one. O(nodes)."""
    worker = job.shape.worker
    if worker.pool is not None or worker.gpu_models or worker.one_domain or table.mixed:
        return False
    gpus = (table.gpu_model != NO_GPU).sum(axis=1)
    fits = np.where(gpus > 0, gpus // max(1, worker.needs.gpus + worker.parts), 0)
    for need, have in (
        (worker.needs.cpu_milli, table.cpu),
        (worker.needs.memory_mib, table.memory),
    ):
        if need:
            fits = np.minimum(fits, have // need)
    return int(fits.sum()) >= job.shape.tasks
