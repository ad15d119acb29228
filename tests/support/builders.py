"""Model values in one line: every argument has a default that a test need not care about."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from scheduler.model.job import (
    CheckpointSpec,
    JobShape,
    JobSpec,
    LauncherKind,
    RetrySpec,
    TaskSpec,
    Topology,
    WaitingJob,
)
from scheduler.model.node import NO_LINKS, Gpu, Health, Links, Node
from scheduler.model.plan import Placement, TaskPlacement
from scheduler.model.quantity import (
    DEFAULT_POOL,
    DEFAULT_QUEUE,
    DEFAULT_TENANT,
    WHOLE_GPU_MILLI,
    AttemptId,
    GpuId,
    JobId,
    NodeId,
    PoolName,
    QueueName,
    Resources,
    UtcSeconds,
)
from scheduler.model.snapshot import LiveAttempt, Snapshot

NOW = UtcSeconds(1_800_000_000.0)


def gpu(
    gpu_id: str = "GPU-0",
    index: int = 0,
    *,
    model: str = "H100",
    memory_mib: int = 81_920,
    health: Health = Health.HEALTHY,
    cordoned: bool = False,
) -> Gpu:
    return Gpu(GpuId(gpu_id), index, model, memory_mib, health=health, cordoned=cordoned)


def full_mesh(gpus: int, *, nvlinks: int = 18, bandwidth_gbps: float = 450.0) -> Links:
    """Every pair linked alike, as behind an NVSwitch."""
    return Links(
        nvlinks=tuple(
            tuple(0 if row == column else nvlinks for column in range(gpus)) for row in range(gpus)
        ),
        bandwidth_gbps=tuple(
            tuple(0.0 if row == column else bandwidth_gbps for column in range(gpus))
            for row in range(gpus)
        ),
    )


def no_links(gpus: int) -> Links:
    """Every pair unlinked: PCIe only."""
    return full_mesh(gpus, nvlinks=0, bandwidth_gbps=0.0)


def node(
    name: str = "n0",
    gpus: int = 8,
    *,
    model: str = "H100",
    cpu_milli: int = 64_000,
    memory_mib: int = 524_288,
    links: Links | None = None,
    pool: str = DEFAULT_POOL,
    rack: str = "",
    zone: str = "",
    health: Health = Health.HEALTHY,
    cordoned: bool = False,
    simulated: bool = False,
) -> Node:
    """A node whose id is `n-<name>` and whose GPUs are `GPU-<name>-<index>`, all linked alike."""
    prefix = "SIM" if simulated else "GPU"
    found = NO_LINKS if gpus == 0 else full_mesh(gpus)
    return Node(
        id=NodeId(f"n-{name}"),
        name=name,
        capacity=Resources(gpus, cpu_milli, memory_mib),
        gpus=tuple(gpu(f"{prefix}-{name}-{index}", index, model=model) for index in range(gpus)),
        links=found if links is None else links,
        pool=PoolName(pool),
        rack=rack,
        zone=zone,
        health=health,
        cordoned=cordoned,
        simulated=simulated,
    )


def virtual_node(name: str = "v0", gpus: int = 8, *, model: str = "H100", rack: str = "") -> Node:
    """A simulated node."""
    return node(name, gpus, model=model, rack=rack, simulated=True)


def job_spec(
    name: str = "train",
    *,
    tasks: int = 1,
    tasks_max: int | None = None,
    gpus: int = 1,
    cpu_milli: int = 1_000,
    memory_mib: int = 1_024,
    gpu_models: Sequence[str] = (),
    command: Sequence[str] = ("true",),
    env: Sequence[tuple[str, str]] = (),
    processes: int | None = None,
    queue: str = DEFAULT_QUEUE,
    priority: int = 50,
    launcher: LauncherKind = LauncherKind.TORCH,
    topology: Topology = Topology.ANY,
    pool: str | None = None,
    max_runtime_s: float | None = None,
    preemptible: bool = True,
    max_retries: int = 0,
    backoff_s: float = 30.0,
    grace_s: float = 30.0,
) -> JobSpec:
    return JobSpec(
        name=name,
        queue=QueueName(queue),
        priority=priority,
        tasks_min=tasks,
        tasks_max=tasks if tasks_max is None else tasks_max,
        task=TaskSpec(
            gpus=gpus,
            gpu_models=tuple(gpu_models),
            cpu_milli=cpu_milli,
            memory_mib=memory_mib,
            command=tuple(command),
            env=tuple(sorted(env)),
            processes=max(1, gpus) if processes is None else processes,
        ),
        launcher=launcher,
        topology=topology,
        pool=None if pool is None else PoolName(pool),
        max_runtime_s=max_runtime_s,
        preemptible=preemptible,
        retry=RetrySpec(max_retries, backoff_s),
        checkpoint=CheckpointSpec(grace_s=grace_s),
    )


def task_placement(
    on: Node,
    gpu_indexes: Iterable[int] = (0,),
    *,
    task_index: int = 0,
    cpu_milli: int = 1_000,
    memory_mib: int = 1_024,
) -> TaskPlacement:
    """One task on the named GPUs of a node."""
    return TaskPlacement(
        task_index=task_index,
        node_id=on.id,
        gpu_ids=tuple(on.gpus[index].id for index in gpu_indexes),
        cpu_milli=cpu_milli,
        memory_mib=memory_mib,
    )


def placement(job_id: str, *tasks: TaskPlacement, value: float = 1.0) -> Placement:
    return Placement(JobId(job_id), tasks, value, "placed by a test")


def live_attempt(
    *tasks: TaskPlacement,
    attempt_id: str = "a-1",
    job_id: str = "j-live",
    priority: int = 50,
    preemptible: bool = True,
    since: float = NOW,
) -> LiveAttempt:
    return LiveAttempt(
        id=AttemptId(attempt_id),
        job=waiting_job_of(job_id, tasks, priority=priority, preemptible=preemptible),
        since=UtcSeconds(since),
        tasks=tasks,
    )


def waiting_job_of(
    job_id: str,
    tasks: Sequence[TaskPlacement],
    *,
    priority: int = 50,
    preemptible: bool = True,
) -> WaitingJob:
    """The job that such tasks came of."""
    first = tasks[0] if tasks else TaskPlacement(0, NodeId("n"), (), 0, 0)
    whole = first.gpu_milli == WHOLE_GPU_MILLI
    shape = JobShape(
        max(1, len(tasks)),
        Resources(len(first.gpu_ids) if whole else 0, first.cpu_milli, first.memory_mib),
        gpu_milli=0 if whole else first.gpu_milli,
    )
    return WaitingJob(
        id=JobId(job_id),
        tenant=DEFAULT_TENANT,
        queue=DEFAULT_QUEUE,
        priority=priority,
        submitted_at=UtcSeconds(0.0),
        eligible_at=UtcSeconds(0.0),
        shape=shape,
        preemptible=preemptible,
        attempts=1,
        class_key=repr(shape),
    )


def snapshot(
    nodes: Iterable[Node] = (),
    waiting: Iterable[WaitingJob] = (),
    live: Iterable[LiveAttempt] = (),
    *,
    revision: int = 1,
) -> Snapshot:
    """A snapshot; nodes in order of their names."""
    ordered = sorted(nodes, key=lambda each: (each.name, each.id))
    return Snapshot(
        revision=revision,
        nodes={each.id: each for each in ordered},
        live={each.id: each for each in live},
        waiting={each.id: each for each in waiting},
    )
