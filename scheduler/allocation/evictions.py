"""What could be stopped to make room, and what each node would hold without it.

A victim is a running attempt that may be stopped. An *option* of a node is a set of its victims;
the model takes at most one option a node. Small sets are listed in full, so that the bound speaks
of every set there is; where a node has many victims, the cheapest-by-size are listed as units that
cost what their cheapest member costs, which can only make the bound looser. Such units are never
evicted. A victim on several nodes is one decision that all of them share.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from scheduler.allocation.groups import Places
from scheduler.model.columns import Columns, Floats, Ints
from scheduler.model.job import WaitingJob
from scheduler.model.ports import OrderedJob
from scheduler.model.quantity import WHOLE_GPU_MILLI, JobId, UtcSeconds
from scheduler.model.snapshot import LiveAttempt, Snapshot

UNITS_MAX = 8
"""Victims of one node whose sets are listed in full: 255 options."""
OPTIONS_MAX = 60_000
"""Options of all nodes together; with more, fewer units a node."""
CHOSEN_MAX = 4_000
"""Options that get a column; the bound looks at all of them."""
OUTRANKED_COST = 1e-6
"""What it costs to stop all jobs at once that are outranked: less than any one job is worth."""


@dataclass(frozen=True, slots=True)
class Victim:
    """A running attempt that may be stopped.

    Attributes:
        cost: what the objective pays for stopping it.
        milli: GPU thousandths it holds.
        rows: nodes it sits on, ascending.
    """

    attempt: LiveAttempt
    cost: float
    milli: int
    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Options:
    """Every set of victims of every node; O of them. V victims.

    Attributes:
        victims: cheapest for their size first.
        row: (O,) the node.
        before, places: (O) the node as it is, and without the set.
        cost: (O,) of the members that sit on this node alone.
        members: (O) victims in the set, by number.
        real: (O,) whether it can be carried out (no unit of several victims in it).
        chosen: options that get a column.
        spanning: victims on several nodes, by number.
        spanning_cost: their costs.
        emptied: each node with victims, without any of them.
    """

    victims: tuple[Victim, ...]
    row: Ints
    before: Places
    places: Places
    cost: Floats
    members: tuple[tuple[int, ...], ...]
    real: Ints
    chosen: Ints
    spanning: tuple[int, ...]
    spanning_cost: Floats
    emptied: Places

    @property
    def complete(self) -> bool:
        """Whether every set of victims has a column, so that an exact model is exact."""
        return self.chosen.size == self.row.size


def victims_of(
    snapshot: Snapshot, ordered: Sequence[OrderedJob], now: UtcSeconds
) -> tuple[Victim, ...]:
    """Attempts that may be stopped, cheapest for their size first. O(live log live).

    The cost is the attempt's own value and a bonus for what runs (hysteresis: what was just
    evicted cannot evict its evictor), and the time of its GPUs that a restart wastes.

    Args:
        snapshot: the cluster.
        ordered: running jobs, as they would wait now, among the jobs of the queue order.
        now: the cycle's instant.
    """
    value: Mapping[JobId, float] = {entry.job.id: entry.value for entry in ordered}
    terms = snapshot.terms.eviction
    table = snapshot.columns.table
    found = []
    for attempt in snapshot.live.values():
        worth = value.get(attempt.job_id)
        if worth is None or attempt.stopping or not attempt.preemptible:
            continue
        if now - attempt.since < terms.min_run_s:
            continue
        milli = sum(len(task.gpu_ids) * task.gpu_milli for task in attempt.tasks)
        wasted = milli / WHOLE_GPU_MILLI * terms.restart_s * terms.value_per_gpu_s
        rows = {table.row_of[t.node_id] for t in attempt.tasks if t.node_id in table.row_of}
        if rows:
            cost = worth * (1.0 + terms.keep_bonus) + wasted
            found.append(Victim(attempt, cost, milli, tuple(sorted(rows))))
    found.sort(key=lambda each: (each.cost / max(1, each.milli), each.attempt.id))
    return tuple(found)


def outranked(
    snapshot: Snapshot, victims: Sequence[Victim], waiting: Iterable[WaitingJob]
) -> tuple[Victim, ...]:
    """Those that some waiting job may take the place of, at costs below what any job is worth.

    What is outranked yields whatever it is worth; its cost only says who goes first: the lowest
    priority, the fewest GPUs. O(victims log victims).
    """
    ceiling = max((job.priority for job in waiting if job.evicts), default=None)
    below = [each for each in victims if ceiling is not None and _priority(each) < ceiling]
    ranks = {priority: rank for rank, priority in enumerate(sorted(set(map(_priority, below))), 1)}
    total = max(1, snapshot.columns.table.gpu_model.size) * WHOLE_GPU_MILLI * max(1, len(ranks))
    found = [
        replace(each, cost=OUTRANKED_COST * max(1, each.milli) * ranks[_priority(each)] / total)
        for each in below
    ]
    found.sort(key=lambda each: (each.cost / max(1, each.milli), -each.attempt.since, each.milli))
    return tuple(found)


def _priority(victim: Victim) -> int:
    return victim.attempt.job.priority


def options_of(columns: Columns, victims: Sequence[Victim]) -> Options | None:
    """All options; None without victims. O(options * GPUs of a node)."""
    here: dict[int, list[int]] = {}
    for number, victim in enumerate(victims):
        for row in victim.rows:
            if columns.table.open[row]:
                here.setdefault(row, []).append(number)
    if not here:
        return None
    most = UNITS_MAX
    while most > 1 and sum(2 ** min(most, len(v)) for v in here.values()) > OPTIONS_MAX:
        most -= 1
    freed = _Freed(columns)
    parts = [_of_node(row, numbers, victims, most, freed) for row, numbers in sorted(here.items())]
    at = np.concatenate([np.full(len(part.members), part.row) for part in parts])
    amounts = np.concatenate([part.amounts for part in parts])
    cost = np.concatenate([part.cost for part in parts])
    members = tuple(members for part in parts for members in part.members)
    real = np.concatenate([part.real for part in parts])
    spanning = tuple(n for n, victim in enumerate(victims) if len(victim.rows) > 1)
    rows = np.array(sorted(here))
    every = np.stack([sum(freed.of(victims[n], row) for n in here[row]) for row in rows.tolist()])
    return Options(
        tuple(victims),
        at,
        Places.of(columns.free, at),
        _without(columns, at, amounts),
        cost,
        members,
        real,
        _chosen(real, amounts, cost),
        spanning,
        np.array([victims[number].cost for number in spanning]),
        _without(columns, rows, every),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """Options of one node: freed `amounts` are (options, GPUs + 2)."""

    row: int
    amounts: Ints
    cost: Floats
    members: list[tuple[int, ...]]
    real: Ints


class _Freed:
    """What a victim holds of a node."""

    def __init__(self, columns: Columns) -> None:
        self._table = columns.table
        self._width = columns.gpu_held.shape[1]

    def of(self, victim: Victim, row: int) -> Ints:
        """(G + 2,) thousandths of each GPU, milli-CPU, MiB."""
        amounts = np.zeros(self._width + 2, dtype=np.int64)
        node = self._table.nodes[row].id
        for task in victim.attempt.tasks:
            if task.node_id != node:
                continue
            for gpu in task.gpu_ids:
                where = self._table.gpu_at.get(gpu)
                if where is not None:
                    amounts[where[1]] += task.gpu_milli
            amounts[-2] += task.cpu_milli
            amounts[-1] += task.memory_mib
        return amounts


def _of_node(
    row: int, numbers: list[int], victims: Sequence[Victim], most: int, freed: _Freed
) -> _Part:
    units = [[number] for number in numbers]
    while len(units) > most:  # the dearest for their size are the least likely to go
        last = units.pop()
        units[-1] = [*units[-1], *last]
    amounts = np.stack([sum(freed.of(victims[n], row) for n in unit) for unit in units])
    # A unit costs no more than any of its members; what a spanning one costs is counted elsewhere.
    alone = [min(0.0 if len(victims[n].rows) > 1 else victims[n].cost for n in u) for u in units]
    own = np.stack([freed.of(victims[number], row) for number in numbers])
    masks = np.arange(1, 2 ** len(units))
    bits = (masks[:, None] >> np.arange(len(units))) & 1
    single = np.array([len(unit) == 1 for unit in units])
    part = _Part(
        row,
        bits @ amounts,
        bits @ np.array(alone),
        [tuple(n for at in np.flatnonzero(line) for n in units[at]) for line in bits],
        (bits @ ~single) == 0,
    )
    if len(numbers) <= most:
        return part
    # Units cannot go; the cheapest first, one more each time, can.
    costs = [0.0 if len(victims[n].rows) > 1 else victims[n].cost for n in numbers]
    more = range(most, len(numbers) + 1)
    return _Part(
        row,
        np.concatenate([part.amounts, np.cumsum(own, axis=0)[most - 1 :]]),
        np.concatenate([part.cost, np.cumsum(costs)[most - 1 :]]),
        [*part.members, *(tuple(numbers[:count]) for count in more)],
        np.concatenate([part.real, np.ones(len(more), dtype=np.bool_)]),
    )


def _without(columns: Columns, rows: Ints, amounts: Ints) -> Places:
    """Nodes with these amounts given back."""
    table = columns.table
    held = columns.gpu_held[rows] - amounts[:, :-2]
    gpu = np.where(table.gpu_open[rows], np.maximum(WHOLE_GPU_MILLI - held, 0), 0)
    entire = gpu == WHOLE_GPU_MILLI
    model = table.gpu_model[rows]
    whole = (
        np.stack([(entire & (model == code)).sum(axis=1) for code in range(len(table.models))])
        if table.models
        else np.zeros((0, rows.size), dtype=np.int64)
    )
    return Places(
        rows,
        gpu,
        whole,
        np.maximum(table.cpu[rows] - columns.cpu_held[rows] + amounts[:, -2], 0),
        np.maximum(table.memory[rows] - columns.memory_held[rows] + amounts[:, -1], 0),
        # As if nobody held any of them: a model that knows no more is looser, and its bound holds.
        {name: table.capacity_of(name)[rows] for name in columns.free.extras},
    )


def _chosen(real: Ints, amounts: Ints, cost: Floats) -> Ints:
    """Options worth a column: all, or those that free most for their cost."""
    candidates = np.flatnonzero(real)
    if candidates.size <= CHOSEN_MAX:
        return candidates
    size = amounts[candidates, :-2].sum(axis=1) + 1
    order = np.argsort(cost[candidates] / size, kind="stable")
    return np.sort(candidates[order[:CHOSEN_MAX]])
