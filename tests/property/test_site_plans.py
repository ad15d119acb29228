"""Sites and further resources on random clusters: plans are sound, and no place is overlooked."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.clusters import NOW, make_job
from support.rooms import random_attempt, random_node, random_shape
from support.sites import (
    random_capacity,
    random_extras,
    random_labels,
    random_site,
    random_taints,
)

from policies.registry import profile_named
from scheduler.allocation.verify import verify
from scheduler.decide import decide
from scheduler.model.feasible import never_fits
from scheduler.model.job import JobShape
from scheduler.model.node import Node
from scheduler.model.plan import Plan, ReasonCode
from scheduler.model.ports import Admission, Effort, Preemption, Profile
from scheduler.model.quantity import WHOLE_GPU_MILLI, GpuId, NodeId, Resources
from scheduler.model.site import ANYWHERE, Toleration, TolerationOperator, implied_capacity
from scheduler.model.snapshot import LiveAttempt, Snapshot

KNAPSACK = profile_named("priority-age")
PROFILES = (
    KNAPSACK,
    replace(KNAPSACK, preemption=Preemption.EVICT),
    replace(KNAPSACK, admission=Admission.SKIP),
    replace(KNAPSACK, admission=Admission.EASY),
    replace(KNAPSACK, admission=Admission.SKIP, preemption=Preemption.REPACK),
)
TOLERANT = (Toleration(operator=TolerationOperator.EXISTS),)
seeds = st.integers(0, 1_000_000)


def some(examples: int) -> settings:
    return settings(
        max_examples=examples,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
        derandomize=True,
    )


def sited_cluster(rng: random.Random) -> Snapshot:
    """Nodes with labels, taints and further resources; what runs holds no more than there is."""
    nodes = []
    for index in range(rng.randint(2, 7)):
        bare = random_node(rng, index)
        labels, taints = random_labels(rng, bare.name), random_taints(rng)
        gpus = tuple(replace(gpu, external=rng.random() < 0.1) for gpu in bare.gpus)
        nodes.append(
            replace(bare, labels=labels, taints=taints, gpus=gpus, extras=random_capacity(rng))
        )
    live: list[LiveAttempt] = []
    for number in range(rng.randint(0, 20)):
        attempt = random_attempt(rng, f"{number}", nodes)
        extras = random_extras(rng)
        task = replace(attempt.tasks[0], extras=extras)
        job = replace(attempt.job, shape=replace(attempt.job.shape, extras=extras))
        attempt = replace(attempt, tasks=(task,), job=job)
        if not overdrawn(nodes, [*live, attempt]):
            live.append(attempt)
    return Snapshot(1, {node.id: node for node in nodes}, {each.id: each for each in live})


def overdrawn(nodes: list[Node], live: list[LiveAttempt]) -> bool:
    extras, milli = held(live)
    capacity = {node.id: dict(node.extras) for node in nodes}
    return any(count > WHOLE_GPU_MILLI for count in milli.values()) or any(
        amount > capacity[node].get(name, implied_capacity(name))
        for (node, name), amount in extras.items()
    )


def held(live: list[LiveAttempt]) -> tuple[Counter[tuple[NodeId, str]], Counter[GpuId]]:
    """What runs holds: further resources by node and name, thousandths by GPU."""
    extras: Counter[tuple[NodeId, str]] = Counter()
    milli: Counter[GpuId] = Counter()
    for attempt in live:
        for task in attempt.tasks:
            extras[task.node_id, "cpu"] += task.cpu_milli
            extras[task.node_id, "memory"] += task.memory_mib
            for name, amount in task.extras:
                extras[task.node_id, name] += amount
            for gpu in task.gpu_ids:
                milli[gpu] += task.gpu_milli
    return extras, milli


def sited_shape(rng: random.Random) -> JobShape:
    return replace(random_shape(rng), site=random_site(rng), extras=random_extras(rng))


def single_task(rng: random.Random) -> JobShape:
    """One task that asks for little, so that sites and further resources decide."""
    sharing = rng.random() < 0.2
    site = random_site(rng) if rng.random() < 0.5 else replace(ANYWHERE, tolerations=TOLERANT)
    return JobShape(
        1,
        Resources(0 if sharing else rng.choice([0, 1, 2]), 1_000, 1_000),
        gpu_milli=300 if sharing else 0,
        site=site,
        extras=random_extras(rng),
    )


def holds(snapshot: Snapshot, node: Node, what: JobShape) -> bool:
    """Whether one task of this shape fits the node, by the definitions alone."""
    taken, milli = held(list(snapshot.live.values()))
    if not node.schedulable or what.pool not in (None, node.pool):
        return False
    if not what.site.selects(node.name, dict(node.labels)):
        return False
    if what.site.untolerated(node.taints) is not None:
        return False
    capacity = dict(node.extras) | {
        "cpu": node.capacity.cpu_milli,
        "memory": node.capacity.memory_mib,
    }
    wanted = {"cpu": what.per_task.cpu_milli, "memory": what.per_task.memory_mib}
    for name, amount in {**wanted, **dict(what.extras)}.items():
        if amount and taken[node.id, name] + amount > capacity.get(name, implied_capacity(name)):
            return False
    usable = [
        gpu
        for gpu in node.gpus
        if gpu.schedulable and (not what.gpu_models or gpu.model in what.gpu_models)
    ]
    if what.gpu_milli:
        return any(milli[gpu.id] + what.gpu_milli <= WHOLE_GPU_MILLI for gpu in usable)
    free = Counter(gpu.model for gpu in usable if not milli[gpu.id])
    return not what.per_task.gpus or max(free.values(), default=0) >= what.per_task.gpus


def last(snapshot: Snapshot, profile: Profile) -> Plan:
    plans = list(decide(snapshot, profile, Effort(), NOW, 0))
    ordered = profile.order.order(tuple(snapshot.waiting.values()), NOW)
    for plan in plans:
        assert not verify(plan, snapshot, ordered)
        assert not any("refused" in note for note in plan.solver.notes)
        assert plan.bound >= plan.value - 1e-6
    return plans[-1]


@some(60)
@given(seeds, st.sampled_from(PROFILES))
def test_every_plan_keeps_sites_and_further_resources(seed: int, profile: Profile) -> None:
    rng = random.Random(seed)
    snapshot = sited_cluster(rng)
    jobs = [
        make_job(f"{number}", sited_shape(rng), priority=rng.randrange(100))
        for number in range(rng.randint(1, 14))
    ]
    last(replace(snapshot, waiting={job.id: job for job in jobs}), profile)


@some(250)
@given(seeds)
def test_a_single_task_is_placed_if_and_only_if_some_node_holds_it(seed: int) -> None:
    rng = random.Random(seed)
    snapshot = sited_cluster(rng)
    what = single_task(rng)
    job = make_job("x", what)
    fitting = {node.id for node in snapshot.nodes.values() if holds(snapshot, node, what)}
    for profile in (KNAPSACK, PROFILES[2]):
        plan = last(replace(snapshot, waiting={job.id: job}), profile)
        assert bool(plan.placements) == bool(fitting)
        if plan.placements:
            (placement,) = plan.placements
            assert placement.tasks[0].node_id in fitting
            assert never_fits(what, tuple(snapshot.nodes.values())) is None
        else:
            ((reason, *_),) = (found.reasons for found in plan.waiting)
            possible = never_fits(what, tuple(snapshot.nodes.values())) is None
            assert (reason.code is ReasonCode.NEVER_FITS) is not possible
