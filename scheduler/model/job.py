"""What a user submits: a job, the gang of tasks it starts together, and how each task runs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from scheduler.model.quantity import (
    WHOLE_GPU_MILLI,
    JobId,
    PoolName,
    QueueName,
    Resources,
    TenantId,
    UtcSeconds,
)
from scheduler.model.site import ANYWHERE, Amounts, Site, scaled


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
        gpus: whole GPUs; 0 for a CPU task, or when `gpu_milli` asks for a part of one.
        gpu_models: acceptable GPU models in order of preference; empty accepts any.
        cpu_milli: thousandths of a core.
        memory_mib: host memory in MiB.
        command: argument vector, never a shell string; at least one element.
        env: extra environment, sorted by name.
        image: container image; Kubernetes only.
        processes: processes the launcher starts for this task, at least 1.
        workdir: absolute working directory, or None for the attempt's own folder.
        gpu_milli: thousandths of one GPU, 1..999, for a task that shares its GPU; else 0.
        site: which nodes it may sit on; of tasks that came from Kubernetes.
        extras: amounts of further resources, likewise.
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
    gpu_milli: int = 0
    site: Site = ANYWHERE
    extras: Amounts = ()


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
            gpu_milli=self.task.gpu_milli,
            tasks_max=self.tasks_max,
            site=self.task.site,
            extras=self.task.extras,
        )


@dataclass(frozen=True, slots=True)
class Worker:
    """What must sit in one piece on one node: a task, or a gang that may not leave its node.

    Attributes:
        needs: whole GPUs (all of one model), CPU and memory.
        gpu_milli: thousandths of one GPU, 1..999, when it shares one; `needs.gpus` is 0 then.
        gpu_models: acceptable GPU models, best first; empty accepts any.
        pool: the only pool allowed, or None for any.
        one_domain: its GPUs must share an NVLink domain.
        parts: how many such shares of a GPU, on any GPUs of its node; 1 unless it is a gang of
            sharing tasks that may not leave its node.
        site: which nodes it may sit on.
        extras: amounts of further resources.
    """

    needs: Resources
    gpu_milli: int = 0
    gpu_models: tuple[str, ...] = ()
    pool: PoolName | None = None
    one_domain: bool = False
    parts: int = 1
    site: Site = ANYWHERE
    extras: Amounts = ()

    @property
    def milli(self) -> int:
        """GPU thousandths in all."""
        return self.needs.gpus * WHOLE_GPU_MILLI + self.gpu_milli * self.parts


@dataclass(frozen=True, slots=True)
class JobShape:
    """What a gang asks of the cluster. Jobs of equal shape are interchangeable to the allocator.

    Attributes:
        tasks: gang size, for an elastic gang the smallest; that many start together or none.
        per_task: resources of one task, which sits whole on one node.
        gpu_models: acceptable GPU models, best first; empty accepts any.
        topology: closeness constraint of the gang.
        pool: the only pool allowed, or None for any.
        gpu_milli: thousandths of one GPU, 1..999, that each task shares; `per_task.gpus` is 0 then.
        tasks_max: the largest useful gang size, at least `tasks`; 0 stands for `tasks`.
        site: which nodes its tasks may sit on.
        extras: amounts of further resources that each task takes of its node.
    """

    tasks: int
    per_task: Resources
    gpu_models: tuple[str, ...] = ()
    topology: Topology = Topology.ANY
    pool: PoolName | None = None
    gpu_milli: int = 0
    tasks_max: int = 0
    site: Site = ANYWHERE
    extras: Amounts = ()

    def __post_init__(self) -> None:
        """Write the largest size out, so that equal gangs are equal values."""
        if self.tasks_max < self.tasks:
            object.__setattr__(self, "tasks_max", self.tasks)

    @property
    def total(self) -> Resources:
        """Whole GPUs, CPU and memory of the (smallest) gang."""
        return self.per_task * self.tasks

    @property
    def gpu_milli_total(self) -> int:
        """GPU thousandths of the (smallest) gang, shared parts included."""
        return (self.per_task.gpus * WHOLE_GPU_MILLI + self.gpu_milli) * self.tasks

    @property
    def worker(self) -> Worker:
        """The piece that must not be cut: one task, or the whole gang if it is bound to a node."""
        one_node = self.topology.one_node
        return Worker(
            self.total if one_node else self.per_task,
            self.gpu_milli,
            self.gpu_models if self.per_task.gpus or self.gpu_milli else (),
            self.pool,
            self.topology is Topology.SAME_NVLINK
            and (self.per_task.gpus > 0 or (self.gpu_milli > 0 and self.tasks_max > 1)),
            self.tasks if one_node and self.gpu_milli else 1,
            self.site,
            scaled(self.extras, self.tasks) if one_node else self.extras,
        )

    @property
    def tasks_per_worker(self) -> int:
        """Tasks that each `worker` stands for."""
        return self.tasks if self.topology.one_node else 1


@dataclass(frozen=True, slots=True)
class WaitingJob:
    """A PENDING job as the decider sees it.

    Attributes:
        eligible_at: not before this instant (retry backoff); equals `submitted_at` at first.
        attempts: attempts made so far.
        class_key: digest of (tenant, queue, shape): jobs of one class share one reason record.
        attained_s: seconds that earlier attempts ran; what least-attained-service orders go by.
        runtime_s: seconds it is expected to run from its next start on, where somebody may know:
            a declared limit or a prediction; None where nobody does.
        evicts: whether others may be stopped to let it in.
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
    attained_s: float = 0.0
    runtime_s: float | None = None
    evicts: bool = True
