"""Claiming and settling by the dozen, on both databases."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from support.builders import NOW, node, placement, task_placement
from support.outside import BOTH, DONE, OutsideWorld, outside_gang
from support.store import commit, rows

from scheduler.model.execution import IntentKind, LaunchOrder, Outcome, Receipt
from scheduler.model.lifecycle import EndCause, JobEvent
from scheduler.model.quantity import IntentId, JobId, UtcSeconds
from scheduler.store import tables
from scheduler.store.attempts import stop_job
from scheduler.store.database import Database, Transaction
from scheduler.store.transitions import apply_event

NODES = [node(f"n{number}", gpus=8) for number in range(80)]
SPOTS = [(on, (index,)) for on in NODES for index in range(8)]


@pytest.fixture
def world(database: Database) -> OutsideWorld:
    return OutsideWorld.build(database, NODES)


def _placed(world: OutsideWorld, count: int) -> list[JobId]:
    """So many gangs, adopted and placed, one a second."""
    made = world.adopt(*(outside_gang(f"k-{number}") for number in range(count)))
    job_ids = [made[f"k-{number}"] for number in range(count)]
    for number, job_id in enumerate(job_ids):
        world.now = UtcSeconds(NOW + number)
        world.place(job_id, SPOTS[number])
    return job_ids


def _intent_states(world: OutsideWorld) -> dict[str, str]:
    return world.database.read_sync(
        lambda tx: {row.job_id: row.state for row in rows(tx, tables.intents)}
    )


def test_each_launch_of_a_claim_stands_for_itself(world: OutsideWorld) -> None:
    job_ids = _placed(world, 6)

    def meddle(tx: Transaction) -> None:
        stop = sa.update(tables.jobs).values(desired="stop")
        tx.connection.execute(stop.where(tables.jobs.c.id == job_ids[1]))
        apply_event(tx, job_ids[3], JobEvent.CLAIM, now=world.now)

    world.database.write_sync(meddle)
    claimed = world.claim(limit=5)
    orders = [intent.order for intent in claimed]
    assert [order.job_id for order in orders if isinstance(order, LaunchOrder)] == [
        job_ids[0],
        job_ids[2],
        job_ids[4],
    ]
    assert [world.job(job_id).state for job_id in job_ids] == [
        "LAUNCHING",
        "CANCELLED",
        "LAUNCHING",
        "LAUNCHING",
        "LAUNCHING",
        "ASSIGNED",
    ]
    states = _intent_states(world)
    assert [states[job_id] for job_id in job_ids] == [
        "claimed",
        "void",
        "claimed",
        "void",
        "claimed",
        "pending",
    ]
    assert list(world.run(world.execution.unsettled())) == claimed
    assert [intent.order for intent in world.claim()] != orders
    world.assert_sound()


def test_stops_and_launches_are_claimed_together_oldest_first(world: OutsideWorld) -> None:
    job_ids = _placed(world, 3)
    first = world.claim(limit=1)
    world.settle(*first)
    world.now = UtcSeconds(NOW + 1.5)
    world.database.write_sync(
        lambda tx: stop_job(
            tx,
            job_ids[0],
            JobEvent.CANCEL,
            cause=EndCause.CANCELLED,
            now=world.now,
            ids=world.ids,
            desired="stop",
        )
    )
    kinds = [intent.kind for intent in world.claim()]
    assert kinds == [IntentKind.LAUNCH, IntentKind.STOP, IntentKind.LAUNCH]
    world.assert_sound()


def test_a_claim_may_be_larger_than_one_list_of_ids(world: OutsideWorld) -> None:
    made = world.adopt(*(outside_gang(f"k-{number}") for number in range(520)))
    placements = [
        placement(job_id, task_placement(on, spots))
        for job_id, (on, spots) in zip(made.values(), SPOTS, strict=False)
    ]
    world.database.write_sync(
        lambda tx: commit(tx, placements, epoch=world.epoch, ids=world.ids, now=world.now)
    )
    claimed = world.claim(limit=600)
    assert len(claimed) == 520
    world.settle(*claimed)
    assert world.run(world.execution.unsettled()) == ()
    assert set(_intent_states(world).values()) == {"done"}
    world.assert_sound()


def test_receipts_are_settled_each_by_what_it_says(world: OutsideWorld) -> None:
    job_ids = _placed(world, 4)
    claimed = world.claim()
    told = [
        (claimed[0].id, DONE),
        (claimed[1].id, Receipt(Outcome.REFUSED, "the node is full")),
        (claimed[2].id, Receipt(Outcome.UNKNOWN, "no answer")),
        (claimed[3].id, DONE),
        (IntentId("i-unheard-of"), Receipt(Outcome.REFUSED, "nobody's")),
    ]
    for _ in range(2):  # the second time it changes nothing
        world.run(world.execution.settle_many(told, world.now))
        states = _intent_states(world)
        assert [states[job_id] for job_id in job_ids] == ["done", "refused", "claimed", "done"]
        refused = world.job(job_ids[1])
        assert (refused.state, refused.message) == ("PENDING", "launch refused: the node is full")
        assert list(world.run(world.execution.unsettled())) == [claimed[2]]
    world.assert_sound()


def test_nothing_to_claim_or_settle_is_no_work(world: OutsideWorld) -> None:
    before = world.database.read_sync(lambda tx: tx.head_revision)
    assert list(world.run(world.execution.claim_intents(BOTH, 5, NOW))) == []
    world.run(world.execution.settle_many([], NOW))
    assert world.database.read_sync(lambda tx: tx.head_revision) == before
