from __future__ import annotations

from dataclasses import replace

import numpy as np
from support.builders import full_mesh, gpu, live_attempt, node, snapshot, task_placement

from scheduler.model.columns import NO_GPU, Columns, NodeTable
from scheduler.model.counting import counts, emptied, model_codes
from scheduler.model.job import Worker
from scheduler.model.node import Health, Links, Node
from scheduler.model.quantity import GpuId, Resources
from scheduler.model.snapshot import SnapshotDelta


def mixed(name: str = "m") -> Node:
    gpus = (gpu(f"{name}-0", 0, model="A100"), gpu(f"{name}-1", 1, model="H100"))
    return replace(node(name, 2, links=full_mesh(2)), gpus=gpus)


def test_rows_are_by_name_and_codes_index_sorted_names() -> None:
    table = NodeTable.of([node("b", 2, pool="z"), node("a", 1, model="A100", rack="r"), mixed()])
    assert [each.name for each in table.nodes] == ["a", "b", "m"]
    assert table.models == ("A100", "H100")
    assert table.gpu_model.tolist() == [[0, NO_GPU], [1, 1], [0, 1]]
    assert table.model.tolist() == [0, 1, NO_GPU]
    assert table.mixed
    assert [table.pools[code] for code in table.pool] == ["default", "z", "default"]
    assert table.racks[table.rack[0]] == "r"
    assert len(set(table.rack.tolist())) == 3, "unlabelled racks are shared with nobody"
    assert table.gpu_at[GpuId("m-1")] == (2, 1)
    assert table.offers.tolist() == [[True, False, True], [False, True, True]]


def test_equal_boards_have_one_code_even_as_separate_values() -> None:
    two = [node("a", 4, links=full_mesh(4)), node("b", 4, links=full_mesh(4)), node("c", 2)]
    table = NodeTable.of(two)
    assert table.board.tolist() == [0, 0, 1]
    assert table.boards == (full_mesh(4), full_mesh(2))


def test_domains_are_numbered_within_a_node_and_each_gpu_is_alone_without_links() -> None:
    halves = Links(((0, 1, 0), (1, 0, 0), (0, 0, 0)), ((0, 1, 0), (1, 0, 0), (0, 0, 0)))
    table = NodeTable.of([node("a", 3, links=halves), node("b", 2, links=Links((), ()))])
    assert table.gpu_domain.tolist() == [[0, 0, 1], [0, 1, NO_GPU]]


def test_what_is_held_is_not_free_and_closed_parts_offer_nothing() -> None:
    a = node("a", 4)
    sick = replace(a, gpus=(replace(a.gpus[0], health=Health.UNHEALTHY), *a.gpus[1:]))
    shut = node("b", 4, cordoned=True)
    half = replace(task_placement(sick, [2], cpu_milli=500), gpu_milli=400)
    columns = Columns.of([sick, shut], [task_placement(sick, [1], cpu_milli=1_000), half])
    free = columns.free
    assert free.gpu.tolist() == [[0, 0, 600, 1000], [0, 0, 0, 0]]
    assert free.milli.tolist() == [1600, 0]
    assert free.entire.tolist() == [1, 0]
    assert free.whole.tolist() == [[1, 0]]
    assert free.cpu.tolist() == [64_000 - 1_500, 0]


def test_a_node_that_holds_more_than_it_has_offers_nothing_and_never_less() -> None:
    a = node("a", 1, cpu_milli=1_000)
    columns = Columns.of([a], [task_placement(a, [0], cpu_milli=1_500)])
    assert columns.free.cpu.tolist() == [0]
    task = task_placement(a, [], cpu_milli=400)
    assert columns.changed((), [task]).changed([task], ()).free.cpu.tolist() == [0]


def test_only_health_cordons_and_capacity_keep_the_table() -> None:
    a, b = node("a", 2), node("b", 2)
    table = NodeTable.of([a, b])
    kept = table.with_states([replace(b, cordoned=True, capacity=Resources(2, 1, 1))])
    assert kept is not None
    assert kept.row_of is table.row_of
    assert kept.open.tolist() == [True, False]
    assert kept.cpu.tolist() == [64_000, 1]
    assert table.open.all()
    for other in (
        replace(b, rack="r"),
        replace(b, name="c"),
        replace(b, gpus=b.gpus[:1]),
        replace(b, links=full_mesh(2, nvlinks=1)),
        node("new"),
    ):
        assert table.with_states([other]) is None


def test_a_gpu_that_leaves_and_returns_is_still_held() -> None:
    a = node("a", 2)
    base = snapshot([a], live=[live_attempt(task_placement(a, [1]))])
    assert base.columns.free.entire.tolist() == [1]
    less = base.apply(SnapshotDelta(1, 2, nodes=(replace(a, gpus=a.gpus[:1]),)))
    assert less.columns.free.gpu.tolist() == [[1000]]
    back = less.apply(SnapshotDelta(2, 3, nodes=(a,)))
    assert back.columns.free.gpu.tolist() == [[1000, 0]]


def test_an_empty_cluster_has_empty_columns() -> None:
    free = Columns.of([], []).free
    assert free.gpu.shape == (0, 0)
    assert free.whole.shape == (0, 0)
    worker = Worker(Resources(1, 1, 1))
    assert counts(free, worker, model_codes(free.table, worker), np.arange(0)).tolist() == []


def test_emptied_is_the_cluster_as_declared() -> None:
    a = node("a", 2, cordoned=True)
    columns = Columns.of([a, mixed()], [task_placement(a, [0])])
    free = emptied(columns.table)
    assert free.gpu.tolist() == [[1000, 1000], [1000, 1000]]
    assert free.whole.tolist() == [[0, 1], [2, 1]]
    assert free.cpu.tolist() == [64_000, 64_000]
    two = Worker(Resources(2, 0, 0))
    rows = np.arange(2)
    assert counts(free, two, model_codes(columns.table, two), rows).tolist() == [1, 0]
