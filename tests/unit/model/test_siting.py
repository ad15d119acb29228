from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from support.builders import node
from support.sites import random_labels, random_site, random_taints

from scheduler.model.columns import NodeTable
from scheduler.model.counting import anywhere, in_pool
from scheduler.model.job import Worker
from scheduler.model.node import Node
from scheduler.model.quantity import PoolName, Resources
from scheduler.model.site import ANYWHERE, Effect, Operator, Requirement, Site, Taint, Term
from scheduler.model.siting import Siting


def random_nodes(rng: random.Random, count: int) -> list[Node]:
    return [
        replace(
            node(f"n{number}", 0, pool=rng.choice(["default", "batch"])),
            labels=random_labels(rng, f"n{number}"),
            taints=random_taints(rng),
        )
        for number in range(count)
    ]


def agree(siting: Siting, nodes: Sequence[Node], site: Site) -> None:
    selected = [site.selects(each.name, dict(each.labels)) for each in nodes]
    tolerated = [site.untolerated(each.taints) is None for each in nodes]
    assert siting.selected(site).tolist() == selected, site
    assert siting.tolerated(site).tolist() == tolerated, site


@pytest.mark.parametrize("seed", range(40))
def test_all_nodes_at_once_as_one_by_one_also_after_changes(seed: int) -> None:
    rng = random.Random(seed)
    nodes = random_nodes(rng, 7)
    siting = Siting(nodes)
    for _ in range(4):
        for _ in range(6):
            agree(siting, nodes, random_site(rng))
        row = rng.randrange(len(nodes))
        nodes[row] = replace(
            nodes[row], labels=random_labels(rng, nodes[row].name), taints=random_taints(rng)
        )
        siting = siting.after(nodes, {row})


def test_other_changes_keep_what_is_known() -> None:
    nodes = random_nodes(random.Random(0), 3)
    siting = Siting(nodes)
    cordoned = [replace(nodes[0], cordoned=True), *nodes[1:]]
    assert siting.after(cordoned, {0}) is siting


def test_a_field_that_nodes_do_not_have_is_a_missing_label() -> None:
    nodes = random_nodes(random.Random(0), 2)
    for operator, met in ((Operator.IN, False), (Operator.NOT_IN, True)):
        term = Term(fields=(Requirement("spec.unknown", operator, ("x",)),))
        assert Siting(nodes).selected(Site(terms=(term,))).tolist() == [met, met]


def test_the_rows_of_a_worker_are_of_its_pool_and_site() -> None:
    nodes = [
        replace(node("a", 0, pool="batch"), labels=(("kind", "fast"),)),
        replace(node("b", 0, pool="batch"), taints=(Taint("busy", "", Effect.NO_SCHEDULE),)),
        replace(node("c", 0), labels=(("kind", "fast"),)),
    ]
    table = NodeTable.of(nodes)
    batch = Worker(Resources(), pool=PoolName("batch"))
    fast = Worker(Resources(), site=Site(selector=(("kind", "fast"),)))
    assert in_pool(table, batch).tolist() == [True, False, False]
    assert in_pool(table, fast).tolist() == [True, False, True]
    assert in_pool(table, replace(batch, site=fast.site)).tolist() == [True, False, False]
    assert in_pool(table, Worker(Resources(), pool=PoolName("?"))).tolist() == [False] * 3
    assert not anywhere(table, Worker(Resources())), "a taint may keep it off"
    assert anywhere(NodeTable.of(nodes[::2]), Worker(Resources()))
    assert in_pool(table, fast) is in_pool(table, replace(fast)), "worked out once"


def test_a_changed_taint_is_seen_by_the_table_that_follows() -> None:
    nodes = random_nodes(random.Random(1), 3)
    table = NodeTable.of(replace(each, taints=()) for each in nodes)
    worker = Worker(Resources(), site=ANYWHERE)
    before = in_pool(table, worker)
    (first, *_) = table.nodes
    after = table.with_states([replace(first, taints=(Taint("x", "", Effect.NO_EXECUTE),))])
    assert after is not None
    assert before.all()
    assert in_pool(after, worker).tolist() == [False, True, True]
    assert np.array_equal(in_pool(table, worker), before)
