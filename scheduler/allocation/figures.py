"""The numbers in the knapsack's columns and rows, for one decision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from scheduler.allocation.groups import UNBOUNDED
from scheduler.allocation.outline import Outline, Scene
from scheduler.model.columns import Floats
from scheduler.model.quantity import TenantId
from scheduler.model.snapshot import Snapshot
from scheduler.model.terms import EXTRA_WORTH


@dataclass(frozen=True, slots=True, eq=False)
class Figures:
    """The numbers of one decision. C columns, G groups, D dimensions.

    Attributes:
        cost: (C,) what one unit of each column adds to the objective.
        lower, upper: (C,) bounds of each column.
        capacity: (G, D) what the groups hold.
        reserve: (zones, sizes) slots of each size that the zones hold.
        blocks: (headroom,) how many blocks there are to keep; hard ones as many as there are.
        quota: (quotas,) GPU thousandths that may still be taken.
        evictions: how many attempts may be stopped.
        members: gangs of each run, most valuable first.
    """

    cost: Floats
    lower: Floats
    upper: Floats
    capacity: Floats
    reserve: Floats
    blocks: Floats
    quota: Floats
    evictions: int
    members: tuple[tuple[int, ...], ...]


def figures_of(outline: Outline, scene: Scene) -> Figures:
    """The numbers of a decision, in an outline that covers it. O(columns + kinds * nodes)."""
    terms = scene.snapshot.terms
    options = outline.options
    fields = outline.fields
    cost, lower, upper = (np.zeros(outline.columns) for _ in range(3))
    members = _start(outline, scene, cost, upper)
    fits = _fits(outline, scene)
    demand = _demand(outline, upper[fields["start"]])
    kind, group = outline.pairs[:, 0], outline.pairs[:, 1]
    upper[fields["count"]] = np.minimum(fits[kind, group], demand[kind])
    gpus = np.array([each.milli / 1_000 for each in outline.kinds])
    if outline.pairs.size:
        cost[fields["count"]] = -gpus[kind] * outline.groups.price[group]
    _extra(outline, cost, upper)
    _inside(outline, scene, upper)
    held = outline.dims.held(scene.places)
    capacity = outline.groups.sums(held, scene.rows)
    reserve, blocks = _headroom(outline, capacity, cost, upper)
    if options is not None:
        cost[fields["evict"]] = -options.cost[options.chosen]
        cost[fields["stop"]] = -options.spanning_cost
        upper[fields["evict"]] = 1.0
        upper[fields["stop"]] = 1.0
    return Figures(
        cost,
        lower,
        upper,
        capacity,
        reserve,
        blocks,
        quota_left(outline.quotas, scene.snapshot),
        terms.eviction.evictions_max,
        members,
    )


def trimmed(outline: Outline, figures: Figures) -> Outline:
    """The outline without rows that cannot bind, whatever starts: they cost time and say nothing.

    No group is asked for more CPU or memory than its GPUs could take along, each with the most that
    any kind asks for one of them, and what kinds without GPUs ask for.
    """
    if outline.options is not None:
        return outline
    rows = outline.dims.rows
    drawn = _drawn_at_most(outline, figures.upper[outline.fields["count"]])
    drawn = np.minimum(drawn, _beside_gpus(outline, figures))
    asked = np.zeros(len(outline.quotas))
    start = figures.upper[outline.fields["start"]]
    for number, (kind, _, most, _, tenant) in enumerate(outline.buckets):
        runs = slice(outline.first_run[number], outline.first_run[number + 1])
        milli = start[runs].sum() * outline.kinds[kind].milli * most
        for row, tenants in enumerate(outline.quotas):
            if tenant in tenants:
                asked[row] += milli
    binding = (drawn > figures.capacity[:, :rows], asked > figures.quota)
    return replace(outline, binding=binding)


def _drawn_at_most(outline: Outline, counts: Floats) -> Floats:
    """(G, rows) what all workers that could come would draw."""
    kind, group = outline.pairs[:, 0], outline.pairs[:, 1]
    rows = outline.dims.rows
    drawn = np.zeros((len(outline.groups.key), rows))
    for dimension in range(rows):
        drawn[:, dimension] = np.bincount(
            group,
            weights=outline.need[kind, dimension] * counts,
            minlength=len(outline.groups.key),
        )
    return drawn


def _beside_gpus(outline: Outline, figures: Figures) -> Floats:
    """(G, rows) for CPU and memory: what the group's GPUs could take along; elsewhere infinite."""
    rows = outline.dims.rows
    found = np.full((len(outline.groups.key), rows), np.inf)
    if not outline.dims.slots or outline.dims.shares or outline.dims.slots[0] != 1:
        return found
    gpus = np.array([kind.needs.gpus for kind in outline.kinds])
    counts = figures.upper[outline.fields["count"]]
    without = np.where(gpus[outline.pairs[:, 0]] == 0, counts, 0.0)
    others = _drawn_at_most(outline, without)
    for dimension in (rows - 2, rows - 1):
        each = outline.need[gpus > 0, dimension] / gpus[gpus > 0]
        most = float(each.max(initial=0.0))
        found[:, dimension] = figures.capacity[:, 0] * most + others[:, dimension]
    return found


