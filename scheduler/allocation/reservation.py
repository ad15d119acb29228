"""The reservation of EASY backfilling: when the head of the line can start, and what may pass it.

Source: D. Lifka, "The ANL/IBM SP Scheduling System", JSSPP 1995. Jobs behind the head may start if
they end before it does, or if they use what it will not need.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from scheduler.allocation.gangs import Gang
from scheduler.allocation.room import Loads, Room
from scheduler.model.plan import Reservation
from scheduler.model.ports import NodeScore
from scheduler.model.quantity import UtcSeconds
from scheduler.model.snapshot import Snapshot

_FIRST_STEP = 8


@dataclass(frozen=True, slots=True)
class Shadow:
    """The cluster at the instant at which the head can start, as far as run times are known.

    Attributes:
        at: that instant; infinite when known ends do not make enough room.
        room: what is free then besides the head's own place; None without an instant.
        reservation: for the plan.
    """

    at: float
    room: Room | None
    reservation: tuple[Reservation, ...]

    def admit(self, present: Room, gang: Gang) -> Loads | None:
        """Place a gang that would still run at the shadow time, beside the head.

        A place is what counts, not the exact GPUs: those that are free now may be the head's then,
        and others of the node free instead.
        """
        assert self.room is not None, "without an instant nobody is admitted"
        among = self.room.fits(gang.worker) > 0
        if not among.any():
            return None
        before = present.mark()
        loads = present.place(gang, among=among)
        if loads is None or self.room.take(gang, loads):
            return loads
        here = np.zeros(len(self.room.table.nodes), dtype=np.bool_)
        here[[load.row for load in loads]] = True
        if self.room.place(gang, among=here) is not None:
            return loads
        present.undo(before)
        return None


def shadow_of(
    snapshot: Snapshot,
    score: NodeScore,
    seed: int,
    placed: Sequence[tuple[Gang, Loads]],
    head: Gang,
    now: UtcSeconds,
) -> Shadow:
    """When and where `head` can start.

    An attempt without a known run time never ends here; one that has overrun it ends now.

    Args:
        snapshot: what was decided on.
        score: where the head would go.
        seed: for that score.
        placed: what this plan starts.
        head: the first gang in line that does not fit.
        now: the cycle's instant.

    Cost: O(ends log ends), and each end is released at most three times.
    """
    room = Room(snapshot, score, seed)
    for gang, loads in placed:
        taken = room.take(gang, loads)
        assert taken, "the plan draws on the same snapshot"
    ends = _ends(snapshot, room, placed, now)
    count = _first_enough(room, head, [release for _, _, release in ends])
    if count is None:
        return Shadow(math.inf, None, ())
    at = max(now, ends[count - 1][0]) if count else now
    for end, _, release in ends[count:]:
        if end > at:
            break
        release()
    seat = room.place(head)
    assert seat is not None, "more room than when it was tried"
    nodes = tuple(room.table.nodes[load.row].id for load in seat)
    return Shadow(at, room, (Reservation(head.job.id, nodes, UtcSeconds(at)),))


def _ends(
    snapshot: Snapshot, room: Room, placed: Sequence[tuple[Gang, Loads]], now: UtcSeconds
) -> list[tuple[float, str, Callable[[], None]]]:
    """(end, job, what gives its place back) of everything whose end is known, in order."""
    ends: list[tuple[float, str, Callable[[], None]]] = [
        (
            max(now, attempt.since + attempt.job.runtime_s),
            attempt.job_id,
            partial(room.release, attempt),
        )
        for attempt in snapshot.live.values()
        if attempt.job.runtime_s is not None
    ]
    ends += [
        (now + gang.job.runtime_s, gang.job.id, partial(room.give, gang, loads))
        for gang, loads in placed
        if gang.job.runtime_s is not None
    ]
    ends.sort(key=lambda end: end[:2])
    return ends


def _first_enough(room: Room, head: Gang, releases: Sequence[Callable[[], None]]) -> int | None:
    """How many of `releases` make room for `head`; they are made. None, and all made, if none do.

    Room only grows, so the number is found by doubling steps and bisection.
    """
    low, step = 0, _FIRST_STEP
    while True:
        before = room.mark()
        high = min(low + step, len(releases))
        for release in releases[low:high]:
            release()
        if _holds(room, head):
            break
        if high == len(releases):
            return None
        low, step = high, 2 * step
    while high - low > 1:
        room.undo(before)
        middle = (low + high) // 2
        for release in releases[low:middle]:
            release()
        if _holds(room, head):
            high = middle
        else:
            low, before = middle, room.mark()
            for release in releases[middle:high]:
                release()
    return high


def _holds(room: Room, gang: Gang) -> bool:
    before = room.mark()
    fits = room.place(gang) is not None
    room.undo(before)
    return fits
