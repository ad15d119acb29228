from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from support.clusters import (
    DGX1_V100,
    links,
    make_node,
    occupy,
    shape,
    snapshot_of,
    two_domains,
)
from support.rooms import gang, room_of

from policies.best_fit import BestFit
from scheduler.allocation.room import Room
from scheduler.allocation.spread import fewest_rows
from scheduler.model.columns import Floats, Free, Ints
from scheduler.model.job import JobShape, Topology, Worker
from scheduler.model.node import Health, Node
from scheduler.model.ports import Scoring
from scheduler.model.quantity import TenantId
from scheduler.model.snapshot import LiveAttempt, Snapshot
from scheduler.model.terms import Headroom, Quota, Terms


def room(
    nodes: Sequence[Node], live: Sequence[LiveAttempt] = (), terms: Terms | None = None
) -> Room:
    return room_of(replace(snapshot_of(nodes, [], live), terms=terms or Terms()))


def where(found: Room, what: JobShape) -> list[str] | None:
    """Names of the nodes that the room gives a gang, one per worker."""
    loads = found.place(gang(what))
    if loads is None:
        return None
    return [found.table.nodes[load.row].name for load in loads for _ in range(load.workers)]


def test_best_fit_takes_the_tightest_node_and_keeps_gangs_together() -> None:
    nodes = [make_node("a"), make_node("b"), make_node("c")]
    live = [occupy(nodes[1], [0, 1, 2, 3]), occupy(nodes[2], [0, 1, 2, 3, 4, 5])]
    assert where(room(nodes, live), shape(2, tasks=2)) == ["b", "b"]
    assert where(room(nodes, live), shape(2)) == ["c"]
    assert where(room(nodes, live), shape(4, tasks=3)) == ["a", "a", "b"]


def test_unschedulable_nodes_and_gpus_offer_nothing() -> None:
    nodes = [make_node("a", cordoned=True), make_node("b", health=Health.UNKNOWN), make_node("c")]
    found = room(nodes, [occupy(nodes[2], [0])])
    assert found.fits(shape(8).worker).tolist() == [0, 0, 0]
    assert found.fits(shape(1).worker).tolist() == [0, 0, 7]
    assert where(found, shape(0, cpu_milli=0, memory_mib=0)) == ["c"]


def test_models_and_pools_are_kept() -> None:
    nodes = [
        make_node("a", model="A100"),
        make_node("b", model="H100"),
        make_node("c", model="H100", pool="batch"),
    ]
    assert room(nodes).fits(shape(8, models=("H100",)).worker).tolist() == [0, 1, 1]
    assert where(room(nodes), shape(8, pool="batch")) == ["c"]
    assert where(room(nodes), shape(8, models=("V100",))) is None


def test_favourite_models_come_first_if_they_are_to() -> None:
    nodes = [make_node("a", model="A100", gpus=4), make_node("b", model="H100")]
    what = gang(shape(2, tasks=2, models=("H100", "A100")))
    for models_first, row in ((True, 1), (False, 0)):
        (load,) = room(nodes).place(what, models_first=models_first) or ()
        assert load.row == row


def test_two_nodes_of_the_favourite_model_beat_one_of_another() -> None:
    nodes = [make_node("a", model="A100"), make_node("b", gpus=2), make_node("c", gpus=2)]
    assert where(room(nodes), shape(1, tasks=4, models=("H100", "A100"))) == ["b", "b", "c", "c"]
    assert where(room(nodes), shape(1, tasks=4)) == ["a"] * 4


def test_a_gang_that_no_model_holds_alone_may_mix_them_task_by_task() -> None:
    nodes = [make_node("a", model="A100", gpus=2), make_node("b", gpus=2)]
    assert where(room(nodes), shape(2, tasks=2, models=("H100", "A100"))) == ["a", "b"]


