"""The weighted knapsack, written in PuLP. This is the formulation; nothing of it is elsewhere.

Sets: kinds w of workers; groups G of nodes, whose capacity is counted in dimensions d; buckets b of
gangs that differ in worth only, with runs r, the most valuable first; tenants with quotas q; blocks
to keep free h; sets o of jobs of one node that may be evicted; running jobs v on several nodes.

Variables (integer in the exact model):
    start[b,r]   gangs of run r that start                         0 .. gangs in the run
    extra[b,r]   workers beyond the least, of elastic gangs        0 .. (most - least) * gangs
    keep[h,z]    blocks that stay free in a zone of h's groups     0 .. what is there
    count[w,G]   workers of kind w in group G                      0 .. what fits
    inside[b,k]  gangs of bucket b inside rack k (one-rack gangs)  0 .. what fits
    evict[o]     whether set o of its node is evicted              0 .. 1
    stop[v]      whether v, which sits on several nodes, stops     0 .. 1

Maximise   sum value[b,r] start + sum share * value[b,r] / workers[b] extra + sum value[h] keep
           - sum price[G] gpus[w] count - sum cost[o] evict - sum cost[v] stop
Subject to
    whole[w]      sum_G count[w,G] = sum_{b of w} (workers[b] start[b,r] + extra[b,r])
    room[G,d]     sum_w need[w,d] count[w,G] <= held[G,d] + sum_{o on G} freed[o,d] evict[o]
    reserve[h,z,d]  sum_{w, G of z} need[w,d] count[w,G] + size[h] // d keep[h,z] <= held + freed
    blocks[h]     sum_z keep[h,z] >= blocks to keep, where that is hard; else <=, at a value each
    quota[q]      sum gpus of q's starts - gpus freed of q <= what q may still take
    grow[b,r]     extra[b,r] <= (most - least) start[b,r]
    rack[w,k]     sum_b workers[b] inside[b,k] <= sum_{G in k} count[w,G]
    gather[b]     sum_r start[b,r] = sum_k inside[b,k]
    one[n]        sum_{o on node n} evict[o] <= 1
    stop[v,n]     sum_{o on n with v} evict[o] <= stop[v]
    evictions     sum jobs in o evict[o] + sum stop[v] <= limit

All or nothing holds through `whole`. With groups of many nodes this is a relaxation: every packing
of nodes is a point of it, so its optimum bounds every plan. With one node a group it is exact, but
for shares of GPUs and NVLink domains inside a node.

The bound is proved here, not believed, by weak duality: for any prices y of the rows (>= 0 on
`<=`), y b + sum over columns of max(c - y A over its bounds) is above every plan.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pulp

from scheduler.allocation.figures import Figures
from scheduler.allocation.highs import Answer, Arrays, Limits, Program, PulpModel
from scheduler.allocation.outline import Outline
from scheduler.model.columns import Floats
from scheduler.model.quantity import WHOLE_GPU_MILLI

Terms = list[tuple[Any, float]]
FEASIBLE = 1e-6
ROUNDING = 1e-9
"""Relative allowance for the rounding of a bound's own sum."""


@dataclass(frozen=True, slots=True, eq=False)
class Knapsack:
    """A model with the outline it was built for.

    Attributes:
        row: number of each row, by name.
    """

    outline: Outline
    program: Program
    row: Mapping[str, int]


def build(outline: Outline, figures: Figures) -> Knapsack:
    """Write the model above. O(nonzeros); PuLP expressions are built from lists of terms."""
    problem = pulp.LpProblem("haversack", pulp.LpMaximize)
    columns = _columns(problem, outline, figures)
    problem.setObjective(
        pulp.LpAffineExpression(list(zip(columns, figures.cost.tolist(), strict=True)))
    )
    by_sort = {name: columns[place] for name, place in outline.fields.items()}
    rows = []
    for name, sense, terms, limit in _rows(outline, figures, by_sort):
        rows.append(pulp.LpConstraint(pulp.LpAffineExpression(terms), sense, name, limit))
    numbers = {row.name: number for number, row in enumerate(rows)}
    return Knapsack(outline, Program(PulpModel(problem, columns, rows)), numbers)


