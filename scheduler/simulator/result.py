"""What a simulated run leaves behind: raw records, from which metrics and reports are computed."""

from __future__ import annotations

from dataclasses import dataclass

from scheduler.model.plan import relative_gap
from scheduler.simulator.workload import Arrivals


@dataclass(frozen=True, slots=True)
class Run:
    """One attempt of a job: [start_s, end_s), of which [useful_from_s, useful_to_s) counted.

    Before it lies the restart cost, after it what an eviction or a fault threw away.
    """

    start_s: float
    end_s: float
    useful_from_s: float
    useful_to_s: float
    gpus: float


@dataclass(frozen=True, slots=True)
class JobOutcome:
    """What became of one job.

    Attributes:
        id: the job's id in the workload.
        tenant: whose it was.
        gpus: GPUs that the whole gang asked for; a part of a GPU is a fraction.
        submit_s: arrival.
        duration_s: useful run time that it needs.
        first_start_s: first start, or None if it never ran.
        end_s: completion, or None if it never completed (or the workload is a replay).
        preemptions: evictions by the policy.
        restarts: starts after the first, whatever the reason.
        lost_s: run time that was thrown away or spent on restarting.
        runs: every attempt, in order.
    """

    id: str
    tenant: str
    gpus: float
    submit_s: float
    duration_s: float
    first_start_s: float | None
    end_s: float | None
    preemptions: int = 0
    restarts: int = 0
    lost_s: float = 0.0
    runs: tuple[Run, ...] = ()


@dataclass(frozen=True, slots=True)
class Cycle:
    """One scheduling cycle.

    Attributes:
        at_s: simulated time; in a replay, the number of jobs that have arrived.
        waiting: jobs still waiting after it.
        placed: jobs started by it.
        evicted: jobs evicted by it.
        gpus_used: GPUs held after it.
        gpus_total: GPUs that could be held then.
        value: objective value of the plan committed, or None when the policy has no objective.
        bound: proven upper bound of that value, or None.
        standing: what the running jobs are worth that might have been stopped.
        decide_ms: wall time of deciding. Differs from run to run: never part of a
            deterministic result.
    """

    at_s: float
    waiting: int
    placed: int
    evicted: int
    gpus_used: float
    gpus_total: float
    value: float | None = None
    bound: float | None = None
    decide_ms: float = 0.0
    standing: float = 0.0

    @property
    def gap(self) -> float | None:
        """How far the plan may be from the best one, as `Plan.gap`; 0 is proven optimal."""
        if self.value is None or self.bound is None:
            return None
        return relative_gap(self.value, self.bound, self.standing)


@dataclass(frozen=True, slots=True)
class LinkScore:
    """How well linked the GPUs of one task are, on a node whose pairs are not all alike.

    Attributes:
        chosen_gbps: mean one-way GB/s over the pairs it got.
        best_gbps: the most that as many GPUs of the empty node can have, exactly.
    """

    chosen_gbps: float
    best_gbps: float


@dataclass(frozen=True, slots=True)
class RunResult:
    """One workload run under one policy.

    Attributes:
        workload: its name.
        policy: name of the profile.
        seed: of everything random in the run.
        cluster: the nodes in a few words, for reports.
        gpus_total: GPUs of the whole cluster when nothing has failed.
        arrivals: whether the workload's times counted.
        jobs: in order of arrival.
        cycles: in order of time.
        links: of tasks with several GPUs, in order of their starts.
    """

    workload: str
    policy: str
    seed: int
    cluster: str
    gpus_total: float
    arrivals: Arrivals
    jobs: tuple[JobOutcome, ...]
    cycles: tuple[Cycle, ...]
    links: tuple[LinkScore, ...] = ()
