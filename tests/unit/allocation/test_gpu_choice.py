from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from support.clusters import (
    DGX1_V100,
    NOW,
    links,
    make_job,
    make_node,
    occupy,
    shape,
    snapshot_of,
    two_domains,
)
from support.rooms import room_of

from policies.priority_age import PriorityAge
from scheduler.allocation.gangs import gangs_of
from scheduler.allocation.gpu_choice import place
from scheduler.allocation.greedy import best_greedy
from scheduler.allocation.worth import Worth
from scheduler.model.job import JobShape, Topology
from scheduler.model.node import Node
from scheduler.model.plan import Placement
from scheduler.model.snapshot import LiveAttempt


def placed(
    nodes: Sequence[Node], shapes: Sequence[JobShape], live: Sequence[LiveAttempt] = ()
) -> tuple[Placement, ...]:
    jobs = [make_job(f"{n}", what) for n, what in enumerate(shapes)]
    snapshot = snapshot_of(nodes, jobs, live)
    gangs, worth = gangs_of(PriorityAge().order(jobs, NOW)), Worth(snapshot)
    packing = best_greedy(lambda: room_of(snapshot), gangs, worth)
    return place(snapshot.columns.table, gangs, packing, worth, "greedy")


def test_the_best_pair_is_taken_and_the_reason_says_so() -> None:
    node = make_node("dgx", board=links(DGX1_V100))
    (one,) = placed([node], [shape(2)])
    assert set(one.tasks[0].gpu_ids) == {"dgx-0", "dgx-3"}
    assert one.why == "greedy; on dgx, GPUs 0,3 mean pair 50 GB/s (best possible 50)"
    live = [occupy(node, [0, 2, 4, 5, 6, 7])]
    (left,) = placed([node], [shape(2)], live)
    assert left.why == "greedy; on dgx, GPUs 1,3 mean pair 25 GB/s (best possible 50)"


def test_tasks_of_a_gang_share_one_good_set_cut_along_its_ring() -> None:
    node = make_node("dgx", board=links(DGX1_V100))
    (gang,) = placed([node], [shape(2, tasks=2)])
    ring = [int(gpu.removeprefix("dgx-")) for task in gang.tasks for gpu in task.gpu_ids]
    assert [task.task_index for task in gang.tasks] == [0, 1]
    neighbours = zip(ring, [*ring[1:], ring[0]], strict=True)
    assert all(DGX1_V100[a][b] for a, b in neighbours)


def test_a_loose_gang_leaves_whole_domains_to_those_that_need_them() -> None:
    node = make_node("a", board=two_domains())
    live = [occupy(node, [0, 1])]
    wants = [shape(1, tasks=2), shape(1, tasks=4, topology=Topology.SAME_NVLINK)]
    loose, bound = placed([node], wants, live)
    assert {gpu for task in bound.tasks for gpu in task.gpu_ids} == {"a-4", "a-5", "a-6", "a-7"}
    assert {gpu for task in loose.tasks for gpu in task.gpu_ids} == {"a-2", "a-3"}


def test_tasks_spread_over_nodes_keep_rank_order_and_get_what_they_asked() -> None:
    nodes = [make_node("a", gpus=2), make_node("b", gpus=4)]
    (gang,) = placed(nodes, [shape(2, tasks=3, cpu_milli=500, memory_mib=70)])
    assert [task.task_index for task in gang.tasks] == [0, 1, 2]
    assert [task.node_id for task in gang.tasks] == ["n-a", "n-b", "n-b"]
    assert {(task.cpu_milli, task.memory_mib) for task in gang.tasks} == {(500, 70)}
    assert gang.why == "greedy; on 2 nodes, a first"


def test_ranks_go_from_rack_to_rack_and_leave_each_once() -> None:
    racks = {"a": "r1", "b": "r2", "c": "r1", "d": "r2"}
    nodes = [replace(make_node(name, gpus=1), rack=rack) for name, rack in racks.items()]
    (gang,) = placed(nodes, [shape(1, tasks=4)])
    assert [task.node_id for task in gang.tasks] == ["n-a", "n-c", "n-b", "n-d"]
    assert [task.task_index for task in gang.tasks] == [0, 1, 2, 3]
    zones = {"n-a": "z2", "n-b": "z2", "n-c": "z1", "n-d": "z1"}
    zoned = [replace(node, zone=zones[node.id], rack="") for node in nodes]
    (gang,) = placed(zoned, [shape(1, tasks=4)])
    assert [task.node_id for task in gang.tasks] == ["n-c", "n-d", "n-a", "n-b"]


def test_cpu_tasks_get_no_gpus() -> None:
    (job,) = placed([make_node("a")], [shape(0, tasks=2)])
    assert [task.gpu_ids for task in job.tasks] == [(), ()]
    assert job.why == "greedy; on a"


def test_of_equally_free_nodes_the_better_linked_one_is_taken() -> None:
    nodes = [make_node(name, board=links(DGX1_V100)) for name in ("a", "b", "c")]
    live = [
        occupy(nodes[0], [1, 2, 3, 4, 6, 7]),
        occupy(nodes[1], [1, 2, 4, 5, 6, 7]),
        occupy(nodes[2], [0, 2, 4, 5, 6, 7]),
    ]
    for what in (shape(2), shape(1, tasks=2)):
        (gang,) = placed(nodes, [what], live)
        assert {gpu for task in gang.tasks for gpu in task.gpu_ids} == {"b-0", "b-3"}


def test_tasks_that_share_a_gpu_name_it_and_their_part() -> None:
    what = replace(shape(0, tasks=3), gpu_milli=460)
    (gang,) = placed([make_node("a", gpus=2)], [what])
    assert [task.gpu_ids for task in gang.tasks] == [("a-0",), ("a-0",), ("a-1",)]
    assert {task.gpu_milli for task in gang.tasks} == {460}
    assert gang.why == "greedy; on a, 460 thousandths of GPU 0,0,1"


def test_a_gpu_is_found_by_its_index_even_if_another_is_gone() -> None:
    whole = make_node("a", gpus=4)
    node = replace(whole, gpus=(whole.gpus[0], whole.gpus[3]))
    (job,) = placed([node], [shape(2)])
    assert job.tasks[0].gpu_ids == ("a-0", "a-3")


def test_an_elastic_gang_is_worth_more_with_every_task() -> None:
    what = replace(shape(1, tasks=2), tasks_max=4)
    (small,) = placed([make_node("a", gpus=2)], [what])
    (large,) = placed([make_node("a", gpus=8)], [what])
    assert (len(small.tasks), len(large.tasks)) == (2, 4)
    assert large.value == pytest.approx(1.5 * small.value)
