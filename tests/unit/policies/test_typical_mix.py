from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from support.clusters import make_node, shape

from policies.typical_mix import SHAPES_MAX, Access, Footprint, TypicalMix
from scheduler.model.columns import NodeTable
from scheduler.model.job import JobShape, Topology
from scheduler.model.quantity import Resources


def part(milli: int) -> JobShape:
    return JobShape(1, Resources(0, 1_000, 1_000), gpu_milli=milli)


def test_workers_are_counted_not_jobs() -> None:
    mix = TypicalMix.of({shape(1, tasks=3): 2, shape(2): 2})
    assert [what.gpus for what in mix.footprints] == [1, 2]
    assert mix.share.tolist() == [0.75, 0.25]


def test_a_gang_bound_to_its_node_is_one_worker() -> None:
    mix = TypicalMix.of({shape(2, tasks=4, topology=Topology.SAME_NODE): 1})
    assert mix.footprints == (Footprint(8, 1_000, 4_000, 4_000),)


def test_shares_of_gpus_bound_to_a_node_count_one_by_one() -> None:
    bound = replace(part(320), tasks=3, tasks_max=3, topology=Topology.SAME_NODE)
    mix = TypicalMix.of({bound: 1, part(320): 1})
    assert mix.footprints == (Footprint(1, 320, 1_000, 1_000),)
    assert mix.share.tolist() == [1.0]


def test_the_most_frequent_cover_what_was_asked() -> None:
    mix = {part(810): 6, part(470): 3, part(50): 1}
    assert TypicalMix.of(mix).gpu_milli.tolist() == [810, 470, 50]
    most = TypicalMix.of(mix, cover=0.9)
    assert most.gpu_milli.tolist() == [810, 470]
    assert most.share.tolist() == pytest.approx([6 / 9, 3 / 9])


def test_the_order_in_which_shapes_came_does_not_matter() -> None:
    shapes = [part(810), part(470), shape(2), shape(0)]
    one, other = (
        TypicalMix.of(dict.fromkeys(order, 1)) for order in (shapes, list(reversed(shapes)))
    )
    assert one.footprints == other.footprints


def test_memory_may_be_left_out() -> None:
    mix = {shape(1, memory_mib=1): 1, shape(1, memory_mib=2): 1}
    assert len(TypicalMix.of(mix).footprints) == 2
    assert TypicalMix.of(mix, by_memory=False).footprints == (Footprint(1, 1_000, 1_000, 0),)


def test_a_colourful_mix_is_cut() -> None:
    mix = {shape(1, cpu_milli=1 + number): 1 for number in range(SHAPES_MAX + 9)}
    assert len(TypicalMix.of(mix).footprints) == SHAPES_MAX


def test_an_empty_mix_has_no_shares() -> None:
    mix = TypicalMix.of({})
    assert mix.share.size == 0
    assert mix.only(mix.gpus > 0).footprints == ()


def test_weights_change_shares() -> None:
    mix = TypicalMix.of({part(810): 1, part(470): 1}).weighted(np.array([3.0, 1.0]))
    assert sorted(mix.share.tolist()) == [0.25, 0.75]


def test_nodes_are_grouped_by_what_they_admit() -> None:
    nodes = [
        make_node("0", model="A"),
        make_node("1", model="B"),
        make_node("2", model="C"),
        make_node("3", model="A", pool="p"),
    ]
    mix = TypicalMix.of(
        {shape(1): 4, shape(1, models=("B", "A")): 3, shape(1, pool="p"): 2, shape(0): 1}
    )
    access = Access.of(NodeTable.of(nodes), mix)
    assert access.admits[access.group].tolist() == [
        [True, True, False, True],
        [True, True, False, True],
        [True, False, False, True],
        [True, True, True, True],
    ]
    assert access.group[0] == access.group[1]