def test_one_worker_never_mixes_models_on_a_node() -> None:
    plain = make_node("a", gpus=4)
    two = replace(plain.gpus[2], model="A100"), replace(plain.gpus[3], model="A100")
    node = replace(plain, gpus=(*plain.gpus[:2], *two))
    assert where(room([node]), shape(3)) is None
    loads = room([node]).place(gang(shape(2, tasks=2))) or ()
    assert [set(loads[0].gpus[:2]), set(loads[0].gpus[2:])] in ([{0, 1}, {2, 3}], [{2, 3}, {0, 1}])
    (load,) = room([node]).place(gang(shape(1, models=("A100",)))) or ()
    assert load.gpus == (2,)


def test_the_remainder_goes_where_it_fits_best() -> None:
    nodes = [make_node("a"), make_node("b"), make_node("c", gpus=4), make_node("d", gpus=2)]
    assert where(room(nodes), shape(1, tasks=10)) == ["a"] * 8 + ["d"] * 2


def test_cpu_work_goes_where_no_gpus_are_free() -> None:
    nodes = [make_node("gpu"), make_node("plain", gpus=0)]
    assert where(room(nodes), shape(0, cpu_milli=1_000)) == ["plain"]


def test_node_bound_gangs_are_one_worker() -> None:
    nodes = [make_node("a"), make_node("b")]
    live = [occupy(node, [0, 1, 2, 3]) for node in nodes]
    assert where(room(nodes, live), shape(2, tasks=3, topology=Topology.SAME_NODE)) is None
    assert where(room(nodes, live), shape(2, tasks=3)) == ["a", "a", "b"]
    both = replace(shape(0, tasks=3, topology=Topology.SAME_NODE), gpu_milli=600)
    (load,) = room(nodes, live).place(gang(both)) or ()
    assert (load.workers, load.gpus) == (1, (4, 5, 6))


def test_nvlink_gangs_stay_inside_one_domain() -> None:
    node = make_node("a", board=two_domains())
    what = shape(1, tasks=4, topology=Topology.SAME_NVLINK)
    assert where(room([node], [occupy(node, [0, 4])]), what) is None
    (load,) = room([node], [occupy(node, [0])]).place(gang(what)) or ()
    assert load.gpus == (4, 5, 6, 7)
    assert where(room([make_node("b")]), what) is None, "without links every GPU is alone"
    shared = replace(shape(0, tasks=5, topology=Topology.SAME_NVLINK), gpu_milli=500)
    (load,) = room([node], [occupy(node, [0])]).place(gang(shared)) or ()
    assert set(load.gpus) == {1, 2, 3}, "the domain with the least room that is enough"


def test_rack_gangs_take_the_rack_with_the_least_room() -> None:
    nodes = [
        make_node("a", rack="r1"),
        make_node("b", rack="r1"),
        make_node("c", rack="r2"),
        make_node("d", rack="r2", gpus=4),
        make_node("e"),
        make_node("f"),
    ]
    what = shape(4, tasks=3, topology=Topology.SAME_RACK)
    assert where(room(nodes), what) == ["c", "c", "d"]
    assert where(room(nodes), replace(what, tasks=4, tasks_max=4)) == ["a", "a", "b", "b"]
    assert where(room(nodes), replace(what, tasks=5, tasks_max=5)) is None
    wish = replace(what, tasks=5, tasks_max=5, topology=Topology.PREFER_SAME_RACK)
    assert len(where(room(nodes), wish) or ()) == 5


def test_of_equally_good_nodes_the_better_linked_one_is_taken() -> None:
    nodes = [make_node(name, board=links(DGX1_V100)) for name in ("a", "b")]
    live = [occupy(nodes[0], [1, 2, 3, 4, 6, 7]), occupy(nodes[1], [1, 2, 4, 5, 6, 7])]
    for what in (shape(2), shape(1, tasks=2)):
        assert set(where(room(nodes, live), what) or ()) == {"b"}


def test_only_rows_that_are_named_are_used() -> None:
    nodes = [make_node("a", gpus=2), make_node("b")]
    found = room(nodes)
    (load,) = found.place(gang(shape(1)), among=np.array([False, True])) or ()
    assert load.row == 1
    assert found.place(gang(shape(8, tasks=2)), among=np.array([False, True])) is None
    assert found.place(gang(shape(2))) is not None, "a failure among few says nothing of all"


