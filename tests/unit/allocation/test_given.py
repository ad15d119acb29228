from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from support.clusters import MIXES, NOW, random_instance

from policies.registry import profile_named
from scheduler.allocation.explain import Explainer, explain
from scheduler.allocation.given import NOWHERE, Given
from scheduler.decide import decide
from scheduler.model.plan import Plan
from scheduler.model.ports import Effort
from scheduler.model.quantity import GpuId, NodeId
from scheduler.model.snapshot import Snapshot

PROFILE = profile_named("priority-age")
INSTANCES = [(seed, mix) for seed in range(4) for mix in sorted(MIXES)]


def decided(seed: int, mix: str) -> tuple[Snapshot, list[Plan]]:
    snapshot = random_instance(seed, mix)
    return snapshot, list(decide(snapshot, PROFILE, Effort(), NOW, 0))


@pytest.mark.parametrize(("seed", "mix"), INSTANCES)
def test_what_a_plan_leaves_is_what_the_columns_say_once_it_is_carried_out(
    seed: int, mix: str
) -> None:
    snapshot, plans = decided(seed, mix)
    tasks = [task for placement in plans[-1].placements for task in placement.tasks]
    tasks[0] = replace(tasks[0], extras=(("example.org/nic", 0),))
    first = plans[-1].placements[0]
    placements = (replace(first, tasks=(tasks[0], *first.tasks[1:])), *plans[-1].placements[1:])
    free = snapshot.columns.free
    left = Given.of(placements, snapshot).left(free)
    expected = snapshot.columns.changed((), tasks).free
    for each in fields(left):
        if each.name not in ("table", "extras"):
            found = getattr(left, each.name)
            assert np.array_equal(found, getattr(expected, each.name)), each.name
            assert found is not getattr(free, each.name), "the snapshot's own arrays do not change"
    assert left.extras.keys() == {"example.org/nic"}
    assert np.array_equal(left.amount_of("example.org/nic"), free.amount_of("example.org/nic"))


def test_a_plan_of_unknown_places_is_read_too() -> None:
    snapshot, plans = decided(0, min(MIXES))
    first = plans[-1].placements[0]
    astray = replace(first.tasks[0], node_id=NodeId("gone"), gpu_ids=(GpuId("gone"),))
    given = Given.of((replace(first, tasks=(astray,)),), snapshot)
    assert given.row.tolist() == [-1]
    assert given.at.tolist() == [list(NOWHERE)]
    left = given.left(snapshot.columns.free)
    assert np.array_equal(left.gpu, snapshot.columns.free.gpu)
    assert np.array_equal(left.cpu, snapshot.columns.free.cpu)


@pytest.mark.parametrize(("seed", "mix"), INSTANCES)
def test_one_explainer_tells_of_each_plan_what_a_fresh_one_tells(seed: int, mix: str) -> None:
    snapshot, plans = decided(seed, mix)
    explainer = Explainer(snapshot)
    for plan in (*plans, Plan(snapshot.revision), *reversed(plans)):
        told = explainer.explain(plan.placements, NOW)
        assert told == explain(snapshot, plan.placements, NOW)
