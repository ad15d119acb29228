"""From the point of a relaxation to a packing of real nodes.

Gangs that the relaxation admits are placed first, the largest workers before the small ones, in
the groups where the relaxation has room for their kind. Those that find none go first in the next
round (the squeaky wheel); after a few rounds the best one is filled up by density.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from scheduler.allocation.figures import Figures
from scheduler.allocation.gangs import Gang
from scheduler.allocation.outline import Outline
from scheduler.allocation.room import Loads, Room
from scheduler.allocation.worth import Worth
from scheduler.model.columns import Floats, Ints
from scheduler.model.job import Worker

ROUNDS = 8
PATIENCE = 2
"""Rounds in a row that are no better, after which the wheel stops."""
GOOD_ENOUGH = 2e-4
"""Gangs without a place that are worth no more than this share are left to the filling up."""
ADMITTED = 1e-3
"""How far below a whole gang a relaxation may be by rounding."""
MOSTLY = 0.3
"""Parts of a victim from which on it goes: who need not go is kept afterwards."""
MEANT = 0.8
"""Parts of a worker from which on a group is meant to take it."""
BETTER = 1e-9

AnyPacker = TypeVar("AnyPacker", bound="Packer")
Allotment = Mapping[int, float]
"""Workers that each group is meant to take of one kind."""


class Packer(Protocol):
    """Draws room for one gang after the other."""

    def place(self, gang: Gang, prefer: Allotment | None = None) -> Loads | None:
        """All of it or nothing; groups in `prefer` first."""
        ...

    def give(self, gang: Gang, loads: Loads) -> None:
        """What `place` drew comes back."""
        ...

    def section(self, row: int) -> int:
        """The group of a node."""
        ...


class RoomPacker:
    """A room as a packer.

    Args:
        room: draws exact GPUs as it goes.
        of_row: (N,) group of each node.
    """

    def __init__(self, room: Room, of_row: Ints) -> None:
        self.room = room
        self._of_row = of_row

    def place(self, gang: Gang, prefer: Allotment | None = None) -> Loads | None:
        """As `Packer.place`."""
        if prefer:
            wanted = [group for group, workers in prefer.items() if workers >= 1.0]
            if wanted:
                loads = self.room.place(gang, among=np.isin(self._of_row, wanted))
                if loads is not None:
                    return loads
        return self.room.place(gang)

    def give(self, gang: Gang, loads: Loads) -> None:
        """As `Packer.give`."""
        self.room.give(gang, loads)

    def section(self, row: int) -> int:
        """As `Packer.section`."""
        return int(self._of_row[row])


@dataclass(frozen=True, slots=True)
class Goal:
    """What a relaxation would do.

    Attributes:
        admitted: gangs that start, by index.
        torn: gangs of which it starts a part.
        extra: workers beyond the least that elastic gangs get.
        allotted: where the workers of each kind go.
        evicted: numbers of the victims that it evicts, wholly or for the larger part.
    """

    admitted: tuple[int, ...]
    torn: tuple[int, ...]
    extra: Mapping[int, int]
    allotted: Mapping[Worker, Allotment]
    evicted: tuple[int, ...] = ()


def goal_of(outline: Outline, figures: Figures, point: Floats) -> Goal:
    """Read a point of the model. O(columns)."""
    fields = outline.fields
    admitted: list[int] = []
    torn: list[int] = []
    for run, value in enumerate(point[fields["start"]].tolist()):
        members = figures.members[run]
        whole = int(value + ADMITTED)
        admitted += members[:whole]
        if value - whole > ADMITTED:
            torn += members[whole : whole + 1]
    allotted: dict[Worker, dict[int, float]] = {kind: {} for kind in outline.kinds}
    counts = np.floor(point[fields["count"]] + MEANT)
    for at in np.flatnonzero(counts > 0).tolist():
        kind, group = outline.pairs[at].tolist()
        allotted[outline.kinds[kind]][group] = float(counts[at])
    return Goal(
        tuple(admitted),
        tuple(torn),
        _extra(outline, figures, point),
        allotted,
        _evicted(outline, point),
    )


def _extra(outline: Outline, figures: Figures, point: Floats) -> dict[int, int]:
    """Extra workers of a run go to its gangs one after the other."""
    found: dict[int, int] = {}
    at = outline.fields["extra"].start
    for bucket in outline.elastic:
        _, least, most, *_ = outline.buckets[bucket]
        for run in range(outline.first_run[bucket], outline.first_run[bucket + 1]):
            left = int(point[at] + MEANT)
            for gang in figures.members[run]:
                found[gang] = min(left, most - least)
                left -= found[gang]
            at += 1
    return found


def _evicted(outline: Outline, point: Floats) -> tuple[int, ...]:
    options = outline.options
    if options is None:
        return ()
    # Options of one node overlap: what counts is how much of a victim is in any of them.
    gone = np.zeros((len(options.victims), 2))
    last_row = np.full(len(options.victims), -1)
    for at, value in zip(options.chosen.tolist(), point[outline.fields["evict"]], strict=True):
        if value <= ADMITTED:
            continue
        for victim in options.members[at]:
            if last_row[victim] != options.row[at]:  # options come node by node
                gone[victim, 1] = 0.0
                last_row[victim] = options.row[at]
            gone[victim, 1] += value
            gone[victim, 0] = max(gone[victim])
    return tuple(np.flatnonzero(gone[:, 0] > MOSTLY).tolist())


def follow(
    make: Callable[[], AnyPacker], gangs: Sequence[Gang], goal: Goal, worth: Worth
) -> tuple[AnyPacker, dict[int, Loads]]:
    """Place what the goal admits, in rounds.

    Args:
        make: a fresh packer.
        gangs: all of them.
        goal: what to go for.
        worth: the objective.

    Returns:
        the packer of the best round, and what it placed. Cost: up to `ROUNDS` passes over the
        admitted gangs.
    """
    wheel = sorted(goal.admitted, key=lambda index: _largest(gangs[index], index))
    total = sum(gangs[index].value for index in wheel)
    best: tuple[float, AnyPacker, dict[int, Loads]] | None = None
    worse = 0
    for _ in range(ROUNDS):
        packer = make()
        placed = _round(packer, gangs, wheel, goal, worth)
        value = worth.total(gangs, placed)
        worse += 1
        if best is None or value > best[0] * (1 + BETTER):
            best, worse = (value, packer, placed), 0
        failed = [index for index in wheel if index not in placed]
        small = sum(gangs[index].value for index in failed) <= GOOD_ENOUGH * total
        if small or worse >= PATIENCE:
            break
        wheel = [*failed, *(index for index in wheel if index in placed)]
    assert best is not None, "there is a first round"
    return best[1], best[2]


def _largest(gang: Gang, index: int) -> tuple[int, int, int, int]:
    needs = gang.worker.needs
    return (-gang.worker.milli, -needs.cpu_milli, -gang.workers, index)


def _round(
    packer: Packer, gangs: Sequence[Gang], wheel: Sequence[int], goal: Goal, worth: Worth
) -> dict[int, Loads]:
    left = {kind: dict(groups) for kind, groups in goal.allotted.items()}
    of_class: dict[str, dict[int, float]] = {}
    placed: dict[int, Loads] = {}
    for index in wheel:
        gang = gangs[index]
        meant = of_class.get(gang.job.class_key)
        if meant is None:
            meant = of_class[gang.job.class_key] = left.get(gang.worker, {})
        loads = packer.place(gang, meant)
        if loads is None:
            continue
        if not worth.free_of_charge and worth.of(gang, loads) <= 0:
            packer.give(gang, loads)
            continue
        placed[index] = loads
        for load in loads:
            group = packer.section(load.row)
            if group in meant:
                meant[group] -= load.workers
    return placed


def fill(
    packer: Packer,
    gangs: Sequence[Gang],
    placed: dict[int, Loads],
    order: Iterable[int],
    worth: Worth,
) -> None:
    """Place what still fits, in this order, as long as it is worth its price."""
    for index in order:
        if index in placed:
            continue
        gang = gangs[index]
        loads = packer.place(gang)
        if loads is None:
            continue
        if not worth.free_of_charge and worth.of(gang, loads) <= 0:
            packer.give(gang, loads)
            continue
        placed[index] = loads