def test_what_failed_is_tried_again_once_something_comes_back() -> None:
    node = make_node("a")
    attempt = occupy(node, [0, 1, 2, 3])
    found = room([node], [attempt])
    assert where(found, shape(8)) is None
    before = found.mark()
    found.release(attempt)
    assert where(found, shape(8)) == ["a"]
    found.undo(before)
    assert where(found, shape(8)) is None
    assert where(found, shape(4)) == ["a"]


class Counting:
    """Best fit that counts how often it is asked."""

    name = "counting"

    def __init__(self) -> None:
        self.asked = 0

    def on(self, free: Free, snapshot: Snapshot, seed: int) -> Scoring:
        inner, owner = BestFit().on(free, snapshot, seed), self

        class _Scoring:
            def rows(self, worker: Worker, rows: Ints) -> Floats:
                owner.asked += 1
                return inner.rows(worker, rows)

            def gpu(self, worker: Worker, row: int) -> int:
                return inner.gpu(worker, row)

        return _Scoring()


def test_gangs_like_one_that_failed_cost_nothing_even_after_other_work_was_undone() -> None:
    score = Counting()
    found = Room(snapshot_of([make_node("a")], []), score, 0)
    assert found.place(gang(shape(3), "0")) is not None
    assert found.place(gang(shape(1, tasks=6), "1")) is None
    before = found.mark()
    assert found.place(gang(shape(4), "2")) is not None
    assert found.place(gang(shape(2), "3")) is None
    found.undo(before)
    asked = score.asked
    assert found.place(gang(shape(1, tasks=6), "4")) is None
    assert score.asked == asked, "it failed with as much room as there is now"
    assert found.place(gang(shape(2), "5")) is not None, "this one failed with less"


def test_reserves_are_not_tried_twice_for_the_same_state() -> None:
    score = Counting()
    terms = Terms(headroom=(Headroom(None, 8, 1),))
    found = Room(replace(snapshot_of([make_node("a")], []), terms=terms), score, 0)
    assert found.place(gang(shape(2), "0")) is None
    asked = score.asked
    assert found.place(gang(shape(2), "1")) is None
    assert score.asked == asked


def test_loads_are_taken_and_given_back_exactly() -> None:
    found = room([make_node("a")])
    what = gang(shape(4))
    loads = found.place(what) or ()
    assert not found.take(what, loads)
    found.give(what, loads)
    assert found.take(what, loads)
    assert found.free.entire.tolist() == [4]


def test_what_a_node_holds_beyond_its_capacity_comes_back_last() -> None:
    node = make_node("a", cpu_milli=1_000)
    live = [occupy(node, [0], 1_500), occupy(node, [1], 800)]
    found = room([node], live)
    found.release(live[1])
    assert found.free.cpu.tolist() == [0]
    assert not found.hold(live[1])
    found.release(live[0])
    assert found.free.cpu.tolist() == [1_000]


def test_a_cordoned_node_gets_nothing_back() -> None:
    node = make_node("a", cordoned=True)
    live = [occupy(node, [0], 500)]
    found = room([node], live)
    found.release(live[0])
    assert found.free.milli.tolist() == [0]
    assert not found.hold(live[0])


def test_elastic_gangs_grow_on_their_nodes_first() -> None:
    nodes = [make_node("a", gpus=4), make_node("b", gpus=4), make_node("c", gpus=2)]
    found = room(nodes)
    what = gang(replace(shape(1, tasks=2), tasks_max=7))
    loads = found.place(what) or ()
    assert [load.row for load in loads] == [2]
    grown = found.grow(what, loads)
    assert [(load.row, load.workers) for load in grown] == [(0, 4), (1, 1), (2, 2)]
    assert found.grow(what, grown) is grown
    assert found.free.entire.tolist() == [0, 3, 0]


