from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from support.clusters import make_job, make_node, occupy, shape, snapshot_of
from support.rooms import room_of

from scheduler.allocation.gangs import Gang, gangs_of
from scheduler.allocation.greedy import best_greedy, by_density, complete, pack
from scheduler.allocation.room import Loads
from scheduler.allocation.worth import Worth, gpu_prices
from scheduler.model.job import JobShape
from scheduler.model.node import Node, PriceClass
from scheduler.model.ports import OrderedJob
from scheduler.model.quantity import PoolName
from scheduler.model.snapshot import Snapshot
from scheduler.model.terms import Price, Terms


def gangs(*wants: tuple[JobShape, float]) -> tuple[Gang, ...]:
    return gangs_of(
        [
            OrderedJob(make_job(f"{number}", what), number, value)
            for number, (what, value) in enumerate(wants)
        ]
    )


def cluster(*nodes: Node, terms: Terms | None = None) -> Snapshot:
    return replace(snapshot_of(nodes, []), terms=terms or Terms())


def best(snapshot: Snapshot, waiting: Sequence[Gang], most: int | None = None) -> dict[int, Loads]:
    return best_greedy(lambda: room_of(snapshot), waiting, Worth(snapshot), most=most)


def test_value_for_its_share_counts_not_value() -> None:
    waiting = gangs((shape(8), 10.0), (shape(4), 6.0), (shape(4), 6.0))
    assert set(best(cluster(make_node("a")), waiting)) == {1, 2}


def test_another_order_wins_where_density_is_wrong() -> None:
    waiting = gangs((shape(8), 10.0), (shape(1), 2.0))
    assert set(best(cluster(make_node("a")), waiting)) == {0}


def test_the_scarcest_resource_makes_the_share() -> None:
    snapshot = cluster(make_node("a", cpu_milli=8_000))
    waiting = gangs((shape(1, cpu_milli=8_000), 3.0), (shape(2, cpu_milli=1_000), 2.0))
    assert by_density(waiting, snapshot.columns.free) == [1, 0]


def test_equal_densities_keep_the_order_of_the_line() -> None:
    waiting = gangs(*[(shape(1), 1.0)] * 4)
    assert by_density(waiting, cluster(make_node("a")).columns.free) == [0, 1, 2, 3]


def test_no_more_than_allowed_start() -> None:
    waiting = gangs(*[(shape(1), float(value)) for value in range(1, 6)])
    assert set(best(cluster(make_node("a")), waiting, most=2)) == {3, 4}


def test_what_is_packed_already_stays_and_the_rest_comes_after() -> None:
    snapshot = cluster(make_node("a"))
    waiting = gangs(*[(shape(4), 1.0)] * 2, (shape(2), 1.0))
    room, worth = room_of(snapshot), Worth(snapshot)
    base = pack(room, waiting, [0], worth)
    more = pack(room, waiting, [2, 1], worth, packing=base)
    assert more[0] == base[0]
    assert set(more) == {0, 2}


def test_elastic_gangs_take_what_all_others_left() -> None:
    elastic = replace(shape(1), tasks_max=8)
    waiting = gangs((elastic, 9.0), (shape(4), 1.0))
    packing = best(cluster(make_node("a")), waiting)
    assert [sum(load.workers for load in packing[gang]) for gang in (0, 1)] == [4, 1]
    assert not complete(waiting, packing)
    assert complete(waiting[1:], {0: packing[1]})
    assert Worth(cluster(make_node("a"))).of(waiting[0], packing[0]) == pytest.approx(
        9.0 * (1 + 0.5 * 3)
    )


PRICES = (
    Price(PriceClass.RESERVED, 1.0),
    Price(PriceClass.RESERVED, 3.0, PoolName("dear")),
    Price(PriceClass.SPOT, 9.0),
)


def test_a_price_of_the_pool_goes_before_the_general_one() -> None:
    nodes = [make_node("a"), make_node("b", pool="dear")]
    nodes.append(replace(make_node("c"), price_class=PriceClass.ON_DEMAND))
    table = cluster(*nodes).columns.table
    assert gpu_prices(table, Terms(prices=PRICES, price_weight=2.0)).tolist() == [2.0, 6.0, 0.0]
    assert not gpu_prices(table, Terms(prices=PRICES)).any()


def test_what_costs_more_than_it_is_worth_waits() -> None:
    terms = Terms(prices=PRICES, price_weight=1.0)
    snapshot = cluster(make_node("b", pool="dear"), terms=terms)
    waiting = gangs((shape(2), 5.0), (shape(2), 7.0), (replace(shape(0), gpu_milli=500), 2.0))
    packing = best(snapshot, waiting)
    assert set(packing) == {1, 2}
    assert Worth(snapshot).total(waiting, packing) == pytest.approx(1.0 + 0.5)


def test_an_elastic_gang_does_not_grow_at_a_loss() -> None:
    elastic = replace(shape(1), tasks_max=8)
    terms = Terms(prices=PRICES, price_weight=1.0)
    for value, workers in ((1.5, 1), (2.5, 8)):
        packing = best(cluster(make_node("a"), terms=terms), gangs((elastic, value)))
        assert sum(load.workers for load in packing[0]) == workers


def test_nothing_waits_or_nothing_is_free() -> None:
    assert best(cluster(make_node("a")), ()) == {}
    assert best(cluster(), gangs((shape(1), 1.0))) == {}
    node = make_node("a")
    full = snapshot_of([node], [], [occupy(node, range(8))])
    assert best(full, gangs((shape(1), 1.0))) == {}
