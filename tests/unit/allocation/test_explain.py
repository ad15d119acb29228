from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import replace
from weakref import ref

from support.clusters import NOW, make_job, make_node, occupy, shape, snapshot_of, two_domains

from policies.registry import profile_named
from scheduler.allocation.explain import explain
from scheduler.decide import decide
from scheduler.model.job import JobShape, Topology, WaitingJob
from scheduler.model.node import Node
from scheduler.model.plan import Plan, Reason, ReasonCode, Waiting
from scheduler.model.ports import Effort
from scheduler.model.quantity import NodeId, TenantId
from scheduler.model.snapshot import LiveAttempt, SnapshotDelta
from scheduler.model.terms import Headroom, Quota, Terms


def decided(
    nodes: Sequence[Node], jobs: Sequence[WaitingJob], live: Sequence[LiveAttempt] = ()
) -> Plan:
    return list(
        decide(snapshot_of(nodes, jobs, live), profile_named("priority-age"), Effort(), NOW, 0)
    )[-1]


def record(nodes: Sequence[Node], what: JobShape, live: Sequence[LiveAttempt] = ()) -> Waiting:
    """The reason record of a job that waits alone."""
    plan = decided(nodes, [make_job("x", what)], live)
    assert plan.placements == ()
    (found,) = plan.waiting
    return found


def numbers(reason: Reason) -> tuple[str, float, float, float]:
    return (reason.dimension, reason.need, reason.free, reason.largest_block)


def test_never_fits() -> None:
    found = record([make_node("a")], shape(16))
    assert [reason.code for reason in found.reasons] == [ReasonCode.NEVER_FITS]


def test_blocked_by_config_names_the_filter() -> None:
    found = record(
        [make_node("a", cordoned=True), make_node("b", model="A100")], shape(1, models=("H100",))
    )
    assert found.reasons[0].code is ReasonCode.BLOCKED_BY_CONFIG
    assert "all 1 nodes that could take it are cordoned or unhealthy" in found.reasons[0].message
    assert [(step.filter, step.nodes_left) for step in found.funnel] == [
        ("present", 2),
        ("pool", 2),
        ("gpu-model", 1),
        ("schedulable", 0),
        ("one-task-fits", 0),
    ]


def test_an_empty_cluster() -> None:
    (reason,) = record([], shape(1)).reasons
    assert reason.code is ReasonCode.BLOCKED_BY_CONFIG
    assert reason.message == "the cluster has no nodes yet"


def test_waiting_capacity_names_every_short_resource() -> None:
    node = make_node("a")
    live = [occupy(node, [0, 1, 2], 90_000, 100)]
    found = record([node], shape(6, models=("H100",), cpu_milli=7_000), live)
    assert [reason.code for reason in found.reasons] == [ReasonCode.WAITING_CAPACITY] * 2
    assert found.reasons[0].message.startswith("needs 6 GPUs (H100), 5 free; ")
    assert found.reasons[1].message == "needs 7000 m CPU, 6000 free"
    assert numbers(found.reasons[0]) == ("gpus", 6, 5, 5)
    assert numbers(found.reasons[1]) == ("cpu_milli", 7_000, 6_000, 6_000)


def test_fragmented_when_enough_is_free_but_nowhere_together() -> None:
    nodes = [make_node("a"), make_node("b")]
    live = [occupy(node, [0, 1, 2, 3, 4]) for node in nodes]
    (reason,) = record(nodes, shape(4), live).reasons
    assert reason.code is ReasonCode.FRAGMENTED
    assert numbers(reason) == ("gpus", 4, 6, 3)


def test_fragmented_across_resources() -> None:
    gpu, cpu = make_node("a"), make_node("b")
    live = [occupy(gpu, [], 95_500), occupy(cpu, list(range(8)))]
    (reason,) = record([gpu, cpu], shape(1, cpu_milli=1_000), live).reasons
    assert reason.code is ReasonCode.FRAGMENTED
    assert "none of 2 nodes has all" in reason.message


