"""A recorded or generated workload: what arrives, when, how long it runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from scheduler.model.job import Topology
from scheduler.model.node import Node
from scheduler.model.quantity import (
    DEFAULT_QUEUE,
    DEFAULT_TENANT,
    WHOLE_GPU_MILLI,
    QueueName,
    TenantId,
)


class Arrivals(StrEnum):
    """How the jobs of a workload come and go."""

    TIMED = "timed"
    """Each job arrives at its `submit_s` and leaves when it has run for its `duration_s`."""
    REPLAY = "replay"
    """The FGD protocol: jobs arrive in order and stay; one that does not fit is not retried.

    `submit_s` is the place in the sequence (0, 1, ...) and `duration_s` means nothing.
    """


@dataclass(frozen=True, slots=True)
class SimJob:
    """One job of a workload.

    Attributes:
        id: unique in the workload.
        submit_s: arrival, seconds since the workload's first record.
        tasks: gang size; all tasks start together.
        gpus_per_task: whole GPUs of one task; 0 with `gpu_milli` or for a CPU job.
        gpu_milli: 1..999 asks each task for a part of one GPU; 0 for none.
        cpu_milli: thousandths of a core, of one task.
        memory_mib: host memory of one task.
        duration_s: useful run time once started. Policies see it only if their profile may.
        limit_s: declared maximum run time, or None.
        name: model or application, "" when unknown.
        priority: 0..100.
        gpu_models: acceptable GPU models, best first; empty accepts any.
        preemptible: whether a policy may evict it.
    """

    id: str
    submit_s: float
    duration_s: float
    tasks: int = 1
    gpus_per_task: int = 0
    gpu_milli: int = 0
    cpu_milli: int = 0
    memory_mib: int = 0
    limit_s: float | None = None
    tenant: TenantId = DEFAULT_TENANT
    queue: QueueName = DEFAULT_QUEUE
    name: str = ""
    priority: int = 50
    gpu_models: tuple[str, ...] = ()
    topology: Topology = Topology.ANY
    preemptible: bool = True

    @property
    def total_milli(self) -> int:
        """Thousandths of a GPU that the whole gang holds."""
        return self.tasks * (self.gpus_per_task * WHOLE_GPU_MILLI + self.gpu_milli)

    @property
    def gpus(self) -> float:
        """GPUs that the whole gang holds."""
        return self.total_milli / WHOLE_GPU_MILLI


@dataclass(frozen=True, slots=True)
class Skipped:
    """Records that an importer left out, and why; they are counted in every report."""

    reason: str
    records: int


@dataclass(frozen=True, slots=True)
class Workload:
    """Jobs in order of arrival.

    Attributes:
        name: where it comes from, for reports.
        jobs: sorted by `submit_s`, then by place in the source.
        arrivals: whether times count.
        skipped: what the importer could not use.
    """

    name: str
    jobs: tuple[SimJob, ...]
    arrivals: Arrivals = Arrivals.TIMED
    skipped: tuple[Skipped, ...] = ()

    @property
    def gpus(self) -> float:
        """GPUs that all jobs ask for together."""
        return sum(job.total_milli for job in self.jobs) / WHOLE_GPU_MILLI


def by_arrival(jobs: Iterable[SimJob]) -> tuple[SimJob, ...]:
    """`jobs` sorted by arrival, stable, ties in the order given. O(n log n)."""
    return tuple(sorted(jobs, key=lambda job: job.submit_s))


def gpu_milli(nodes: Iterable[Node]) -> int:
    """Thousandths of a GPU that `nodes` offer together."""
    return WHOLE_GPU_MILLI * sum(node.capacity.gpus for node in nodes)


def gang_of(gpus: int, node_gpus: int) -> tuple[int, int]:
    """How a job of `gpus` is split into equal tasks on nodes of `node_gpus`.

    Public traces say how many GPUs a job had, not how it was split: up to one node it is one task,
    a multiple of a node takes whole nodes, and anything else the fewest equal tasks that fit.

    Returns:
        (tasks, GPUs per task), with tasks * GPUs per task == gpus.
    """
    if gpus <= node_gpus:
        return 1, gpus
    per_task = next(part for part in range(node_gpus, 0, -1) if gpus % part == 0)
    return gpus // per_task, per_task