def _start(
    outline: Outline, scene: Scene, cost: Floats, upper: Floats
) -> tuple[tuple[int, ...], ...]:
    """Write the columns of runs; who is in each."""
    number = {key: at for at, key in enumerate(outline.buckets)}
    kinds = {kind: at for at, kind in enumerate(outline.kinds)}
    kind_of = [kinds.get(kind, -1) for kind in scene.kinds]
    members: list[tuple[int, ...]] = [()] * outline.first_run[-1]
    gangs = scene.gangs
    for bucket, runs in zip(scene.buckets, scene.runs, strict=True):
        if not runs:
            continue
        sizes = (bucket.workers, bucket.workers_max, bucket.one_rack, bucket.tenant)
        first = outline.first_run[number[(kind_of[bucket.kind], *sizes)]]
        for at, run in enumerate(runs, first):
            members[at] = run
            cost[at] = gangs[run[0]].value
            upper[at] = len(run)
    return tuple(members)


def _fits(outline: Outline, scene: Scene) -> Floats:
    """(W, G) workers of each kind that fit each group, every kind alone."""
    known = {kind: number for number, kind in enumerate(scene.kinds)}
    of_row = outline.groups.of_row[scene.rows]
    total = np.zeros((len(outline.kinds), len(outline.groups.key)))
    for number, kind in enumerate(outline.kinds):
        if kind in known:
            weights = scene.fit[known[kind]]
            total[number] = np.bincount(of_row, weights, minlength=len(outline.groups.key))
    return np.minimum(total, UNBOUNDED)


def _demand(outline: Outline, gangs: Floats) -> Floats:
    """(W,) workers of each kind that could be asked for at most."""
    demand = np.zeros(len(outline.kinds))
    for number, key in enumerate(outline.buckets):
        runs = slice(outline.first_run[number], outline.first_run[number + 1])
        demand[key[0]] += gangs[runs].sum() * key[2]
    return demand


def _extra(outline: Outline, cost: Floats, upper: Floats) -> None:
    at = outline.fields["extra"].start
    for bucket in outline.elastic:
        _, workers, workers_max, _, _ = outline.buckets[bucket]
        runs = slice(outline.first_run[bucket], outline.first_run[bucket + 1])
        to = slice(at, at + outline.runs[bucket])
        cost[to] = EXTRA_WORTH * cost[runs] / workers
        upper[to] = (workers_max - workers) * upper[runs]
        at = to.stop


def _inside(outline: Outline, scene: Scene, upper: Floats) -> None:
    """How many gangs of a bucket one rack holds."""
    at = outline.fields["inside"].start
    known = {kind: number for number, kind in enumerate(scene.kinds)}
    for bucket in outline.one_rack:
        kind, workers, *_ = outline.buckets[bucket]
        by_rack = np.zeros(len(scene.table.racks), dtype=np.int64)
        if outline.kinds[kind] in known:
            np.add.at(by_rack, scene.table.rack[scene.rows], scene.fit[known[outline.kinds[kind]]])
        runs = slice(outline.first_run[bucket], outline.first_run[bucket + 1])
        to = slice(at, at + len(outline.rack_codes))
        upper[to] = np.minimum(by_rack[list(outline.rack_codes)] // workers, upper[runs].sum())
        at = to.stop


def _headroom(
    outline: Outline, capacity: Floats, cost: Floats, upper: Floats
) -> tuple[Floats, Floats]:
    """Write the columns of blocks kept free; what zones hold, and how many blocks to keep."""
    sizes = outline.dims.reserve
    reserve = np.zeros((len(outline.zones), len(sizes)))
    there = np.zeros(len(outline.headroom))
    first = outline.fields["keep"].start
    for at, (number, groups) in enumerate(outline.zones):
        each = outline.headroom[number]
        reserve[at] = capacity[list(groups), outline.dims.rows :].sum(axis=0)
        free = reserve[at, sizes.index(each.gpus)]
        upper[first + at] = each.blocks if outline.options is not None else min(each.blocks, free)
        cost[first + at] = each.value or 0.0
        there[number] += free
    wanted = np.array([float(each.blocks) for each in outline.headroom])
    return reserve, np.minimum(wanted, there)


def quota_left(rows: Sequence[tuple[TenantId, ...]], snapshot: Snapshot) -> Floats:
    """GPU thousandths that each row's tenants may still take together, never below 0.

    One tenant may hold its nominal amount and what it may borrow; a cohort what is nominal to all.
    """
    quotas = {quota.tenant: quota for quota in snapshot.terms.quotas}
    left = np.zeros(len(rows))
    for number, tenants in enumerate(rows):
        limit = sum(quotas[tenant].nominal_milli for tenant in tenants)
        if number < len(quotas):
            limit += quotas[tenants[0]].borrow_milli
        left[number] = max(0, limit - sum(snapshot.held_milli.get(tenant, 0) for tenant in tenants))
    return left
