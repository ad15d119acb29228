from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from support.clusters import (
    MIXES,
    NOW,
    make_job,
    make_node,
    occupy,
    random_instance,
    shape,
    snapshot_of,
)

import scheduler.decide
from policies.priority_age import PriorityAge
from policies.registry import profile_named
from scheduler.allocation.highs import Answer, Program
from scheduler.allocation.verify import Kind, Severity, Violation, verify
from scheduler.decide import decide
from scheduler.model.plan import Plan, relative_gap
from scheduler.model.ports import Effort
from scheduler.model.quantity import UtcSeconds
from scheduler.model.snapshot import Snapshot

ORDER = PriorityAge()
PROFILE = profile_named("priority-age")


def plans(snapshot: Snapshot, effort: Effort | None = None) -> list[Plan]:
    return list(decide(snapshot, PROFILE, effort or Effort(), NOW, 0))


def trap() -> Snapshot:
    """Greedy by density takes the one of three GPUs, and wastes the fourth."""
    jobs = [
        make_job("a-three", shape(3, cpu_milli=1), priority=52),
        make_job("b-two", shape(2, cpu_milli=2)),
        make_job("c-two", shape(2, cpu_milli=2)),
        make_job("d-four", shape(4, cpu_milli=3), priority=0),
    ]
    return snapshot_of([make_node("a", gpus=4)], jobs)


def test_nothing_waits() -> None:
    (plan,) = plans(snapshot_of([make_node("a")], []))
    assert (plan.placements, plan.value, plan.bound, plan.solver.stage) == ((), 0.0, 0.0, "empty")


def test_everything_fits_and_no_solver_is_asked() -> None:
    jobs = [make_job(f"{n}", shape(1)) for n in range(8)]
    (plan,) = plans(snapshot_of([make_node("a")], jobs))
    assert len(plan.placements) == 8
    assert (plan.gap, plan.solver.columns) == (0.0, 0)


def test_the_knapsack_beats_greedy_where_greedy_is_wrong() -> None:
    greedy, *_, best = plans(trap())
    assert [placement.job_id for placement in greedy.placements] == ["j-a-three"]
    assert [placement.job_id for placement in best.placements] == ["j-b-two", "j-c-two"]
    assert best.solver.stage in ("lp", "milp")
    assert best.solver.greedy_value == greedy.value < best.value
    assert best.gap <= Effort().gap_target


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("mix", MIXES)
def test_above_the_column_limit_the_relaxation_still_bounds(seed: int, mix: str) -> None:
    snapshot = random_instance(seed, mix)
    exact = plans(snapshot)[-1]
    coarse = plans(snapshot, Effort(columns_max=1))[-1]
    assert coarse.solver.stage in ("greedy", "lp")
    assert coarse.value <= exact.bound * (1 + 1e-6)
    assert exact.value <= coarse.bound * (1 + 1e-6)
    assert not coarse.solver.proved


def test_short_form_of_the_gap_benchmark() -> None:
    found = [plans(random_instance(seed, mix)) for seed in range(5) for mix in MIXES]
    shares = sorted(plan[-1].value / plan[-1].bound for plan in found)
    assert shares[len(shares) // 2] >= 0.995
    assert all(plan[-1].value >= plan[0].value for plan in found)


def test_jobs_beyond_order_max_are_counted() -> None:
    jobs = [make_job(f"{n}", shape(1)) for n in range(8)]
    plan = plans(snapshot_of([make_node("a")], jobs), Effort(order_max=3))[-1]
    assert len(plan.placements) == 3
    assert plan.solver.skipped == 5
    assert plan.waiting[0].reasons[0].message.startswith("it fits, but is beyond")


def test_a_solver_that_lies_costs_nothing_but_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Program, "relax", lambda *_args: Answer(None, notes=("no relaxation today",))
    )
    monkeypatch.setattr(
        Program, "solve", lambda *_args: Answer(None, bound=1e-3, notes=("answer refused",))
    )
    greedy, *_, last = plans(trap())
    assert last.placements == greedy.placements
    assert last.bound == greedy.bound
    assert last.solver.notes == (
        "no relaxation today",
        "no relaxation today",
        "answer refused",
        f"claimed bound 0.001 is below a plan worth {greedy.value:g}",
    )


