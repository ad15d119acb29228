"""What needs no decision: one more job of a class that waits for room, while no room appears."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from support.clock import ManualClock
from support.clusters import make_job, make_node, shape

from policies.registry import profile_named
from scheduler.cycle import CycleContext, CycleReport, CycleState, run_cycle
from scheduler.model.plan import Plan
from scheduler.model.ports import CommitReport, DecisionMeta, Effort
from scheduler.model.quantity import DEFAULT_TENANT, AttemptId, JobId, UtcSeconds
from scheduler.model.snapshot import SnapshotDelta
from scheduler.model.terms import Headroom, Quota, Terms
from scheduler.simulator.inline_solver import InlineSolver
from scheduler.simulator.ledger import Ledger

QUOTA = Terms(quotas=(Quota(DEFAULT_TENANT, 4_000),))
HEADROOM = Terms(headroom=(Headroom(None, gpus=4, blocks=1),))


@dataclass
class Retold:
    """A ledger whose terms can change while it runs."""

    ledger: Ledger
    terms: Terms | None = None
    """Told with the next delta."""

    async def load_delta(self, base_revision: int) -> SnapshotDelta:
        delta = await self.ledger.load_delta(base_revision)
        told, self.terms = self.terms, None
        return delta if told is None else replace(delta, terms=told)

    async def commit(self, plan: Plan, meta: DecisionMeta, now: UtcSeconds) -> CommitReport:
        return await self.ledger.commit(plan, meta, now)


@dataclass
class Desk:
    """One node of 8 GPUs, and cycles one after the other."""

    policy: str = "priority-age"
    terms: Terms = field(default_factory=Terms)

    def __post_init__(self) -> None:
        profile = profile_named(self.policy)
        self.clock = ManualClock()
        self.store = Retold(Ledger([make_node("n")], self.terms))
        self.solver = InlineSolver(profile)
        self.context = CycleContext(
            store=self.store,
            solver=self.solver,
            profile=profile,
            effort=Effort(),
            seed=0,
            hard_limit_s=5.0,
            clock=self.clock,
            rejected_plans=Path("none-here"),
        )
        self.state = CycleState()

    def arrives(self, name: str, gpus: int) -> JobId:
        job = make_job(name, shape(gpus), submitted_at=self.clock.now())
        self.store.ledger.submit(job)
        return job.id

    def attempt(self, job_id: JobId) -> AttemptId:
        attempt = self.store.ledger.attempt_of(job_id)
        assert attempt is not None
        return attempt.id

    def cycle(self) -> CycleReport:
        self.state, report = asyncio.run(run_cycle(self.context, self.state, force=False))
        return report


@pytest.mark.parametrize("terms", [QUOTA, HEADROOM])
def test_one_more_of_a_class_that_a_limit_holds_back_needs_no_decision(terms: Terms) -> None:
    desk = Desk(terms=terms)
    first = desk.arrives("a", 4)
    desk.arrives("b", 4)
    assert desk.cycle().placed == (first,)
    desk.arrives("c", 4)
    assert not desk.cycle().decided
    assert desk.solver.asked == 1


@pytest.mark.parametrize("terms", [QUOTA, HEADROOM])
def test_a_limit_that_is_lifted_is_noticed_at_once(terms: Terms) -> None:
    desk = Desk(terms=terms)
    desk.arrives("a", 4)
    second = desk.arrives("b", 4)
    desk.cycle()
    desk.store.terms = Terms()
    assert desk.cycle().placed == (second,)


def test_one_more_of_a_class_that_found_no_room_may_be_worth_a_running_jobs_place() -> None:
    """What it lacks is room; but meanwhile the job that runs has had its share."""
    desk = Desk("knapsack")
    runs = desk.arrives("a", 8)
    assert desk.cycle().placed == (runs,)
    desk.clock.advance(10)
    desk.arrives("b", 8)
    assert desk.cycle().evicted == (), "equals do not take turns"
    desk.clock.advance(3_600)
    desk.arrives("c", 8)
    assert desk.cycle().evicted == (desk.attempt(runs),)
