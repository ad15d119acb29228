from __future__ import annotations

from dataclasses import replace

import numpy as np
from support.clusters import make_node, occupy, snapshot_of

from scheduler.allocation.limits import Quotas
from scheduler.allocation.stock import Draw, Stock
from scheduler.model.node import Node
from scheduler.model.quantity import DEFAULT_TENANT
from scheduler.model.site import Amounts, port_amounts
from scheduler.model.snapshot import LiveAttempt

PORT = port_amounts("TCP", 80)
(NAME, WHOLE) = PORT[0]


def node(name: str, extras: Amounts = (), *, cordoned: bool = False) -> Node:
    return replace(make_node(name, gpus=1, cordoned=cordoned), extras=extras)


def held(on: Node, extras: Amounts) -> LiveAttempt:
    attempt = occupy(on, [], 100)
    return replace(attempt, tasks=(replace(attempt.tasks[0], extras=extras),))


def stock_of(*nodes: Node, live: tuple[LiveAttempt, ...] = ()) -> Stock:
    snapshot = snapshot_of(nodes, (), live)
    return Stock(snapshot.columns, Quotas(snapshot))


def draw(row: int, extras: Amounts) -> Draw:
    return Draw(row, (), 0, 0, 0, DEFAULT_TENANT, extras)


def test_further_resources_are_drawn_and_undone_also_those_that_nobody_named_before() -> None:
    stock = stock_of(node("a", (("pods", 2),)), node("b", (("pods", 1),)))
    both = draw(0, (("pods", 1), *PORT))
    assert stock.has(both)
    assert not stock.has(draw(0, (("pods", 3),)))
    assert not stock.has(draw(0, (("rdma/hca", 1),)))
    mark = stock.mark()
    stock.take(both)
    assert stock.free.amount_of("pods").tolist() == [1, 1]
    assert stock.free.amount_of(NAME).tolist() == [0, WHOLE]
    assert not stock.has(both)
    assert not stock.take_all([draw(0, (("pods", 1),)), draw(0, PORT)])
    assert stock.free.amount_of("pods").tolist() == [1, 1], "nothing of it was taken"
    stock.undo(mark)
    assert stock.has(both)
    assert stock.free.amount_of(NAME).tolist() == [WHOLE, WHOLE]


def test_what_comes_back_pays_a_debt_first() -> None:
    shrunk = node("a", (("pods", 1),))
    stock = stock_of(shrunk, live=(held(shrunk, (("pods", 3), *PORT)),))
    assert stock.free.amount_of("pods").tolist() == [0]
    stock.give(draw(0, (("pods", 2),)))
    assert stock.free.amount_of("pods").tolist() == [0]
    stock.give(draw(0, (("pods", 1), *PORT)))
    assert stock.free.amount_of("pods").tolist() == [1]
    assert stock.free.amount_of(NAME).tolist() == [WHOLE]


def test_a_closed_node_offers_none_whatever_comes_back() -> None:
    closed = node("a", (("pods", 3),), cordoned=True)
    stock = stock_of(closed, live=(held(closed, (("pods", 1),)),))
    stock.give(draw(0, (("pods", 1),)))
    stock.take(draw(0, PORT))
    assert stock.free.amount_of("pods").tolist() == [0]
    assert stock.free.amount_of(NAME).tolist() == [0]


def test_the_snapshot_is_not_drawn_on() -> None:
    snapshot = snapshot_of([node("a", (("pods", 2),))], ())
    stock = Stock(snapshot.columns, Quotas(snapshot))
    stock.take(draw(0, (("pods", 2), *PORT)))
    assert snapshot.columns.free.amount_of("pods").tolist() == [2]
    assert NAME not in snapshot.columns.free.extras
    assert np.array_equal(snapshot.columns.table.capacity_of(NAME), [WHOLE])
