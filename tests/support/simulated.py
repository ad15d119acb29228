"""Small simulations in one line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from support.clusters import make_node

from policies.registry import profile_named
from scheduler.model.node import Node
from scheduler.model.quantity import TenantId
from scheduler.simulator.engine import Options, simulate
from scheduler.simulator.result import Cycle, JobOutcome, RunResult
from scheduler.simulator.workload import Arrivals, SimJob, Workload, by_arrival, gang_of


def sim_job(
    name: str,
    submit_s: float,
    duration_s: float,
    gpus: int = 1,
    *,
    node_gpus: int = 8,
    limit_s: float | None = None,
    tenant: str = "t",
    gpu_milli: int = 0,
    preemptible: bool = True,
) -> SimJob:
    """A job of `gpus`, cut into tasks as the importers do."""
    tasks, per_task = (1, 0) if gpu_milli else gang_of(gpus, node_gpus)
    return SimJob(
        name,
        submit_s,
        duration_s,
        tasks=tasks,
        gpus_per_task=per_task,
        gpu_milli=gpu_milli,
        limit_s=limit_s,
        tenant=TenantId(tenant),
        preemptible=preemptible,
    )


def workload(*jobs: SimJob, arrivals: Arrivals = Arrivals.TIMED) -> Workload:
    return Workload("hand-made", by_arrival(jobs), arrivals)


def small_cluster(nodes: int, gpus: int = 8) -> tuple[Node, ...]:
    return tuple(make_node(f"n{number:02}", gpus=gpus) for number in range(nodes))


def run(
    policy: str, jobs: Sequence[SimJob], nodes: Sequence[Node], options: Options | None = None
) -> RunResult:
    return simulate(workload(*jobs), nodes, profile_named(policy), options)


def spans(result: RunResult) -> dict[str, list[tuple[float, float]]]:
    """When each job ran."""
    return {job.id: [(run.start_s, run.end_s) for run in job.runs] for job in result.jobs}


def ends(result: RunResult) -> dict[str, float | None]:
    return {job.id: job.end_s for job in result.jobs}


def outcome_of(result: RunResult, job_id: str) -> JobOutcome:
    (found,) = (job for job in result.jobs if job.id == job_id)
    return found


def untimed(result: RunResult) -> RunResult:
    """Without what differs from run to run: the wall times."""
    cycles: tuple[Cycle, ...] = tuple(replace(cycle, decide_ms=0.0) for cycle in result.cycles)
    return replace(result, cycles=cycles)
