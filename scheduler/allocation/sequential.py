"""Decisions that go down the line, job by job: in order, passing over, with a reservation, anew.

What the optimiser does in `knapsack`, these admissions do as published schedulers do it. They share
the room, the node scores and the plan's honesty: a plan tells its value, a proven bound, and a
reason for every class of jobs left waiting.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from scheduler.allocation.explain import explain
from scheduler.allocation.gangs import Gang, gang_of
from scheduler.allocation.gpu_choice import placement_of
from scheduler.allocation.repack import repack
from scheduler.allocation.reservation import Shadow, shadow_of
from scheduler.allocation.resource_bound import Amounts, held_by, needs_of, resource_bound
from scheduler.allocation.room import Loads, Room
from scheduler.allocation.worth import Worth
from scheduler.model.plan import Eviction, Plan, Reservation, SolverReport
from scheduler.model.ports import Admission, Effort, OrderedJob, Preemption, Profile
from scheduler.model.quantity import UtcSeconds
from scheduler.model.snapshot import LiveAttempt, Snapshot

BEHIND = "the first in line does not fit, and nobody may pass it"
RESERVED = "it would delay the first in line, which has a reservation"
OUTRANKED = "jobs that come first hold the place"


@dataclass(slots=True)
class _Line:
    """What going down the line came to.

    Attributes:
        ordered: the waiting jobs, best first.
        room: what is left after `placed`.
        placed: gangs that start, and where.
        no_room: classes that were looked at and found none.
        others: why all other classes wait.
    """

    ordered: Sequence[OrderedJob]
    room: Room
    placed: list[tuple[Gang, Loads]] = field(default_factory=list)
    no_room: set[str] = field(default_factory=set)
    others: str = BEHIND
    evictions: tuple[Eviction, ...] = ()
    reservations: tuple[Reservation, ...] = ()


def decide_in_line(
    snapshot: Snapshot, profile: Profile, effort: Effort, now: UtcSeconds, seed: int
) -> tuple[Plan, Sequence[OrderedJob]]:
    """The complete plan of a profile whose admission is not the knapsack, unverified.

    Args:
        snapshot: the cluster and who waits.
        profile: who is next, who may pass, where, and who must yield.
        effort: limits; only `order_max` and `placements_max` matter here.
        now: the cycle's instant.
        seed: for node scores that break ties at random.

    Returns:
        the plan, and the waiting jobs in order, for its verification.

    Cost: O(n log n) for the order, and O(nodes) for each gang placed or class that fails.
    """
    if profile.preemption is Preemption.REPACK:
        found, room = repack(snapshot, profile, seed, now)
        line = _Line(found.ordered, room, found.placed, others=OUTRANKED)
        line.evictions = found.evictions
    else:
        ordered = profile.order.order(tuple(snapshot.waiting.values()), now)
        line = _Line(ordered, Room(snapshot, profile.score, seed))
        _walk(line, snapshot, profile, effort, now, seed)
    line.placed.sort(key=lambda entry: entry[0].rank)
    return _plan(snapshot, profile, effort, line, now), line.ordered


def _plan(
    snapshot: Snapshot, profile: Profile, effort: Effort, line: _Line, now: UtcSeconds
) -> Plan:
    deferred = line.placed[effort.placements_max :]
    table, worth, how = line.room.table, Worth(snapshot), profile.admission.value
    placements = tuple(
        placement_of(table, gang, loads, worth, how)
        for gang, loads in line.placed[: effort.placements_max]
    )
    cost = math.fsum(eviction.cost for eviction in line.evictions)
    value = math.fsum(placement.value for placement in placements) - cost
    leaving = [snapshot.live[eviction.attempt_id] for eviction in line.evictions]
    return Plan(
        snapshot_revision=snapshot.revision,
        placements=placements,
        evictions=line.evictions,
        reservations=line.reservations,
        waiting=explain(
            snapshot,
            placements,
            now,
            lambda class_key: None if class_key in line.no_room else line.others,
        ),
        value=value,
        bound=max(value, _bound(snapshot, line.ordered, leaving)),
        solver=SolverReport(
            how if placements else "empty",
            value,
            skipped=max(0, len(line.ordered) - effort.order_max),
            deferred=len(deferred),
        ),
    )


def _bound(
    snapshot: Snapshot, ordered: Sequence[OrderedJob], leaving: Sequence[LiveAttempt]
) -> float:
    """No plan is worth more; the place of who is leaving comes for nothing."""
    needs: dict[str, Amounts] = {}
    alike: Counter[tuple[str, float]] = Counter()
    for entry in ordered:
        needs.setdefault(entry.job.class_key, needs_of(entry.job.shape))
        alike[entry.job.class_key, entry.value] += 1
    return resource_bound(
        snapshot.columns.free,
        [(value, jobs, needs[class_key]) for (class_key, value), jobs in alike.items()],
        [(0.0, held_by(attempt.tasks)) for attempt in leaving],
    )


def _walk(
    line: _Line,
    snapshot: Snapshot,
    profile: Profile,
    effort: Effort,
    now: UtcSeconds,
    seed: int,
) -> None:
    """Place one job after the other until one blocks the line."""
    looked_at = line.ordered[: effort.order_max]
    for place, entry in enumerate(looked_at):
        class_key = entry.job.class_key
        if class_key in line.no_room:
            continue
        gang = gang_of(entry)
        loads = line.room.place(gang)
        if loads is not None:
            line.placed.append((gang, loads))
            continue
        line.no_room.add(class_key)
        if profile.admission is Admission.SKIP:
            continue
        if profile.admission is Admission.EASY:
            shadow = shadow_of(snapshot, profile.score, seed, line.placed, gang, now)
            line.reservations = shadow.reservation
            if shadow.room is not None:  # else nobody can tell what would delay the head
                line.others = RESERVED
                _backfill(line, looked_at[place + 1 :], shadow, now)
        return


def _backfill(line: _Line, rest: Sequence[OrderedJob], shadow: Shadow, now: UtcSeconds) -> None:
    """Start those behind the head that do not delay it.

    A class whose short jobs found no room now is given up; one whose long jobs would delay the
    head may still have short ones.
    """
    barred: set[str] = set()
    for entry in rest:
        class_key, runtime_s = entry.job.class_key, entry.job.runtime_s
        if class_key in line.no_room:
            continue
        if runtime_s is not None and now + runtime_s <= shadow.at:
            gang = gang_of(entry)
            loads = line.room.place(gang)
            if loads is None:
                line.no_room.add(class_key)
        elif class_key in barred:
            continue
        else:
            gang = gang_of(entry)
            loads = shadow.admit(line.room, gang)
            if loads is None:
                barred.add(class_key)
        if loads is not None:
            line.placed.append((gang, loads))
