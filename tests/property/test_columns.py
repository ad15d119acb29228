"""Columns carried on by deltas are those that would be built from scratch."""

from __future__ import annotations

import random
from dataclasses import fields, replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from support.clusters import DGX1_V100, links
from support.rooms import random_attempt, random_cluster, random_node

from scheduler.model.columns import Columns, Free, NodeTable
from scheduler.model.node import Health, Node
from scheduler.model.quantity import PoolName, Resources
from scheduler.model.site import (
    ANYWHERE,
    Effect,
    Site,
    Taint,
    Toleration,
    TolerationOperator,
    port_amounts,
)
from scheduler.model.siting import Siting
from scheduler.model.snapshot import LiveAttempt, Snapshot, SnapshotDelta

many = settings(max_examples=200, deadline=None, derandomize=True)
PORT = port_amounts("TCP", 80)
BUSY = Taint("busy", "", Effect.NO_SCHEDULE)
EXTRAS = ("pods", "rdma/hca", *(name for name, _ in PORT))
SITES = (
    ANYWHERE,
    Site(selector=(("kind", "fast"),)),
    Site(tolerations=(Toleration("busy", TolerationOperator.EXISTS),)),
    Site(node_name="node01"),
)


def different(one: object, other: object) -> list[str]:
    """Names of the fields in which two of these differ."""
    found = []
    for field in fields(one):  # type: ignore[arg-type]
        a, b = getattr(one, field.name), getattr(other, field.name)
        if field.name in ("extras", "extras_held"):
            found += _other_extras(one, other)
        elif isinstance(a, Siting):
            found += [
                f"siting of {site}"
                for site in SITES
                if not np.array_equal(a.selected(site), b.selected(site))
                or not np.array_equal(a.tolerated(site), b.tolerated(site))
            ]
        elif isinstance(a, (Free, NodeTable)):
            found += [f"{field.name}.{name}" for name in different(a, b)]
        elif isinstance(a, np.ndarray):
            same = a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b)
            found += [] if same else [field.name]
        elif a != b:
            found.append(field.name)
    return found


def _other_extras(one: object, other: object) -> list[str]:
    """Further resources of which one has other amounts than the other, named there or not."""

    def amount(of: object, name: str) -> object:
        if isinstance(of, NodeTable):
            return of.capacity_of(name).tolist()
        if isinstance(of, Free):
            opened = np.where(of.table.open, of.amount_of(name), 0)
            return opened.tolist()
        assert isinstance(of, Columns)
        held = of.extras_held.get(name, np.zeros(len(of.table.nodes), dtype=np.int64))
        return held.tolist()

    return [name for name in EXTRAS if amount(one, name) != amount(other, name)]


def with_site(rng: random.Random, node: Node) -> Node:
    """The node with other labels, taints and further resources."""
    return replace(
        node,
        labels=rng.choice([(), (("kind", "fast"),), (("kind", "slow"), ("zone", "b"))]),
        taints=rng.choice([(), (), (BUSY,)]),
        extras=rng.choice([(), (("pods", 3),), (("pods", 2), ("rdma/hca", 1)), ((PORT[0][0], 0),)]),
    )


def with_extras(rng: random.Random, attempt: LiveAttempt) -> LiveAttempt:
    """The attempt holding further resources."""
    extras = rng.choice([(), (("pods", 1),), PORT, (("pods", 2), *PORT)])
    return replace(attempt, tasks=tuple(replace(task, extras=extras) for task in attempt.tasks))


def new_state(rng: random.Random, node: Node) -> Node:
    """The node with other health, cordons, capacity, labels, taints or further resources."""
    match rng.randrange(6):
        case 4 | 5:
            return with_site(rng, node)
        case 0:
            return replace(node, health=rng.choice(list(Health)))
        case 1:
            return replace(node, cordoned=not node.cordoned)
        case 2:
            return replace(node, capacity=Resources(len(node.gpus), rng.choice([4_000, 32_000]), 9))
        case _:
            gpus = tuple(
                replace(gpu, cordoned=rng.random() < 0.3, health=rng.choice(list(Health)))
                for gpu in node.gpus
            )
            return replace(node, gpus=gpus)


def rebuilt_node(rng: random.Random, node: Node) -> Node:
    """The node as another machine: a GPU left or came back, another pool, rack, board or name."""
    match rng.randrange(6):
        case 0:
            return replace(node, gpus=node.gpus[:-1])
        case 1:
            return random_node(rng, int(node.name.removeprefix("node").rstrip("x")))
        case 2:
            return replace(node, pool=PoolName("gold"))
        case 3:
            return replace(node, rack="rack9")
        case 4:
            return replace(node, name=node.name + "x")
        case _:
            return replace(node, links=links(DGX1_V100) if len(node.gpus) == 8 else node.links)


def random_delta(rng: random.Random, before: Snapshot) -> SnapshotDelta:
    nodes, live = list(before.nodes.values()), list(before.live.values())
    changed: list[Node] = []
    gone = []
    if nodes and rng.random() < 0.4:
        changed += [new_state(rng, node) for node in rng.sample(nodes, min(2, len(nodes)))]
    if nodes and rng.random() < 0.1:
        changed.append(rebuilt_node(rng, rng.choice(nodes)))
    if rng.random() < 0.1:
        changed.append(random_node(rng, rng.randrange(20)))
    if nodes and rng.random() < 0.1:
        gone.append(rng.choice(nodes).id)
    places = nodes + changed
    attempts = []
    if places and rng.random() < 0.5:
        attempts.append(with_extras(rng, random_attempt(rng, f"new{rng.randrange(9)}", places)))
    if live and places and rng.random() < 0.3:
        moved = random_attempt(rng, "x", places)
        attempts.append(replace(rng.choice(live), tasks=moved.tasks))
    ended = [each.id for each in live if rng.random() < 0.1]
    return SnapshotDelta(
        base_revision=before.revision,
        revision=before.revision + 1,
        nodes=tuple(changed),
        nodes_gone=tuple(gone),
        live=tuple(attempts),
        live_gone=tuple(ended),
    )


@many
@given(st.integers(0, 1_000_000))
def test_applying_deltas_carries_the_columns_on_as_if_they_were_built_anew(seed: int) -> None:
    rng = random.Random(seed)
    snapshot = random_cluster(seed)
    assert snapshot.columns.free.gpu.shape[0] == len(snapshot.nodes)
    for _ in range(8):
        delta = random_delta(rng, snapshot)
        before = snapshot.columns
        kept = replace(before, gpu_held=before.gpu_held.copy(), free=before.free.copy())
        after = snapshot.apply(delta)
        tasks = [task for attempt in after.live.values() for task in attempt.tasks]
        anew = Columns.of(after.nodes.values(), tasks)
        assert different(after.columns, anew) == []
        assert list(after.nodes) == [node.id for node in anew.table.nodes]
        assert different(before, kept) == [], "the older snapshot still reads as it did"
        snapshot = after
