"""Bounds: small cases by hand, brute force, and the values of the public workloads."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.traces import trace

from scheduler.simulator import bounds
from scheduler.simulator.importers import READERS, Reading
from scheduler.simulator.workload import Arrivals, SimJob, Workload, by_arrival

DAY_S = 86_400.0


def job(number: int, submit_s: float, gpus: int, duration_s: float) -> SimJob:
    return SimJob(id=f"j{number}", submit_s=submit_s, duration_s=duration_s, gpus_per_task=gpus)


@st.composite
def workloads(draw: st.DrawFn) -> tuple[SimJob, ...]:
    """Up to five small jobs for a cluster of 4 GPUs."""
    return by_arrival(
        job(
            number,
            float(draw(st.integers(0, 6))),
            draw(st.integers(1, 4)),
            float(draw(st.integers(1, 6))),
        )
        for number in range(draw(st.integers(1, 5)))
    )


def schedules(jobs: tuple[SimJob, ...], gpus: int) -> list[dict[str, float]]:
    """Completions under every order of list scheduling without preemption."""
    found = []
    for order in itertools.permutations(jobs):
        free_at = [0.0] * gpus
        ends: dict[str, float] = {}
        for one in order:
            free_at.sort()
            start = max(one.submit_s, free_at[int(one.gpus) - 1])
            ends[one.id] = start + one.duration_s
            free_at[: int(one.gpus)] = [ends[one.id]] * int(one.gpus)
        found.append(ends)
    return found


@given(workloads())
def test_no_schedule_beats_the_bounds(jobs: tuple[SimJob, ...]) -> None:
    limits = bounds.bounds_of(Workload("w", jobs), 4.0, window=(1.0, 5.0))
    assert limits.jct_s_mean is not None
    assert limits.makespan_s is not None
    assert limits.gpu_utilization_window is not None
    times, work = bounds.work_by(jobs, 4.0)
    for ends in schedules(jobs, 4):
        jct = sum(ends[one.id] - one.submit_s for one in jobs) / len(jobs)
        assert jct >= limits.jct_s_mean - 1e-9
        assert max(ends.values()) - jobs[0].submit_s >= limits.makespan_s - 1e-9
        starts = {one.id: ends[one.id] - one.duration_s for one in jobs}
        inside = sum(
            one.gpus * max(0.0, min(ends[one.id], 5.0) - max(starts[one.id], 1.0)) for one in jobs
        )
        assert inside / 16.0 <= limits.gpu_utilization_window + 1e-9
        for at, most in zip(times, work, strict=True):
            done = sum(
                one.gpus * min(max(0.0, at - starts[one.id]), one.duration_s) for one in jobs
            )
            assert done <= most + 1e-9


def srpt_in_small_steps(jobs: tuple[SimJob, ...], gpus: float, step: float) -> float:
    """Mean completion time of shortest-remaining-work-first, simulated with a fixed step."""
    left = {one.id: one.gpus * one.duration_s / gpus for one in jobs}
    ends: dict[str, float] = {}
    at = 0.0
    while left:
        present = [one for one in jobs if one.submit_s <= at + 1e-12 and one.id in left]
        if present:
            least = min(present, key=lambda one: left[one.id])
            left[least.id] -= step
            if left[least.id] <= 1e-9:
                del left[least.id]
                ends[least.id] = at + step
        at += step
    return sum(ends[one.id] - one.submit_s for one in jobs) / len(jobs)


@given(workloads())
def test_mean_jct_is_srpt_or_the_mean_duration(jobs: tuple[SimJob, ...]) -> None:
    brute = srpt_in_small_steps(jobs, 4.0, step=0.25)
    mean = sum(one.duration_s for one in jobs) / len(jobs)
    assert bounds.mean_jct(jobs, 4.0) == pytest.approx(max(mean, brute))


def test_makespan_takes_the_largest_of_three() -> None:
    assert bounds.makespan([job(0, 0, 4, 10), job(1, 5, 4, 10)], 4.0) == 20.0  # work
    assert bounds.makespan([job(0, 0, 1, 10), job(1, 50, 1, 10)], 4.0) == 60.0  # one job
    assert bounds.makespan([job(0, 0, 3, 10), job(1, 5, 3, 10)], 4.0) == 20.0  # no two together
    assert bounds.makespan([job(0, 10, 4, 10)], 4.0) == 10.0  # from the first arrival
    assert bounds.makespan([], 4.0) == 0.0


def test_windows() -> None:
    week = [job(n, n * DAY_S, 1, DAY_S) for n in range(7)]
    assert bounds.default_window(week) == (DAY_S, 6 * DAY_S)
    assert bounds.default_window(week[:2]) == (0.0, DAY_S)
    assert bounds.default_window(week[:1]) is None
    assert bounds.default_window([]) is None
    assert bounds.utilization(week, 2.0, (DAY_S, 3 * DAY_S)) == 0.75
    assert bounds.utilization(week, 1.0, (DAY_S, 3 * DAY_S)) == 1.0


def test_bounds_of_nothing() -> None:
    assert bounds.bounds_of(Workload("w", ()), 4.0).gpu_utilization is None


def test_a_replay_has_no_times() -> None:
    load = Workload("w", (job(0, 0, 3, 0),), Arrivals.REPLAY)
    assert bounds.bounds_of(load, 4.0) == bounds.Bounds(gpu_allocation_ratio=0.75)
    assert bounds.bounds_of(load, 2.0) == bounds.Bounds(gpu_allocation_ratio=1.0)


def test_work_by_follows_the_arrivals_then_the_cluster() -> None:
    times, work = bounds.work_by([job(0, 0, 2, 10), job(1, 0, 6, 10), job(2, 5, 8, 5)], 8.0)
    assert work[np.searchsorted(times, 5)] == 40.0
    assert work[-1] == 80.0


@pytest.mark.parametrize(
    ("name", "jct", "makespan"),
    [
        ("muri/trace3.csv", 108_084, 8.172e6),
        ("muri/testbed400.csv", 151_822, 3_456_717),
    ],
)
def test_muri(name: str, jct: float, makespan: float) -> None:
    limits = bounds.bounds_of(READERS["csv"](trace(name), Reading()), 64.0)
    assert limits.jct_s_mean == pytest.approx(jct, abs=1)
    assert limits.makespan_s == pytest.approx(makespan, rel=1e-5)


def test_shockwave() -> None:
    reading = Reading(columns={"submit_s": "arrival_s"}, node_gpus=4)
    load = READERS["csv"](trace("shockwave/jobs_120_100.csv"), reading)
    assert bounds.makespan(load.jobs, 32.0) == pytest.approx(22_241, abs=1)


@pytest.mark.parametrize(
    ("gpus", "utilization"),
    [(352, 1.0), (400, 1.0), (464, 0.879), (512, 0.796), (576, 0.708), (640, 0.637)],
)
def test_philly_week(gpus: int, utilization: float) -> None:
    load = READERS["csv"](trace("philly_week/philly_2017-10-09_week.csv"), Reading())
    window = bounds.default_window(load.jobs)
    limits = bounds.bounds_of(load, gpus, window)
    assert window == (DAY_S, 604_198.0)
    assert limits.jct_s_mean == pytest.approx(7_569, abs=1)
    assert limits.gpu_utilization_window == pytest.approx(utilization, abs=5e-4)
