"""Labels, taints and further resources, through every way of deciding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
from support.clusters import NOW, make_job, make_node, occupy, shape, snapshot_of

from policies.registry import profile_named
from scheduler.allocation.counts import Counts
from scheduler.allocation.site_classes import SITES_MAX, site_classes, sites_of
from scheduler.allocation.verify import Kind, check_safety, verify
from scheduler.decide import decide, remembering
from scheduler.model.columns import NodeTable
from scheduler.model.job import JobShape, Topology, WaitingJob
from scheduler.model.node import Node
from scheduler.model.plan import Plan, ReasonCode, Waiting
from scheduler.model.ports import Admission, Effort, OrderedJob, Preemption, Profile
from scheduler.model.quantity import PoolName
from scheduler.model.site import (
    Amounts,
    Effect,
    Site,
    Taint,
    Toleration,
    TolerationOperator,
    port_amounts,
)
from scheduler.model.snapshot import LiveAttempt, Snapshot

KNAPSACK = profile_named("priority-age")
ADMISSIONS = tuple(
    replace(KNAPSACK, admission=admission)
    for admission in (Admission.KNAPSACK, Admission.SKIP, Admission.EASY)
)
PASSING = ADMISSIONS[:2]
"""Nobody has to wait for the first in line."""
GPU = Taint("gpu", "true", Effect.NO_SCHEDULE)
TOLERANT = Site(tolerations=(Toleration("gpu", TolerationOperator.EXISTS),))
FAST = Site(selector=(("kind", "fast"),))
PORT = port_amounts("TCP", 80)


def on(node: Node, *, kind: str = "", taints: tuple[Taint, ...] = (), extras: Amounts = ()) -> Node:
    labels = (("host", node.name),) + ((("kind", kind),) if kind else ())
    return replace(node, labels=labels, taints=taints, extras=extras)


def sited(what: JobShape, site: Site = Site(), extras: Amounts = ()) -> JobShape:  # noqa: B008
    return replace(what, site=site, extras=extras)


def decided(
    nodes: Sequence[Node],
    jobs: Sequence[WaitingJob],
    live: Sequence[LiveAttempt] = (),
    profile: Profile = KNAPSACK,
) -> Plan:
    return list(decide(snapshot_of(nodes, jobs, live), profile, Effort(), NOW, 0))[-1]


def names(plan: Plan, nodes: Sequence[Node]) -> dict[str, list[str]]:
    """Where each job's tasks sit."""
    name = {node.id: node.name for node in nodes}
    return {
        placement.job_id.removeprefix("j-"): [name[task.node_id] for task in placement.tasks]
        for placement in plan.placements
    }


@pytest.mark.parametrize("profile", ADMISSIONS, ids=lambda profile: profile.admission.value)
def test_selectors_and_taints_decide_where_a_job_sits(profile: Profile) -> None:
    nodes = [
        on(make_node("a", gpus=2), kind="slow"),
        on(make_node("b", gpus=2), kind="fast"),
        on(make_node("c", gpus=2), kind="fast", taints=(GPU,)),
    ]
    both = replace(FAST, tolerations=TOLERANT.tolerations)
    jobs = [
        make_job("fast", sited(shape(2), FAST)),
        make_job("tainted", sited(shape(2), both)),
        make_job("any", shape(2)),
        make_job("too many", sited(shape(2), FAST)),
    ]
    plan = decided(nodes, jobs, profile=profile)
    assert names(plan, nodes) == {"fast": ["b"], "tainted": ["c"], "any": ["a"]}


@pytest.mark.parametrize("profile", PASSING, ids=lambda profile: profile.admission.value)
def test_further_resources_are_given_out_once(profile: Profile) -> None:
    nodes = [on(make_node("a"), extras=(("pods", 3), ("rdma/hca", 1))), on(make_node("b"))]
    jobs = [make_job(f"hca{n}", sited(shape(1), extras=(("rdma/hca", 1),))) for n in range(2)]
    jobs += [make_job(f"pod{n}", sited(shape(0), extras=(("pods", 1),))) for n in range(4)]
    jobs += [make_job(f"port{n}", sited(shape(1), extras=PORT)) for n in range(3)]
    plan = decided(nodes, jobs, profile=profile)
    placed = names(plan, nodes)
    kinds = Counter(job.rstrip("0123456789") for job in placed)
    assert kinds == {"hca": 1, "pod": 3, "port": 2}
    assert {place for job in placed if job.startswith("port") for place in placed[job]} == {
        "a",
        "b",
    }
    tasks = {placement.job_id: placement.tasks[0] for placement in plan.placements}
    assert tasks[next(job for job in tasks if "port" in job)].extras == PORT


