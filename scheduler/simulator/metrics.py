"""The figures of a run, with the names that reports, scripts and the documentation use.

Percentiles interpolate linearly. `None` stands for a figure that the run does not have: a replay
has no times, a run without a solver no gap.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from scheduler.simulator.arrays import Arrays, Floats, arrays_of
from scheduler.simulator.bounds import Window
from scheduler.simulator.result import JobOutcome, RunResult
from scheduler.simulator.workload import Arrivals

_PART = 0.5
_NOISE_S = 1e-6  # sums of floats: far below any time that matters


@dataclass(frozen=True, slots=True)
class SizeClass:
    """Jobs of one size: GPUs asked for (0 for none, "<1" for a part of one)."""

    gpus: str
    arrived: int
    served: int


@dataclass(frozen=True, slots=True)
class Metrics:
    """The deterministic figures of one run. Times are seconds.

    Attributes:
        jobs: arrivals.
        completed: jobs that ran to their end.
        unplaced: jobs that never started.
        gpu_allocation_ratio: GPUs held over all GPUs: at the end of arrivals in a replay, the mean
            over time from first arrival to last release otherwise.
        gpu_allocation_ratio_at_100: the same in a replay when 100 % of the GPUs had been asked for.
        gpu_utilization: useful GPU time, without restart cost and redone work, over GPUs times
            (last release - first arrival).
        gpu_utilization_window: the same inside the window.
        wait_s_mean: wait is completion - arrival - run time, so evicted and restart time count.
        wait_s_p50: its median.
        wait_s_p99: its 99th percentile.
        jct_s_mean: completion - arrival.
        jct_s_p99: its 99th percentile.
        makespan_s: last completion - first arrival.
        slowdown_mean: mean of (completion - arrival) / run time.
        preemptions: evictions by the policy.
        restarts: starts after a job's first, whatever the reason.
        lost_gpu_hours: GPU time held that was not useful.
        link_bandwidth_ratio: of tasks with several GPUs on nodes whose pairs are not alike, mean of
            (bandwidth of the pairs they got / of the best subset of the empty node).
        gap_p50: of the cycles with a bound, median of how far the plan may be from the best one
            (`Plan.gap`).
        gap_p99: its 99th percentile.
        cycles: scheduling cycles.
    """

    jobs: int
    completed: int
    unplaced: int
    gpu_allocation_ratio: float | None
    gpu_allocation_ratio_at_100: float | None
    gpu_utilization: float | None
    gpu_utilization_window: float | None
    wait_s_mean: float | None
    wait_s_p50: float | None
    wait_s_p99: float | None
    jct_s_mean: float | None
    jct_s_p99: float | None
    makespan_s: float | None
    slowdown_mean: float | None
    preemptions: int
    restarts: int
    lost_gpu_hours: float
    link_bandwidth_ratio: float | None
    gap_p50: float | None
    gap_p99: float | None
    cycles: int


@dataclass(frozen=True, slots=True)
class Timing:
    """The wall-clock figures of one run: they differ from run to run.

    Attributes:
        decision_ms_p50: median wall time of one decision.
        decision_ms_p99: its 99th percentile.
        decision_s_total: of all decisions together.
    """

    decision_ms_p50: float | None
    decision_ms_p99: float | None
    decision_s_total: float


def metrics_of(result: RunResult, window: Window | None = None) -> Metrics:
    """The figures of `result`. O(jobs log jobs + attempts + cycles)."""
    arrays = arrays_of(result)
    done = arrays.completed
    taken = (arrays.end - arrays.submit)[done]
    wait = taken - arrays.duration[done]
    wait[np.abs(wait) < _NOISE_S] = 0.0
    held = arrays.run_gpus * (arrays.run_end - arrays.run_start)
    useful = arrays.run_gpus * (arrays.useful_to - arrays.useful_from)
    timed = result.arrivals is Arrivals.TIMED
    supply = result.gpus_total * (arrays.last_s - arrays.first_s)
    gaps = np.array([cycle.gap for cycle in result.cycles if cycle.gap is not None])
    at_end, at_100 = (None, None) if timed else _replayed(result)
    return Metrics(
        jobs=len(result.jobs),
        completed=int(done.sum()),
        unplaced=sum(job.first_start_s is None for job in result.jobs),
        gpu_allocation_ratio=_over(float(held.sum()), supply) if timed else at_end,
        gpu_allocation_ratio_at_100=at_100,
        gpu_utilization=_over(float(useful.sum()), supply) if timed else None,
        gpu_utilization_window=_inside(arrays, result.gpus_total, window) if timed else None,
        wait_s_mean=_mean(wait),
        wait_s_p50=_percentile(wait, 50),
        wait_s_p99=_percentile(wait, 99),
        jct_s_mean=_mean(taken),
        jct_s_p99=_percentile(taken, 99),
        makespan_s=float(arrays.end[done].max() - arrays.first_s) if done.any() else None,
        slowdown_mean=_mean(taken / arrays.duration[done]),
        preemptions=sum(job.preemptions for job in result.jobs),
        restarts=sum(job.restarts for job in result.jobs),
        lost_gpu_hours=float((held - useful).sum()) / 3600 if timed else 0.0,
        link_bandwidth_ratio=_mean(
            np.array([score.chosen_gbps / score.best_gbps for score in result.links])
        ),
        gap_p50=_percentile(gaps, 50),
        gap_p99=_percentile(gaps, 99),
        cycles=len(result.cycles),
    )


def timing_of(result: RunResult) -> Timing:
    """The wall-clock figures of `result`. O(cycles log cycles)."""
    spent = np.array([cycle.decide_ms for cycle in result.cycles])
    return Timing(
        decision_ms_p50=_percentile(spent, 50),
        decision_ms_p99=_percentile(spent, 99),
        decision_s_total=float(spent.sum()) / 1000,
    )


def served_by_size(result: RunResult) -> tuple[SizeClass, ...]:
    """How many jobs of each size started, smallest first. O(jobs log jobs)."""
    arrived = Counter(_size(job) for job in result.jobs)
    served = Counter(_size(job) for job in result.jobs if job.first_start_s is not None)
    return tuple(
        SizeClass("<1" if size == _PART else f"{size:g}", arrived[size], served[size])
        for size in sorted(arrived)
    )


def _size(job: JobOutcome) -> float:
    return _PART if 0 < job.gpus < 1 else job.gpus


def _replayed(result: RunResult) -> tuple[float, float | None]:
    """Allocation at the end of arrivals, and when all GPUs had been asked for (None: never)."""
    asked = np.cumsum([job.gpus for job in result.jobs])
    started = np.array([job.first_start_s is not None for job in result.jobs])
    held = np.cumsum(np.array([job.gpus for job in result.jobs]) * started)
    if not held.size:
        return 0.0, None
    full = int(np.searchsorted(asked, result.gpus_total))
    at_100 = float(held[full]) / result.gpus_total if full < held.size else None
    return float(held[-1]) / result.gpus_total, at_100


def _inside(arrays: Arrays, total_gpus: float, window: Window | None) -> float | None:
    if window is None:
        return None
    start, end = window
    overlap = np.minimum(arrays.useful_to, end) - np.maximum(arrays.useful_from, start)
    useful = float((np.maximum(overlap, 0.0) * arrays.run_gpus).sum())
    return _over(useful, total_gpus * (end - start))


def _over(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None


def _mean(values: Floats) -> float | None:
    return float(values.mean()) if values.size else None


def _percentile(values: Floats, percent: float) -> float | None:
    return float(np.percentile(values, percent)) if values.size else None
