"""Which columns and rows the knapsack has, and the numbers in them.

An *outline* stays the same while jobs come and go: kinds of workers, groups of nodes, buckets with
so many runs each. Only *figures* change from one decision to the next: costs, bounds, right-hand
sides. So a model built once is solved again and again with other figures, from where it stood.

A *run* is one column: gangs of a bucket that are worth the same, most valuable run first. Buckets
have a few runs more than they need, empty ones, so that they may grow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from scheduler.allocation.evictions import Options
from scheduler.allocation.gangs import Gang
from scheduler.allocation.groups import (
    UNBOUNDED,
    Bucket,
    Dimensions,
    Fits,
    Groups,
    Places,
    accepts,
    groups_of,
    kinds_and_buckets,
)
from scheduler.model.columns import NO_GPU, Bools, Floats, Ints, NodeTable
from scheduler.model.job import Worker
from scheduler.model.quantity import TenantId
from scheduler.model.snapshot import Snapshot
from scheduler.model.terms import EXTRA_WORTH, Headroom, Terms

RACK_PAIRS_MAX = 12_000
"""More (kind, rack group) columns than this, and racks stay out of the model."""

BucketKey = tuple[int, int, int, bool, TenantId | None]
"""(kind, workers, workers_max, one_rack, tenant) of a bucket."""


@dataclass(frozen=True, eq=False)
class Outline:
    """What exists in the model. W kinds, G groups, B buckets, P pairs.

    Attributes:
        kinds: what is counted.
        dims: what capacity is counted in.
        groups: where it is counted.
        racks: whether groups tell racks apart.
        buckets: who can start.
        runs: (B,) columns of each bucket.
        pairs: (P, 2) kind and group of each `count` column.
        quotas: tenants whose sum is limited, one tuple a row.
        headroom: blocks to keep free, one column each.
        headroom_rows: for each the (N,) nodes whose free blocks count.
        options: what may be evicted; None when nothing may.
    """

    kinds: tuple[Worker, ...]
    dims: Dimensions
    groups: Groups
    racks: bool
    buckets: tuple[BucketKey, ...]
    runs: tuple[int, ...]
    pairs: Ints
    quotas: tuple[tuple[TenantId, ...], ...]
    headroom: tuple[Headroom, ...]
    headroom_rows: tuple[Bools, ...]
    options: Options | None

    @cached_property
    def need(self) -> Floats:
        """(W, D) what one worker of each kind draws."""
        rows = [self.dims.drawn(kind) for kind in self.kinds]
        return np.array(rows).reshape(len(rows), self.dims.rows + len(self.dims.reserve))

    @cached_property
    def freed(self) -> Floats:
        """(O, D) what each option adds to its group."""
        if self.options is None:
            return np.zeros((0, self.need.shape[1]))
        return self.dims.held(self.options.places) - self.dims.held(self.options.before)

    @cached_property
    def first_run(self) -> tuple[int, ...]:
        """(B + 1,) number of each bucket's first run."""
        return (0, *np.cumsum(self.runs, dtype=np.int64).tolist())

    @cached_property
    def elastic(self) -> tuple[int, ...]:
        """Buckets whose gangs can grow."""
        return tuple(n for n, key in enumerate(self.buckets) if key[2] > key[1])

    @cached_property
    def one_rack(self) -> tuple[int, ...]:
        """Buckets whose gangs must share a rack; none where groups do not tell racks apart."""
        if not self.racks:
            return ()
        return tuple(n for n, key in enumerate(self.buckets) if key[3])

    @cached_property
    def rack_codes(self) -> tuple[int, ...]:
        """Racks, ascending."""
        return tuple(sorted(set(self.groups.rack.tolist())))

    @cached_property
    def fields(self) -> Mapping[str, slice]:
        """Where each sort of column stands."""
        runs = self.first_run
        extra = sum(self.runs[bucket] for bucket in self.elastic)
        options = self.options
        counts = {
            "start": runs[-1],
            "extra": extra,
            "keep": len(self.headroom),
            "count": len(self.pairs),
            "inside": len(self.one_rack) * len(self.rack_codes),
            "evict": 0 if options is None else len(options.chosen),
            "stop": 0 if options is None else len(options.spanning),
        }
        found, at = {}, 0
        for name, count in counts.items():
            found[name] = slice(at, at + count)
            at += count
        return found

    @property
    def columns(self) -> int:
        """How many columns there are."""
        last: int = self.fields["stop"].stop
        return last

    def covers(self, other: Outline) -> bool:
        """Whether the figures of a decision with the `other` outline can be written in this one."""
        if self.options is not None or other.options is not None or self.racks is not other.racks:
            return False
        if (self.groups.key, self.quotas, self.headroom) != (
            other.groups.key,
            other.quotas,
            other.headroom,
        ):
            return False
        if not set(other.dims.reserve) <= set(self.dims.reserve):
            return False
        mine = {self.named(key): runs for key, runs in zip(self.buckets, self.runs, strict=True)}
        return all(
            mine.get(other.named(key), -1) >= runs
            for key, runs in zip(other.buckets, other.runs, strict=True)
        )

    def named(self, key: BucketKey) -> tuple[Worker, int, int, bool, TenantId | None]:
        """A bucket by what it is, not by number."""
        return (self.kinds[key[0]], *key[1:])


