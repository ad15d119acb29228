"""The decision, pure: order the queue, pack it, check the plan, say why the rest waits.

The same function serves the daemon, the simulator and what-if questions. It yields a greedy plan
first, so that a caller who must stop early has something, then better ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from scheduler.allocation import knapsack
from scheduler.allocation.bins import Packing, best_greedy, by_density, pack, place, worth
from scheduler.allocation.coarse import coarsened
from scheduler.allocation.explain import explain
from scheduler.allocation.feasibility import Problem, problem_of
from scheduler.allocation.highs import Limits
from scheduler.allocation.knapsack import Solved
from scheduler.allocation.sequential import decide_in_line
from scheduler.allocation.verify import verify
from scheduler.model.plan import Plan, SolverReport
from scheduler.model.ports import Admission, Effort, OrderedJob, Profile
from scheduler.model.quantity import UtcSeconds
from scheduler.model.snapshot import Snapshot

SQUEAKY_ROUNDS = 8
BETTER = 1e-9
"""Relative improvement below which two objectives are the same."""
CLAIM_TOLERANCE = 1e-6
"""How far below a known value a solver's bound may be by rounding."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    packing: Packing
    bound: float
    report: SolverReport


def decide(
    snapshot: Snapshot, profile: Profile, effort: Effort, now: UtcSeconds, seed: int
) -> Iterator[Plan]:
    """Yield ever better complete, verified plans; the last one is the decision.

    Args:
        snapshot: the cluster and who waits.
        profile: who is next, what each job is worth, and where it should sit.
        effort: deterministic limits of the work.
        now: the cycle's instant.
        seed: the solver's seed.

    Yields:
        for a profile whose admission goes down the line, its one plan. Else the greedy plan; the
        plan of the LP relaxation with its proven bound; the plan of the exact
        knapsack, unless the gap is closed by then or the model has more than `effort.columns_max`
        columns. Equal arguments give equal plans.

    Raises:
        AssertionError: the greedy plan fails verification, which is a bug here.
    """
    if profile.admission is not Admission.KNAPSACK:
        plan, ordered = decide_in_line(snapshot, profile, effort, now, seed)
        _require_sound(plan, snapshot, ordered)
        yield plan
        return
    ordered = profile.order.order(tuple(snapshot.waiting.values()), now)
    problem = problem_of(snapshot, ordered, order_max=effort.order_max)
    greedy = _greedy(problem)
    best = _plan(snapshot, problem, greedy, now)
    _require_sound(best, snapshot, ordered)
    yield best
    if best.gap <= effort.gap_target:
        return
    for candidate in _improve(problem, greedy, effort, seed):
        best = _checked(snapshot, ordered, problem, candidate, best, now)
        yield best


def _require_sound(plan: Plan, snapshot: Snapshot, ordered: Sequence[OrderedJob]) -> None:
    violations = verify(plan, snapshot, ordered)
    assert not violations, f"{plan.solver.stage} plan is unsound: {violations[0].message}"


def _greedy(problem: Problem) -> _Candidate:
    packing = best_greedy(problem)
    value = worth(problem, packing)
    report = SolverReport("greedy" if packing else "empty", value, skipped=problem.skipped)
    return _Candidate(packing, float(sum(gang.value for gang in problem.gangs)), report)


def _improve(
    problem: Problem, greedy: _Candidate, effort: Effort, seed: int
) -> Iterator[_Candidate]:
    """Candidates of solvers, each at least as good as the one before, with ever sharper bounds."""
    limits = Limits(effort.milp_nodes_max, effort.gap_target, seed)
    exact = problem.columns <= effort.columns_max
    model = knapsack.build(problem if exact else coarsened(problem))
    relaxed = knapsack.relax(model, limits)
    followed = _follow(problem, relaxed.admitted)
    best = _merged(problem, greedy, "lp", replace(relaxed, packing=followed), len(model.columns))
    yield best
    if exact and worth(problem, best.packing) < best.bound * (1 - effort.gap_target):
        solved = knapsack.optimise(model, best.packing, limits)
        if solved.packing is not None:
            solved = replace(solved, packing=_compact(problem, solved.packing))
        yield _merged(problem, best, "milp", solved, len(model.columns))


def _merged(
    problem: Problem, before: _Candidate, stage: str, solved: Solved, columns: int
) -> _Candidate:
    """The better packing of two, with the lower bound that can be believed."""
    packing, report = before.packing, before.report
    if solved.packing and worth(problem, solved.packing) > worth(problem, packing) * (1 + BETTER):
        packing, report = solved.packing, replace(report, stage=stage)
    value = worth(problem, packing)
    bound, proved, notes = before.bound, False, solved.notes
    if solved.bound < value * (1 - CLAIM_TOLERANCE):
        notes = (*notes, f"claimed bound {solved.bound:g} is below a plan worth {value:g}")
    elif solved.bound <= bound:
        bound, proved = solved.bound, solved.proved
    report = replace(
        report,
        columns=columns,
        nodes_explored=solved.nodes,
        proved=proved,
        notes=(*report.notes, *notes),
    )
    return _Candidate(packing, max(bound, value), report)


def _follow(problem: Problem, admitted: Sequence[int]) -> Packing:
    """Pack what the LP admits, then fill up by density.

    Gangs that fail to find a place go first in the next round (the squeaky wheel).
    """
    wheel = sorted(admitted, key=lambda gang: (-problem.gangs[gang].share, gang))
    chosen = frozenset(admitted)
    rest = [gang for gang in by_density(problem.gangs) if gang not in chosen]
    best: Packing = {}
    for _ in range(SQUEAKY_ROUNDS):
        packing = pack(problem, [*wheel, *rest])
        if worth(problem, packing) > worth(problem, best) * (1 + BETTER):
            best = packing
        failed = [gang for gang in wheel if gang not in packing]
        if not failed:
            break
        wheel = [*failed, *(gang for gang in wheel if gang in packing)]
    return best


def _compact(problem: Problem, packing: Packing) -> Packing:
    """The same gangs packed by the greedy packer, if it finds room for all, and the rest filled up.

    The greedy packer keeps gangs together. Filling up matters because a solver may stop at its gap
    target with room left that a job of little value could use.
    """
    largest_first = sorted(packing, key=lambda gang: (-problem.gangs[gang].share, gang))
    again = pack(problem, largest_first)
    kept = again if len(again) == len(packing) else packing
    return pack(problem, by_density(problem.gangs), base=kept)


def _plan(snapshot: Snapshot, problem: Problem, candidate: _Candidate, now: UtcSeconds) -> Plan:
    """The candidate as a complete value: GPUs chosen, reasons told."""
    placements = place(problem, candidate.packing, candidate.report.stage)
    return Plan(
        snapshot_revision=snapshot.revision,
        placements=placements,
        waiting=explain(snapshot, placements, now),
        value=worth(problem, candidate.packing),
        bound=candidate.bound,
        solver=candidate.report,
    )


def _checked(
    snapshot: Snapshot,
    ordered: Sequence[OrderedJob],
    problem: Problem,
    candidate: _Candidate,
    best: Plan,
    now: UtcSeconds,
) -> Plan:
    """The candidate's plan, or the best one so far with a note when that one is unsound."""
    plan = _plan(snapshot, problem, candidate, now)
    violations = verify(plan, snapshot, ordered)
    if not violations:
        return plan
    note = f"{plan.solver.stage} plan refused: {violations[0].message}"
    return replace(best, solver=replace(best.solver, notes=(*best.solver.notes, note)))