def test_an_unsound_improvement_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Plan] = []

    def doubtful(plan: Plan, *_args: object) -> tuple[Violation, ...]:
        seen.append(plan)
        if len(seen) == 1:
            return ()
        return (Violation(Kind.GPU, Severity.UNSAFE, "GPU a-0 is given out twice"),)

    monkeypatch.setattr(scheduler.decide, "verify", doubtful)
    greedy, *_, last = plans(trap())
    assert max(plan.value for plan in seen) > greedy.value
    assert (last.placements, last.value, last.bound) == (
        greedy.placements,
        greedy.value,
        greedy.bound,
    )
    assert last.solver.notes == tuple(
        f"{plan.solver.stage} plan refused: GPU a-0 is given out twice" for plan in seen[1:]
    )


def test_an_unsound_greedy_plan_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = (Violation(Kind.GANG, Severity.UNSAFE, "half a gang"),)
    monkeypatch.setattr(scheduler.decide, "verify", lambda *_args: wrong)
    with pytest.raises(AssertionError, match="half a gang"):
        plans(trap())


def test_low_value_jobs_fill_what_is_left() -> None:
    jobs = [make_job("big", shape(7), priority=100), make_job("tiny", shape(1), priority=0)]
    jobs += [make_job("wide", shape(8), priority=0)]
    plan = plans(snapshot_of([make_node("a")], jobs))[-1]
    assert {placement.job_id for placement in plan.placements} == {"j-big", "j-tiny"}


def test_the_gap_is_measured_on_all_that_will_run() -> None:
    """Evicting would lose more than it wins: to change nothing is nearly the best plan."""
    node = make_node("a")
    settled = occupy(node, range(8))
    attempt = replace(settled, job=replace(settled.job, preemptible=True, shape=shape(8)))
    attempt = replace(attempt, since=UtcSeconds(NOW - 60.0))
    waiting = replace(make_job("late", shape(8)), attained_s=3_600.0)
    view = snapshot_of([node], [waiting], [attempt])
    plan = list(decide(view, profile_named("knapsack"), Effort(), NOW, 0))[-1]
    assert (plan.placements, plan.evictions, plan.value) == ((), (), 0.0)
    assert plan.standing > 8 * plan.bound
    assert plan.gap == relative_gap(plan.value, plan.bound, plan.standing) < 0.1


def test_a_gap_needs_a_bound() -> None:
    assert relative_gap(0.0, 0.0, 5.0) == 0.0
    assert relative_gap(9.0, 10.0, 0.0) == pytest.approx(0.1)
    assert relative_gap(9.0, 10.0, 90.0) == pytest.approx(0.01)


def test_where_resources_alone_prove_greedy_no_model_is_built() -> None:
    """More single GPUs are asked for than there are: the densest fill what is free."""
    jobs = [make_job(f"{n}", shape(1, cpu_milli=1), priority=n) for n in range(20)]
    (plan,) = plans(snapshot_of([make_node("a")], jobs))
    assert len(plan.placements) == 8
    assert plan.gap <= Effort().gap_target
    assert (plan.solver.columns, plan.solver.stage) == (0, "greedy")


def test_no_plan_is_made_of_a_candidate_that_is_no_better(monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedy is the best there is, but only a model proves it: its plan is checked once."""
    checked: list[Plan] = []

    def counting(plan: Plan, *rest: Any) -> tuple[Violation, ...]:
        checked.append(plan)
        return verify(plan, *rest)

    monkeypatch.setattr(scheduler.decide, "verify", counting)
    nodes = [make_node("a", gpus=3), make_node("b", gpus=3)]
    jobs = [make_job(f"{n}", shape(2, cpu_milli=n + 1)) for n in range(3)]
    first, *_, last = plans(snapshot_of(nodes, jobs))
    assert len(checked) == 1
    assert (last.placements, last.waiting) == (first.placements, first.waiting)
    assert last.bound < first.bound
    assert last.solver.columns > 0
    assert last.solver.greedy_value == first.value == last.value
