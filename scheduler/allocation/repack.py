"""Repacking: running and waiting jobs compete in order at every decision, and who loses yields.

Who may run is decided by counts, on the cluster as if it were empty, so that it does not depend on
who ran before. Then as little as possible is touched: newcomers take what is free; if that is not
enough, the losers yield; if free GPUs are scattered too widely for a newcomer, running jobs move,
which is an eviction and a new start. A place held by somebody who yields is free in the next cycle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scheduler.allocation.counts import Counts
from scheduler.allocation.gangs import Gang, gang_of
from scheduler.allocation.room import Loads, Room
from scheduler.model.plan import Eviction
from scheduler.model.ports import OrderedJob, Profile
from scheduler.model.quantity import UtcSeconds
from scheduler.model.snapshot import LiveAttempt, Snapshot

Placed = list[tuple[Gang, Loads]]


@dataclass(frozen=True, slots=True)
class Repacked:
    """What came of it.

    Attributes:
        ordered: the waiting jobs, with their ranks among all.
        placed: newcomers whose place is free now.
        evictions: who loses, and who has to move.
    """

    ordered: Sequence[OrderedJob]
    placed: Placed
    evictions: tuple[Eviction, ...] = ()


def repack(
    snapshot: Snapshot, profile: Profile, seed: int, now: UtcSeconds
) -> tuple[Repacked, Room]:
    """Decide who runs, and what must change for it.

    Nobody moves twice at one instant, so cycles at that instant come to an end.

    Returns:
        what to do, and the room that is left when only `placed` is done.

    Cost: O(n log n + n * states) for n running and waiting jobs, and O(nodes) for each newcomer.
    """
    held = [a for a in snapshot.live.values() if a.stopping or not a.preemptible]
    runners = {a.job_id: a for a in snapshot.live.values() if a.preemptible and not a.stopping}
    competing = [*snapshot.waiting.values(), *(a.as_waiting(now) for a in runners.values())]
    line = profile.order.order(competing, now)
    counts = Counts(
        snapshot.columns.table,
        (task for attempt in held for task in attempt.tasks),
        {entry.job.class_key: entry.job.shape for entry in line}.values(),
    )
    chosen = counts.admitted([entry for entry in line if entry.job.evicts])
    stay = {entry.job.id for entry in chosen}
    ordered = [entry for entry in line if entry.job.id in snapshot.waiting]
    newcomers = sorted(
        (gang_of(entry) for entry in chosen if entry.job.id in snapshot.waiting), key=_largest
    )
    modest = [gang_of(entry) for entry in ordered if not entry.job.evicts]
    room = Room(snapshot, profile.score, seed)
    placed = _seat(room, newcomers)
    if len(placed) == len(newcomers):
        placed += _seat(room, modest)
        return Repacked(ordered, placed), room
    losers = [attempt for job_id, attempt in runners.items() if job_id not in stay]
    movable = [a for job_id, a in runners.items() if job_id in stay and a.since < now]
    later = Room(snapshot, profile.score, seed)
    seated, leaving = _after_evictions(later, newcomers, losers, movable)
    if len(seated) <= len(placed):
        return Repacked(ordered, placed), room
    room = Room(snapshot, profile.score, seed)
    at_once = [(gang, loads) for gang, loads in seated if room.take(gang, loads)]
    started = {gang.job.id for gang, _ in at_once}
    wait = [gang for gang, _ in seated if gang.job.id not in started]
    if not wait:
        return Repacked(ordered, at_once), room
    first = min(wait, key=lambda gang: gang.rank).job.id
    evictions = tuple(Eviction(key, first, 0.0) for key in sorted(a.id for a in leaving))
    return Repacked(ordered, at_once, evictions), room


def _largest(gang: Gang) -> tuple[int, int, int]:
    """Whole nodes are found most easily before small jobs are strewn over them."""
    return (-gang.worker.milli * gang.workers, -gang.worker.needs.cpu_milli, gang.rank)


def _seat(room: Room, gangs: Sequence[Gang]) -> Placed:
    tried = ((gang, room.place(gang)) for gang in gangs)
    return [(gang, loads) for gang, loads in tried if loads is not None]


def _after_evictions(
    room: Room,
    newcomers: Sequence[Gang],
    losers: Sequence[LiveAttempt],
    movable: Sequence[LiveAttempt],
) -> tuple[Placed, list[LiveAttempt]]:
    """Seat newcomers when losers are gone, moving others where that is needed; and who leaves."""
    for attempt in losers:
        room.release(attempt)
    on_row = _by_row(room, movable)
    seated: Placed = []
    leaving = list(losers)
    for gang in newcomers:
        loads = room.place(gang)
        if loads is None:
            loads, moved = _make_room(room, gang, on_row)
            leaving += moved
            for rows in on_row.values():
                rows[:] = [attempt for attempt in rows if attempt not in moved]
        if loads is not None:
            seated.append((gang, loads))
    return seated, leaving


def _by_row(room: Room, attempts: Sequence[LiveAttempt]) -> dict[int, list[LiveAttempt]]:
    found: dict[int, list[LiveAttempt]] = {}
    for attempt in attempts:
        for task in attempt.tasks:
            row = room.table.row_of.get(task.node_id)
            if row is not None and attempt not in found.setdefault(row, []):
                found[row].append(attempt)
    return found


def _make_room(
    room: Room, gang: Gang, on_row: dict[int, list[LiveAttempt]]
) -> tuple[Loads | None, list[LiveAttempt]]:
    """Clear nodes, the emptiest first, until the gang fits; then put back whom that displaced."""
    before = room.mark()
    displaced: list[LiveAttempt] = []
    free = room.free.milli
    for row in sorted(on_row, key=lambda row: (-int(free[row]), row)):
        for attempt in on_row[row]:
            if attempt not in displaced and _size(attempt) < gang.worker.milli * gang.workers:
                room.release(attempt)
                displaced.append(attempt)
        loads = room.place(gang)
        if loads is None:
            continue
        moved = [attempt for attempt in sorted(displaced, key=_by_size) if not room.hold(attempt)]
        if all(_moves(room, attempt) for attempt in moved):
            return loads, moved
        break
    room.undo(before)
    return None, []


def _size(attempt: LiveAttempt) -> int:
    return sum(len(task.gpu_ids) * task.gpu_milli for task in attempt.tasks)


def _by_size(attempt: LiveAttempt) -> tuple[int, str]:
    return (-_size(attempt), attempt.id)


def _moves(room: Room, attempt: LiveAttempt) -> bool:
    """Find another place for a displaced attempt; its job is seated there in the next cycle."""
    return room.place(gang_of(OrderedJob(attempt.job, 0, 0.0))) is not None
