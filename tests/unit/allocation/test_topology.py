from __future__ import annotations

from itertools import combinations

import pytest
from support.clusters import DGX1_V100, links, two_domains
from support.nvlink_mix import brute_force, choices, play

from scheduler.allocation.topology import (
    best_subset,
    board_of,
    mean_pair_bandwidth,
    ring_bottleneck,
    ring_order,
)
from scheduler.model.node import NO_LINKS, Links

V100 = links(DGX1_V100)


def test_dgx1_agrees_with_brute_force_for_every_free_set_and_size() -> None:
    wrong = [
        (free, size)
        for count in range(1, 9)
        for free in combinations(range(8), count)
        for size in range(1, count + 1)
        if tuple(sorted(best_subset(V100, frozenset(free), size)))
        != brute_force(V100, frozenset(free), size)
    ]
    assert wrong == []


@pytest.mark.parametrize(("size", "mean"), [(2, 50.0), (3, 125 / 3), (4, 37.5), (5, 30.5)])
def test_one_job_on_an_empty_dgx1_gets_the_known_best(size: int, mean: float) -> None:
    found = best_subset(V100, frozenset(range(8)), size)
    assert mean_pair_bandwidth(V100, found) == pytest.approx(mean)


def test_gain_on_the_multi_tenant_mix() -> None:
    runs = {way: [play(V100, choices(s)[way], s)[0] for s in range(6)] for way in choices(0)}
    mean = {way: sum(values) / len(values) for way, values in runs.items()}
    assert mean["haversack"] >= 1.45 * mean["random"]
    assert mean["haversack"] >= 1.20 * mean["lowest-index"]


def test_ties_go_to_the_ring_then_to_what_remains_then_to_low_indexes() -> None:
    free = frozenset({0, 3, 4, 7})
    assert set(best_subset(V100, free, 2)) == {0, 3}
    # Behind a switch every pair is alike.
    switched = links([[0 if a == b else 18 for b in range(8)] for a in range(8)])
    assert best_subset(switched, frozenset({1, 2, 5, 6}), 2) == (1, 2)
    assert best_subset(NO_LINKS, frozenset({4, 2, 7}), 2) == (2, 4)


def test_a_ring_visits_each_gpu_once_and_its_smallest_edge_is_the_bottleneck() -> None:
    ring = ring_order(V100, frozenset(range(8)))
    assert sorted(ring) == list(range(8))
    assert ring[0] == 0
    assert ring_bottleneck(V100, frozenset(range(8))) == 50.0
    assert ring_bottleneck(V100, frozenset({0, 1, 2, 3})) == 25.0
    assert ring_bottleneck(V100, frozenset({0, 3})) == 50.0
    assert ring_bottleneck(V100, frozenset({5})) == 0.0
    assert ring_bottleneck(two_domains(), frozenset({0, 1, 4, 5})) == 10.0


def test_more_gpus_than_the_exact_search_takes() -> None:
    board = two_domains(16)
    found = best_subset(board, frozenset(range(3, 16)), 8)
    assert set(found) == set(range(8, 16))
    assert mean_pair_bandwidth(board, found) == 50.0
    assert sorted(ring_order(board, frozenset(range(16)))) == list(range(16))


def test_none_asked_and_too_many_asked() -> None:
    assert best_subset(V100, frozenset({1}), 0) == ()
    with pytest.raises(ValueError, match="2 GPUs asked of 1"):
        best_subset(V100, frozenset({1}), 2)


def test_a_board_answers_as_the_search_does_and_remembers() -> None:
    board = board_of(links(DGX1_V100))
    assert board is board_of(links(DGX1_V100))
    assert not board.uniform
    for free in ((0, 1, 2, 3), (1, 4, 6, 7), tuple(range(8))):
        for size in range(len(free) + 1):
            assert board.best(free, size) == best_subset(board.links, frozenset(free), size)
            assert board.best(free, size) is board.best(free, size)


def test_behind_a_switch_the_lowest_free_gpus_are_as_good_as_any() -> None:
    for board in (board_of(NO_LINKS), board_of(Links.uniform(8, 18, 450.0))):
        assert board.uniform
        assert board.best((2, 3, 5, 7), 3) == (2, 3, 5)


def test_a_board_has_no_more_gpus_than_are_free() -> None:
    with pytest.raises(ValueError, match="3 GPUs asked of 2 free ones"):
        board_of(NO_LINKS).best((0, 1), 3)
