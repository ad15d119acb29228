"""The host of the solver worker against workers that hang, crash, babble and lie."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from support.clusters import NOW, make_job, make_node, shape, snapshot_of
from support.solver_instances import solver_instance

from policies.priority_age import PriorityAge
from policies.registry import profile_named
from scheduler.allocation.verify import verify
from scheduler.decide import decide
from scheduler.model.ports import DecideResult, Effort
from scheduler.model.snapshot import SnapshotDelta
from scheduler.solver_process import SolverProcess

JOBS = (make_job("one", shape(4)), make_job("two", shape(8)), make_job("three", shape(4)))
NODES = (make_node("a"), make_node("b"))
SNAPSHOT = snapshot_of(NODES, JOBS)
FULL = SnapshotDelta(0, SNAPSHOT.revision, nodes=NODES, waiting=JOBS)
SHORT_S = 1.5
LONG_S = 60.0


@pytest.fixture(autouse=True)
def deciders_are_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))


def host(decider: str | None = None) -> SolverProcess:
    if decider is None:
        return SolverProcess()
    return SolverProcess(arguments=("--decider", f"support.deciders:{decider}"))


async def ask(
    solver: SolverProcess, delta: SnapshotDelta = FULL, limit_s: float = LONG_S
) -> DecideResult:
    return await solver.decide(
        delta,
        lambda: FULL,
        policy="priority-age",
        effort=Effort(),
        now=NOW,
        seed=0,
        hard_limit_s=limit_s,
    )


def run(solver: SolverProcess, story: Callable[[SolverProcess], Awaitable[None]]) -> None:
    async def whole() -> None:
        try:
            await story(solver)
        finally:
            await solver.close()

    asyncio.run(whole())


def test_a_warm_worker_answers_again_and_again() -> None:
    async def story(solver: SolverProcess) -> None:
        await solver.start()
        first = await ask(solver)
        again = await ask(solver, SnapshotDelta(FULL.revision, FULL.revision))
        assert first.plan is not None
        assert first.plan == again.plan
        assert (first.killed, again.killed, solver.trouble) == (False, False, "")
        assert verify(first.plan, SNAPSHOT, PriorityAge().order(JOBS, NOW)) == ()

    run(host(), story)


def test_a_worker_is_fed_while_it_still_starts() -> None:
    async def story(solver: SolverProcess) -> None:
        await solver.start()
        await solver.feed(FULL, lambda: FULL)
        result = await solver.decide(
            SnapshotDelta(FULL.revision, FULL.revision),
            lambda: pytest.fail("it has the whole snapshot"),
            policy="priority-age",
            effort=Effort(),
            now=NOW,
            seed=0,
            hard_limit_s=LONG_S,
        )
        assert result.plan is not None
        assert (result.plan.snapshot_revision, solver.restarts) == (FULL.revision, 0)

    run(host(), story)


def test_feeding_a_worker_that_dies_at_its_start_starts_no_other() -> None:
    async def story(solver: SolverProcess) -> None:
        await solver.start()
        whole = SnapshotDelta(0, 1, nodes=tuple(make_node(f"n{i}") for i in range(2_000)))
        await solver.feed(whole, lambda: whole)
        assert solver.restarts == 0

    run(SolverProcess(arguments=("--no-such-option",)), story)


def test_deltas_are_fed_and_a_gap_is_bridged_with_the_whole() -> None:
    async def story(solver: SolverProcess) -> None:
        await ask(solver)
        gone = SnapshotDelta(7, 8, waiting_gone=(JOBS[0].id, JOBS[2].id))
        await solver.feed(gone, lambda: FULL)
        fed = await ask(solver, SnapshotDelta(8, 8))
        assert fed.plan is not None
        assert [placement.job_id for placement in fed.plan.placements] == [JOBS[1].id]
        bridged = await ask(solver, SnapshotDelta(9, 10))
        assert bridged.plan is not None
        assert len(bridged.plan.placements) == 3

    run(host(), story)


@pytest.mark.parametrize("decider", ["hang_after_greedy", "crash_after_greedy", "babble"])
def test_what_was_sent_before_the_end_is_used_and_the_worker_replaced(decider: str) -> None:
    async def story(solver: SolverProcess) -> None:
        result = await ask(solver, limit_s=SHORT_S)
        assert result.killed
        assert result.message
        assert result.plan is not None
        assert len(result.plan.placements) == 3
        assert (result.restarts, solver.trouble) == (1, "")

    run(host(decider), story)


@pytest.mark.parametrize("decider", ["hang_at_once", "crash_at_once"])
def test_without_any_plan_trouble_is_reported_after_a_while(decider: str) -> None:
    async def story(solver: SolverProcess) -> None:
        for _ in range(3):
            result = await ask(solver, limit_s=0.3)
            assert result.killed
            assert result.plan is None
        assert "3 times in a row" in solver.trouble

    run(host(decider), story)


def test_a_kill_in_the_middle_of_a_solve_costs_one_cycle_its_improvement_at_most(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KILLED_ONCE", str(tmp_path / "killed"))
    snapshot = solver_instance(0, "gang", 150)
    nodes, live = tuple(snapshot.nodes.values()), tuple(snapshot.live.values())
    waiting = tuple(snapshot.waiting.values())
    whole = SnapshotDelta(
        0, snapshot.revision, nodes=nodes, live=live, waiting=waiting, terms=snapshot.terms
    )
    plans = list(decide(snapshot, profile_named("priority-age"), Effort(), NOW, 0))
    assert plans[-1].value > plans[0].value, "there must be an improvement to lose"

    async def asked(solver: SolverProcess, delta: SnapshotDelta) -> DecideResult:
        return await solver.decide(
            delta,
            lambda: whole,
            policy="priority-age",
            effort=Effort(),
            now=NOW,
            seed=0,
            hard_limit_s=LONG_S,
        )

    async def story(solver: SolverProcess) -> None:
        killed = await asked(solver, whole)
        assert killed.killed
        assert killed.plan is not None
        assert plans[0].value <= killed.plan.value < plans[-1].value
        again = await asked(solver, SnapshotDelta(snapshot.revision, snapshot.revision))
        assert not again.killed
        assert again.plan == plans[-1]
        assert (again.restarts, solver.trouble) == (1, "")

    run(host("killed_once_in_the_solver"), story)


def test_an_exception_in_the_worker_keeps_the_worker() -> None:
    async def story(solver: SolverProcess) -> None:
        result = await ask(solver)
        assert result.plan is not None
        assert result.message == "ZeroDivisionError: by design"
        assert (result.killed, result.restarts) == (False, 0)

    run(host("raise_after_greedy"), story)


def test_what_a_solver_prints_does_not_disturb_the_frames() -> None:
    async def story(solver: SolverProcess) -> None:
        result = await ask(solver)
        assert (result.killed, result.message) == (False, "")
        assert result.plan is not None

    run(host("print_a_lot"), story)


def test_a_lying_worker_is_caught_by_the_parent() -> None:
    async def story(solver: SolverProcess) -> None:
        result = await ask(solver)
        assert result.plan is not None
        assert verify(result.plan, SNAPSHOT, PriorityAge().order(JOBS, NOW)) != ()

    run(host("overcommit"), story)


def test_a_worker_killed_while_idle_costs_no_decision() -> None:
    async def story(solver: SolverProcess) -> None:
        await ask(solver)
        assert solver._process is not None
        os.kill(solver._process.pid, signal.SIGKILL)
        result = await ask(solver)
        assert result.plan is not None
        assert len(result.plan.placements) == 3

    run(host(), story)


def test_the_worker_ends_with_its_daemon_even_in_the_middle_of_a_decision() -> None:
    async def story(solver: SolverProcess) -> None:
        asking = asyncio.create_task(ask(solver))
        while solver._process is None or not solver._ready:  # noqa: ASYNC110 - its state, polled
            await asyncio.sleep(0.01)
        process = solver._process
        assert process.stdin is not None
        process.stdin.close()
        assert await asyncio.wait_for(process.wait(), 30) == -signal.SIGKILL
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert solver._process is None, "a cancelled request leaves no half-used pipe"

    run(host("hang_at_once"), story)


def test_the_loop_keeps_running_while_a_worker_hangs() -> None:
    async def story(solver: SolverProcess) -> None:
        await solver.start()
        asking = asyncio.create_task(ask(solver, limit_s=0.5))
        ticks = 0
        while not asking.done():
            await asyncio.sleep(0.01)
            ticks += 1
        assert ticks >= 10
        assert (await asking).killed

    run(host("hang_at_once"), story)