@pytest.mark.parametrize("profile", PASSING, ids=lambda profile: profile.admission.value)
def test_what_runs_holds_its_further_resources(profile: Profile) -> None:
    node = on(make_node("a"), extras=(("pods", 2),))
    live = occupy(node, [0])
    held = replace(live, tasks=(replace(live.tasks[0], extras=(("pods", 1), *PORT)),))
    jobs = [make_job(f"{n}", sited(shape(1), extras=(("pods", 1),))) for n in range(2)]
    jobs.append(make_job("port", sited(shape(1), extras=PORT), priority=90))
    plan = decided([node], jobs, [held], profile=profile)
    assert names(plan, [node]) == {"0": ["a"]}
    (reason,) = next(each for each in plan.waiting if "port" in each.class_key).reasons
    assert reason.code is ReasonCode.WAITING_CAPACITY
    assert reason.message == "needs 1 host port 80/TCP, 0 free"


def test_the_first_in_line_has_a_resource_reserved() -> None:
    hca = (("rdma/hca", 1),)
    nodes = [on(make_node("a", gpus=4), extras=hca), make_node("b", gpus=1)]
    live = occupy(nodes[0], [0])
    ending = replace(
        live,
        job=replace(live.job, runtime_s=NOW + 50.0),
        tasks=(replace(live.tasks[0], extras=hca),),
    )
    jobs = [
        make_job("head", sited(shape(2), extras=hca), priority=90),
        replace(make_job("long", sited(shape(1)), priority=80), runtime_s=900.0),
        replace(make_job("short", sited(shape(3)), priority=70), runtime_s=20.0),
        replace(make_job("taker", sited(shape(0), extras=hca), priority=60), runtime_s=20.0),
    ]
    plan = decided(nodes, jobs, [ending], ADMISSIONS[2])
    assert names(plan, nodes) == {"long": ["b"], "short": ["a"]}
    assert [each.job_id for each in plan.reservations] == ["j-head"]
    assert [each.node_ids for each in plan.reservations] == [(nodes[0].id,)]


def test_a_gang_bound_to_a_node_takes_all_its_resources_there() -> None:
    nodes = [on(make_node(name), extras=(("pods", pods),)) for name, pods in (("a", 3), ("b", 4))]
    gang = shape(1, tasks=4, topology=Topology.SAME_NODE)
    plan = decided(nodes, [make_job("g", sited(gang, extras=(("pods", 1),)))])
    assert names(plan, nodes) == {"g": ["b"] * 4}
    (found,) = decided(nodes, [make_job("p", sited(gang, extras=PORT))]).waiting
    assert found.reasons[0].code is ReasonCode.NEVER_FITS
    assert found.reasons[0].message == (
        "the gang of 4 tasks with topology same-node asks 4 host port 80/TCP; "
        f"the largest node has 1 (dimension {PORT[0][0]})"
    )


def many(snapshot_jobs: int) -> tuple[list[Node], list[WaitingJob]]:
    """More gangs than there is room for, of several sites, ports and topologies."""
    nodes = [
        on(
            make_node(f"{number:02}"),
            kind=("fast", "slow")[number % 2],
            taints=(GPU,) if number % 5 == 0 else (),
            extras=(("pods", 6),),
        )
        for number in range(40)
    ]
    sites = [Site(), FAST, TOLERANT, Site(selector=(("kind", "slow"),)), Site(node_name="07")]
    jobs = [
        make_job(
            f"{number}",
            sited(
                shape((1, 2, 4)[number % 3], tasks=(1, 1, 2)[number % 3]),
                sites[number % len(sites)],
                (("pods", 1), *(PORT if number % 4 == 0 else ())),
            ),
            priority=number % 100,
        )
        for number in range(snapshot_jobs)
    ]
    return nodes, jobs


def test_hundreds_of_gangs_through_shelves_and_the_linear_program() -> None:
    nodes, jobs = many(400)
    snapshot = snapshot_of(nodes, jobs)
    plans = list(decide(snapshot, KNAPSACK, Effort(gap_target=0.0), NOW, 0))
    ordered = KNAPSACK.order.order(jobs, NOW)
    assert plans[-1].solver.columns > 0
    assert all(not verify(plan, snapshot, ordered) for plan in plans)
    assert not any("refused" in note for plan in plans for note in plan.solver.notes)
    placed = plans[-1].placements
    assert len(placed) > 80
    assert plans[-1].value <= plans[-1].bound
    used = Counter(task.node_id for each in placed for task in each.tasks)
    assert max(used.values()) <= 6
    assert len({task.node_id for each in placed for task in each.tasks}) == 40


