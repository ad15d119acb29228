"""The decision, pure: order the queue, pack it, check the plan, say why the rest waits.

The same function serves the daemon, the simulator and what-if questions. It yields a greedy plan
first, so that a caller who must stop early has something, then better ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from scheduler.allocation.evictions import Victim, outranked, victims_of
from scheduler.allocation.explain import Explainer
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
        for a profile whose admission goes down the line its one plan; two where higher priorities
        take the places of lower ones: without stopping any, and with it. Else the greedy plan, then
        the plans of `optimise.improve`, until the proven gap is at most `effort.gap_target` or the
        effort is spent. Equal arguments give equal plans.

    Raises:
        AssertionError: the first plan fails verification, which is a bug here.
    """
    if profile.preemption is Preemption.OUTRANK:
        yield from _outranking(_desk(snapshot, profile, effort, now, seed))
        return
    if profile.admission is not Admission.KNAPSACK:
        plan, ordered = decide_in_line(snapshot, profile, effort, now, seed)
        _require_sound(plan, snapshot, ordered)
        yield plan
        return
    desk = _desk(snapshot, profile, effort, now, seed)
    moves = _may_evict(snapshot, profile)
    packing = greedy(desk.task)
    best = _plan(desk, desk.incumbent(packing, moves=moves))
    _require_sound(best, snapshot, desk.ordered)
    yield best
    if best.gap <= effort.gap_target or best.solver.deferred:
        return
    if moves:
        desk = _with_victims(desk)
        moves = bool(desk.task.victims)
    if moves:
        best = _better(desk, best, _swapped(desk))
        yield best
        if best.gap <= effort.gap_target:
            return  # measured on all that runs: what little could be won is not worth a model
    task = desk.task if desk.task.anybody_for_anybody else replace(desk.task, victims=())
    for candidate in improve(task, packing, effort, seed, memory):
        # Models know no moves: what they prove of plans without does not bound those with.
        known = replace(candidate, bound=best.bound, proved=False) if moves else candidate
        best = _better(desk, best, known)
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
        explainer: of all its plans.
    """

    snapshot: Snapshot
    profile: Profile
    effort: Effort
    now: UtcSeconds
    seed: int
    ordered: Sequence[OrderedJob]
    skipped: int
    task: Task
    explainer: Explainer

    @property
    def gangs(self) -> Sequence[Gang]:
        """The front of the queue."""
        return self.task.gangs

    def room(self) -> Room:
        """A fresh working copy of what is free now."""
        return Room(self.snapshot, self.profile.score, self.seed)

    def incumbent(self, packing: dict[int, Loads], *, moves: bool) -> Candidate:
        """The greedy packing, with a bound that needs no model.

        Args:
            packing: the packing.
            moves: whether other plans may stop what runs: then only the worth of all that may start
                is known to be above them yet.
        """
        most = self.effort.placements_max
        worths = [gang.value * grown_worth(gang) for gang in self.gangs]
        if len(worths) > most:
            worths = sorted(worths, reverse=True)[:most]
        value = self.task.worth.total(self.gangs, packing)
        bound = math.fsum(worths)
        if not moves and value < bound * (1.0 - self.effort.gap_target):
            bound = min(bound, swap_bound(self.task))
        bound = max(value, bound)
        return Candidate(packing, (), value, bound, "greedy" if packing else "empty")


def _desk(
    snapshot: Snapshot, profile: Profile, effort: Effort, now: UtcSeconds, seed: int
) -> _Desk:
    ordered = profile.order.order(tuple(snapshot.waiting.values()), now)
    outrank = profile.preemption is Preemption.OUTRANK
    leaving = tuple(each for each in snapshot.live.values() if outrank and each.stopping)

    def room() -> Room:
        made = Room(snapshot, profile.score, seed)
        for attempt in leaving:
            made.release(attempt)
        return made

    task = Task(
        snapshot,
        gangs_of(ordered[: effort.order_max]),
        room,
        Worth(snapshot),
        most=effort.placements_max,
        outrank=outrank,
        leaving=leaving,
    )
    skipped = max(0, len(ordered) - effort.order_max)
    explainer = Explainer(snapshot)
    return _Desk(snapshot, profile, effort, now, seed, ordered, skipped, task, explainer)


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
    victims = victims_of(desk.snapshot, standing, desk.now)
    gangs = desk.gangs
    if desk.task.outrank:
        victims = outranked(desk.snapshot, victims, (gang.job for gang in gangs))
    elif not any(gang.job.evicts for gang in gangs):
        victims = ()
    task = replace(
        desk.task, victims=victims, standing=math.fsum(entry.value for entry in standing)
    )
    return replace(desk, task=task)


def _outranking(desk: _Desk) -> Iterator[Plan]:
    """Strictly down the line: each gang takes what is free, else the place of who is outranked.

    What those leave who were told to end counts as free, and is held for whoever it was cleared
    for: what comes free bit by bit would else go to smaller gangs, only to be cleared again. Values
    have no say, or a crowd of old jobs could take that place again and again.

    Yields:
        the plan that stops nobody, then the one that does, if anybody can be stopped.

    Raises:
        AssertionError: a plan fails verification, which is a bug here.
    """
    yield _down_the_line(desk)
    desk = _with_victims(desk)
    if desk.task.victims:
        yield _down_the_line(desk)


def _down_the_line(desk: _Desk) -> Plan:
    packed = swap(desk.task, desk.now, desk.room() if desk.task.leaving else None)
    value = value_of(desk.task, packed)
    bound = max(value, swap_bound(desk.task))
    stage = "outrank" if packed.packing else "empty"
    plan = _plan(desk, Candidate(packed.packing, packed.evicted, value, bound, stage))
    _require_sound(plan, desk.snapshot, desk.ordered)
    return plan


def _swapped(desk: _Desk) -> Candidate:
    """What looking for single swaps comes to, and the bound that needs no model."""
    packed = swap(desk.task, desk.now)
    value = value_of(desk.task, packed)
    bound = max(value, swap_bound(desk.task))
    return Candidate(packed.packing, packed.evicted, value, bound, "swap")


def _better(desk: _Desk, best: Plan, candidate: Candidate) -> Plan:
    """The more valuable of the two, with the sharper bound of both.

    No plan is made of a candidate that is worth no more: it tells what was learned, no more.
    """
    known = best.solver
    if candidate.value > best.value:
        plan = _plan(desk, candidate)
        violations = verify(plan, desk.snapshot, desk.ordered)
        if violations:
            note = f"{candidate.stage} plan refused: {violations[0].message}"
            return replace(best, solver=replace(known, notes=(*known.notes, note)))
        report = replace(plan.solver, greedy_value=known.greedy_value)
        best = replace(plan, bound=best.bound, solver=report)
    bound, proved = best.bound, known.proved
    if best.value <= candidate.bound < bound:
        bound, proved = candidate.bound, candidate.proved
    report = replace(
        best.solver,
        columns=candidate.columns,
        nodes_explored=candidate.nodes,
        proved=proved,
        notes=(*known.notes, *candidate.notes[_shared(known.notes, candidate.notes) :]),
    )
    return replace(best, bound=max(bound, best.value), standing=desk.task.standing, solver=report)


def _shared(known: Sequence[str], notes: Sequence[str]) -> int:
    """How many of `notes`, which grow from step to step, `known` ends with."""
    most = min(len(known), len(notes))
    return next(n for n in range(most, -1, -1) if tuple(known[len(known) - n :]) == notes[:n])


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
        waiting=desk.explainer.explain(placements, now),
        value=candidate.value,
        bound=candidate.bound,
        standing=task.standing,
        solver=report,
    )


def _split(desk: _Desk, candidate: Candidate) -> tuple[dict[int, Loads], dict[int, Loads]]:
    """Loads that are free now, and those that are once the evicted are gone."""
    if not candidate.evicted and not desk.task.leaving:
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
        if any(load.row in rows for load in loads) and task.may_stop(task.gangs[index], victim)
    ]
    best = min(heirs or candidate.packing, key=lambda index: (-task.gangs[index].value, index))
    return task.gangs[best].job.id
