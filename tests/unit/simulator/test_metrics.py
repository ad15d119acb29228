"""Figures of runs small enough to check by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.builders import full_mesh, node, task_placement
from support.sim_runs import outcome, run_result

from scheduler.model.node import Links
from scheduler.simulator.links import LinkQuality
from scheduler.simulator.metrics import SizeClass, metrics_of, served_by_size, timing_of
from scheduler.simulator.result import Cycle, LinkScore
from scheduler.simulator.workload import Arrivals

# Half of a DGX-1 V100: links of each pair, 25 GB/s each.
_ROWS = ((0, 1, 1, 2), (1, 0, 2, 1), (1, 2, 0, 2), (2, 1, 2, 0))
DGX1_HALF = Links(_ROWS, tuple(tuple(25.0 * links for links in row) for row in _ROWS))


def test_wait_counts_eviction_and_restart_time() -> None:
    # Needs 10 s; ran 0-6 (2 lost to starting), evicted, ran 9-17 (2 lost again): 6 + 4 useful.
    evicted = outcome(
        "a",
        gpus=4.0,
        duration_s=10.0,
        spans=((0.0, 6.0), (9.0, 17.0)),
        overhead_s=2.0,
        preemptions=1,
    )
    found = metrics_of(run_result(evicted, outcome("b", duration_s=5.0)))
    assert (found.jct_s_mean, found.wait_s_mean, found.makespan_s) == (17.0, 7.0, 17.0)
    assert found.slowdown_mean == pytest.approx(1.7)
    assert (found.preemptions, found.restarts, found.unplaced) == (1, 1, 1)
    assert found.gpu_allocation_ratio == pytest.approx(4 * 14 / (8 * 17))
    assert found.gpu_utilization == pytest.approx(4 * 10 / (8 * 17))
    assert found.lost_gpu_hours == pytest.approx(4 * 4 / 3600)
    assert found.gpu_utilization_window is None


def test_a_replay_reports_allocation_at_the_end_and_at_100_percent() -> None:
    jobs = [outcome(f"p{n}", gpus=2.0, submit_s=float(n), spans=((n, n),)) for n in range(3)]
    refused = outcome("big", gpus=4.0, submit_s=3.0)
    last = outcome("last", gpus=0.5, submit_s=4.0, spans=((4.0, 4.0),))
    found = metrics_of(
        run_result(*jobs, refused, last, gpus_total=8.0, arrivals=Arrivals.REPLAY), (0.0, 1.0)
    )
    assert found.gpu_allocation_ratio == pytest.approx(6.5 / 8)
    assert found.gpu_allocation_ratio_at_100 == pytest.approx(6 / 8)
    assert found.unplaced == 1
    assert found.gpu_utilization is found.gpu_utilization_window is None
    few = run_result(*jobs, gpus_total=8.0, arrivals=Arrivals.REPLAY)
    assert metrics_of(few).gpu_allocation_ratio_at_100 is None


def test_served_by_size() -> None:
    jobs = [
        outcome("a", gpus=0.3, spans=((0.0, 1.0),)),
        outcome("b", gpus=0.7),
        outcome("c", gpus=8.0, spans=((0.0, 1.0),)),
        outcome("d", gpus=0.0, spans=((0.0, 1.0),)),
    ]
    assert served_by_size(run_result(*jobs)) == (
        SizeClass("0", 1, 1),
        SizeClass("<1", 2, 1),
        SizeClass("8", 1, 1),
    )


def test_gap_and_wall_time_come_from_the_cycles() -> None:
    cycles = (
        Cycle(0.0, 1, 1, 0, 1.0, 8.0, value=90.0, bound=100.0, decide_ms=1.0),
        Cycle(1.0, 1, 1, 0, 1.0, 8.0, value=100.0, bound=100.0, decide_ms=3.0),
        Cycle(2.0, 1, 1, 0, 1.0, 8.0, value=0.0, bound=0.0, decide_ms=2.0),
        Cycle(3.0, 1, 1, 0, 1.0, 8.0, value=5.0, bound=None, decide_ms=2.0),
    )
    result = run_result(outcome(spans=((0.0, 10.0),)), cycles=cycles)
    found = metrics_of(result)
    assert (found.gap_p50, found.cycles) == (0.0, 4)
    assert found.gap_p99 == pytest.approx(0.098)
    timing = timing_of(result)
    assert (timing.decision_ms_p50, timing.decision_s_total) == (2.0, 0.008)


def test_links_are_scored_against_the_best_subset_of_the_empty_node() -> None:
    board = node("v100", 4, links=DGX1_HALF)
    switched = node("h100", 4, links=full_mesh(4))
    quality = LinkQuality([board, switched])
    tasks = [
        task_placement(board, (0, 1)),
        task_placement(board, (2, 1)),
        task_placement(board, (3,)),
        task_placement(switched, (0, 1)),
    ]
    scores = quality.scores(tasks)
    assert scores == [LinkScore(25.0, 50.0), LinkScore(50.0, 50.0)]
    found = metrics_of(replace(run_result(), links=tuple(scores)))
    assert found.link_bandwidth_ratio == 0.75


def test_an_empty_run_has_no_figures() -> None:
    found = metrics_of(run_result())
    assert found.jobs == 0
    assert found.gpu_utilization is found.jct_s_mean is found.gap_p50 is None
    assert timing_of(run_result()).decision_ms_p99 is None
