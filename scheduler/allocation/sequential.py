"""Decisions that go down the line, job by job: in order, passing over, or with a reservation.

What the optimiser does in `knapsack`, these admissions do as published schedulers do it. They share
the room, the node scores and the plan's honesty: a plan tells its value, a proven bound, and a
reason for every class of jobs left waiting.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from scheduler.allocation.gangs import Gang, gang_of
from scheduler.allocation.line_bound import bound_of
from scheduler.allocation.line_reasons import Verdict, reasons_of
from scheduler.allocation.repack import Repacked, repack
from scheduler.allocation.reservation import Held, reserve
from scheduler.allocation.room import Loads, Room
from scheduler.model.columns import NodeTable
from scheduler.model.plan import Eviction, Placement, Plan, Reservation, SolverReport, TaskPlacement
from scheduler.model.ports import Admission, Effort, OrderedJob, Preemption, Profile
from scheduler.model.quantity import WHOLE_GPU_MILLI, JobId, UtcSeconds
from scheduler.model.snapshot import Snapshot


@dataclass(slots=True)
class Line:
    """What going down the line came to.

    Attributes:
        placed: gangs that start, with their places, in queue order.
        verdicts: why each class that was left waiting waits, by class key.
        evictions: attempts that yield.
        reservations: what is kept for whom.
    """

    placed: list[tuple[Gang, Loads]] = field(default_factory=list)
    verdicts: dict[str, Verdict] = field(default_factory=dict)
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
        the plan, and the waiting jobs as ordered, for its verification.

    Cost: O(n log n) for the order, and O(nodes) for each gang placed or class that fails.
    """
    room = Room(snapshot, profile.score, seed)
    if profile.preemption is Preemption.REPACK:
        found = repack(snapshot, profile, room, now)
        ordered = found.ordered
        line = _repacked(found)
    else:
        ordered = profile.order.order(tuple(snapshot.waiting.values()), now)
        line = _walk(snapshot, profile, room, ordered[: effort.order_max], now)
    deferred = len(line.placed[effort.placements_max :])
    placed = line.placed[: effort.placements_max]
    placements = tuple(placement_of(room.table, gang, loads, profile.name) for gang, loads in placed)
    value = math.fsum(placement.value for placement in placements)
    cost = math.fsum(eviction.cost for eviction in line.evictions)
    bound = max(value, bound_of(snapshot, ordered, now, preempts=bool(line.evictions)))
    plan = Plan(
        snapshot_revision=snapshot.revision,
        placements=placements,
        evictions=line.evictions,
        reservations=line.reservations,
        waiting=reasons_of(snapshot, room, placements, line.verdicts, now),
        value=value - cost,
        bound=bound,
        solver=SolverReport(
            profile.admission.value if placements else "empty",
            value - cost,
            skipped=max(0, len(ordered) - effort.order_max),
            deferred=deferred,
        ),
    )
    return plan, ordered
