"""What the pods of gangs that wait are told."""

from __future__ import annotations

import pytest
from support.builders import node
from support.outside import OutsideWorld, outside_gang
from support.store import META

from scheduler.model.plan import Plan, Reason, ReasonCode, SolverReport, Waiting
from scheduler.store.database import Database
from scheduler.store.decisions import newest_revision, why_outside_waits
from scheduler.store.plans import commit_plan


@pytest.fixture
def world(database: Database) -> OutsideWorld:
    return OutsideWorld.build(database, [node("n-0", gpus=8)])


def decided(world: OutsideWorld, job_id: str, *reasons: Reason) -> None:
    """A cycle that leaves the job's class waiting for these reasons."""
    waiting = (Waiting(str(world.job(job_id).class_key), reasons),)
    plan = Plan(
        snapshot_revision=world.database.read_sync(lambda tx: tx.head_revision),
        waiting=waiting,
        solver=SolverReport("greedy", 0.0),
    )
    world.database.write_sync(
        lambda tx: commit_plan(
            tx, plan, epoch=world.epoch, decision=META, now=world.now, ids=world.ids
        )
    )


def test_who_waits_is_told_why_but_not_that_the_next_cycle_comes_in_moments(
    world: OutsideWorld,
) -> None:
    job_id = world.adopt_one(outside_gang())
    assert world.database.read_sync(newest_revision) == 0
    later = Reason(ReasonCode.PENDING_EVALUATION, "left to the next cycle")
    decided(world, job_id, later)
    first = world.database.read_sync(newest_revision)
    assert first > 0
    assert world.database.read_sync(why_outside_waits) == {}
    decided(world, job_id, Reason(ReasonCode.WAITING_CAPACITY, "1 GPU of 8 is free"), later)
    assert world.database.read_sync(newest_revision) > first
    told = world.database.read_sync(why_outside_waits)
    assert told.keys() == {job_id}
    assert told[job_id].startswith("1 GPU of 8 is free")
    assert "next cycle" not in told[job_id]
