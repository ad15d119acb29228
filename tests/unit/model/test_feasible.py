from __future__ import annotations

from dataclasses import replace

import pytest
from support.clusters import shape

from scheduler.model.feasible import never_fits
from scheduler.model.job import JobShape, Topology
from scheduler.model.node import NO_LINKS, Gpu, Health, Links, Node
from scheduler.model.plan import ReasonCode
from scheduler.model.quantity import GpuId, NodeId, PoolName, Resources


def _links(islands: list[int]) -> Links:
    """NVLink islands of the given sizes, in index order."""
    island_of = [number for number, size in enumerate(islands) for _ in range(size)]
    pairs = [[int(a == b) for b in island_of] for a in island_of]
    for gpu in range(len(island_of)):
        pairs[gpu][gpu] = 0
    return Links(
        tuple(tuple(18 * linked for linked in row) for row in pairs),
        tuple(tuple(450.0 * linked for linked in row) for row in pairs),
    )


def _node(
    name: str,
    gpus: int = 8,
    *,
    model: str = "H100",
    cpu_milli: int = 64_000,
    memory_mib: int = 512_000,
    links: Links | None = None,
    rack: str = "",
    pool: str = "default",
) -> Node:
    return Node(
        NodeId(f"n-{name}"),
        name,
        Resources(gpus, cpu_milli, memory_mib),
        tuple(Gpu(GpuId(f"{name}-{i}"), i, model, 81_920) for i in range(gpus)),
        _links([gpus]) if links is None else links,
        pool=PoolName(pool),
        rack=rack,
    )


CLUSTER = (_node("a"), _node("b"))


def test_nothing_is_proved_without_nodes() -> None:
    assert never_fits(shape(tasks=1_000, gpus=64), ()) is None


def test_health_cordons_and_use_do_not_count() -> None:
    sick = replace(CLUSTER[0], health=Health.UNHEALTHY, cordoned=True)
    assert never_fits(shape(gpus=8), [sick]) is None


def test_a_task_larger_than_every_node_names_the_dimension_and_both_numbers() -> None:
    reason = never_fits(shape(gpus=16), CLUSTER)
    assert reason is not None
    assert reason.code is ReasonCode.NEVER_FITS
    assert reason.message == "task asks 16 gpus; the largest node has 8 (dimension gpus)"
    assert (reason.dimension, reason.need, reason.free, reason.largest_block) == ("gpus", 16, 16, 8)


@pytest.mark.parametrize(
    ("shape", "dimension"),
    [
        (shape(cpu_milli=64_001), "cpu_milli"),
        (shape(memory_mib=512_001), "memory_mib"),
        (shape(gpus=0, cpu_milli=64_001), "cpu_milli"),
        (shape(gpus=8, models=("H200", "A100")), "gpus"),
        (shape(pool="gold"), "nodes"),
        (shape(tasks=3, gpus=8), "gpus"),
        (shape(tasks=5, gpus=5), "gpus"),
        (shape(tasks=3, gpus=0, cpu_milli=40_000), "cpu_milli"),
        (shape(tasks=3, gpus=0, memory_mib=300_000), "memory_mib"),
        (shape(tasks=2, gpus=8, topology=Topology.SAME_NODE), "gpus"),
        (shape(tasks=2, gpus=1, cpu_milli=40_000, topology=Topology.SAME_NODE), "cpu_milli"),
        (shape(tasks=9, gpus=1, topology=Topology.SAME_NVLINK), "gpus"),
    ],
)
def test_the_limiting_dimension_is_named(shape: JobShape, dimension: str) -> None:
    reason = never_fits(shape, CLUSTER)
    assert reason is not None
    assert reason.dimension == dimension
    assert reason.message.endswith(f"(dimension {dimension})")


@pytest.mark.parametrize(
    "shape",
    [
        shape(tasks=2, gpus=8),
        shape(tasks=16, gpus=1),
        shape(gpus=0, cpu_milli=64_000, memory_mib=512_000),
        shape(tasks=8, gpus=1, topology=Topology.SAME_NODE),
        shape(tasks=2, gpus=4, topology=Topology.SAME_NVLINK),
        shape(tasks=2, gpus=8, topology=Topology.PREFER_SAME_NODE),
        shape(gpus=8, models=("H200", "H100")),
        shape(tasks=1, gpus=0, cpu_milli=0, memory_mib=0),
    ],
)
def test_what_an_empty_cluster_can_hold_is_not_refused(shape: JobShape) -> None:
    assert never_fits(shape, CLUSTER) is None


def test_dimensions_that_fit_only_on_different_nodes_do_not_add_up() -> None:
    nodes = [_node("gpu", 8, cpu_milli=16_000), _node("cpu", 0, cpu_milli=128_000)]
    reason = never_fits(shape(gpus=8, cpu_milli=64_000), nodes)
    assert reason is not None
    assert reason.dimension == "cpu_milli"
    assert "that has enough gpus has 16000" in reason.message


