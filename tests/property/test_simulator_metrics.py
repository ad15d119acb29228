"""Metrics and fairness against their definitions, second by second."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.sim_runs import run_results

from scheduler.simulator.arrays import arrays_of, mean_height
from scheduler.simulator.fairness import fairness_of, jain, max_min_shares
from scheduler.simulator.metrics import metrics_of
from scheduler.simulator.result import JobOutcome, RunResult

GPUS = 8.0


def held_at(result: RunResult, at: float, *, useful: bool = False) -> float:
    """GPUs held (or usefully busy) in the second that starts at `at`."""
    return sum(
        run.gpus
        for job in result.jobs
        for run in job.runs
        if (run.useful_from_s if useful else run.start_s)
        <= at
        < (run.useful_to_s if useful else run.end_s)
    )


def ends_of(result: RunResult) -> tuple[int, int]:
    first = int(min(job.submit_s for job in result.jobs))
    last = max((run.end_s for job in result.jobs for run in job.runs), default=first)
    return first, int(last)


@given(run_results())
def test_figures_are_their_definitions(result: RunResult) -> None:
    found = metrics_of(result, window=(3.0, 17.0))
    first, last = ends_of(result)
    seconds = range(first, last)
    supply = GPUS * (last - first)
    if supply:
        held = sum(held_at(result, at) for at in seconds)
        useful = sum(held_at(result, at, useful=True) for at in seconds)
        assert found.gpu_allocation_ratio == pytest.approx(held / supply)
        assert found.gpu_utilization == pytest.approx(useful / supply)
        assert found.lost_gpu_hours == pytest.approx((held - useful) / 3600)
    else:
        assert found.gpu_allocation_ratio is None
    inside = sum(held_at(result, at, useful=True) for at in range(3, 17))
    assert found.gpu_utilization_window == pytest.approx(inside / (GPUS * 14))
    done = [job for job in result.jobs if job.end_s is not None]
    assert (found.jobs, found.completed) == (len(result.jobs), len(done))
    assert found.unplaced == sum(not job.runs for job in result.jobs)
    jcts = sorted((job.end_s or 0.0) - job.submit_s for job in done)
    waits = sorted((job.end_s or 0.0) - job.submit_s - job.duration_s for job in done)
    if not done:
        assert found.jct_s_mean is found.wait_s_p50 is found.makespan_s is None
        return
    assert found.jct_s_mean == pytest.approx(sum(jcts) / len(done))
    assert found.wait_s_mean == pytest.approx(sum(waits) / len(done))
    assert found.wait_s_p50 == pytest.approx(interpolated(waits, 0.5))
    assert found.wait_s_p99 == pytest.approx(interpolated(waits, 0.99))
    assert found.jct_s_p99 == pytest.approx(interpolated(jcts, 0.99))
    assert found.makespan_s == max(job.end_s or 0.0 for job in done) - first
    slowdowns = [((job.end_s or 0.0) - job.submit_s) / job.duration_s for job in done]
    assert found.slowdown_mean == pytest.approx(sum(slowdowns) / len(done))


def interpolated(ordered: list[float], quantile: float) -> float:
    place = quantile * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def filled(demand: list[float], capacity: float, weight: list[float]) -> list[float]:
    """Max-min by pouring: raise everyone's level by bisection until the capacity is used."""
    if sum(demand) <= capacity:
        return demand
    low, high = 0.0, max(d / w for d, w in zip(demand, weight, strict=True))
    for _ in range(200):
        level = (low + high) / 2
        used = sum(min(d, level * w) for d, w in zip(demand, weight, strict=True))
        low, high = (level, high) if used < capacity else (low, level)
    return [min(d, low * w) for d, w in zip(demand, weight, strict=True)]