def refresh(knapsack: Knapsack, figures: Figures) -> None:
    """Write the numbers of another decision into a model that covers it."""
    limit = knapsack.program.arrays.limit.copy()
    head = limits_of(knapsack.outline, figures)
    limit[: head.size] = head  # what follows never changes
    knapsack.program.change(figures.cost, figures.lower, figures.upper, limit)


def limits_of(outline: Outline, figures: Figures) -> Floats:
    """Right-hand sides of the rows `whole`, `room`, `reserve`, `quota`, `blocks`, in this order."""
    hard = np.array([each.value is None for each in outline.headroom], dtype=np.bool_)
    return np.concatenate(
        [
            np.zeros(len(outline.kinds)),
            figures.capacity[:, : outline.dims.rows][outline.binding[0]],
            figures.reserve.ravel(),
            figures.quota[outline.binding[1]] / WHOLE_GPU_MILLI,
            np.where(hard, -figures.blocks, figures.blocks),
        ]
    )


def _columns(problem: Any, outline: Outline, figures: Figures) -> list[Any]:
    names = [f"start_{bucket}_{run}" for bucket, n in enumerate(outline.runs) for run in range(n)]
    names += [
        f"extra_{bucket}_{run}" for bucket in outline.elastic for run in range(outline.runs[bucket])
    ]
    names += [f"keep_{number}" for number in range(len(outline.zones))]
    names += [f"count_{kind}_{group}" for kind, group in outline.pairs.tolist()]
    names += [
        f"inside_{bucket}_{rack}" for bucket in outline.one_rack for rack in outline.rack_codes
    ]
    if outline.options is not None:
        names += [f"evict_{option}" for option in outline.options.chosen.tolist()]
        names += [f"stop_{victim}" for victim in outline.options.spanning]
    return [
        problem.add_variable(name, low, high, pulp.LpInteger)
        for name, low, high in zip(
            names, figures.lower.tolist(), figures.upper.tolist(), strict=True
        )
    ]


def _rows(
    outline: Outline, figures: Figures, columns: dict[str, list[Any]]
) -> Iterator[tuple[str, int, Terms, float]]:
    """(name, sense, terms, limit) of every row; the first ones in the order of `limits_of`."""
    draws = _Draws(outline, columns["count"])
    wholes: list[Terms] = [[] for _ in outline.kinds]
    for column, (kind, _) in zip(columns["count"], outline.pairs.tolist(), strict=True):
        wholes[kind].append((column, 1.0))
    starts = [columns["start"][a:b] for a, b in pairwise(outline.first_run)]
    extras = iter(columns["extra"])
    grown = {bucket: [next(extras) for _ in starts[bucket]] for bucket in outline.elastic}
    for number, (kind, workers, *_) in enumerate(outline.buckets):
        wholes[kind] += [(column, -float(workers)) for column in starts[number]]
        wholes[kind] += [(column, -1.0) for column in grown.get(number, ())]
    first = [
        *((f"whole_{kind}", pulp.LpConstraintEQ, terms) for kind, terms in enumerate(wholes)),
        *_room_rows(outline, draws, columns["evict"]),
        *_reserve_rows(outline, draws, columns),
        *_quota_rows(outline, starts, grown, columns),
        *_block_rows(outline, columns["keep"]),
    ]
    for row, limit in zip(first, limits_of(outline, figures).tolist(), strict=True):
        yield (*row, limit)
    for bucket, extra in grown.items():
        _, least, most, *_ = outline.buckets[bucket]
        for run, (column, start) in enumerate(zip(extra, starts[bucket], strict=True)):
            terms = [(column, 1.0), (start, -float(most - least))]
            yield f"grow_{bucket}_{run}", pulp.LpConstraintLE, terms, 0.0
    yield from _rack_rows(outline, starts, columns)
    yield from _eviction_rows(outline, figures, columns)


