"""Invariants of every plan: sound, bounded, repeatable, and checkable."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.clusters import MIXES, NOW, random_instance

from policies.priority_age import PriorityAge
from policies.registry import profile_named
from scheduler.allocation.verify import verify
from scheduler.decide import decide
from scheduler.model.plan import Placement, Plan, TaskPlacement
from scheduler.model.ports import Effort
from scheduler.model.quantity import GpuId, Resources
from scheduler.model.snapshot import Snapshot

K = TypeVar("K")
V = TypeVar("V")
ORDER = PriorityAge()
PROFILE = profile_named("priority-age")
instances = st.builds(random_instance, st.integers(0, 10_000), st.sampled_from(sorted(MIXES)))
few = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


def plans(snapshot: Snapshot, effort: Effort | None = None, seed: int = 0) -> list[Plan]:
    return list(decide(snapshot, PROFILE, effort or Effort(), NOW, seed))


def sound(plan: Plan, snapshot: Snapshot) -> bool:
    return not verify(plan, snapshot, ORDER.order(tuple(snapshot.waiting.values()), NOW))


@few
@given(instances, st.sampled_from([9_000, 1]))
def test_every_plan_is_sound_bounded_and_never_below_greedy(
    snapshot: Snapshot, columns_max: int
) -> None:
    found = plans(snapshot, Effort(columns_max=columns_max))
    assert all(sound(plan, snapshot) for plan in found)
    assert all(plan.bound >= plan.value for plan in found)
    assert found[0].solver.stage in ("greedy", "empty")
    assert found[-1].value >= found[0].value
    assert found[-1].bound <= found[0].bound * (1 + 1e-6)


@few
@given(instances, st.integers(0, 99))
def test_equal_inputs_and_seed_give_equal_plans(snapshot: Snapshot, seed: int) -> None:
    assert plans(snapshot, seed=seed) == plans(snapshot, seed=seed)


@few
@given(instances, st.randoms(use_true_random=False))
def test_the_order_of_mappings_does_not_matter(snapshot: Snapshot, rng: random.Random) -> None:
    def shuffled(items: Mapping[K, V]) -> dict[K, V]:
        keys = list(items)
        rng.shuffle(keys)
        return {key: items[key] for key in keys}

    other = Snapshot(
        snapshot.revision,
        shuffled(snapshot.nodes),
        shuffled(snapshot.live),
        shuffled(snapshot.waiting),
    )
    assert plans(other) == plans(snapshot)


@few
@given(instances)
def test_nothing_left_waiting_would_still_fit(snapshot: Snapshot) -> None:
    plan = plans(snapshot)[-1]
    taken = {gpu for p in plan.placements for task in p.tasks for gpu in task.gpu_ids}
    placed = {placement.job_id for placement in plan.placements}
    tasks = [task for placement in plan.placements for task in placement.tasks]
    free = snapshot.columns.changed((), tasks).free
    for job in snapshot.waiting.values():
        what = job.shape
        if job.id in placed or what.tasks > 1 or what.gpu_models or what.pool:
            continue
        for row, node in enumerate(free.table.nodes):
            left = Resources(
                int(free.whole[:, row].max(initial=0)), int(free.cpu[row]), int(free.memory[row])
            )
            assert not what.per_task.times_in(left), f"{job.id} fits {node.name}"
    assert len(taken) == sum(
        len(task.gpu_ids) for placement in plan.placements for task in placement.tasks
    )


def _with_task(placement: Placement, **changes: object) -> Placement:
    first = replace(placement.tasks[0], **changes)  # type: ignore[arg-type]
    return replace(placement, tasks=(first, *placement.tasks[1:]))


def _task(placement: Placement) -> TaskPlacement:
    return placement.tasks[0]


MUTATIONS: dict[str, Callable[[Placement, Snapshot], Placement]] = {
    "drops a task": lambda p, _: replace(p, tasks=p.tasks[1:]),
    "repeats a task": lambda p, _: replace(p, tasks=(*p.tasks, p.tasks[-1])),
    "shrinks cpu": lambda p, _: _with_task(p, cpu_milli=_task(p).cpu_milli - 1),
    "grows memory": lambda p, _: _with_task(p, memory_mib=_task(p).memory_mib + 1),
    "invents a GPU": lambda p, _: _with_task(p, gpu_ids=(*_task(p).gpu_ids, GpuId("new"))),
    "takes a held GPU": lambda p, s: _with_task(
        p, gpu_ids=(*_task(p).gpu_ids[:-1], next(iter(s.live.values())).tasks[0].gpu_ids[0])
    ),
    "inflates its value": lambda p, _: replace(p, value=p.value * 1.5),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
@few
@given(snapshot=instances, pick=st.integers(0, 1_000))
def test_mutated_plans_are_rejected(mutation: str, snapshot: Snapshot, pick: int) -> None:
    plan = plans(snapshot, Effort(columns_max=1))[0]
    if not plan.placements:
        return
    index = pick % len(plan.placements)
    mutated = MUTATIONS[mutation](plan.placements[index], snapshot)
    placements = (*plan.placements[:index], mutated, *plan.placements[index + 1 :])
    assert not sound(replace(plan, placements=placements), snapshot)


@few
@given(instances)
def test_forgetting_a_waiting_class_or_placing_twice_is_rejected(snapshot: Snapshot) -> None:
    plan = plans(snapshot)[-1]
    if plan.waiting:
        assert not sound(replace(plan, waiting=plan.waiting[:-1]), snapshot)
    if plan.placements:
        assert not sound(replace(plan, placements=(*plan.placements, plan.placements[0])), snapshot)
    assert not sound(replace(plan, bound=plan.value - 1), snapshot)