def test_a_live_model_serves_decisions_with_other_sites() -> None:
    nodes, jobs = many(400)
    decider = remembering()
    for seed, some in enumerate((jobs, jobs[:330], jobs[30:360], jobs)):
        snapshot = snapshot_of(nodes, some)
        plan = list(decider(snapshot, KNAPSACK, Effort(gap_target=0.0), NOW, seed))[-1]
        assert not verify(plan, snapshot, KNAPSACK.order.order(some, NOW))
        assert not any("refused" in note for note in plan.solver.notes)


def test_so_many_sites_that_a_model_cannot_tell_them_apart() -> None:
    nodes = [on(make_node(f"{number:03}", gpus=1)) for number in range(SITES_MAX + 40)]
    jobs = [
        make_job(f"{node.name}.{n}", sited(shape(1), Site(node_name=node.name)))
        for node in nodes
        for n in range(4)
    ]
    snapshot = snapshot_of(nodes, jobs)
    plan = list(decide(snapshot, KNAPSACK, Effort(), NOW, 0))[-1]
    assert not verify(plan, snapshot, KNAPSACK.order.order(jobs, NOW))
    assert len(plan.placements) == len(nodes)


def test_labels_that_nobody_asks_for_tell_no_nodes_apart() -> None:
    nodes = [on(make_node(f"{n}", pool="ab"[n % 2]), kind="fast" * (n % 3 == 0)) for n in range(9)]
    table = NodeTable.of(nodes)
    trivial = [shape(1).worker, replace(shape(2), pool=PoolName("a")).worker]
    assert sites_of(table, trivial) == ()
    assert site_classes(table, ()) is table.pool
    sites = sites_of(table, [*trivial, sited(shape(1), FAST).worker])
    classes = site_classes(table, sites).tolist()
    assert len(set(classes)) == 4
    assert classes[0] == classes[6] != classes[3]
    tainted = NodeTable.of([*nodes, on(make_node("x", pool="a"), taints=(GPU,))])
    assert len(sites_of(tainted, trivial)) == 1


def test_counts_know_sites_and_further_resources() -> None:
    nodes = [
        on(make_node("a"), kind="fast", extras=(("pods", 2),)),
        on(make_node("b"), kind="slow", extras=(("pods", 9),)),
    ]
    what = [sited(shape(1), FAST, (("pods", 1),)), sited(shape(1, tasks=2), extras=PORT)]
    line = [OrderedJob(make_job(f"f{n}", what[0]), n, 1.0) for n in range(4)]
    line += [OrderedJob(make_job(f"p{n}", what[1]), 9 + n, 1.0) for n in range(2)]
    found = Counts(NodeTable.of(nodes), (), what).admitted(line)
    assert [entry.job.id for entry in found] == ["j-f0", "j-f1", "j-p0"]
    held = replace(occupy(nodes[0], [0]).tasks[0], extras=(("pods", 1),))
    found = Counts(NodeTable.of(nodes), [held], what).admitted(line)
    assert [entry.job.id for entry in found] == ["j-f0", "j-p0"]


@pytest.mark.parametrize("preemption", [Preemption.EVICT, Preemption.REPACK])
def test_who_is_stopped_makes_room_where_the_job_may_sit(preemption: Preemption) -> None:
    nodes = [on(make_node("a", gpus=1), kind="fast"), on(make_node("b", gpus=1), kind="slow")]
    live = [occupy(node, [0]) for node in nodes]
    live[0] = replace(live[0], job=replace(live[0].job, priority=10))
    admission = Admission.KNAPSACK if preemption is Preemption.EVICT else Admission.SKIP
    profile = replace(KNAPSACK, preemption=preemption, admission=admission)
    job = make_job("f", sited(shape(1), FAST), priority=100)
    snapshot = snapshot_of(nodes, [job], live)
    plan = list(decide(snapshot, profile, Effort(), NOW, 0))[-1]
    assert [eviction.attempt_id for eviction in plan.evictions] == [live[0].id]


def evicting(nodes: Sequence[Node], job: WaitingJob, live: Sequence[LiveAttempt]) -> list[str]:
    """Who is stopped for the job."""
    profile = replace(KNAPSACK, preemption=Preemption.EVICT)
    plan = decided(nodes, [job], live, profile)
    assert len(plan.reservations) == len(plan.evictions) > 0
    return [eviction.attempt_id for eviction in plan.evictions]