class _Draws:
    """What the workers of each group draw of each dimension, as terms."""

    def __init__(self, outline: Outline, count: Sequence[Any]) -> None:
        self._need = outline.need.T.tolist()
        self._count: defaultdict[int, list[tuple[Any, int]]] = defaultdict(list)
        for column, (kind, group) in zip(count, outline.pairs.tolist(), strict=True):
            self._count[group].append((column, kind))

    def terms(self, group: int, dimension: int) -> Terms:
        """Of one group and dimension."""
        need = self._need[dimension]
        return [(column, need[kind]) for column, kind in self._count[group] if need[kind]]


def _room_rows(
    outline: Outline, draws: _Draws, evict: Sequence[Any]
) -> Iterator[tuple[str, int, Terms]]:
    freed = _chosen_freed(outline)
    of_group: defaultdict[int, list[int]] = defaultdict(list)
    if outline.options is not None:
        rows = outline.options.row[outline.options.chosen]
        for at, group in enumerate(outline.groups.of_row[rows].tolist()):
            of_group[group].append(at)
    for group in range(len(outline.groups.key)):
        for dimension in np.flatnonzero(outline.binding[0][group]).tolist():
            terms = draws.terms(group, dimension)
            terms += [
                (evict[at], -float(freed[at, dimension]))
                for at in of_group.get(group, ())
                if freed[at, dimension]
            ]
            yield f"room_{group}_{dimension}", pulp.LpConstraintLE, terms


def _chosen_freed(outline: Outline) -> Floats:
    """(chosen options, D) what each adds to its group."""
    options = outline.options
    return outline.freed if options is None else outline.freed[options.chosen]


def _reserve_rows(
    outline: Outline, draws: _Draws, columns: dict[str, list[Any]]
) -> Iterator[tuple[str, int, Terms]]:
    freed = _chosen_freed(outline)
    group_of = (
        []
        if outline.options is None
        else outline.groups.of_row[outline.options.row[outline.options.chosen]].tolist()
    )
    for number, ((headroom, groups), keep) in enumerate(
        zip(outline.zones, columns["keep"], strict=True)
    ):
        for at, size in enumerate(outline.dims.reserve):
            dimension = outline.dims.rows + at
            terms = [term for group in groups for term in draws.terms(group, dimension)]
            if blocks := outline.headroom[headroom].gpus // size:
                terms.append((keep, float(blocks)))
            terms += [
                (evict, -float(freed[option, dimension]))
                for option, evict in enumerate(columns["evict"])
                if group_of[option] in groups and freed[option, dimension]
            ]
            yield f"reserve_{number}_{size}", pulp.LpConstraintLE, terms


def _block_rows(outline: Outline, keep: Sequence[Any]) -> Iterator[tuple[str, int, Terms]]:
    for number, each in enumerate(outline.headroom):
        sign = -1.0 if each.value is None else 1.0
        terms = [
            (column, sign)
            for column, (headroom, _) in zip(keep, outline.zones, strict=True)
            if headroom == number
        ]
        yield f"blocks_{number}", pulp.LpConstraintLE, terms


def _quota_rows(
    outline: Outline,
    starts: Sequence[Sequence[Any]],
    grown: dict[int, list[Any]],
    columns: dict[str, list[Any]],
) -> Iterator[tuple[str, int, Terms]]:
    credit = quota_credit(outline)
    for number in np.flatnonzero(outline.binding[1]).tolist():
        tenants = outline.quotas[number]
        terms: Terms = []
        for bucket, (kind, workers, _, _, tenant) in enumerate(outline.buckets):
            gpus = outline.kinds[kind].milli / WHOLE_GPU_MILLI
            if tenant in tenants and gpus:
                terms += [(column, gpus * workers) for column in starts[bucket]]
                terms += [(column, gpus) for column in grown.get(bucket, ())]
        if outline.options is not None:
            held = credit[outline.options.chosen, number]
            terms += [
                (evict, -float(gpus))
                for evict, gpus in zip(columns["evict"], held.tolist(), strict=True)
                if gpus
            ]
            terms += [
                (stop, -outline.options.victims[victim].milli / WHOLE_GPU_MILLI)
                for stop, victim in zip(columns["stop"], outline.options.spanning, strict=True)
                if outline.options.victims[victim].attempt.tenant in tenants
            ]
        yield f"quota_{number}", pulp.LpConstraintLE, terms


