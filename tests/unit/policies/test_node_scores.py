from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from support.clusters import make_job, make_node, occupy, shape, snapshot_of, two_domains

from policies.fgd import Fgd
from policies.lowest_index import LowestIndex
from policies.placement_score import PlacementScore
from policies.random_fit import RandomFit
from scheduler.model.columns import Floats
from scheduler.model.job import JobShape
from scheduler.model.node import Node, PriceClass
from scheduler.model.ports import NodeScore
from scheduler.model.quantity import Resources
from scheduler.model.snapshot import LiveAttempt, Snapshot
from scheduler.model.terms import Price, Terms, Weights


def part(milli: int, cpu_milli: int = 1_000) -> JobShape:
    return JobShape(1, Resources(0, cpu_milli, 1_000), gpu_milli=milli)


def view(
    nodes: list[Node],
    *waiting: JobShape,
    live: list[LiveAttempt] | None = None,
    weights: Weights | None = None,
    prices: tuple[Price, ...] = (),
) -> Snapshot:
    jobs = [make_job(str(number), what) for number, what in enumerate(waiting)]
    terms = Terms(Weights(fragmentation=0, balance=0) if weights is None else weights)
    return replace(snapshot_of(nodes, jobs, live or []), terms=replace(terms, prices=prices))


def scores(score: NodeScore, snapshot: Snapshot, what: JobShape, seed: int = 1) -> Floats:
    scoring = score.on(snapshot.columns.free, snapshot, seed)
    return scoring.rows(what.worker, np.arange(len(snapshot.nodes)))


def test_fgd_prefers_the_node_that_is_fragmented_already() -> None:
    whole, broken = make_node("0"), make_node("1")
    snapshot = view([whole, broken], *[shape(8)] * 9, shape(1), live=[occupy(broken, [0])])
    zero, one = scores(Fgd(), snapshot, shape(1)).tolist()
    assert one < zero


def test_fgd_with_a_known_mix_does_not_look_at_the_queue() -> None:
    whole, broken = make_node("0"), make_node("1")
    snapshot = view([whole, broken], shape(1), live=[occupy(broken, [0])])
    learned = scores(Fgd(), snapshot, shape(1)).tolist()
    known = scores(Fgd(known={shape(8): 9, shape(1): 1}), snapshot, shape(1)).tolist()
    assert learned[0] == learned[1]
    assert known[1] < known[0]


def test_fgd_breaks_ties_by_row_or_at_random() -> None:
    snapshot = view([make_node(str(number)) for number in range(8)], shape(1))
    assert set(scores(Fgd(), snapshot, shape(1)).tolist()) == {
        scores(Fgd(), snapshot, shape(1)).tolist()[0]
    }
    drawn = [
        int(scores(Fgd(random_ties=True), snapshot, shape(1), seed).argmin()) for seed in range(9)
    ]
    assert len(set(drawn)) > 1


def test_random_fit_draws_anew_for_each_decision() -> None:
    snapshot = view([make_node(str(number)) for number in range(8)], shape(1))
    later = replace(snapshot, revision=snapshot.revision + 1)
    assert scores(RandomFit(), snapshot, shape(1)).tolist() == (
        scores(RandomFit(), snapshot, shape(1)).tolist()
    )
    assert scores(RandomFit(), snapshot, shape(1)).tolist() != (
        scores(RandomFit(), later, shape(1)).tolist()
    )


def test_lowest_index_takes_the_first_gpu_with_room() -> None:
    node = make_node("0", gpus=2)
    snapshot = view([node], live=[occupy(node, [0])])
    assert scores(LowestIndex(), snapshot, part(100)).tolist() == [0.0]
    assert LowestIndex().on(snapshot.columns.free, snapshot, 1).gpu(part(100).worker, 0) == 1


def test_parts_of_gpus_are_put_together() -> None:
    node = make_node("0", gpus=2)
    held = occupy(node, [1])
    held = replace(held, tasks=(replace(held.tasks[0], gpu_milli=530),))
    snapshot = view([node], part(470), shape(1), live=[held], weights=Weights())
    assert PlacementScore().on(snapshot.columns.free, snapshot, 1).gpu(part(470).worker, 0) == 1


def test_work_that_needs_much_cpu_goes_where_cpu_is_plenty() -> None:
    rich = make_node("1", gpus=2, cpu_milli=104_000)
    poor = make_node("0", gpus=8, cpu_milli=96_000)
    hungry, modest = shape(1, cpu_milli=24_000), shape(1, cpu_milli=11_000)
    snapshot = view([poor, rich], *[modest] * 9, hungry, weights=Weights())
    assert scores(PlacementScore(), snapshot, hungry).argmin() == 1


def test_tightness_and_spread_are_opposites() -> None:
    full, empty = make_node("0"), make_node("1")
    live = [occupy(full, range(6))]
    for weights, best in ((Weights(0, 0.1, 0), 0), (Weights(0, 0, 0, spread=0.1), 1)):
        snapshot = view([full, empty], live=live, weights=weights)
        assert scores(PlacementScore(), snapshot, shape(1)).argmin() == best


def test_cheap_nodes_are_preferred_by_their_price() -> None:
    nodes = [
        replace(make_node("0"), price_class=PriceClass.ON_DEMAND),
        replace(make_node("1"), price_class=PriceClass.SPOT),
        replace(make_node("2", pool="own"), price_class=PriceClass.SPOT),
    ]
    prices = (
        Price(PriceClass.ON_DEMAND, 4.0),
        Price(PriceClass.SPOT, 1.0),
        Price(PriceClass.SPOT, 2.0, nodes[2].pool),
    )
    snapshot = view(nodes, weights=Weights(0, 0, 0, 0, 0, 0.1), prices=prices)
    assert scores(PlacementScore(), snapshot, shape(2)).tolist() == pytest.approx([0.2, 0.05, 0.1])
    free = replace(snapshot, terms=replace(snapshot.terms, prices=()))
    assert scores(PlacementScore(), free, shape(2)).tolist() == [0.0, 0.0, 0.0]


def test_topology_avoids_nodes_without_a_linked_block() -> None:
    split, linked = make_node("0", board=two_domains()), make_node("1", board=two_domains())
    live = [occupy(split, [0, 1, 4, 5]), occupy(linked, [0, 1, 2, 3])]
    snapshot = view([split, linked], live=live, weights=Weights(0, 0, 0, 0.2, 0, 0))
    assert scores(PlacementScore(), snapshot, shape(4)).tolist() == [0.2, 0.0]
    assert scores(PlacementScore(), snapshot, shape(2)).tolist() == [0.0, 0.0]


def test_without_any_gpu_work_places_are_alike() -> None:
    snapshot = view([make_node("0"), make_node("1")], shape(0), weights=Weights())
    assert scores(PlacementScore(), snapshot, shape(0)).tolist() == [0.0, 0.0]
