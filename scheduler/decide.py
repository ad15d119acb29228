"""The decision, pure: order the queue, pack it, check the plan, say why the rest waits.

The same function serves the daemon, the simulator and what-if questions. It yields a greedy plan
first, so that a caller who must stop early has something, then better ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from scheduler.allocation import knapsack
from scheduler.allocation.coarse import coarsened
from scheduler.allocation.explain import explain
from scheduler.allocation.feasibility import Problem, problem_of
from scheduler.allocation.gpu_choice import place
from scheduler.allocation.greedy import Packing, best_greedy, by_density, pack, worth
from scheduler.allocation.highs import Limits
from scheduler.allocation.verify import verify
from scheduler.model.plan import Plan, SolverReport
from scheduler.model.ports import Effort, OrderedJob, QueueOrder
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
    snapshot: Snapshot, order: QueueOrder, effort: Effort, now: UtcSeconds, seed: int
) -> Iterator[Plan]:
    """Yield ever better complete, verified plans; the last one is the decision.

    Args:
        snapshot: the cluster and who waits.
        order: who is next, and what each job is worth.
        effort: deterministic limits of the work.
        now: the cycle's instant.
        seed: the solver's seed.

    Yields:
        the greedy plan, then the plan of the exact knapsack (or, above `effort.columns_max`, of
        the LP relaxation) with its proven bound. Equal arguments give equal plans.

    Raises:
        AssertionError: the greedy plan fails verification, which is a bug here.
    """
    ordered = order.order(tuple(snapshot.waiting.values()), now)
    problem = problem_of(snapshot, ordered, order_max=effort.order_max)
    greedy = _greedy(problem)
    first = _plan(snapshot, problem, greedy, now)
    violations = verify(first, snapshot, ordered)
    assert not violations, f"greedy plan is unsound: {violations[0].message}"
    yield first
    if first.gap <= effort.gap_target:
        return
    yield _checked(snapshot, ordered, problem, _improve(problem, greedy, effort, seed), first, now)


def _greedy(problem: Problem) -> _Candidate:
    packing = best_greedy(problem)
    value = worth(problem, packing)
    notes: tuple[str, ...] = ()
    if problem.skipped:
        notes = (f"{problem.skipped} jobs beyond order_max were not looked at",)
    report = SolverReport("greedy" if packing else "empty", value, notes=notes)
    return _Candidate(packing, float(sum(gang.value for gang in problem.gangs)), report)


def _improve(problem: Problem, greedy: _Candidate, effort: Effort, seed: int) -> _Candidate:
    """The better of greedy's packing and a solver's, with the sharpest bound proved."""
    limits = Limits(effort.milp_nodes_max, effort.gap_target, seed)
    exact = problem.columns <= effort.columns_max
    model = knapsack.build(problem if exact else coarsened(problem))
    relaxed = knapsack.relax(model, limits)
    followed = _follow(problem, relaxed.admitted)
    best = _best(problem, ("greedy", greedy.packing), ("lp", followed))
    value = worth(problem, best[1])
    bound, proved, nodes, notes = relaxed.bound, False, 0, relaxed.notes
    if exact and value < bound * (1 - effort.gap_target):
        solved = knapsack.optimise(model, best[1], limits)
        nodes, notes = solved.nodes, (*notes, *solved.notes)
        if solved.packing is not None:
            best = _best(problem, best, ("milp", _compact(problem, solved.packing)))
            value = worth(problem, best[1])
        if solved.bound < value * (1 - CLAIM_TOLERANCE):
            notes = (*notes, f"claimed bound {solved.bound:g} is below a plan worth {value:g}")
        elif solved.bound <= bound:
            bound, proved = solved.bound, True
    if bound < value * (1 - CLAIM_TOLERANCE):
        notes = (*notes, f"LP bound {bound:g} is below a plan worth {value:g}; raised to it")
    report = SolverReport(
        best[0] if best[1] else "empty",
        greedy.report.greedy_value,
        len(model.pulp.columns),
        nodes,
        proved,
        (*greedy.report.notes, *notes),
    )
    return _Candidate(best[1], max(bound, value), report)


def _best(problem: Problem, *candidates: tuple[str, Packing]) -> tuple[str, Packing]:
    """The most valuable candidate; an earlier one wins unless a later one is really better."""
    best = candidates[0]
    for other in candidates[1:]:
        if worth(problem, other[1]) > worth(problem, best[1]) * (1 + BETTER):
            best = other
    return best


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
        waiting=explain(snapshot, problem.sites, (entry.job_id for entry in placements), now),
        value=worth(problem, candidate.packing),
        bound=candidate.bound,
        solver=candidate.report,
    )


def _checked(
    snapshot: Snapshot,
    ordered: Sequence[OrderedJob],
    problem: Problem,
    candidate: _Candidate,
    first: Plan,
    now: UtcSeconds,
) -> Plan:
    """The candidate's plan, or the greedy plan with a note when that one is unsound."""
    plan = _plan(snapshot, problem, candidate, now)
    violations = verify(plan, snapshot, ordered)
    if not violations:
        return plan
    note = f"{plan.solver.stage} plan refused: {violations[0].message}"
    return replace(first, solver=replace(first.solver, notes=(*first.solver.notes, note)))
