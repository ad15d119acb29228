from __future__ import annotations

from dataclasses import replace

import pytest

from scheduler.model.job import JobShape, WaitingJob
from scheduler.model.node import Gpu, Health, Links, Node
from scheduler.model.plan import TaskPlacement
from scheduler.model.quantity import (
    AttemptId,
    GpuId,
    JobId,
    NodeId,
    QueueName,
    Resources,
    TenantId,
    UtcSeconds,
)
from scheduler.model.snapshot import LiveAttempt, Snapshot, SnapshotDelta


def _node(name: str, gpus: int = 2) -> Node:
    return Node(
        NodeId(f"n-{name}"),
        name,
        Resources(gpus, 8000, 1000),
        tuple(Gpu(GpuId(f"{name}-{i}"), i, "H100", 80_000) for i in range(gpus)),
    )


def _job(name: str) -> WaitingJob:
    return WaitingJob(
        JobId(name),
        TenantId("t"),
        QueueName("q"),
        50,
        UtcSeconds(1),
        UtcSeconds(1),
        JobShape(1, Resources(1, 100, 10)),
        preemptible=True,
        attempts=0,
        class_key="k",
    )


def _live(name: str, node: Node, gpus: tuple[int, ...]) -> LiveAttempt:
    task = TaskPlacement(0, node.id, tuple(node.gpus[i].id for i in gpus), 500, 100)
    return LiveAttempt(AttemptId(name), _job("j"), UtcSeconds(0), (task,))


def test_a_delta_adds_replaces_and_removes() -> None:
    a, b = _node("a"), _node("b")
    first = Snapshot().apply(SnapshotDelta(0, 5, nodes=(b, a), waiting=(_job("x"), _job("y"))))
    second = first.apply(
        SnapshotDelta(
            5, 9, nodes_gone=(b.id,), waiting_gone=(JobId("x"),), live=(_live("l", a, (0,)),)
        )
    )
    assert [node.name for node in first.nodes.values()] == ["a", "b"], "order is by name"
    assert list(second.nodes) == [a.id]
    assert list(second.waiting) == ["y"]
    assert list(second.live) == ["l"]
    assert list(first.waiting) == ["x", "y"], "the older snapshot did not change"


def test_a_full_delta_replaces_everything() -> None:
    old = Snapshot().apply(SnapshotDelta(0, 5, waiting=(_job("x"),)))
    assert list(old.apply(SnapshotDelta(0, 7, waiting=(_job("z"),))).waiting) == ["z"]


def test_a_delta_from_another_revision_is_refused() -> None:
    with pytest.raises(ValueError, match="revision 3"):
        Snapshot(revision=4).apply(SnapshotDelta(3, 5))


def test_who_missed_a_delta_is_given_the_whole_view() -> None:
    def full() -> SnapshotDelta:
        return SnapshotDelta(0, 9, waiting=(_job("x"), _job("z")))

    view = Snapshot().caught_up(SnapshotDelta(0, 5, waiting=(_job("x"),)), full)
    follows = SnapshotDelta(5, 6, waiting=(_job("y"),))
    assert list(view.caught_up(follows, full).waiting) == ["x", "y"]
    assert list(view.caught_up(SnapshotDelta(8, 9, waiting=(_job("z"),)), full).waiting) == [
        "x",
        "z",
    ]


def test_free_is_what_nobody_holds_and_may_be_used() -> None:
    node = _node("a", 4)
    snapshot = Snapshot().apply(
        SnapshotDelta(0, 1, nodes=(node,), live=(_live("l", node, (1, 2)),))
    )
    free = snapshot.columns.free
    assert free.gpu.tolist() == [[1000, 0, 0, 1000]]
    assert (free.whole.tolist(), free.cpu.tolist(), free.memory.tolist()) == ([[2]], [7500], [900])


def test_nothing_is_free_on_a_node_that_takes_no_work() -> None:
    node = _node("a")
    for broken in (
        Node(node.id, "a", node.capacity, node.gpus, cordoned=True),
        Node(node.id, "a", node.capacity, node.gpus, health=Health.UNKNOWN),
    ):
        free = Snapshot().apply(SnapshotDelta(0, 1, nodes=(broken,))).columns.free
        assert not any(amount.any() for amount in (free.gpu, free.whole, free.cpu, free.memory))


def test_free_never_goes_below_zero_when_capacity_shrinks() -> None:
    node = _node("a")
    held = TaskPlacement(0, node.id, (), 99_000, 5)
    live = replace(_live("l", node, ()), tasks=(held,))
    free = Snapshot().apply(SnapshotDelta(0, 1, nodes=(node,), live=(live,))).columns.free
    assert (free.whole.sum(), free.cpu.tolist(), free.memory.tolist()) == (2, [0], [995])


def test_nvlink_domains_are_the_connected_parts() -> None:
    nvlinks = ((0, 1, 0, 0), (1, 0, 0, 0), (0, 0, 0, 2), (0, 0, 2, 0))
    assert Links(nvlinks, ()).domains() == (frozenset({0, 1}), frozenset({2, 3}))
    assert Links(((0, 0), (0, 0)), ()).domains() == (frozenset({0}), frozenset({1}))


def test_how_often_a_need_fits() -> None:
    assert Resources(2, 1000, 10).times_in(Resources(8, 2500, 1000)) == 2
    assert Resources(2, 1000, 10).times_in(Resources(1, 9999, 1000)) == 0
    assert Resources(1, 1, 1) * 3 + Resources(1, 0, 0) - Resources(0, 3, 0) == Resources(4, 0, 3)
