"""What a gang that lacks GPUs is told: where they are, and what would give it enough of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from support.clusters import NOW, make_job, make_node, occupy, shape, snapshot_of

from policies.registry import profile_named
from scheduler.decide import decide
from scheduler.model.job import JobShape, Topology
from scheduler.model.node import Node
from scheduler.model.plan import ReasonCode
from scheduler.model.ports import Effort
from scheduler.model.site import Effect, Site, Taint, Toleration, TolerationOperator
from scheduler.model.snapshot import LiveAttempt


def told(
    nodes: Sequence[Node], what: JobShape, live: Sequence[LiveAttempt] = (), priority: int = 50
) -> str:
    """The first reason of a gang that waits alone."""
    snapshot = snapshot_of(nodes, [make_job("gang", what, priority=priority)], live)
    (*_, plan) = decide(snapshot, profile_named("priority-age"), Effort(), NOW, 0)
    (found,) = plan.waiting
    assert found.reasons[0].code is ReasonCode.WAITING_CAPACITY
    return found.reasons[0].message


def of_priority(live: LiveAttempt, priority: int, *, preemptible: bool = True) -> LiveAttempt:
    return replace(live, job=replace(live.job, priority=priority, preemptible=preemptible))


def full(names: str) -> tuple[list[Node], list[LiveAttempt]]:
    """Nodes of 8 GPUs, each with two jobs of 4."""
    nodes = [make_node(name) for name in names]
    return nodes, [occupy(node, range(at, at + 4)) for node in nodes for at in (0, 4)]


def test_a_full_cluster() -> None:
    nodes, live = full("abc")
    for what in (shape(1, tasks=16), shape(8, tasks=2)):
        assert told(nodes, what, live) == (
            "needs 16 GPUs, 0 free; of the 24 it may use, jobs hold 24; 16 more must come free, "
            "or 2 more nodes of 8 GPUs; no job of lower priority has any"
        )


def test_who_has_the_gpus_is_told_apart() -> None:
    nodes, live = full("ab")
    theirs = make_node("c")
    theirs = replace(
        theirs, gpus=tuple(replace(gpu, external=gpu.index < 5) for gpu in theirs.gpus)
    )
    closed = make_node("d", cordoned=True)
    message = told([*nodes, theirs, closed], shape(1, tasks=20), live[:3])
    assert message.startswith(
        "needs 20 GPUs, 7 free, at most 4 on one node; of the 32 it may use, jobs hold 12, "
        "others use 5, 8 are cordoned or unhealthy; 13 more must come free, or 2 more nodes"
    )


def test_gpus_of_other_nodes_and_models_do_not_count() -> None:
    nodes, live = full("ab")
    other = make_node("c", model="A100")
    kept = replace(make_node("d"), taints=(Taint("team", "x", Effect.NO_SCHEDULE),))
    message = told([*nodes, other, kept], shape(8, models=("H100",)), live)
    assert "of the 16 it may use, jobs hold 16" in message
    tolerant = Site(tolerations=(Toleration("team", TolerationOperator.EXISTS),))
    wanted = replace(shape(8, tasks=2, models=("H100",)), site=tolerant)
    assert "8 free; of the 24 it may use, jobs hold 16; 8 more" in told(
        [*nodes, kept], wanted, live
    )


def test_jobs_of_lower_priority_are_told_of_where_the_gang_may_run() -> None:
    nodes, live = full("ab")
    mixed = [of_priority(live[0], 10), *live[1:]]
    assert told(nodes, shape(4), mixed).endswith("jobs of lower priority have enough")
    assert told(nodes, shape(8), mixed).endswith("jobs of lower priority have too few")
    assert told(nodes, shape(4), mixed, priority=10).endswith("no job of lower priority has any")
    firm = [of_priority(live[0], 10, preemptible=False), *live[1:]]
    assert told(nodes, shape(4), firm).endswith("no job of lower priority has any")
    elsewhere = replace(shape(4), site=Site(node_name="b"))
    assert told(nodes, elsewhere, mixed).endswith("no job of lower priority has any")


def test_more_nodes_are_no_remedy_for_a_gang_that_must_stay_together() -> None:
    nodes, live = full("ab")
    message = told(nodes, shape(2, tasks=4, topology=Topology.SAME_NODE), live)
    assert "8 more must come free; " in message
    message = told(nodes, shape(3, tasks=3), live)  # two fit a node
    assert "9 more must come free, or 2 more nodes of 8 GPUs" in message
