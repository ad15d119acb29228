"""The decision, pure: order the queue, pack it, check the plan, say why the rest waits.

The same function serves the daemon, the simulator and what-if questions. It yields a greedy plan
first, so that a caller who must stop early has something, then better ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from scheduler.allocation.evictions import Victim, victims_of
from scheduler.allocation.explain import explain
from scheduler.allocation.gangs import Gang, gangs_of
from scheduler.allocation.gpu_choice import place
from scheduler.allocation.optimise import (
    Candidate,
    Memory,
    Task,
    greedy,
    grown_worth,
    improve,
    value_of,
)
from scheduler.allocation.room import Loads, Room
from scheduler.allocation.sequential import decide_in_line
from scheduler.allocation.swap import swap, swap_bound
from scheduler.allocation.verify import verify
from scheduler.allocation.worth import Worth
from scheduler.model.plan import Eviction, Plan, Reservation, SolverReport
from scheduler.model.ports import Admission, Decider, Effort, OrderedJob, Preemption, Profile
from scheduler.model.quantity import JobId, UtcSeconds
from scheduler.model.snapshot import Snapshot


def decide(
    snapshot: Snapshot,
    profile: Profile,
    effort: Effort,
    now: UtcSeconds,
    seed: int,
    memory: Memory | None = None,
) -> Iterator[Plan]:
    """Yield ever better complete, verified plans; the last one is the decision.

    Args:
        snapshot: the cluster and who waits.
        profile: who is next, what each job is worth, where it should sit, and who must yield.
        effort: deterministic limits of the work.
        now: the cycle's instant.
        seed: the solver's seed, and that of node scores that break ties at random.
        memory: what the decision before left, to start the solver warm; changed.

    Yields:
        for a profile whose admission goes down the line, its one plan. Else the greedy plan, then
        the plans of `optimise.improve`, until the proven gap is at most `effort.gap_target` or the
        effort is spent. Equal arguments give equal plans.

    Raises:
        AssertionError: the first plan fails verification, which is a bug here.
    """
    if profile.admission is not Admission.KNAPSACK:
        plan, ordered = decide_in_line(snapshot, profile, effort, now, seed)
        _require_sound(plan, snapshot, ordered)
        yield plan
        return
    desk = _desk(snapshot, profile, effort, now, seed)
    packing = greedy(desk.task, most=effort.placements_max)
    best = _plan(desk, desk.incumbent(packing))
    _require_sound(best, snapshot, desk.ordered)
    yield best
    if best.gap <= effort.gap_target or best.solver.deferred:
        return
    if _may_evict(snapshot, profile):
        desk = _with_victims(desk)
        best = _better(best, _checked(desk, _swapped(desk), best))
        yield best
        if best.gap <= effort.gap_target:
            return  # measured on all that runs: what little could be won is not worth a model
    for candidate in improve(desk.task, packing, effort, seed, memory):
        best = _better(best, _checked(desk, candidate, best))
        yield best


def remembering() -> Decider:
    """`decide` for a caller that decides again and again: each solve starts where the last stood.

    Plans may then differ from those of a cold start; what is proven about them does not, and the
    same sequence of questions still gets the same answers.
    """
    return partial(decide, memory=Memory())


@dataclass(frozen=True, slots=True)
class _Desk:
    """All that one decision of the knapsack works with.

    Attributes:
        ordered: the waiting jobs that may start, best first.
        skipped: how many more there are beyond the effort's `order_max`.
        standing: what the running jobs that may be stopped are worth together.
    """

    snapshot: Snapshot
    profile: Profile
    effort: Effort
    now: UtcSeconds
    seed: int
    ordered: Sequence[OrderedJob]
    skipped: int
    task: Task
    standing: float = 0.0

    @property
    def gangs(self) -> Sequence[Gang]:
        """The front of the queue."""
        return self.task.gangs

    def room(self) -> Room:
        """A fresh working copy of what is free."""
        return self.task.rooms()

    def incumbent(self, packing: dict[int, Loads]) -> Candidate:
        """The greedy packing, bounded by what all that may start would be worth."""
        most = self.effort.placements_max
        worths = [gang.value * grown_worth(gang) for gang in self.gangs]
        if len(worths) > most:
            worths = sorted(worths, reverse=True)[:most]
        value = self.task.worth.total(self.gangs, packing)
        bound = max(value, math.fsum(worths))
        return Candidate(packing, (), value, bound, "greedy" if packing else "empty")


def _desk(
    snapshot: Snapshot, profile: Profile, effort: Effort, now: UtcSeconds, seed: int
) -> _Desk:
    ordered = profile.order.order(tuple(snapshot.waiting.values()), now)
    task = Task(
        snapshot,
        gangs_of(ordered[: effort.order_max]),
        lambda: Room(snapshot, profile.score, seed),
        Worth(snapshot),
    )
    skipped = max(0, len(ordered) - effort.order_max)
    return _Desk(snapshot, profile, effort, now, seed, ordered, skipped, task)


def _may_evict(snapshot: Snapshot, profile: Profile) -> bool:
    """Whether running jobs may be stopped by this decision.

    While one is on its way out, what it leaves is not known: nobody else is stopped meanwhile.
    """
    return profile.preemption is Preemption.EVICT and not any(
        attempt.stopping for attempt in snapshot.live.values()
    )


def _with_victims(desk: _Desk) -> _Desk:
    """The same decision with the running jobs that may be stopped, at what they are worth now."""
    running = [a.as_waiting(desk.now) for a in desk.snapshot.live.values() if a.preemptible]
    standing = desk.profile.order.order(running, desk.now)
    return replace(
        desk,
        task=replace(desk.task, victims=victims_of(desk.snapshot, standing, desk.now)),
        standing=math.fsum(entry.value for entry in standing),
    )


def _swapped(desk: _Desk) -> Candidate:
    """What looking for single swaps comes to, and the bound that needs no model."""
    packed = swap(desk.task, desk.now)
    value = value_of(desk.task, packed)
    bound = max(value, swap_bound(desk.task))
    return Candidate(packed.packing, packed.evicted, value, bound, "swap")


def _better(best: Plan, plan: Plan) -> Plan:
    """The more valuable of two plans for one snapshot, with the sharper bound of both.

    The bounds of models know no moves: one that a plan with moves has beaten says nothing.
    """
    chosen = plan if plan.value >= best.value else best
    bound = min(each.bound for each in (best, plan) if each.bound >= chosen.value)
    if chosen is best:
        report = replace(best.solver, columns=plan.solver.columns, notes=plan.solver.notes)
        chosen = replace(best, solver=report)
    return replace(chosen, bound=bound, standing=plan.standing)


def _require_sound(plan: Plan, snapshot: Snapshot, ordered: Sequence[OrderedJob]) -> None:
    violations = verify(plan, snapshot, ordered)
    assert not violations, f"{plan.solver.stage} plan is unsound: {violations[0].message}"


def _plan(desk: _Desk, candidate: Candidate) -> Plan:
    """The candidate as a complete value: GPUs chosen, reasons told.

    Who needs the place of somebody who has yet to leave gets a reservation, and starts in the
    cycle that finds the place free.
    """
    task, now = desk.task, desk.now
    at_once, later = _split(desk, candidate)
    table = desk.snapshot.columns.table
    placements = place(table, task.gangs, at_once, task.worth, candidate.stage)
    promised = place(table, task.gangs, later, task.worth, candidate.stage)
    evictions = _evictions(task, candidate)
    most = desk.effort.placements_max
    full = len(candidate.packing) >= most
    report = SolverReport(
        candidate.stage,
        greedy_value=candidate.value,
        columns=candidate.columns,
        nodes_explored=candidate.nodes,
        proved=candidate.proved,
        skipped=desk.skipped,
        deferred=len(task.gangs) - len(candidate.packing) if full else 0,
        notes=candidate.notes,
    )
    return Plan(
        snapshot_revision=desk.snapshot.revision,
        placements=placements,
        evictions=evictions,
        reservations=tuple(
            Reservation(
                each.job_id,
                tuple(dict.fromkeys(task.node_id for task in each.tasks)),
                now,
                each.value,
            )
            for each in promised
        ),
        waiting=explain(desk.snapshot, placements, now),
        value=candidate.value,
        bound=candidate.bound,
        standing=desk.standing,
        solver=report,
    )


def _split(desk: _Desk, candidate: Candidate) -> tuple[dict[int, Loads], dict[int, Loads]]:
    """Loads that are free now, and those that are once the evicted are gone."""
    if not candidate.evicted:
        return dict(candidate.packing), {}
    room = desk.room()
    at_once: dict[int, Loads] = {}
    later: dict[int, Loads] = {}
    for index in sorted(candidate.packing):
        gang, loads = desk.gangs[index], candidate.packing[index]
        milli = gang.worker.milli * sum(load.workers for load in loads)
        free = room.quotas.admits(gang.job.tenant, milli) and room.take(gang, loads)
        (at_once if free else later)[index] = loads
    return at_once, later


def _evictions(task: Task, candidate: Candidate) -> tuple[Eviction, ...]:
    """Who stops, each for the most valuable gang that takes a part of its place."""
    return tuple(
        Eviction(victim.attempt.id, _heir(task, candidate, victim), victim.cost)
        for victim in sorted(candidate.evicted, key=lambda victim: victim.attempt.id)
    )


def _heir(task: Task, candidate: Candidate, victim: Victim) -> JobId:
    rows = frozenset(victim.rows)
    heirs = [
        index
        for index, loads in candidate.packing.items()
        if any(load.row in rows for load in loads)
    ]
    best = min(heirs or candidate.packing, key=lambda index: (-task.gangs[index].value, index))
    return task.gangs[best].job.id


def _checked(desk: _Desk, candidate: Candidate, best: Plan) -> Plan:
    """The candidate's plan, or the best one so far with a note when that one is unsound."""
    plan = _plan(desk, candidate)
    plan = replace(plan, solver=replace(plan.solver, greedy_value=best.solver.greedy_value))
    violations = verify(plan, desk.snapshot, desk.ordered)
    if not violations:
        return plan
    note = f"{plan.solver.stage} plan refused: {violations[0].message}"
    return replace(best, solver=replace(best.solver, notes=(*best.solver.notes, note)))