def test_tasks_that_fit_dimension_by_dimension_but_not_together_lack_nodes() -> None:
    nodes = [_node("wide", 8, cpu_milli=8_000), _node("slim", 2, cpu_milli=64_000)]
    reason = never_fits(shape(tasks=4, gpus=2, cpu_milli=8_000), nodes)
    assert reason is not None
    assert (reason.dimension, reason.need, reason.free) == ("nodes", 4, 2)


def test_same_nvlink_is_judged_by_the_largest_island() -> None:
    split = [_node("a", 8, links=_links([4, 4]))]
    assert never_fits(shape(tasks=4, topology=Topology.SAME_NVLINK), split) is None
    reason = never_fits(shape(tasks=5, topology=Topology.SAME_NVLINK), split)
    assert reason is not None
    assert reason.largest_block == 4
    assert "NVLink domain" in reason.message
    assert never_fits(shape(tasks=5, topology=Topology.SAME_NODE), split) is None


def test_without_link_data_each_gpu_is_an_island() -> None:
    plain = [_node("a", 8, links=NO_LINKS)]
    assert never_fits(shape(tasks=1, topology=Topology.SAME_NVLINK), plain) is None
    assert never_fits(shape(tasks=2, topology=Topology.SAME_NVLINK), plain) is not None
    without = [_node("a", 0, links=NO_LINKS)]
    assert never_fits(shape(tasks=2, gpus=0, topology=Topology.SAME_NVLINK), without) is None
    reason = never_fits(shape(tasks=2, topology=Topology.SAME_NVLINK), without)
    assert reason is not None
    assert reason.dimension == "gpus"


def test_same_rack_counts_one_rack_and_never_joins_unknown_ones() -> None:
    racked = [_node("a", rack="r1"), _node("b", rack="r1"), _node("c", rack="r2")]
    assert never_fits(shape(tasks=2, gpus=8, topology=Topology.SAME_RACK), racked) is None
    three = never_fits(shape(tasks=3, gpus=8, topology=Topology.SAME_RACK), racked)
    assert three is not None
    assert "one rack can hold 2" in three.message
    assert never_fits(shape(tasks=2, gpus=8, topology=Topology.SAME_RACK), CLUSTER) is not None


def test_a_pool_hides_the_other_nodes() -> None:
    nodes = [_node("a", 8), _node("g", 2, pool="gold")]
    assert never_fits(shape(gpus=2, pool="gold"), nodes) is None
    reason = never_fits(shape(gpus=8, pool="gold"), nodes)
    assert reason is not None
    assert reason.largest_block == 2


def test_a_task_takes_gpus_of_one_model_of_a_mixed_node() -> None:
    plain = _node("m", 8)
    gpus = tuple(replace(gpu, model="A100") if gpu.index < 4 else gpu for gpu in plain.gpus)
    mixed = [replace(plain, gpus=gpus)]
    reason = never_fits(shape(gpus=6), mixed)
    assert reason is not None
    assert (reason.need, reason.largest_block) == (6, 4)
    assert never_fits(shape(gpus=4, tasks=2), mixed) is None
    assert never_fits(shape(gpus=3, tasks=3), mixed) is not None, "3 + 3, one of each model is left"
    assert never_fits(shape(gpus=4, tasks=2, topology=Topology.SAME_NODE), mixed) is not None


def test_shares_of_a_gpu_are_counted_gpu_by_gpu() -> None:
    one = [_node("a", 2)]
    share = replace(shape(gpus=0), gpu_milli=460)
    assert never_fits(replace(share, tasks=4, tasks_max=4), one) is None
    reason = never_fits(replace(share, tasks=5, tasks_max=5), one)
    assert reason is not None
    assert (reason.dimension, reason.need, reason.free) == ("gpus", 5, 4)
    assert "5 tasks x 1 shares of 460 thousandths of a gpu" in reason.message
    bound = replace(share, tasks=5, tasks_max=5, topology=Topology.SAME_NODE)
    assert never_fits(bound, [_node("a", 2), _node("b", 2)]) is not None
    assert never_fits(bound, [_node("a", 3)]) is None
    reason = never_fits(share, [_node("a", 0)])
    assert reason is not None
    assert reason.message.startswith("task asks 1 shares of 460 thousandths of a gpu; the largest")
    reason = never_fits(replace(share, gpu_models=("A100",)), one)
    assert reason is not None
    assert "no node has a GPU of model A100" in reason.message


def test_an_elastic_gang_is_judged_by_its_smallest_size() -> None:
    assert never_fits(replace(shape(gpus=8), tasks_max=64), CLUSTER) is None
    assert never_fits(replace(shape(gpus=8, tasks=3), tasks_max=64), CLUSTER) is not None