@given(
    st.lists(
        st.tuples(st.integers(0, 20), st.sampled_from([0.5, 1.0, 2.0])), min_size=1, max_size=6
    ),
    st.integers(1, 30),
)
def test_water_filling_is_max_min(tenants: list[tuple[int, float]], capacity: int) -> None:
    demand = [float(asked) for asked, _ in tenants]
    weight = [heavy for _, heavy in tenants]
    rows = np.array([demand, demand[::-1]])
    forward, _ = max_min_shares(rows, float(capacity), np.array(weight))
    assert forward == pytest.approx(filled(demand, float(capacity), weight), abs=1e-9)


def present(job: JobOutcome, at: float, last: float) -> bool:
    return job.submit_s <= at < (last if job.end_s is None else job.end_s)


@given(run_results())
def test_fairness_is_its_definition(result: RunResult) -> None:
    weights = {"red": 2.0}
    found = fairness_of(arrays_of(result), GPUS, weights)
    first, last = ends_of(result)
    names = sorted({job.tenant for job in result.jobs})
    held: dict[str, float] = defaultdict(float)
    share: dict[str, float] = defaultdict(float)
    off: dict[str, float] = defaultdict(float)
    for at in range(first, last):
        demand = [
            sum(j.gpus for j in result.jobs if j.tenant == name and present(j, at, last))
            for name in names
        ]
        fair = filled(demand, GPUS, [weights.get(name, 1.0) for name in names])
        for name, entitled in zip(names, fair, strict=True):
            used = sum(
                run.gpus
                for job in result.jobs
                if job.tenant == name
                for run in job.runs
                if run.start_s <= at < run.end_s
            )
            held[name] += used
            share[name] += entitled
            off[name] += abs(used - entitled)
    for tenant in found.tenants:
        assert tenant.gpu_hours == pytest.approx(held[tenant.tenant] / 3600)
        assert tenant.entitled_gpu_hours == pytest.approx(share[tenant.tenant] / 3600, abs=1e-9)
    ratios = [held[name] / share[name] for name in names if share[name] > 1e-9]
    if ratios and any(ratios):
        even = sum(ratios) ** 2 / (len(ratios) * sum(ratio**2 for ratio in ratios))
        assert found.jain_index == pytest.approx(even)
    if last > first:
        most = max(off.values()) / (GPUS * (last - first))
        assert found.share_deviation_max == pytest.approx(most, abs=1e-9)


@given(run_results())
def test_finish_ratios_are_their_definition(result: RunResult) -> None:
    found = fairness_of(arrays_of(result), GPUS)
    _, last = ends_of(result)
    ratios = []
    for job in result.jobs:
        if job.end_s is None:
            continue
        crowd = [
            max(1.0, sum(j.gpus for j in result.jobs if present(j, at, last)) / GPUS)
            for at in range(int(job.submit_s), int(job.end_s))
        ]
        ratios.append((job.end_s - job.submit_s) / (job.duration_s * sum(crowd) / len(crowd)))
    if not ratios:
        assert found.finish_ratio_worst is None
        return
    assert found.finish_ratio_worst == pytest.approx(max(ratios))
    clear = [ratio for ratio in ratios if abs(ratio - 1.05) > 1e-9]
    unfair = sum(ratio > 1.05 for ratio in clear)
    assert found.finish_ratio_unfair is not None
    assert (
        unfair
        <= round(found.finish_ratio_unfair * len(ratios))
        <= unfair + len(ratios) - len(clear)
    )


@given(run_results())
def test_means_over_bins_are_exact(result: RunResult) -> None:
    arrays = arrays_of(result)
    edges = np.array([0.0, 5.0, 15.0, 40.0])
    found = mean_height(arrays.run_start, arrays.run_end, arrays.run_gpus, edges)
    brute = [
        sum(held_at(result, at) for at in range(a, b)) / (b - a)
        for a, b in ((0, 5), (5, 15), (15, 40))
    ]
    assert found == pytest.approx(brute)


def test_jain() -> None:
    assert jain(np.array([3.0, 3.0, 3.0])) == pytest.approx(1.0)
    assert jain(np.array([5.0, 0.0, 0.0, 0.0])) == pytest.approx(0.25)
    assert jain(np.zeros(3)) == 1.0