@dataclass(frozen=True, slots=True, eq=False)
class Figures:
    """The numbers of one decision. C columns, G groups, D dimensions.

    Attributes:
        cost: (C,) what one unit of each column adds to the objective.
        lower, upper: (C,) bounds of each column.
        capacity: (G, D) what the groups hold.
        reserve: (headroom, sizes) slots of each size that its pool holds.
        quota: (quotas,) GPU thousandths that may still be taken.
        evictions: how many attempts may be stopped.
        members: gangs of each run, most valuable first.
    """

    cost: Floats
    lower: Floats
    upper: Floats
    capacity: Floats
    reserve: Floats
    quota: Floats
    evictions: int
    members: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """What a decision packs, worked out once for whatever model looks at it.

    Attributes:
        snapshot: the cluster.
        gangs: who waits, in queue order.
        kinds, buckets: the gangs, alike ones together.
        rows: (n,) nodes that take work.
        places: what is free on them.
        fit: (W, n) workers of each kind that fit each of them, every kind alone.
    """

    snapshot: Snapshot
    gangs: Sequence[Gang]
    kinds: tuple[Worker, ...]
    buckets: tuple[Bucket, ...]
    rows: Ints
    places: Places
    fit: Ints

    @property
    def table(self) -> NodeTable:
        """What the nodes are."""
        return self.snapshot.columns.table

    @classmethod
    def of(cls, snapshot: Snapshot, gangs: Sequence[Gang], options: Options | None = None) -> Scene:
        """Describe a decision.

        Buckets are cut to the gangs that could start at once on an otherwise idle cluster: what is
        left out could only take the place of something like it that is worth more.

        Cost: O(gangs log gangs + kinds * nodes).
        """
        table = snapshot.columns.table
        limited = frozenset(quota.tenant for quota in snapshot.terms.quotas)
        kinds, buckets = kinds_and_buckets(gangs, limited)
        rows = np.flatnonzero(table.open)
        places = Places.of(snapshot.columns.free, rows)
        counted = Fits(table, places)
        fit = np.empty((len(kinds), rows.size), dtype=np.int64)
        for number, kind in enumerate(kinds):
            fit[number] = counted.of(kind)
        most = fit if options is None else _fit_at_most(fit, options, table, rows, kinds)
        total = most.sum(axis=1)
        cut = tuple(
            _cut(
                bucket,
                _gangs_at_most(bucket, most[bucket.kind], int(total[bucket.kind]), table, rows),
            )
            for bucket in buckets
        )
        return cls(snapshot, gangs, kinds, cut, rows, places, most)


def _fit_at_most(
    fit: Ints, options: Options, table: NodeTable, rows: Ints, kinds: Sequence[Worker]
) -> Ints:
    """(W, n) as `fit`, were everything gone that may be evicted."""
    position = np.full(len(table.nodes), -1, dtype=np.int64)
    position[rows] = np.arange(rows.size)
    counted = Fits(table, options.emptied)
    most = fit.copy()
    where = position[options.emptied.row]
    for number, kind in enumerate(kinds):
        most[number, where] = np.maximum(most[number, where], counted.of(kind))
    return most


