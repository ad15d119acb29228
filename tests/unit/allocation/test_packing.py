"""feasibility, greedy and coarse: what may go where, and the fast packer."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from support.clusters import (
    NOW,
    make_job,
    make_node,
    occupy,
    random_instance,
    shape,
    snapshot_of,
    two_domains,
)

from policies.priority_age import PriorityAge
from scheduler.allocation.coarse import coarsened
from scheduler.allocation.feasibility import UNBOUNDED, Problem, problem_of
from scheduler.allocation.bins import best_greedy, pack, worth
from scheduler.model.job import JobShape, Topology
from scheduler.model.node import Health, Node
from scheduler.model.snapshot import LiveAttempt


def problem(
    nodes: Sequence[Node],
    shapes: Sequence[JobShape],
    live: Sequence[LiveAttempt] = (),
    order_max: int = UNBOUNDED,
) -> Problem:
    jobs = [make_job(f"{number:02}", what) for number, what in enumerate(shapes)]
    snapshot = snapshot_of(nodes, jobs, live)
    ordered = PriorityAge().order(jobs, NOW)
    return problem_of(snapshot, ordered, order_max=order_max)


def where(found: Problem, gang: int) -> list[str]:
    """Names of the nodes the greedy packer gives a gang, one per worker."""
    return [
        found.sites[found.families[load.family].spots[load.spot].node].node.name
        for load in best_greedy(found)[gang]
        for _ in range(load.workers)
    ]


def test_only_as_many_of_a_shape_as_could_ever_fit_are_kept() -> None:
    found = problem([make_node("a")], [shape(4)] * 9 + [shape(16)] + [shape(8)])
    assert [gang.job.shape.per_task.gpus for gang in found.gangs] == [4, 4, 8]


def test_order_max_cuts_the_tail_and_counts_it() -> None:
    found = problem([make_node("a")], [shape(1)] * 5 + [shape(2)], order_max=3)
    assert (len(found.gangs), found.skipped) == (3, 3)
    assert len(found.families) == 1


def test_unschedulable_nodes_and_gpus_offer_nothing() -> None:
    nodes = [make_node("a", cordoned=True), make_node("b", health=Health.UNKNOWN), make_node("c")]
    found = problem(nodes, [shape(8)] * 3, [occupy(nodes[2], [0])])
    assert [site.node.name for site in found.sites] == ["c"]
    assert found.gangs == ()


def test_models_and_pools_filter_spots() -> None:
    nodes = [
        make_node("a", model="A100"),
        make_node("b", model="H100"),
        make_node("c", model="H100", pool="batch"),
    ]
    wants = [shape(8, models=("H100",)), shape(8, pool="batch"), shape(8, models=("V100",))]
    found = problem(nodes, wants)
    assert [len(found.families[gang.options[0].family].spots) for gang in found.gangs] == [2, 1]


def test_favourite_models_come_first_when_both_are_free() -> None:
    nodes = [make_node("a", model="A100", gpus=4), make_node("b", model="H100")]
    assert where(problem(nodes, [shape(2, models=("H100", "A100"))]), 0) == ["b"]


def test_best_fit_takes_the_tightest_node_and_keeps_gangs_together() -> None:
    nodes = [make_node("a"), make_node("b"), make_node("c")]
    live = [occupy(nodes[1], [0, 1, 2, 3]), occupy(nodes[2], [0, 1, 2, 3, 4, 5])]
    assert where(problem(nodes, [shape(2, tasks=2)], live), 0) == ["b", "b"]
    assert where(problem(nodes, [shape(2)], live), 0) == ["c"]
    assert sorted(where(problem(nodes, [shape(4, tasks=3)], live), 0)) == ["a", "a", "b"]


def test_cpu_work_goes_where_no_gpus_are_free() -> None:
    nodes = [make_node("gpu"), make_node("plain", gpus=0)]
    assert where(problem(nodes, [shape(0, cpu_milli=1_000)]), 0) == ["plain"]


def test_a_task_without_any_need_fits_everywhere() -> None:
    found = problem([make_node("a")], [shape(0, cpu_milli=0, memory_mib=0, tasks=5)])
    assert sum(load.workers for load in best_greedy(found)[0]) == 5


def test_cpu_and_memory_limit_gpu_work() -> None:
    tight = make_node("a", cpu_milli=10_000)
    found = problem([tight], [shape(1, cpu_milli=4_000)] * 4)
    assert len(best_greedy(found)) == 2


def test_one_node_gangs_are_one_worker() -> None:
    nodes = [make_node("a"), make_node("b")]
    live = [occupy(node, [0, 1, 2, 3]) for node in nodes]
    assert problem(nodes, [shape(2, tasks=3, topology=Topology.SAME_NODE)], live).gangs == ()
    assert len(best_greedy(problem(nodes, [shape(2, tasks=3)], live))) == 1


def test_nvlink_gangs_stay_inside_one_domain() -> None:
    node = make_node("a", board=two_domains())
    live = [occupy(node, [0, 4])]
    wants = [shape(1, tasks=4, topology=Topology.SAME_NVLINK)]
    assert problem([node], wants, live).gangs == ()
    assert len(best_greedy(problem([node], wants * 3))) == 2
    assert problem([make_node("b")], wants).gangs == (), "without links every GPU is alone"


def test_rack_gangs_have_an_option_for_each_rack() -> None:
    nodes = [make_node("a", rack="r1"), make_node("b", rack="r1"), make_node("c"), make_node("d")]
    found = problem(nodes, [shape(8, tasks=2, topology=Topology.SAME_RACK)] * 2)
    assert len(found.gangs) == 1
    assert where(found, 0) == ["a", "b"]


def test_packing_on_top_of_a_base_leaves_it_alone() -> None:
    found = problem([make_node("a")], [shape(4)] * 2 + [shape(2)])
    base = pack(found, [0])
    more = pack(found, [2, 1], base=base)
    assert more[0] == base[0]
    assert set(more) == {0, 2}


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("mix", ["philly", "gang", "cpu"])
def test_the_relaxation_never_offers_less_than_the_nodes(seed: int, mix: str) -> None:
    snapshot = random_instance(seed, mix)
    ordered = PriorityAge().order(tuple(snapshot.waiting.values()), NOW)
    fine = problem_of(snapshot, ordered)
    coarse = coarsened(fine)
    packing = best_greedy(fine)
    left = coarse.capacity.copy()
    for loads in packing.values():
        for load in loads:
            spot = fine.families[load.family].spots[load.spot]
            family = coarse.families[load.family]
            place = _group_spot(fine, coarse, load.family, spot.node, spot.model)
            left[family.bins[place]] -= family.needs * load.workers
    assert left.size == 0 or left.min() >= 0
    assert worth(fine, packing) > 0


def _group_spot(fine: Problem, coarse: Problem, number: int, node: int, model: str) -> int:
    """The coarse spot that a node's spot was merged into, found through its group's members."""
    key = _group(fine, node)
    groups: list[object] = []
    for site in range(len(fine.sites)):
        if _group(fine, site) not in groups:
            groups.append(_group(fine, site))
    wanted = (groups.index(key), model)
    spots = [(spot.node, spot.model) for spot in coarse.families[number].spots]
    return spots.index(wanted)


def _group(fine: Problem, node: int) -> object:
    site = fine.sites[node]
    racks = any(gang.job.shape.topology is Topology.SAME_RACK for gang in fine.gangs)
    rack = (site.node.rack or site.node.id) if racks else ""
    return (site.node.pool, rack, tuple(site.free_by_model))
