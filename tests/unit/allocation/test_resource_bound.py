from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.clusters import make_node, snapshot_of

from scheduler.allocation.resource_bound import Amounts, resource_bound

FREE = snapshot_of([make_node("a"), make_node("b")], []).columns.free
Wanted = list[tuple[float, int, Amounts]]


def wanted_of(seed: int) -> Wanted:
    rng = np.random.default_rng(seed)
    return [
        (
            float(rng.integers(1, 50)),
            int(rng.integers(1, 4)),
            (
                int(rng.integers(0, 6)) * 1_000,
                int(rng.integers(0, 40)) * 1_000,
                int(rng.integers(0, 40)) * 4_096,
            ),
        )
        for _ in range(int(rng.integers(0, 30)))
    ]


@given(st.integers(0, 10_000))
@settings(max_examples=100, deadline=None)
def test_a_seller_whom_nobody_can_pay_changes_nothing(seed: int) -> None:
    """With sellers and without the bound is worked out in two ways."""
    wanted = wanted_of(seed)
    sellers = [(1e12, (1_000, 1_000, 1_024))]
    assert resource_bound(FREE, wanted) == pytest.approx(resource_bound(FREE, wanted, sellers))


def test_the_scarcest_resource_counts_and_the_last_gang_counts_in_part() -> None:
    gpus = int(FREE.milli.sum())
    small, large = (gpus // 4, 0, 0), (gpus, 0, 0)
    assert resource_bound(FREE, [(3.0, 2, small), (8.0, 1, large)]) == pytest.approx(6.0 + 4.0)
    assert resource_bound(FREE, [(3.0, 2, small)]) == pytest.approx(6.0)
    assert resource_bound(FREE, [(5.0, 3, (0, 0, 0))]) == pytest.approx(15.0)
    assert resource_bound(FREE, []) == 0.0
    memory = int(FREE.memory.sum())
    wanted: Wanted = [(4.0, 2, (1_000, 0, memory))]
    assert math.isclose(resource_bound(FREE, wanted), 4.0)
