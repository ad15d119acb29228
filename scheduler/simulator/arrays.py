"""The records of a run as numpy arrays, for metrics and plots."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scheduler.simulator.result import RunResult

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Arrays:
    """One run. The first five have shape (jobs,), the others (attempts,).

    Attributes:
        submit: arrivals, seconds.
        duration: useful run time needed, seconds.
        gpus: GPUs asked for.
        end: completions, seconds; NaN for a job that did not complete.
        tenant: index into `tenants`.
        tenants: names, sorted.
        run_job: index of the attempt's job.
        run_start: seconds.
        run_end: seconds.
        useful_from: seconds.
        useful_to: seconds.
        run_gpus: GPUs held.
    """

    submit: Floats
    duration: Floats
    gpus: Floats
    end: Floats
    tenant: Ints
    tenants: tuple[str, ...]
    run_job: Ints
    run_start: Floats
    run_end: Floats
    useful_from: Floats
    useful_to: Floats
    run_gpus: Floats

    @property
    def completed(self) -> NDArray[np.bool_]:
        """Which jobs completed, shape (jobs,)."""
        return ~np.isnan(self.end)

    @property
    def first_s(self) -> float:
        """The first arrival."""
        return float(self.submit.min()) if self.submit.size else 0.0

    @property
    def last_s(self) -> float:
        """When the last GPU was given back; the first arrival if none was ever held."""
        return float(self.run_end.max()) if self.run_end.size else self.first_s


def arrays_of(result: RunResult) -> Arrays:
    """The arrays of `result`. O(jobs + attempts)."""
    jobs = result.jobs
    tenants = tuple(sorted({job.tenant for job in jobs}))
    place = {tenant: index for index, tenant in enumerate(tenants)}
    runs = [(index, run) for index, job in enumerate(jobs) for run in job.runs]
    return Arrays(
        submit=np.array([job.submit_s for job in jobs]),
        duration=np.array([job.duration_s for job in jobs]),
        gpus=np.array([job.gpus for job in jobs]),
        end=np.array([np.nan if job.end_s is None else job.end_s for job in jobs]),
        tenant=np.array([place[job.tenant] for job in jobs], dtype=np.intp),
        tenants=tenants,
        run_job=np.array([index for index, _ in runs], dtype=np.intp),
        run_start=np.array([run.start_s for _, run in runs]),
        run_end=np.array([run.end_s for _, run in runs]),
        useful_from=np.array([run.useful_from_s for _, run in runs]),
        useful_to=np.array([run.useful_to_s for _, run in runs]),
        run_gpus=np.array([run.gpus for _, run in runs]),
    )


def area_by(starts: Floats, ends: Floats, heights: Floats, at: Floats) -> Floats:
    """Area up to each instant of `at` under the sum of blocks `heights` high on [starts, ends).

    Exact, for any order. O((n + len(at)) log n) for n blocks. Shape of `at`.
    """
    if not starts.size:
        return np.zeros_like(at)
    times = np.concatenate((starts, ends))
    order = np.argsort(times, kind="stable")
    times = times[order]
    level = np.cumsum(np.concatenate((heights, -heights))[order])
    area = np.concatenate(([0.0], np.cumsum(level[:-1] * np.diff(times))))
    found: Floats = np.interp(at, times, area)
    return found


def mean_height(starts: Floats, ends: Floats, heights: Floats, edges: Floats) -> Floats:
    """Mean height of the blocks between neighbouring `edges`; shape (len(edges) - 1,)."""
    return np.diff(area_by(starts, ends, heights, edges)) / np.diff(edges)
