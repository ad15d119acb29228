from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from support.builders import NOW, node, placement, task_placement
from support.clusters import make_job, shape

from scheduler.model.job import JobShape, WaitingJob
from scheduler.model.plan import Plan, TaskPlacement
from scheduler.model.ports import CommitReport, DecisionMeta
from scheduler.model.quantity import JobId, Resources
from scheduler.model.snapshot import Snapshot
from scheduler.simulator.ledger import Ledger

NODE = node("a", gpus=2)
PART = JobShape(1, Resources(0, 100, 100), gpu_milli=400)


def commit(ledger: Ledger, **where: TaskPlacement) -> CommitReport:
    placements = tuple(placement(job, task) for job, task in where.items())
    plan = Plan(ledger.revision, placements=placements)
    return asyncio.run(ledger.commit(plan, DecisionMeta("fifo", 0.0), NOW))


def job(name: str, what: JobShape) -> WaitingJob:
    return replace(make_job(name, what), id=JobId(name))


def test_a_gpu_is_shared_up_to_the_whole() -> None:
    ledger = Ledger([NODE])
    for name in ("x", "y", "z"):
        ledger.submit(job(name, PART))
    share = replace(task_placement(NODE), cpu_milli=100, memory_mib=100, gpu_milli=400)
    report = commit(ledger, x=share, y=share, z=share)
    assert report.placed == ("x", "y")
    assert report.refused == (("z", "one of its GPUs was taken meanwhile"),)
    assert ledger.held_milli == 800


def test_what_is_held_follows_every_start_and_end() -> None:
    ledger = Ledger([NODE])
    ledger.submit(job("x", shape(2)))
    assert ledger.held_milli == 0
    commit(ledger, x=task_placement(NODE, (0, 1)))
    assert ledger.held_milli == 2_000
    attempt = ledger.attempt_of(JobId("x"))
    assert attempt is not None
    assert ledger.end(attempt.id) == attempt
    assert (ledger.held_milli, ledger.attempt_of(JobId("x"))) == (0, None)


def test_an_attempt_may_end_in_another_wait() -> None:
    ledger = Ledger([NODE])
    ledger.submit(job("x", shape(1)))
    commit(ledger, x=task_placement(NODE))
    (attempt_id,) = ledger.live
    again = replace(ledger.live[attempt_id].job, attained_s=5.0)
    ledger.end(attempt_id, again)
    assert dict(ledger.waiting) == {"x": again}


def test_a_job_comes_once() -> None:
    ledger = Ledger([NODE])
    ledger.submit(job("x", shape(1)))
    with pytest.raises(ValueError, match="job x is there already"):
        ledger.submit(job("x", shape(1)))
    commit(ledger, x=task_placement(NODE))
    with pytest.raises(ValueError, match="job x is there already"):
        ledger.submit(job("x", shape(1)))


def test_a_reader_that_lost_its_place_gets_everything() -> None:
    ledger = Ledger([NODE])
    first = Snapshot().apply(asyncio.run(ledger.load_delta(0)))
    ledger.submit(job("x", shape(1)))
    asyncio.run(ledger.load_delta(first.revision))
    ledger.submit(job("y", shape(1)))
    late = asyncio.run(ledger.load_delta(first.revision))
    assert late.base_revision == 0
    assert {waiting.id for waiting in late.waiting} == {"x", "y"}
    assert Snapshot().apply(late).revision == ledger.revision
