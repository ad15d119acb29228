"""The waiting jobs as gangs of workers: what the allocator has to place, worth by worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scheduler.model.job import JobShape, Topology, WaitingJob, Worker
from scheduler.model.ports import OrderedJob


@dataclass(frozen=True, slots=True)
class Gang:
    """A gang to place.

    Attributes:
        rank: its place in line.
        value: what starting it is worth, in its smallest size.
        worker: the piece that must not be cut.
        workers: how many of them, all or none.
        workers_max: up to so many are useful (elastic); equal to `workers` for a rigid gang.
        tasks_per_worker: tasks each worker stands for.
        one_rack: whether all workers must share a rack.
    """

    job: WaitingJob
    rank: int
    value: float
    worker: Worker
    workers: int
    workers_max: int
    tasks_per_worker: int
    one_rack: bool

    @property
    def shape(self) -> JobShape:
        """The job's shape."""
        return self.job.shape


def gang_of(entry: OrderedJob) -> Gang:
    """The gang of an ordered job."""
    shape = entry.job.shape
    each = shape.tasks_per_worker
    return Gang(
        job=entry.job,
        rank=entry.rank,
        value=entry.value,
        worker=shape.worker,
        workers=shape.tasks // each,
        workers_max=shape.tasks_max // each,
        tasks_per_worker=each,
        one_rack=shape.topology is Topology.SAME_RACK,
    )


def gangs_of(ordered: Sequence[OrderedJob]) -> tuple[Gang, ...]:
    """One gang for each job, in queue order. O(jobs)."""
    return tuple(gang_of(entry) for entry in ordered)
