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
    return Gang(entry.job, entry.rank, entry.value, *_cut(entry.job.shape))


def gangs_of(ordered: Sequence[OrderedJob]) -> tuple[Gang, ...]:
    """One gang for each job, in queue order. O(jobs)."""
    # Jobs of one class have one shape, and a string is found faster than a shape is cut.
    known: dict[str, tuple[Worker, int, int, int, bool]] = {}
    gangs = []
    for entry in ordered:
        cut = known.get(entry.job.class_key)
        if cut is None:
            cut = known[entry.job.class_key] = _cut(entry.job.shape)
        gangs.append(Gang(entry.job, entry.rank, entry.value, *cut))
    return tuple(gangs)


def _cut(shape: JobShape) -> tuple[Worker, int, int, int, bool]:
    """A gang's worker, how many there are at least and at most, tasks of each, and one rack."""
    each = shape.tasks_per_worker
    one_rack = shape.topology is Topology.SAME_RACK
    return shape.worker, shape.tasks // each, shape.tasks_max // each, each, one_rack