def test_the_cheapest_victim_is_no_use_where_the_job_may_not_sit() -> None:
    nodes = [on(make_node("a", gpus=1), kind="slow"), on(make_node("b", gpus=1), kind="fast")]
    live = [occupy(node, [0]) for node in nodes]
    live[0] = replace(live[0], job=replace(live[0].job, priority=1))
    job = make_job("f", sited(shape(1), FAST), priority=100)
    assert evicting(nodes, job, live) == [live[1].id]


def test_whoever_holds_the_port_is_stopped_for_it() -> None:
    node = on(make_node("a"), extras=(("pods", 9),))
    live = [occupy(node, [0]), occupy(node, [1])]
    task = replace(live[1].tasks[0], extras=(("pods", 1), *PORT))
    live[1] = replace(live[1], tasks=(task,))
    job = make_job("p", sited(shape(1), extras=PORT), priority=100)
    assert evicting([node], job, live) == [live[1].id]


# --- The verifier -------------------------------------------------------------------------------


def problems(plan: Plan, snapshot: Snapshot) -> list[tuple[Kind, str]]:
    found = verify(plan, snapshot, KNAPSACK.order.order(tuple(snapshot.waiting.values()), NOW))
    safety = check_safety(plan, snapshot, NOW)
    assert set(safety) == set(found)
    return [(each.kind, each.message) for each in found]


def test_the_verifier_refuses_a_node_that_the_site_does_not_select_or_tolerate() -> None:
    free = [on(make_node("a"), kind="fast")]
    job = make_job("x", sited(shape(1), FAST))
    plan = decided(free, [job])
    assert problems(plan, snapshot_of(free, [job])) == []
    slow = snapshot_of([on(make_node("a"), kind="slow")], [job])
    assert problems(plan, slow) == [
        (Kind.SITE, "task 0 of job j-x sits on a, which it does not select")
    ]
    tainted = snapshot_of([on(make_node("a"), kind="fast", taints=(GPU,))], [job])
    assert problems(plan, tainted) == [
        (
            Kind.SITE,
            (
                "task 0 of job j-x sits on a, which has the taint gpu=true:NoSchedule, "
                "which it does not tolerate"
            ),
        )
    ]


def test_the_verifier_counts_further_resources() -> None:
    jobs = [make_job(f"{n}", sited(shape(1), extras=(("pods", 1), *PORT))) for n in range(2)]
    roomy = [on(make_node(name), extras=(("pods", 1),)) for name in "ab"]
    plan = decided(roomy, jobs)
    snapshot = snapshot_of(roomy, jobs)
    assert len(plan.placements) == 2
    assert problems(plan, snapshot) == []
    first, second = plan.placements
    (task,) = second.tasks
    there = first.tasks[0].node_id
    other = next(gpu for gpu in snapshot.nodes[there].gpus if gpu.id not in first.tasks[0].gpu_ids)
    moved = replace(task, node_id=there, gpu_ids=(other.id,))
    together = replace(plan, placements=(first, replace(second, tasks=(moved,))))
    name = snapshot.nodes[there].name
    assert problems(together, snapshot) == [
        (Kind.CAPACITY, f"{name} would give 2 pods, 1 are free"),
        (Kind.CAPACITY, f"{name} would give 2000 host port 80/TCP, 1000 are free"),
    ]
    less = replace(second, tasks=(replace(task, extras=()),))
    ((kind, _),) = problems(replace(plan, placements=(first, less)), snapshot)
    assert kind is Kind.RESOURCES


# --- Why it waits -------------------------------------------------------------------------------


def record(nodes: Sequence[Node], what: JobShape, live: Sequence[LiveAttempt] = ()) -> Waiting:
    plan = decided(nodes, [make_job("x", what)], live)
    assert plan.placements == ()
    (found,) = plan.waiting
    return found


def test_labels_that_no_node_has() -> None:
    nodes = [on(make_node("a"), kind="slow"), make_node("b")]
    found = record(nodes, sited(shape(1), FAST))
    assert found.reasons[0].code is ReasonCode.NEVER_FITS
    assert "no node matches its node selector: none has the label kind=fast" in (
        found.reasons[0].message
    )
    assert [(step.filter, step.nodes_left) for step in found.funnel] == [
        ("present", 2),
        ("pool", 2),
        ("node-selector", 0),
        ("gpu-model", 0),
        ("schedulable", 0),
        ("one-task-fits", 0),
    ]
    messages = {
        Site(selector=(("host", "a"), ("kind", "fast"))): "none has the label kind=fast",
        Site(node_name="c"): "there is no node c",
        Site(terms=()): "no node matches its node affinity",
        Site(selector=(("kind", "slow"),), node_name="b"): "no node matches its node selector",
    }
    for site, message in messages.items():
        assert message in record(nodes, sited(shape(1), site)).reasons[0].message


