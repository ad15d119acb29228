"""Between packings and points of the model with a group for every node, both ways.

What a solver returns is rounded and looked at with suspicion: it may be fractional, break rows, or
be no point at all. Workers are then dealt out to their gangs and drawn from a room, which refuses
what is not free.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from scheduler.allocation.evictions import Victim
from scheduler.allocation.figures import Figures
from scheduler.allocation.follow import Goal
from scheduler.allocation.gangs import Gang
from scheduler.allocation.highs import Answer
from scheduler.allocation.knapsack import Knapsack, holds
from scheduler.allocation.room import Loads, Room
from scheduler.allocation.spread import Spread
from scheduler.allocation.worth import Packing
from scheduler.model.columns import Floats

INTEGRAL = 1e-4
"""How far from an integer a solver's value may be by rounding."""


def whole_point(knapsack: Knapsack, answer: Answer) -> tuple[Floats | None, str]:
    """The answer in integers, if that is a point of the model; else why not."""
    values = answer.values
    if values is None:
        return None, ""
    near = np.round(values)
    worst = float(np.abs(values - near).max(initial=0.0))
    if worst > INTEGRAL:
        return None, f"solver answer refused: a value is {worst:.2g} away from an integer"
    if not holds(knapsack.program.arrays, near):
        return None, "solver answer refused: it breaks a row"
    return near, ""


def point_of(
    knapsack: Knapsack,
    figures: Figures,
    gangs: Sequence[Gang],
    packing: Packing,
    evicted: Sequence[Victim] = (),
) -> Floats | None:
    """A packing as a point of the model; None when it is none.

    It is none when it holds what the model left out: a gang beyond its bucket's cut, a set of
    victims without a column.
    """
    outline = knapsack.outline
    point = figures.lower.copy()
    run_of = {gang: run for run, members in enumerate(figures.members) for gang in members}
    kinds = {kind: number for number, kind in enumerate(outline.kinds)}
    first = outline.fields["count"].start
    column = {(k, g): first + at for at, (k, g) in enumerate(outline.pairs.tolist())}
    of_row = outline.groups.of_row
    extra: defaultdict[int, int] = defaultdict(int)
    for index, loads in packing.items():
        gang = gangs[index]
        if index not in run_of or gang.worker not in kinds:
            return None
        point[run_of[index]] += 1.0
        extra[run_of[index]] += sum(load.workers for load in loads) - gang.workers
        for load in loads:
            at = column.get((kinds[gang.worker], int(of_row[load.row])))
            if at is None:
                return None
            point[at] += load.workers
    _write_extra(knapsack, point, extra)
    _write_blocks(knapsack, figures, point)
    _write_racks(knapsack, figures, packing, point)
    if not _write_evictions(knapsack, point, evicted):
        return None
    return point if holds(knapsack.program.arrays, point) else None


def _write_extra(knapsack: Knapsack, point: Floats, extra: Mapping[int, int]) -> None:
    outline = knapsack.outline
    at = outline.fields["extra"].start
    for bucket in outline.elastic:
        for run in range(outline.first_run[bucket], outline.first_run[bucket + 1]):
            point[at] = extra.get(run, 0)
            at += 1


