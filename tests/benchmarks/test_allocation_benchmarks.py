"""The allocation benchmarks as `make bench` runs them; each is also a script of its own."""

from __future__ import annotations

import pytest
from benchmarks import bench_gap, bench_nvlink

pytestmark = pytest.mark.bench


def test_plans_are_near_the_exact_bound_and_never_below_greedy() -> None:
    assert bench_gap.main([]) == 0


def test_gpu_choice_gains_bandwidth_over_random_and_lowest_index() -> None:
    assert bench_nvlink.main([]) == 0
