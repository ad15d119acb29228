"""GPUs that others use outside, and what pods of jobs are told that nobody decides on."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.builders import NOW, node
from support.outside import OutsideWorld, outside_gang

from scheduler.model.lifecycle import JobEvent
from scheduler.model.node import Node
from scheduler.model.quantity import JobId
from scheduler.model.snapshot import Snapshot
from scheduler.store.database import Database
from scheduler.store.outside import set_aside
from scheduler.store.snapshot import load_delta
from scheduler.store.transitions import apply_event

A, B = node("a", gpus=4), node("b", gpus=4)


@pytest.fixture
def world(database: Database) -> OutsideWorld:
    return OutsideWorld.build(database, [A, B])


def used_by_others(count: int) -> Node:
    """Node a as a cluster tells of it, which knows only how many GPUs others use."""
    first = len(A.gpus) - count
    return replace(A, gpus=tuple(replace(gpu, external=gpu.index >= first) for gpu in A.gpus))


def others(world: OutsideWorld) -> list[int]:
    shown = Snapshot().apply(world.database.read_sync(lambda tx: load_delta(tx, 0)))
    return [gpu.index for gpu in shown.nodes[A.id].gpus if gpu.external]


@pytest.mark.parametrize(
    ("held", "told", "stored"),
    [((), 2, [2, 3]), ((0,), 2, [2, 3]), ((3,), 2, [1, 2]), ((2, 3), 2, [0, 1])],
)
def test_use_by_others_is_counted_on_gpus_that_no_attempt_holds(
    world: OutsideWorld, held: tuple[int, ...], told: int, stored: list[int]
) -> None:
    if held:
        world.place(world.adopt_one(outside_gang()), (A, held))
    world.run(world.outside.sync_nodes([used_by_others(told)], [], NOW))
    assert others(world) == stored
    world.assert_sound()


def test_where_others_take_more_than_is_left_all_of_it_is_theirs(world: OutsideWorld) -> None:
    world.place(world.adopt_one(outside_gang()), (A, (1, 3)))
    world.run(world.outside.sync_nodes([used_by_others(3)], [], NOW))
    assert others(world) == [0, 2]


@pytest.mark.parametrize(
    ("event", "said"),
    [(JobEvent.CANCEL, "CANCELLED"), (JobEvent.QUARANTINE, "QUARANTINED"), (JobEvent.HOLD, "HELD")],
)
def test_pods_of_jobs_that_nobody_decides_on_are_told_so(
    world: OutsideWorld, event: JobEvent, said: str
) -> None:
    job_id = world.adopt_one(outside_gang())

    def told() -> dict[JobId, str]:
        return world.database.read_sync(lambda tx: set_aside(tx, [job_id, JobId("unheard-of")]))

    assert told() == {}
    world.database.write_sync(lambda tx: apply_event(tx, job_id, event, now=NOW))
    assert f"{job_id} is {said}" in told()[job_id]
    assert ("made anew" in told()[job_id]) == (event is JobEvent.CANCEL)