def _write_blocks(knapsack: Knapsack, figures: Figures, point: Floats) -> None:
    """Blocks that the packing leaves free, as many as are to be kept."""
    outline = knapsack.outline
    first, counts = outline.fields["keep"].start, outline.fields["count"]
    kind, group = outline.pairs[:, 0], outline.pairs[:, 1]
    used = np.zeros_like(figures.capacity)
    np.add.at(used, group, outline.need[kind] * point[counts][:, None])
    left = figures.blocks.copy()
    for at, (number, groups) in enumerate(outline.zones):
        size = outline.headroom[number].gpus
        one = outline.dims.rows
        gpus = (figures.reserve[at, 0] - used[list(groups), one].sum()) * outline.dims.reserve[0]
        kept = max(0.0, min(left[number], gpus // size, figures.upper[first + at]))
        point[first + at] = kept
        left[number] -= kept


def _write_racks(
    knapsack: Knapsack,
    figures: Figures,
    packing: Packing,
    point: Floats,
) -> None:
    outline = knapsack.outline
    at = outline.fields["inside"].start
    racks = {code: number for number, code in enumerate(outline.rack_codes)}
    for bucket in outline.one_rack:
        runs = range(outline.first_run[bucket], outline.first_run[bucket + 1])
        for index in (index for run in runs for index in figures.members[run]):
            if index in packing:
                group = outline.groups.of_row[packing[index][0].row]
                point[at + racks[int(outline.groups.rack[group])]] += 1.0
        at += len(racks)


def _write_evictions(knapsack: Knapsack, point: Floats, evicted: Sequence[Victim]) -> bool:
    """Whether the sets of victims have columns."""
    options = knapsack.outline.options
    if options is None or not evicted:
        return not evicted
    number = {victim.attempt.id: at for at, victim in enumerate(options.victims)}
    gone = [number[victim.attempt.id] for victim in evicted]
    here: defaultdict[int, set[int]] = defaultdict(set)
    for victim in gone:
        for row in options.victims[victim].rows:
            here[row].add(victim)
    first = knapsack.outline.fields["evict"].start
    columns = {
        (int(options.row[option]), frozenset(options.members[option])): first + at
        for at, option in enumerate(options.chosen.tolist())
    }
    for row, members in here.items():
        at = columns.get((row, frozenset(members)))
        if at is None:
            return False
        point[at] = 1.0
    for at, victim in enumerate(options.spanning, knapsack.outline.fields["stop"].start):
        point[at] = float(victim in gone)
    return True


def deal(room: Room, gangs: Sequence[Gang], goal: Goal, rows: Sequence[int]) -> dict[int, Loads]:
    """Give every admitted gang its workers where the exact model has them.

    Large gangs first, each on as few nodes as possible; gangs bound to a rack before all others.

    Args:
        room: drawn on; a gang that it refuses is left out.
        gangs: all of them.
        goal: an exact model's.
        rows: node of each group.
    """
    left = {
        kind: {rows[group]: int(workers) for group, workers in groups.items()}
        for kind, groups in goal.allotted.items()
    }
    placed: dict[int, Loads] = {}
    order = sorted(goal.admitted, key=lambda i: (not gangs[i].one_rack, -gangs[i].workers, i))
    for index in order:
        gang = gangs[index]
        here = left.get(gang.worker, {})
        workers = gang.workers + goal.extra.get(index, 0)
        spread = _spread(room, gang, here, workers)
        loads = None if spread is None else room.draw(gang, spread)
        if spread is None or loads is None:
            continue
        placed[index] = loads
        for row, taken in spread:
            here[row] -= taken
    return placed


def _spread(room: Room, gang: Gang, left: Mapping[int, int], workers: int) -> Spread | None:
    racks = room.table.rack
    if gang.one_rack:
        by_rack: defaultdict[int, int] = defaultdict(int)
        for row, count in left.items():
            by_rack[int(racks[row])] += count
        enough = sorted((count, rack) for rack, count in by_rack.items() if count >= workers)
        if not enough:
            return None
        left = {row: count for row, count in left.items() if racks[row] == enough[0][1]}
    if gang.shape.topology.one_node:  # grown, it has several workers; they stay together
        left = {row: count for row, count in left.items() if count >= workers}
    found: Spread = []
    missing = workers
    for row, count in sorted(
        left.items(), key=lambda each: (each[1] < missing, abs(each[1] - missing), each[0])
    ):
        taken = min(count, missing)
        if taken > 0:
            found.append((row, taken))
            missing -= taken
        if not missing:
            return sorted(found)
    return None
