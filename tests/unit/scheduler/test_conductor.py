"""When cycles follow each other, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from support.clusters import make_job, make_node, shape
from typing_extensions import override

from policies.registry import profile_named
from scheduler.conductor import Conductor, Pace
from scheduler.cycle import CycleContext, CycleReport
from scheduler.model.plan import Plan
from scheduler.model.ports import CommitReport, DecideResult, DecisionMeta, Effort
from scheduler.model.quantity import UtcSeconds
from scheduler.model.snapshot import SnapshotDelta
from scheduler.simulator.faults.loop import VirtualClock, VirtualLoop
from scheduler.simulator.inline_solver import InlineSolver
from scheduler.simulator.ledger import Ledger

SOLVER_S, COMMIT_S, WINDOW_S = 1.0, 0.25, 0.125
PROFILE = profile_named("priority-age")


class SlowSolver(InlineSolver):
    @override
    async def decide(
        self,
        delta: SnapshotDelta,
        full: Callable[[], SnapshotDelta],
        *,
        policy: str,
        effort: Effort,
        now: UtcSeconds,
        seed: int,
        hard_limit_s: float,
    ) -> DecideResult:
        await asyncio.sleep(SOLVER_S)
        return await super().decide(
            delta,
            full,
            policy=policy,
            effort=effort,
            now=now,
            seed=seed,
            hard_limit_s=hard_limit_s,
        )


class SlowLedger(Ledger):
    @override
    async def commit(self, plan: Plan, meta: DecisionMeta, now: UtcSeconds) -> CommitReport:
        await asyncio.sleep(COMMIT_S)
        return await super().commit(plan, meta, now)


@dataclass
class Stage:
    """A conductor over a slow solver and a slow store, and when each of its cycles ended."""

    placements_max: int
    ended_s: list[float] = field(default_factory=list)
    reports: list[CycleReport] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.loop = VirtualLoop()
        self.ledger = SlowLedger([make_node("n")])
        self.conductor = Conductor(
            CycleContext(
                store=self.ledger,
                solver=SlowSolver(PROFILE),
                profile=PROFILE,
                effort=Effort(placements_max=self.placements_max),
                seed=0,
                hard_limit_s=5.0,
                clock=VirtualClock(self.loop),
                rejected_plans=Path("none-here"),
            ),
            Pace(batch_window_s=WINDOW_S, rest_ratio=1.0),
            finished=self._finished,
        )

    def _finished(self, report: CycleReport) -> None:
        self.ended_s.append(self.loop.time())
        self.reports.append(report)

    def arrives(self, name: str) -> None:
        job = make_job(name, shape(1), submitted_at=VirtualClock(self.loop).now())
        self.ledger.submit(job)

    def play(self, seconds: float) -> None:
        """Run the conductor for so long."""

        async def conducted() -> None:
            task = asyncio.create_task(self.conductor.run())
            await asyncio.sleep(seconds)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        try:
            self.loop.run_until_complete(conducted())
        finally:
            self.loop.close()


def test_a_backlog_does_not_wait_for_the_solver_twice() -> None:
    """Each cycle rests as long as the daemon was busy, not as long as it waited for the solver."""
    stage = Stage(placements_max=2)
    for number in range(6):
        stage.arrives(f"j{number}")
    stage.play(30.0)
    assert [len(report.placed) for report in stage.reports] == [2, 2, 2]
    assert [report.deferred for report in stage.reports] == [4, 2, 0]
    assert {(report.duration_s, report.solver_s) for report in stage.reports} == {
        (SOLVER_S + COMMIT_S, SOLVER_S)
    }
    apart = SOLVER_S + COMMIT_S + COMMIT_S
    assert stage.ended_s == [SOLVER_S + COMMIT_S + apart * number for number in range(3)]


def test_a_cycle_that_leaves_nothing_behind_rests_as_long_as_it_took() -> None:
    stage = Stage(placements_max=2)
    stage.arrives("first")

    def another() -> None:
        stage.arrives("second")
        stage.conductor.wake()

    stage.loop.call_at(SOLVER_S + COMMIT_S, another)
    stage.play(30.0)
    took = SOLVER_S + COMMIT_S
    assert stage.ended_s == [took, took + took + WINDOW_S + took]
