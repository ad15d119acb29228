"""What no policy can beat on a workload: bounds to print beside every result.

Each treats the cluster as one machine of G GPUs and forgets nodes, gangs and restart cost, so each
holds for every policy; how far above them a good policy lies says nothing about optimality.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scheduler.simulator.workload import Arrivals, SimJob, Workload

Window = tuple[float, float]
"""[start, end) in seconds."""

_DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bounds of one workload on one cluster; None where a workload's times do not count.

    Attributes:
        jct_s_mean: no mean completion time is below it.
        wait_s_mean: no mean wait is below it.
        makespan_s: no makespan is below it.
        gpu_utilization: none above it is possible from the first arrival to the last release.
        gpu_utilization_window: none above it is possible inside the window.
        gpu_allocation_ratio: none above it is possible in a replay.
        link_bandwidth_ratio: the exact best subset of an empty node, by definition.
    """

    jct_s_mean: float | None = None
    wait_s_mean: float | None = None
    makespan_s: float | None = None
    gpu_utilization: float | None = None
    gpu_utilization_window: float | None = None
    gpu_allocation_ratio: float | None = None
    link_bandwidth_ratio: float = 1.0


def bounds_of(workload: Workload, total_gpus: float, window: Window | None = None) -> Bounds:
    """All bounds. O(n log n) for n jobs.

    Args:
        workload: jobs in order of arrival, without those that no policy can ever run.
        total_gpus: of the cluster, above 0.
        window: of `gpu_utilization_window`; None leaves it out.
    """
    if workload.arrivals is Arrivals.REPLAY:
        return Bounds(gpu_allocation_ratio=min(1.0, workload.gpus / total_gpus))
    jobs = workload.jobs
    work = sum(job.gpus * job.duration_s for job in jobs)
    jct = mean_jct(jobs, total_gpus)
    end = makespan(jobs, total_gpus)
    return Bounds(
        jct_s_mean=jct,
        wait_s_mean=max(0.0, jct - _mean_duration(jobs)),
        makespan_s=end,
        gpu_utilization=min(1.0, work / (total_gpus * end)) if end > 0 else None,
        gpu_utilization_window=utilization(jobs, total_gpus, window) if window else None,
    )


def default_window(jobs: Sequence[SimJob]) -> Window | None:
    """One day after the first arrival to the last one, past the filling of an empty cluster.

    The whole span of arrivals where they span no more than a day; None if they have no span.
    """
    if not jobs:
        return None
    first, last = jobs[0].submit_s, jobs[-1].submit_s
    start = first + _DAY_S if last > first + _DAY_S else first
    return (start, last) if last > start else None


def mean_jct(jobs: Sequence[SimJob], total_gpus: float) -> float:
    """Lower bound of the mean completion time, in seconds. O(n log n).

    The larger of the mean run time and the optimum of a relaxation: any schedule of gangs shares
    one machine of speed G among jobs of work g*p, and there shortest remaining work first has the
    least total flow time (Schrage, Operations Research 1968).
    """
    return max(_mean_duration(jobs), _srpt_flow(jobs, total_gpus) / len(jobs)) if jobs else 0.0


def _mean_duration(jobs: Sequence[SimJob]) -> float:
    return sum(job.duration_s for job in jobs) / len(jobs) if jobs else 0.0


def _srpt_flow(jobs: Sequence[SimJob], speed: float) -> float:
    """Total flow time of shortest remaining processing time on one machine."""
    waiting: list[tuple[float, int]] = []
    flow = now = 0.0
    ordered = sorted(jobs, key=lambda job: job.submit_s)
    arrivals = [*(job.submit_s for job in ordered), float("inf")]
    for place, until in enumerate(arrivals):
        while waiting and now < until:
            left, which = waiting[0]
            if now + left <= until:
                heapq.heappop(waiting)
                now += left
                flow += now - ordered[which].submit_s
            else:
                heapq.heapreplace(waiting, (left - (until - now), which))
                now = until
        now = max(now, until)
        if place < len(ordered):
            job = ordered[place]
            heapq.heappush(waiting, (job.gpus * job.duration_s / speed, place))
    return flow


def makespan(jobs: Sequence[SimJob], total_gpus: float) -> float:
    """Lower bound of (last completion - first arrival), in seconds. O(n log n).

    The largest of: from any instant on, the work released after it over all GPUs; the end of a job
    started when it arrives; and from any instant on, the jobs of more than half of the GPUs, of
    which no two run together.
    """
    if not jobs:
        return 0.0
    submit = np.array([job.submit_s for job in jobs])
    run = np.array([job.duration_s for job in jobs])
    gpus = np.array([job.gpus for job in jobs])
    order = np.argsort(submit, kind="stable")
    submit, run, gpus = submit[order], run[order], gpus[order]
    serial = np.where(gpus > total_gpus / 2, run, 0.0)
    latest = max(
        float((submit + _from_here_on(gpus * run / total_gpus)).max()),
        float((submit + run).max()),
        float((submit + _from_here_on(serial)).max()),
    )
    return latest - float(submit[0])


def work_by(
    jobs: Sequence[SimJob], total_gpus: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The most useful work that any policy can have done by each instant. O(n log n).

    By instant t a job can have had g*min(p, t - r) of GPU time, all jobs together A(t); from any
    earlier instant s on the cluster can have added no more than G*(t - s). So W(t) = min over s of
    A(s) + G*(t - s).

    Returns:
        (instants in seconds, GPU seconds), both of shape (2n,), ascending.
    """
    submit = np.array([job.submit_s for job in jobs])
    gpus = np.array([job.gpus for job in jobs])
    ends = submit + np.array([job.duration_s for job in jobs])
    times = np.concatenate((submit, ends))
    order = np.argsort(times, kind="stable")
    times = times[order]
    rate = np.cumsum(np.concatenate((gpus, -gpus))[order])
    steps = np.diff(times, prepend=times[:1])
    arrived = np.cumsum(np.concatenate(([0.0], rate[:-1])) * steps)
    since = times - times[0]
    return times, np.minimum.accumulate(arrived - total_gpus * since) + total_gpus * since


def _from_here_on(amounts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum of each amount and all that follow it, shape of `amounts`."""
    return np.cumsum(amounts[::-1])[::-1]


def utilization(jobs: Sequence[SimJob], total_gpus: float, window: Window) -> float:
    """Upper bound of the useful share of GPU time inside `window`. O(n).

    No job can do more in it than run from its arrival, or the window's start, to the window's end.
    """
    start, end = window
    useful = sum(
        job.gpus * max(0.0, min(job.duration_s, end - max(job.submit_s, start))) for job in jobs
    )
    return min(1.0, useful / (total_gpus * (end - start)))
