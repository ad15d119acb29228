"""One cycle against a real store, with the decision made in this process."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from support.builders import job_spec, virtual_node
from support.clock import ManualClock
from support.local_solver import LocalSolver
from support.usecases import ROOT, Office

from policies.registry import profile_named
from scheduler import rejected_plans, service
from scheduler.cycle import CycleContext, CycleReport, CycleState, run_cycle
from scheduler.errors import FencedError
from scheduler.model.lifecycle import EndCause, JobEvent, JobState
from scheduler.model.plan import Plan
from scheduler.model.ports import Effort
from scheduler.model.quantity import DEFAULT_TENANT, UtcSeconds
from scheduler.model.view import JobView
from scheduler.store import attempts, lease, tables
from scheduler.store.cycles import DatabaseCycleStore
from scheduler.store.database import Database, Transaction
from scheduler.store.transitions import apply_event

NODE = virtual_node("v0")


class Desk:
    """Runs cycles one after the other, as the conductor does."""

    def __init__(
        self,
        database: Database,
        clock: ManualClock,
        folder: Path,
        policy: str = "priority-age",
    ) -> None:
        self.office = Office(database, clock)
        self.office.nodes(NODE)
        self.office.epoch = database.write_sync(
            lambda tx: lease.acquire(tx, "test", 1e9, clock.now())
        )
        profile = profile_named(policy)
        self.solver = LocalSolver(profile)
        self.context = CycleContext(
            store=DatabaseCycleStore(
                database, self.office.epoch, self.office.ids, sees=profile.sees
            ),
            solver=self.solver,
            profile=profile,
            effort=Effort(),
            seed=0,
            hard_limit_s=5.0,
            clock=clock,
            rejected_plans=folder / "rejected",
        )
        self.state = CycleState()

    def cycle(self, *, force: bool = False) -> CycleReport:
        self.state, report = asyncio.run(run_cycle(self.context, self.state, force=force))
        return report


@pytest.fixture
def desk(database: Database, clock: ManualClock, tmp_path: Path) -> Desk:
    return Desk(database, clock, tmp_path)


def test_a_job_is_placed_and_the_decision_is_told(desk: Desk) -> None:
    job = desk.office.submit(spec=job_spec(gpus=2, tasks=2))
    report = desk.cycle()
    assert report.placed == (job.id,)
    assert report.decision_id is not None
    assert report.gap == 0
    assert desk.office.job(job.id).state is JobState.ASSIGNED
    decision = desk.office.ask(service.get_decision, ROOT, report.decision_id)
    assert decision.placed == 1
    assert decision.value == report.value


def test_nothing_new_is_not_decided_again(desk: Desk) -> None:
    desk.office.submit(spec=job_spec(gpus=8))
    desk.office.submit(spec=job_spec(gpus=8))
    assert desk.cycle().decided
    assert not desk.cycle().decided, "our own placement leaves less room, never more"
    assert desk.solver.asked == 1


def test_one_more_of_a_class_that_found_no_place_needs_no_decision(desk: Desk) -> None:
    for _ in range(2):
        desk.office.submit(spec=job_spec(gpus=8))
    desk.cycle()
    desk.office.submit(spec=job_spec(gpus=8))
    assert not desk.cycle().decided
    other = desk.office.submit(spec=job_spec(gpus=0))
    assert desk.cycle().placed == (other.id,), "another class may still fit"
    assert desk.solver.asked == 2


def test_room_that_appears_is_used_at_once(desk: Desk) -> None:
    first, second = (desk.office.submit(spec=job_spec(gpus=8)) for _ in range(2))
    desk.cycle()
    desk.cycle()
    desk.office.events(first.id, JobEvent.CLAIM, JobEvent.START)
    desk.office.end(first.id, JobEvent.EXIT_OK, EndCause.COMPLETED)
    assert desk.cycle().placed == (second.id,)


def test_a_waiting_job_is_told_why(desk: Desk) -> None:
    for _ in range(2):
        job = desk.office.submit(spec=job_spec(gpus=8))
    desk.cycle()
    told = desk.office.ask(service.explain, ROOT, job.id, now=desk.office.now)
    assert [reason.code for reason in told.reasons] == ["waiting-capacity", "behind-priority"]
    assert (told.reasons[0].need, told.reasons[0].free) == (8, 0)


def test_a_job_that_cannot_be_read_is_planned_once(desk: Desk) -> None:
    broken, sound = (desk.office.submit(spec=job_spec(gpus=1)) for _ in range(2))
    desk.office.write(
        lambda tx: tx.connection.execute(
            sa.update(tables.jobs).where(tables.jobs.c.id == broken.id).values(document="{}")
        )
    )
    report = desk.cycle()
    assert (report.placed, [job_id for job_id, _ in report.refused]) == ((sound.id,), [broken.id])
    # A refusal makes the conductor look again at once; that must be the end of it.
    again = desk.cycle(force=True)
    assert (again.decided, again.waiting) == (False, 0)
    told = desk.office.ask(service.explain, ROOT, broken.id, now=desk.office.now)
    assert [reason.code for reason in told.reasons] == ["quarantined"]
    assert "this version cannot read its stored document" in told.summary


def test_an_unsafe_plan_is_not_carried_out_and_kept_for_replay(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    def steal(plan: Plan) -> Plan:
        twice = tuple(
            replace(p, tasks=tuple(replace(t, gpu_ids=t.gpu_ids[:1] * 2) for t in p.tasks))
            for p in plan.placements
        )
        return replace(plan, placements=twice)

    desk.solver.spoil = steal
    job = desk.office.submit(spec=job_spec(gpus=2))
    report = desk.cycle()
    assert report.rejected
    assert report.failed, "or else the conductor would not rest before it tries again"
    assert report.decision_id is None
    assert desk.office.job(job.id).state is JobState.PENDING
    (kept,) = desk.context.rejected_plans.iterdir()
    case = rejected_plans.load(kept)
    assert case.violations == report.rejected
    assert case.snapshot.waiting.keys() == {job.id}
    assert rejected_plans.main([str(kept)]) == 0
    assert f"then: {case.violations[0].kind}: " in capsys.readouterr().out


def test_a_solver_without_a_plan_is_a_failure_to_try_again(desk: Desk) -> None:
    desk.solver.spoil = lambda _plan: None
    job = desk.office.submit(spec=job_spec(gpus=1))
    assert desk.cycle().failed
    desk.solver.spoil = lambda plan: plan
    assert desk.cycle(force=True).placed == (job.id,)


def test_a_plan_that_forgets_a_job_is_rejected_and_made_again(desk: Desk) -> None:
    """Found by fault simulation: nobody would have looked at that job again."""
    desk.solver.spoil = lambda plan: replace(plan, placements=(), value=0.0)
    job = desk.office.submit(spec=job_spec(gpus=1))
    report = desk.cycle()
    assert report.failed, "the conductor forces the next cycle"
    assert [violation.kind for violation in report.rejected] == ["reason"]
    desk.solver.spoil = lambda plan: plan
    assert desk.cycle(force=True).placed == (job.id,)


def test_a_cycle_of_a_former_leader_is_fenced(desk: Desk) -> None:
    job = desk.office.submit(spec=job_spec(gpus=1))
    desk.office.write(lambda tx: lease.acquire(tx, "test", 1e9, desk.office.now))
    with pytest.raises(FencedError):
        desk.cycle()
    assert desk.office.job(job.id).state is JobState.PENDING


def test_a_cancel_that_came_first_wins(desk: Desk) -> None:
    job = desk.office.submit(spec=job_spec(gpus=1))

    def cancel_then_answer(plan: Plan) -> Plan:
        desk.office.do(service.cancel, ROOT, job.id, now=desk.office.now, ids=desk.office.ids)
        return plan

    desk.solver.spoil = cancel_then_answer
    report = desk.cycle()
    assert report.placed == ()
    assert [refused for refused, _ in report.refused] == [job.id]
    assert desk.office.job(job.id).state is JobState.CANCELLED
    assert desk.office.job(job.id).tenant == DEFAULT_TENANT


def test_the_end_of_a_backoff_is_known(desk: Desk, clock: ManualClock) -> None:
    _in_backoff(desk, clock, seconds=50)
    report = desk.cycle()
    assert report.next_eligible_at == clock.now() + 50
    assert report.placed == ()


def test_a_backoff_that_ended_is_noticed_by_whatever_wakes_the_cycle(
    desk: Desk, clock: ManualClock
) -> None:
    """The timer is only one way to notice: any wake-up that comes first must not swallow it."""
    job = _in_backoff(desk, clock, seconds=50)
    assert desk.cycle().placed == ()
    clock.advance(51)
    report = desk.cycle()
    assert report.placed == (job.id,)
    assert desk.cycle().next_eligible_at is None


def test_a_class_that_only_waits_for_its_backoff_is_not_taken_for_stuck(
    desk: Desk, clock: ManualClock
) -> None:
    _in_backoff(desk, clock, seconds=50)
    assert desk.cycle().placed == ()
    twin = desk.office.submit(spec=job_spec(gpus=1))
    assert desk.cycle().placed == (twin.id,)


def test_after_the_clock_was_set_back_a_fresh_job_is_waited_for(
    desk: Desk, clock: ManualClock
) -> None:
    """Found by fault simulation: its submission lies ahead, so nobody would look at it again."""
    job = desk.office.submit(spec=job_spec(gpus=1))
    submitted_at = clock.now()
    clock.jump(-300)
    report = desk.cycle()
    assert report.placed == ()
    assert report.next_eligible_at == submitted_at
    clock.advance(300)
    assert desk.cycle(force=True).placed == (job.id,)


def test_a_backoff_is_waited_for_though_the_last_decision_lies_ahead(
    desk: Desk, clock: ManualClock
) -> None:
    desk.office.submit(spec=job_spec(gpus=1))
    assert desk.cycle().placed
    clock.jump(-300)
    _in_backoff(desk, clock, seconds=50)
    assert desk.cycle().next_eligible_at == clock.now() + 50


def test_a_turn_that_comes_while_a_cycle_rests_is_not_swallowed(
    desk: Desk, clock: ManualClock
) -> None:
    """Found by fault simulation: what woke the next cycle, by itself, gave no cause to decide."""
    job = desk.office.submit(spec=job_spec(gpus=1))
    clock.jump(-300)
    assert desk.cycle().decided, "what it left has its reasons stored, which wakes the next cycle"
    assert not desk.cycle().decided, "its turn has not come"
    clock.advance(300)
    assert desk.cycle().placed == (job.id,)
    assert not desk.cycle().decided


def test_easy_goes_by_the_limits_that_job_files_declare(
    database: Database, clock: ManualClock, tmp_path: Path
) -> None:
    desk = Desk(database, clock, tmp_path, "easy")
    big = desk.office.submit(spec=job_spec(gpus=6, max_runtime_s=100.0))
    assert desk.cycle().placed == (big.id,)
    desk.office.submit(spec=job_spec("head", gpus=8, max_runtime_s=100.0))
    clock.advance(10)
    desk.office.submit(spec=job_spec("long", gpus=2, max_runtime_s=95.0))
    short = desk.office.submit(spec=job_spec("short", gpus=2, max_runtime_s=50.0))
    desk.office.submit(spec=job_spec("unknown", gpus=2))
    assert desk.cycle().placed == (short.id,), "it ends before the head can start"


def _in_backoff(desk: Desk, clock: ManualClock, *, seconds: float) -> JobView:
    job = desk.office.submit(spec=job_spec(gpus=1))
    desk.cycle()
    desk.office.events(job.id, JobEvent.CLAIM, JobEvent.START)
    until = UtcSeconds(clock.now() + seconds)
    end = attempts.End(EndCause.USER, clock.now(), None, "")

    def fail(tx: Transaction) -> None:
        live = attempts.live_attempt(tx, job.id)
        assert live is not None
        changes = {"eligible_at": until}
        apply_event(tx, job.id, JobEvent.EXIT_RETRY, now=clock.now(), changes=changes)
        attempts.close_attempt(tx, live.id, end, now=clock.now())

    desk.office.write(fail)
    return job
