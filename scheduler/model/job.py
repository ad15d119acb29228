"""What a user submits: a job, the gang of tasks it starts together, and how each task runs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from scheduler.model.quantity import (
    JobId,
    PoolName,
    QueueName,
    Resources,
    TenantId,
    UtcSeconds,
)


class LauncherKind(StrEnum):
    """How a task's processes are started."""

    TORCH = "torch"
    """One process per GPU (or `processes_per_task`) with the torch.distributed env contract."""
    NONE = "none"
    """One plain process per task."""


class Topology(StrEnum):
    """How close the tasks of one gang must be; `prefer-` forms are wishes, the others are hard."""

    ANY = "any"
    SAME_NVLINK = "same-nvlink"
    SAME_NODE = "same-node"
    SAME_RACK = "same-rack"
    PREFER_SAME_NVLINK = "prefer-same-nvlink"
    PREFER_SAME_NODE = "prefer-same-node"
    PREFER_SAME_RACK = "prefer-same-rack"

    @property
    def one_node(self) -> bool:
        """Whether the whole gang must sit on one node."""
        return self in (Topology.SAME_NODE, Topology.SAME_NVLINK)


class Origin(StrEnum):
    """Who made the job."""

    API = "api"
    KUBERNETES = "kubernetes"


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """One task: what it needs and what it runs.

    Attributes:
        gpus: whole GPUs; 0 for a CPU task.
        gpu_models: acceptable GPU models in order of preference; empty accepts any.
        cpu_milli: thousandths of a core.
        memory_mib: host memory in MiB.
        command: argument vector, never a shell string; at least one element.
        env: extra environment, sorted by name.
        image: container image; Kubernetes only.
        processes: processes the launcher starts for this task, at least 1.
        workdir: absolute working directory, or None for the attempt's own folder.
    """

    gpus: int
    gpu_models: tuple[str, ...]
    cpu_milli: int
    memory_mib: int
    command: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()
    image: str | None = None
    processes: int = 1
    workdir: str | None = None


@dataclass(frozen=True, slots=True)
class RetrySpec:
    """Retries that the user pays for: `max_retries` after a failure of their own program."""

    max_retries: int = 0
    backoff_s: float = 30.0


@dataclass(frozen=True, slots=True)
class CheckpointSpec:
    """How to ask the job to save itself: send `signal`, then wait `grace_s` before SIGKILL."""

    signal: str = "SIGTERM"
    grace_s: float = 30.0
    every_s: float | None = None


@dataclass(frozen=True, slots=True)
class JobSpec:
    """A validated job. `tasks_min == tasks_max` for a rigid gang."""

    name: str
    queue: QueueName
    priority: int
    tasks_min: int
    tasks_max: int
    task: TaskSpec
    launcher: LauncherKind = LauncherKind.TORCH
    topology: Topology = Topology.ANY
    pool: PoolName | None = None
    max_runtime_s: float | None = None
    preemptible: bool = True
    retry: RetrySpec = RetrySpec()
    checkpoint: CheckpointSpec = CheckpointSpec()

    @property
    def shape(self) -> JobShape:
        """What the allocator needs to know of the job."""
        return JobShape(
            tasks=self.tasks_min,
            per_task=Resources(self.task.gpus, self.task.cpu_milli, self.task.memory_mib),
            gpu_models=self.task.gpu_models,
            topology=self.topology,
            pool=self.pool,
        )


@dataclass(frozen=True, slots=True)
class JobShape:
    """What a gang asks of the cluster. Jobs of equal shape are interchangeable to the allocator.

    Attributes:
        tasks: gang size; all tasks start or none.
        per_task: resources of one task, which sits whole on one node.
        gpu_models: acceptable GPU models, best first; empty accepts any.
        topology: closeness constraint of the gang.
        pool: the only pool allowed, or None for any.
    """

    tasks: int
    per_task: Resources
    gpu_models: tuple[str, ...] = ()
    topology: Topology = Topology.ANY
    pool: PoolName | None = None

    @property
    def total(self) -> Resources:
        """Resources of the whole gang."""
        return self.per_task * self.tasks


@dataclass(frozen=True, slots=True)
class WaitingJob:
    """A PENDING job as the decider sees it.

    Attributes:
        eligible_at: not before this instant (retry backoff); equals `submitted_at` at first.
        attempts: attempts made so far.
        class_key: digest of (tenant, queue, shape): jobs of one class share one reason record.
    """

    id: JobId
    tenant: TenantId
    queue: QueueName
    priority: int
    submitted_at: UtcSeconds
    eligible_at: UtcSeconds
    shape: JobShape
    preemptible: bool
    attempts: int
    class_key: str