def test_bound_gangs_grow_only_where_they_are() -> None:
    nodes = [make_node("a", board=two_domains()), make_node("b", board=two_domains())]
    found = room(nodes, [occupy(nodes[0], [0, 1, 4, 5]), occupy(nodes[1], [0])])
    what = gang(replace(shape(1, tasks=2, topology=Topology.SAME_NVLINK), tasks_max=8))
    loads = found.place(what) or ()
    assert found.grow(what, loads) is loads, "its domain is full"
    what = gang(replace(shape(1, tasks=2, topology=Topology.SAME_NODE), tasks_max=8), "2")
    (load,) = found.grow(what, found.place(what) or ())
    assert (load.row, load.workers, len(load.gpus)) == (0, 1, 2)


def test_quotas_bound_a_tenant_and_its_cohort() -> None:
    tenant = TenantId("default")
    other = TenantId("other")
    nodes = [make_node("a")]
    alone = Terms(quotas=(Quota(tenant, 3_000, 9_000),))
    found = room(nodes, terms=alone)
    assert where(found, shape(4)) is None, "nobody to borrow of"
    assert where(found, shape(3)) == ["a"]
    assert where(found, shape(1)) is None
    assert where(found, shape(0)) == ["a"], "work without GPUs needs no quota"
    lent = Terms(quotas=(Quota(tenant, 2_000, 2_000, "c"), Quota(other, 4_000, 0, "c")))
    attempt = occupy(nodes[0], [0])
    found = room(nodes, [attempt], lent)
    assert found.quotas.left(tenant) == 3_000
    found.release(attempt)
    assert found.quotas.left(tenant) == 4_000
    assert where(found, shape(5)) is None
    assert where(found, shape(4)) == ["a"]


def test_reserved_blocks_stay_free_where_they_were() -> None:
    nodes = [make_node("a"), make_node("b"), make_node("c", gpus=4)]
    terms = Terms(headroom=(Headroom(None, 8, 1),))
    found = room(nodes, terms=terms)
    assert where(found, shape(8)) == ["a"]
    assert where(found, shape(8)) is None
    assert where(found, shape(1, tasks=4)) == ["c"] * 4
    assert where(found, shape(1)) is None
    assert where(found, shape(0)) is not None
    full = room(nodes, [occupy(node, [0]) for node in nodes], terms)
    assert where(full, shape(7)) == ["a"], "no block is whole, so none can be kept"


def test_a_gang_goes_beside_the_reserve_when_the_tightest_place_would_break_it() -> None:
    nodes = [make_node("a", gpus=2), make_node("b", gpus=3)]
    found = room(nodes, terms=Terms(headroom=(Headroom(None, 2, 2),)))
    assert where(found, shape(1)) == ["b"]
    share = replace(shape(0), gpu_milli=500)
    assert where(found, share) is None
    soft = room(nodes, terms=Terms(headroom=(Headroom(None, 2, 2, value=1.0),)))
    assert where(soft, shape(1)) == ["a"]


def test_fewest_rows_fills_the_largest_first() -> None:
    fits, score = np.array([3, 5, 5, 2, 0]), np.array([1.0, 2.0, 1.0, 0.0, np.inf])
    assert fewest_rows(fits, score, 5) == [(2, 5)]
    assert fewest_rows(fits, score, 7) == [(2, 5), (3, 2)]
    assert fewest_rows(fits, score, 13) == [(0, 3), (1, 5), (2, 5)]
    assert fewest_rows(fits, score, 15) == [(0, 3), (1, 5), (2, 5), (3, 2)]
    assert fewest_rows(fits, score, 16) is None
    assert fits.tolist() == [3, 5, 5, 2, 0]


def test_a_draw_keeps_several_workers_in_one_nvlink_domain() -> None:
    """Two domains of four hold a gang of three each, and none of them a gang grown to six."""
    what = gang(replace(shape(3, topology=Topology.SAME_NVLINK), tasks_max=2))
    found = room([make_node("a", board=two_domains())])
    assert found.fits(what.worker).tolist() == [2]
    assert found.draw(what, [(0, 2)]) is None
    assert found.draw(what, [(0, 1)]) is not None
