from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from support.clusters import NOW, make_job, make_node, occupy, shape, snapshot_of

from policies.registry import profile_named
from scheduler.allocation.counts import Counts
from scheduler.allocation.sequential import decide_in_line
from scheduler.allocation.verify import verify
from scheduler.model.job import JobShape, WaitingJob
from scheduler.model.plan import Plan, Reason, ReasonCode
from scheduler.model.ports import Effort
from scheduler.model.quantity import Resources, UtcSeconds
from scheduler.model.snapshot import LiveAttempt

A, B = make_node("a"), make_node("b")
FULL_A = occupy(A, range(8))


def job(name: str, gpus: int, *, runtime_s: float | None = None, tasks: int = 1) -> WaitingJob:
    what = shape(gpus, tasks=tasks, cpu_milli=0, memory_mib=0)
    made = make_job(name, what, submitted_at=float(len(name)))
    return replace(made, runtime_s=runtime_s)


def plan_of(
    policy: str,
    jobs: Sequence[WaitingJob],
    live: Sequence[LiveAttempt] = (),
    effort: Effort | None = None,
) -> Plan:
    snapshot = snapshot_of([A, B], jobs, live)
    profile = profile_named(policy)
    plan, ordered = decide_in_line(snapshot, profile, effort or Effort(), NOW, 0)
    assert not verify(plan, snapshot, ordered)
    return plan


def started(plan: Plan) -> list[str]:
    return [placement.job_id.removeprefix("j-") for placement in plan.placements]


def reason(plan: Plan, of: WaitingJob) -> Reason:
    (found,) = (record for record in plan.waiting if record.class_key == of.class_key)
    return found.reasons[0]


def test_a_blocked_line_tells_the_head_what_it_lacks_and_the_others_who_blocks_them() -> None:
    head, second = job("h", 8, tasks=2), job("hh", 1)
    plan = plan_of("fifo", [head, second], [FULL_A])
    assert started(plan) == []
    told = reason(plan, head)
    assert (told.code, told.need, told.free) == (ReasonCode.WAITING_CAPACITY, 16, 8)
    assert reason(plan, second).code is ReasonCode.BEHIND_PRIORITY


def test_scattered_gpus_and_half_a_gang_have_their_own_reasons() -> None:
    live = [occupy(A, range(4)), occupy(B, range(3))]
    whole, gang = job("w", 8), job("gg", 4, tasks=3)
    plan = plan_of("fifo-skip", [whole, gang], live)
    assert reason(plan, whole).code is ReasonCode.FRAGMENTED
    assert reason(plan, gang).code is ReasonCode.WAITING_CAPACITY
    plan = plan_of("fifo-skip", [job("ggg", 3, tasks=3)], live)
    assert reason(plan, job("ggg", 3, tasks=3)).code is ReasonCode.WAITING_GANG


def test_what_can_never_fit_is_told_so() -> None:
    huge = job("huge", 8, tasks=3)
    assert reason(plan_of("fifo-skip", [huge]), huge).code is ReasonCode.NEVER_FITS


def test_a_job_in_backoff_is_told_so_and_blocks_nobody() -> None:
    waits = replace(job("w", 1), eligible_at=UtcSeconds(NOW + 1), class_key="backoff")
    plan = plan_of("fifo", [waits, job("xx", 2)])
    assert started(plan) == ["xx"]
    assert reason(plan, waits).code is ReasonCode.BACKOFF


def test_the_bound_is_what_the_scarcest_resource_could_hold() -> None:
    jobs = [job("h", 8, tasks=2), job("hh", 2), job("hhh", 2)]
    plan = plan_of("fifo", jobs, [FULL_A])
    assert (plan.value, plan.bound) == (0.0, 8.0)
    assert plan_of("fifo-skip", jobs[1:], [FULL_A]).bound == 4.0


def test_a_long_plan_is_cut_and_a_long_line_looked_at_in_part() -> None:
    jobs = [job("x" * (1 + number), 1) for number in range(6)]
    cut = plan_of("fifo", jobs, effort=Effort(placements_max=4))
    assert (started(cut), cut.solver.deferred) == (["x", "xx", "xxx", "xxxx"], 2)
    part = plan_of("fifo", jobs, effort=Effort(order_max=3))
    assert (len(part.placements), part.solver.skipped) == (3, 3)


def test_easy_reserves_for_the_head_when_ends_are_known() -> None:
    running = replace(FULL_A, job=replace(FULL_A.job, runtime_s=20_000.0))
    head, short, long = (
        job("h", 8, tasks=2, runtime_s=50.0),
        job("ss", 8, runtime_s=100.0),
        job("lll", 8, runtime_s=90_000.0),
    )
    plan = plan_of("easy", [head, short, long], [running])
    assert started(plan) == ["ss"]
    (reservation,) = plan.reservations
    assert (reservation.job_id, reservation.not_before) == (head.id, 20_000.0)
    assert set(reservation.node_ids) == {A.id, B.id}
    assert started(plan_of("easy", [head, long], [running])) == []


def test_easy_lets_nobody_pass_a_head_whose_turn_nobody_can_tell() -> None:
    head, short = job("h", 8, tasks=2), job("ss", 1, runtime_s=1.0)
    plan = plan_of("easy", [head, short], [FULL_A])
    assert (started(plan), plan.reservations) == ([], ())


def test_counts_fill_the_fullest_node_and_break_a_whole_gpu_last() -> None:
    part = JobShape(1, Resources(0, 0, 0), gpu_milli=400)
    table = snapshot_of([A, B], ()).columns.table
    held = [task for live in (occupy(A, range(7)),) for task in live.tasks]
    jobs = [make_job(f"p{number}", part) for number in range(3)]
    line = profile_named("fifo").order.order(
        [*jobs, make_job("w", shape(8, cpu_milli=0, memory_mib=0))], NOW
    )
    shapes = [entry.job.shape for entry in line]
    admitted = Counts(table, held, shapes).admitted(line)
    assert [entry.job.id for entry in admitted] == ["j-p0", "j-p1", "j-p2"], (
        "two parts share the last GPU of one node, the third breaks the other node"
    )
    assert len(Counts(table, held, shapes).admitted([*line[:2], line[3]])) == 3