def test_waiting_gang_counts_the_tasks_that_fit() -> None:
    nodes = [make_node("a"), make_node("b"), make_node("c")]
    live = [occupy(node, [0, 1, 2]) for node in nodes]
    (reason,) = record(nodes, shape(3, tasks=4), live).reasons
    assert reason.code is ReasonCode.WAITING_GANG
    assert numbers(reason) == ("gpus", 12, 9, 3)


def test_waiting_topology_for_node_domain_and_rack() -> None:
    nodes = [make_node("a", rack="r"), make_node("b", rack="s")]
    live = [occupy(node, [0, 1, 2]) for node in nodes]
    for topology in (Topology.SAME_NODE, Topology.SAME_RACK):
        (reason,) = record(nodes, shape(2, tasks=3, topology=topology), live).reasons
        assert reason.code is ReasonCode.WAITING_TOPOLOGY
        assert numbers(reason) == ("gpus", 6, 8, 4)
    board = make_node("c", board=two_domains())
    (reason,) = record(
        [board],
        shape(1, tasks=4, topology=Topology.SAME_NVLINK),
        [occupy(board, [0, 4])],
    ).reasons
    assert reason.code is ReasonCode.WAITING_TOPOLOGY
    assert numbers(reason) == ("gpus", 4, 6, 3)


def test_behind_priority_when_others_took_what_was_free() -> None:
    jobs = [
        make_job("high", shape(8), priority=90),
        make_job("low", shape(8, cpu_milli=2_000), priority=10),
    ]
    plan = decided([make_node("a")], jobs)
    assert [placement.job_id for placement in plan.placements] == ["j-high"]
    (found,) = plan.waiting
    assert found.class_key == jobs[1].class_key
    assert [reason.code for reason in found.reasons] == [
        ReasonCode.WAITING_CAPACITY,
        ReasonCode.BEHIND_PRIORITY,
    ]
    assert numbers(found.reasons[0]) == ("gpus", 8, 0, 0), "as it stands after the plan"


def test_backoff_comes_first_but_not_when_a_twin_is_ready() -> None:
    what = shape(8)
    later = make_job("later", what, eligible_at=NOW + 30)
    node = make_node("a")
    plan = decided([node], [later], [occupy(node, [0])])
    assert [reason.code for reason in plan.waiting[0].reasons] == [
        ReasonCode.BACKOFF,
        ReasonCode.WAITING_CAPACITY,
    ]
    twin = make_job("twin", what)
    plan = decided([node], [later, twin], [occupy(node, [0])])
    assert plan.waiting[0].reasons[0].code is ReasonCode.WAITING_CAPACITY


def test_one_record_for_each_class_however_many_jobs() -> None:
    jobs = [make_job(f"{n:03}", shape(8 if n % 2 else 4)) for n in range(100)]
    jobs.append(replace(make_job("other", shape(4)), class_key="another queue"))
    plan = decided([make_node("a", gpus=2, cpu_milli=0)], jobs)
    assert len(plan.waiting) == 3
    assert {waiting.class_key for waiting in plan.waiting} == {job.class_key for job in jobs}


def alone(
    nodes: Sequence[Node],
    what: JobShape,
    live: Sequence[LiveAttempt] = (),
    terms: Terms | None = None,
) -> Waiting:
    """The reason record of a job that a plan without placements leaves waiting."""
    snapshot = replace(snapshot_of(nodes, [make_job("x", what)], live), terms=terms or Terms())
    (found,) = explain(snapshot, (), NOW)
    return found


def shared(node: Node, gpu: int, milli: int) -> LiveAttempt:
    attempt = occupy(node, [gpu], milli)
    return replace(attempt, tasks=(replace(attempt.tasks[0], gpu_milli=milli, cpu_milli=0),))