def test_taints_that_it_does_not_tolerate() -> None:
    nodes = [on(make_node(f"{n}"), kind="fast", taints=(GPU,)) for n in range(12)]
    found = record([*nodes, on(make_node("slow"), kind="slow")], sited(shape(1), FAST))
    (reason,) = found.reasons
    assert reason.code is ReasonCode.BLOCKED_BY_CONFIG
    assert reason.message == (
        "12 nodes match, all have the taint gpu=true:NoSchedule, which it does not tolerate"
    )
    assert [(step.filter, step.nodes_left) for step in found.funnel][2:4] == [
        ("node-selector", 12),
        ("taints", 0),
    ]
    (reason,) = record(nodes[:1], shape(1)).reasons
    assert reason.message == (
        "the only node has the taint gpu=true:NoSchedule, which it does not tolerate"
    )
    gone = Taint("gone", "", Effect.NO_EXECUTE)
    (reason,) = record([*nodes, on(make_node("x"), taints=(gone,))], shape(1)).reasons
    assert reason.message == (
        "13 nodes are there, all have taints that it does not tolerate: "
        "gpu=true:NoSchedule (12), gone:NoExecute (1)"
    )


def test_only_a_tainted_node_is_large_enough() -> None:
    nodes = [on(make_node("big"), taints=(GPU,)), make_node("small", gpus=2)]
    (reason,) = record(nodes, shape(4)).reasons
    assert reason.code is ReasonCode.BLOCKED_BY_CONFIG
    assert reason.message == (
        "the 1 nodes that it may use never hold it; "
        "1 others have the taint gpu=true:NoSchedule, which it does not tolerate"
    )
    assert decided(nodes, [make_job("x", sited(shape(4), TOLERANT))]).placements


def test_what_is_free_on_tainted_nodes_counts_for_those_who_tolerate_it() -> None:
    nodes = [on(make_node(name), taints=(GPU,)) for name in "ab"]
    live = [occupy(nodes[0], range(2)), occupy(nodes[1], range(6))]
    found = record(nodes, sited(shape(4, tasks=2), TOLERANT), live)
    (reason,) = found.reasons
    assert reason.code is ReasonCode.WAITING_GANG
    assert reason.message.startswith("1 of the gang's 2 tasks would fit now")
    assert found.funnel[-1].nodes_left == 1


def test_further_resources_that_nobody_has_or_that_are_in_use() -> None:
    hca = (("rdma/hca", 1),)
    node = on(make_node("a"), extras=hca)
    (reason,) = record([make_node("b")], sited(shape(1), extras=hca)).reasons
    assert reason.code is ReasonCode.NEVER_FITS
    assert reason.message == "task asks 1 rdma/hca; the largest node has 0 (dimension rdma/hca)"
    live = occupy(node, [0])
    holder = replace(live, tasks=(replace(live.tasks[0], extras=hca),))
    (reason,) = record([node], sited(shape(1), extras=hca), [holder]).reasons
    assert reason.code is ReasonCode.WAITING_CAPACITY
    assert reason.message == "needs 1 rdma/hca, 0 free"
    assert (reason.dimension, reason.need, reason.free) == ("rdma/hca", 1, 0)


def test_further_resources_that_are_free_but_elsewhere_or_in_pieces() -> None:
    nodes = [
        on(make_node("a", gpus=1), extras=(("pods", 2),)),
        on(make_node("b", gpus=8), extras=(("pods", 2),)),
    ]
    live = occupy(nodes[1], [0])
    holder = replace(live, tasks=(replace(live.tasks[0], extras=(("pods", 2),)),))
    (reason,) = record(nodes, sited(shape(4), extras=(("pods", 1),)), [holder]).reasons
    assert reason.code is ReasonCode.FRAGMENTED
    assert "(4 GPUs of one model, 1000 m CPU, 1000 MiB, 1 pods) at once" in reason.message
    large = replace(nodes[0], extras=(("pods", 4),))
    first = replace(holder, tasks=(replace(holder.tasks[0], node_id=large.id, gpu_ids=()),))
    (reason,) = record([large, nodes[1]], sited(shape(0), extras=(("pods", 3),)), [first]).reasons
    assert reason.code is ReasonCode.FRAGMENTED
    assert reason.message == "each task needs 3 pods on one node; 4 are free, at most 2 on one node"
    (reason,) = record(nodes, sited(shape(0, tasks=5), extras=(("pods", 1),))).reasons
    assert reason.code is ReasonCode.NEVER_FITS
    assert "all nodes together can hold 4 such tasks, of 4 pods" in reason.message