def _gangs_at_most(bucket: Bucket, fit: Ints, total: int, table: NodeTable, rows: Ints) -> int:
    if not bucket.one_rack:
        return total // bucket.workers
    by_rack = np.zeros(len(table.racks), dtype=np.int64)
    np.add.at(by_rack, table.rack[rows], fit)
    return int((by_rack // bucket.workers).sum())


def _cut(bucket: Bucket, most: int) -> Bucket:
    return (
        bucket
        if most >= len(bucket.gangs)
        else Bucket(
            bucket.kind,
            bucket.workers,
            bucket.workers_max,
            bucket.one_rack,
            bucket.tenant,
            bucket.gangs[:most],
        )
    )


def outline_of(scene: Scene, options: Options | None = None, *, each_node: bool = False) -> Outline:
    """The outline for a decision.

    Args:
        scene: what is decided.
        options: what may be evicted.
        each_node: exact, every node a group of its own.
    """
    terms, table = scene.snapshot.terms, scene.table
    some = [bucket for bucket in scene.buckets if bucket.gangs]
    used = sorted({bucket.kind for bucket in some})
    number = {kind: at for at, kind in enumerate(used)}
    kinds = tuple(scene.kinds[kind] for kind in used)
    racks = any(bucket.one_rack for bucket in some)
    groups = groups_of(table, terms, racks=racks, each_node=each_node)
    if racks and not each_node and len(groups.key) * len(kinds) > RACK_PAIRS_MAX:
        racks, groups = False, groups_of(table, terms, racks=False, each_node=False)
    pairs = (
        _fitting_pairs(scene, used, groups) if each_node else _allowed_pairs(table, kinds, groups)
    )
    headroom = tuple(each for each in terms.headroom if each.gpus > 0 and each.blocks > 0)
    return Outline(
        kinds,
        Dimensions.of(kinds, [each.gpus for each in headroom]),
        groups,
        racks,
        tuple((number[b.kind], b.workers, b.workers_max, b.one_rack, b.tenant) for b in some),
        tuple(_padded(len(_runs(scene.gangs, bucket))) for bucket in some)
        if not each_node
        else tuple(len(_runs(scene.gangs, bucket)) for bucket in some),
        pairs,
        _quota_rows(terms),
        headroom,
        tuple(_in_pool(table, each) for each in headroom),
        options,
    )


def _padded(runs: int) -> int:
    """A little more than `runs`, in steps that grow, so that a bucket's columns rarely change."""
    size = 1
    while size < runs:
        size += max(1, size // 4)
    return size


def _runs(gangs: Sequence[Gang], bucket: Bucket) -> list[tuple[int, ...]]:
    """Neighbours worth the same, together."""
    found: list[list[int]] = []
    last = None
    for gang in bucket.gangs:
        if gangs[gang].value == last:
            found[-1].append(gang)
        else:
            found.append([gang])
            last = gangs[gang].value
    return [tuple(run) for run in found]


def _quota_rows(terms: Terms) -> tuple[tuple[TenantId, ...], ...]:
    """Each tenant with a quota, and each cohort of several."""
    cohorts: dict[str, list[TenantId]] = {}
    for quota in terms.quotas:
        cohorts.setdefault(quota.cohort or f"\0{quota.tenant}", []).append(quota.tenant)
    rows: list[tuple[TenantId, ...]] = [(quota.tenant,) for quota in terms.quotas]
    rows += [tuple(members) for members in cohorts.values()]
    return tuple(rows)


def _allowed_pairs(table: NodeTable, kinds: Sequence[Worker], groups: Groups) -> Ints:
    """(P, 2) every group that a kind may use, whether it fits there today or not."""
    model = np.array([key[0] for key in groups.key], dtype=np.int64)
    pool = np.array([key[1] for key in groups.key], dtype=np.int64)
    masks: dict[tuple[object, ...], Ints] = {}
    pools = {name: code for code, name in enumerate(table.pools)}
    found = []
    for number, kind in enumerate(kinds):
        has_gpus = bool(kind.milli)
        key = (has_gpus, kind.gpu_models, kind.pool)
        if key not in masks:
            right: Bools = np.ones(len(groups.key), dtype=np.bool_)
            if has_gpus:
                codes = [c for c, name in enumerate(table.models) if accepts(kind, name)]
                right = np.isin(model, [*codes, len(table.models)])
            if kind.pool is not None:
                right = right & (pool == pools.get(str(kind.pool), NO_GPU))
            masks[key] = np.flatnonzero(right)
        here = masks[key]
        found.append(np.stack([np.full(here.size, number), here], axis=1))
    return np.concatenate(found) if found else np.empty((0, 2), dtype=np.int64)


def _fitting_pairs(scene: Scene, used: Sequence[int], groups: Groups) -> Ints:
    """(P, 2) every node that holds a worker of the kind now, or when its jobs are gone."""
    kind, at = np.nonzero(scene.fit[used] > 0)
    return np.stack([kind, groups.of_row[scene.rows[at]]], axis=1)


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
    reserve = _headroom(outline, scene, held, (cost, lower, upper))
    if options is not None:
        cost[fields["evict"]] = -options.cost[options.chosen]
        cost[fields["stop"]] = -options.spanning_cost
        upper[fields["evict"]] = 1.0
        upper[fields["stop"]] = 1.0
    return Figures(
        cost,
        lower,
        upper,
        outline.groups.sums(held, scene.rows),
        reserve,
        quota_left(outline.quotas, scene.snapshot),
        terms.eviction.evictions_max,
        members,
    )


def _start(
    outline: Outline, scene: Scene, cost: Floats, upper: Floats
) -> tuple[tuple[int, ...], ...]:
    """Write the columns of runs; who is in each."""
    number = {outline.named(key): at for at, key in enumerate(outline.buckets)}
    members: list[tuple[int, ...]] = [()] * outline.first_run[-1]
    gangs = scene.gangs
    for bucket in scene.buckets:
        if not bucket.gangs:
            continue
        name = (
            scene.kinds[bucket.kind],
            bucket.workers,
            bucket.workers_max,
            bucket.one_rack,
            bucket.tenant,
        )
        for at, run in enumerate(_runs(gangs, bucket), outline.first_run[number[name]]):
            members[at] = run
            cost[at] = gangs[run[0]].value
            upper[at] = len(run)
    return tuple(members)


def _fits(outline: Outline, scene: Scene) -> Floats:
    """(W, G) workers of each kind that fit each group, every kind alone."""
    known = {kind: number for number, kind in enumerate(scene.kinds)}
    fit = np.zeros((len(outline.kinds), scene.rows.size), dtype=np.int64)
    for number, kind in enumerate(outline.kinds):
        if kind in known:
            fit[number] = scene.fit[known[kind]]
    of_row = outline.groups.of_row[scene.rows]
    order = np.argsort(of_row, kind="stable")
    total = np.zeros((len(outline.kinds), len(outline.groups.key)))
    if order.size:
        groups, starts = np.unique(of_row[order], return_index=True)
        total[:, groups] = np.add.reduceat(fit[:, order], starts, axis=1)
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
    outline: Outline, scene: Scene, held: Floats, columns: tuple[Floats, Floats, Floats]
) -> Floats:
    """Write the columns of blocks kept free; (headroom, sizes) slots that each pool holds."""
    cost, lower, upper = columns
    reserve = np.zeros((len(outline.headroom), len(outline.dims.reserve)))
    for number, each in enumerate(outline.headroom):
        mask = outline.headroom_rows[number][scene.rows]
        reserve[number] = held[mask, outline.dims.rows :].sum(axis=0)
        size = outline.dims.reserve.index(each.gpus)
        blocks = min(each.blocks, reserve[number, size])
        at = outline.fields["keep"].start + number
        upper[at] = blocks if each.value is None else each.blocks
        lower[at] = blocks if each.value is None else 0
        cost[at] = each.value or 0.0
    return reserve


def _in_pool(table: NodeTable, headroom: Headroom) -> Bools:
    """(N,) nodes whose free blocks count."""
    if headroom.pool is None:
        return table.open
    pools = {name: code for code, name in enumerate(table.pools)}
    here: Bools = table.open & (table.pool == pools.get(str(headroom.pool), NO_GPU))
    return here


def quota_left(rows: Sequence[tuple[TenantId, ...]], snapshot: Snapshot) -> Floats:
    """GPU thousandths that each row's tenants may still take together, never below 0.

    One tenant may hold its nominal amount and what it may borrow; a cohort what is nominal to all.
    """
    quotas = {quota.tenant: quota for quota in snapshot.terms.quotas}
    used = dict.fromkeys(quotas, 0)
    if quotas:
        for attempt in snapshot.live.values():
            if attempt.tenant in used:
                used[attempt.tenant] += sum(
                    len(task.gpu_ids) * task.gpu_milli for task in attempt.tasks
                )
    left = np.zeros(len(rows))
    for number, tenants in enumerate(rows):
        limit = sum(quotas[tenant].nominal_milli for tenant in tenants)
        if number < len(quotas):
            limit += quotas[tenants[0]].borrow_milli
        left[number] = max(0, limit - sum(used[tenant] for tenant in tenants))
    return left