def test_a_share_that_no_gpu_has_left() -> None:
    node = make_node("a", gpus=2)
    share = replace(shape(0), gpu_milli=460)
    (reason,) = alone([node], share, [shared(node, 0, 700), shared(node, 1, 600)]).reasons
    assert reason.code is ReasonCode.FRAGMENTED
    assert reason.message == (
        "no GPU has 460 thousandths free; 700 are free in all, at most 400 of one GPU"
    )
    assert numbers(reason) == ("gpus", 0.46, 0.7, 0.4)
    (reason,) = alone([node], share, [shared(node, 0, 900), shared(node, 1, 900)]).reasons
    assert reason.code is ReasonCode.WAITING_CAPACITY
    assert reason.message == "needs 0.46 GPUs, 0.2 free"


def test_shares_of_a_gang_are_counted_gpu_by_gpu() -> None:
    node = make_node("a", gpus=3)
    gang = replace(shape(0, tasks=5), gpu_milli=460)
    (reason,) = alone([node], gang, [shared(node, 0, 560)]).reasons
    assert reason.code is ReasonCode.WAITING_GANG
    assert reason.message.startswith("4 of the gang's 5 tasks")
    assert numbers(reason) == ("gpus", 2.3, 1.84, 1.84)
    (reason,) = alone([node], gang, [shared(node, 0, 800)]).reasons
    assert reason.message == "needs 2.3 GPUs, 2.2 free"
    fitting = alone([node], gang, [shared(node, 0, 540)]).reasons[0]
    assert fitting.code is ReasonCode.BEHIND_PRIORITY


def test_gpus_of_two_models_on_a_node_do_not_add_up() -> None:
    plain = make_node("a")
    gpus = tuple(replace(gpu, model="A100") if gpu.index < 3 else gpu for gpu in plain.gpus)
    mixed = replace(plain, gpus=gpus)
    live = [occupy(mixed, [3])]
    (reason,) = alone([mixed], shape(5), live).reasons
    assert reason.code is ReasonCode.FRAGMENTED
    assert alone([mixed], shape(4), live).reasons[0].code is ReasonCode.BEHIND_PRIORITY
    assert alone([mixed], shape(6)).reasons[0].code is ReasonCode.NEVER_FITS


def test_a_quota_that_is_used_up() -> None:
    node = make_node("a")
    terms = Terms(quotas=(Quota(TenantId("default"), 3_000),))
    (reason,) = alone([node], shape(2), [occupy(node, [0, 1])], terms).reasons
    assert reason.code is ReasonCode.WAITING_QUOTA
    assert reason.message == ("tenant default may take 1 GPUs more by its quota, the job needs 2")
    assert numbers(reason) == ("gpus", 2, 1, 1)


def test_headroom_that_is_kept_for_others() -> None:
    node = make_node("a")
    terms = Terms(headroom=(Headroom(None, 8, 1),))
    (reason,) = alone([node], shape(2), terms=terms).reasons
    assert reason.code is ReasonCode.RESERVED_HEADROOM
    assert reason.message == (
        "0 of its 1 tasks would fit beside the GPUs that are reserved as headroom"
    )


def test_a_closed_cluster_is_not_told_that_it_never_fits() -> None:
    found = alone([make_node("a", cordoned=True)], shape(8))
    assert [reason.code for reason in found.reasons] == [ReasonCode.BLOCKED_BY_CONFIG]


def test_nobody_waits_nothing_is_looked_at() -> None:
    snapshot = snapshot_of([make_node("a")], [])
    assert explain(snapshot, (), NOW) == ()
    assert "columns" not in snapshot.__dict__


def test_what_is_remembered_of_a_cluster_does_not_outlive_it() -> None:
    """Each cordon makes a new node table; a worker that sees thousands must not keep them."""
    snapshot = snapshot_of([make_node("a"), make_node("b")], [make_job("x", shape(8, tasks=3))])
    seen = [ref(snapshot.columns.table.gpu_open)]
    for revision in range(20):
        explain(snapshot, (), NOW)
        node = replace(snapshot.nodes[NodeId("n-a")], cordoned=revision % 2 == 0)
        delta = SnapshotDelta(snapshot.revision, snapshot.revision + 1, nodes=(node,))
        snapshot = snapshot.apply(delta)
        seen.append(ref(snapshot.columns.table.gpu_open))
    gc.collect()
    assert sum(array() is not None for array in seen) <= 4