def quota_credit(outline: Outline) -> Floats:
    """(O, quotas) GPUs that each option gives back to each quota; spanning jobs count elsewhere."""
    options = outline.options
    if options is None or not outline.quotas:
        return np.zeros((0 if options is None else options.row.size, len(outline.quotas)))
    each = np.zeros((len(options.victims), len(outline.quotas)))
    for number, tenants in enumerate(outline.quotas):
        for at, victim in enumerate(options.victims):
            if victim.attempt.tenant in tenants and len(victim.rows) == 1:
                each[at, number] = victim.milli / WHOLE_GPU_MILLI
    return np.stack([each[list(members)].sum(axis=0) for members in options.members])


def _rack_rows(
    outline: Outline, starts: Sequence[Sequence[Any]], columns: dict[str, list[Any]]
) -> Iterator[tuple[str, int, Terms, float]]:
    if not outline.one_rack:
        return
    at = iter(columns["inside"])
    inside = {bucket: [next(at) for _ in outline.rack_codes] for bucket in outline.one_rack}
    rows: defaultdict[tuple[int, int], Terms] = defaultdict(list)
    for bucket, gathered in inside.items():
        kind, workers, *_ = outline.buckets[bucket]
        for rack, column in zip(outline.rack_codes, gathered, strict=True):
            rows[kind, rack].append((column, float(workers)))
    for column, (kind, group) in zip(columns["count"], outline.pairs.tolist(), strict=True):
        rack = int(outline.groups.rack[group])
        if (kind, rack) in rows:
            rows[kind, rack].append((column, -1.0))
    for (kind, rack), terms in rows.items():
        yield f"rack_{kind}_{rack}", pulp.LpConstraintLE, terms, 0.0
    for bucket, gathered in inside.items():
        terms = [(column, 1.0) for column in starts[bucket]]
        terms += [(column, -1.0) for column in gathered]
        yield f"gather_{bucket}", pulp.LpConstraintEQ, terms, 0.0


def _eviction_rows(
    outline: Outline, figures: Figures, columns: dict[str, list[Any]]
) -> Iterator[tuple[str, int, Terms, float]]:
    options = outline.options
    if options is None:
        return
    stop = dict(zip(options.spanning, columns["stop"], strict=True))
    of_node: defaultdict[int, list[int]] = defaultdict(list)
    for at, row in enumerate(options.row[options.chosen].tolist()):
        of_node[row].append(at)
    for row, here in of_node.items():
        yield f"one_{row}", pulp.LpConstraintLE, [(columns["evict"][at], 1.0) for at in here], 1.0
    shared: defaultdict[tuple[int, int], Terms] = defaultdict(list)
    total: Terms = [(column, 1.0) for column in stop.values()]
    for row, here in of_node.items():
        for at in here:
            members = options.members[options.chosen[at]]
            alone = sum(1 for victim in members if victim not in stop)
            if alone:
                total.append((columns["evict"][at], float(alone)))
            for victim in members:
                if victim in stop:
                    shared[victim, row].append((columns["evict"][at], 1.0))
    for (victim, row), terms in shared.items():
        yield f"stop_{victim}_{row}", pulp.LpConstraintLE, [*terms, (stop[victim], -1.0)], 0.0
    yield "evictions", pulp.LpConstraintLE, total, float(figures.evictions)


@dataclass(frozen=True, slots=True, eq=False)
class Relaxed:
    """What the linear relaxation says.

    Attributes:
        bound: proven upper bound of the objective over all plans.
        values: (C,) its point, by column; None when there is none.
        prices: (R,) prices of the rows that proved the bound; None when nothing but the sum of all
            values is known.
    """

    bound: float
    values: Floats | None
    prices: Floats | None
    notes: tuple[str, ...] = ()


def relax(knapsack: Knapsack, limits: Limits) -> Relaxed:
    """Solve the relaxation, from where the model stood if it was solved before."""
    answer = knapsack.program.relax(limits)
    bound, prices = priced_bound(knapsack, answer)
    return Relaxed(bound, answer.values, prices, answer.notes)


def priced_bound(knapsack: Knapsack, answer: Answer) -> tuple[float, Floats | None]:
    """The best upper bound that the answer's row prices prove, and those prices."""
    arrays = knapsack.program.arrays
    best = float(np.maximum(arrays.cost * arrays.lower, arrays.cost * arrays.upper).sum())
    if answer.duals is None or answer.duals.size != arrays.limit.size:
        return best, None
    prices = None
    for sign in (1.0, -1.0):  # solvers disagree about the sign of a maximisation's prices
        candidate = weak_dual_bound(knapsack, sign * answer.duals)
        if candidate < best:
            best, prices = candidate, sign * answer.duals
    return best, prices


def weak_dual_bound(knapsack: Knapsack, prices: Floats) -> float:
    """Upper bound proved by row prices, whatever they are. O(nonzeros + options), in numpy.

    Every set of victims of every node counts, not only those that have a column.
    """
    outline, arrays = knapsack.outline, knapsack.program.arrays
    prices = np.where(np.isfinite(prices), prices, 0.0)
    prices = np.where(arrays.equal, prices, np.maximum(prices, 0.0))
    evict = outline.fields["evict"]
    if outline.options is not None:
        one = [number for name, number in knapsack.row.items() if name.startswith("one_")]
        prices[one] = 0.0
    left = arrays.priced(prices)
    worth = np.maximum(left * arrays.lower, left * arrays.upper)
    worth[evict] = 0.0
    bound = float(prices @ arrays.limit) + float(worth.sum())
    if outline.options is not None:
        bound += _evictions_worth(knapsack, prices)
    return bound * (1.0 + ROUNDING) if bound > 0 else bound


def _evictions_worth(knapsack: Knapsack, prices: Floats) -> float:
    """The most that one option a node can add at these prices."""
    outline, row = knapsack.outline, knapsack.row
    options = outline.options
    assert options is not None, "asked only where something may be evicted"
    rows, groups = outline.dims.rows, len(outline.groups.key)
    first = len(outline.kinds)
    room = np.zeros((groups, rows))
    at = first + int(outline.binding[0].sum())
    room[outline.binding[0]] = prices[first:at]
    group = outline.groups.of_row[options.row]
    worth = (outline.freed[:, :rows] * room[group]).sum(axis=1) - options.cost
    sizes = len(outline.dims.reserve)
    for number, (_, inside) in enumerate(outline.zones):
        price = prices[at + number * sizes : at + (number + 1) * sizes]
        worth += np.where(np.isin(group, inside), outline.freed[:, rows:] @ price, 0.0)
    at += len(outline.zones) * sizes
    bound = outline.binding[1]
    worth += quota_credit(outline)[:, bound] @ prices[at : at + int(bound.sum())]
    spanning = set(options.spanning)
    limit = prices[row["evictions"]]
    for number, members in enumerate(options.members):
        for victim in members:
            if victim not in spanning:
                worth[number] -= limit
            elif (shared := row.get(f"stop_{victim}_{options.row[number]}")) is not None:
                worth[number] -= prices[shared]
    best = np.zeros(len(outline.groups.of_row))
    np.maximum.at(best, options.row, worth)
    return float(best.sum())


def holds(arrays: Arrays, point: Floats) -> bool:
    """Whether the point satisfies every row and bound, but for rounding."""
    over = arrays.activity(point) - arrays.limit
    allowed = FEASIBLE * (1.0 + np.abs(arrays.limit))
    return bool(
        (over <= allowed).all()
        and (np.where(arrays.equal, -over, 0.0) <= allowed).all()
        and (point >= arrays.lower - FEASIBLE).all()
        and (point <= arrays.upper + FEASIBLE).all()
    )
