"""Which columns and rows the knapsack has, for a decision.

An *outline* stays the same while jobs come and go: kinds of workers, groups of nodes, buckets with
so many runs each. Only figures change from one decision to the next: costs, bounds, right-hand
sides. So a model built once is solved again and again with other figures, from where it stood.

A *run* is one column: gangs of a bucket that are worth the same, most valuable run first. Buckets
have a few runs more than they need, empty ones, so that they may grow.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from scheduler.allocation.evictions import Options
from scheduler.allocation.gangs import Gang
from scheduler.allocation.groups import (
    Bucket,
    Dimensions,
    Fits,
    Groups,
    Places,
    accepts,
    allowed,
    groups_of,
    kinds_and_buckets,
)
from scheduler.allocation.site_classes import sites_of
from scheduler.model.columns import NO_GPU, Bools, Floats, Ints, NodeTable
from scheduler.model.job import Worker
from scheduler.model.quantity import TenantId
from scheduler.model.snapshot import Snapshot
from scheduler.model.terms import Headroom, Terms

PAIRS_MAX = 12_000
"""More (kind, group) columns than this, and racks stay out of the model, then more and more sites.
"""

Runs = tuple[tuple[int, ...], ...]
"""Gangs of a bucket, by run."""
BucketKey = tuple[int, int, int, bool, TenantId | None]
"""(kind, workers, workers_max, one_rack, tenant) of a bucket."""


@dataclass(frozen=True, eq=False)
class Outline:
    """What exists in the model. W kinds, G groups, B buckets, P pairs.

    Attributes:
        table: the nodes that groups are made of.
        kinds: what is counted.
        dims: what capacity is counted in.
        groups: where it is counted.
        racks: whether groups tell racks apart.
        buckets: who can start.
        runs: (B,) columns of each bucket.
        pairs: (P, 2) kind and group of each `count` column.
        quotas: tenants whose sum is limited, one tuple a row.
        headroom: blocks to keep free.
        zones: (headroom, groups) where blocks are kept together: all its groups, or each alone.
        options: what may be evicted; None when nothing may.
        binding: (G, dims.rows) groups' rows that exist, and (quotas,) rows of quotas that do: those
            that could bind when the model was built. A row left out makes a bound no less valid.
    """

    table: NodeTable
    kinds: tuple[Worker, ...]
    dims: Dimensions
    groups: Groups
    racks: bool
    buckets: tuple[BucketKey, ...]
    runs: tuple[int, ...]
    pairs: Ints
    quotas: tuple[tuple[TenantId, ...], ...]
    headroom: tuple[Headroom, ...]
    zones: tuple[tuple[int, tuple[int, ...]], ...]
    options: Options | None
    binding: tuple[Bools, Bools]

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
            "keep": len(self.zones),
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
        if self.table is not other.table and self.table.nodes != other.table.nodes:
            return False  # codes of models, pools and racks mean something else
        if not np.array_equal(self.groups.row_price, other.groups.row_price):
            return False
        if (self.quotas, self.headroom) != (other.quotas, other.headroom):
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
class Scene:
    """What a decision packs, worked out once for whatever model looks at it.

    Attributes:
        snapshot: the cluster.
        gangs: who waits, in queue order.
        kinds, buckets: the gangs, alike ones together.
        runs: (buckets) gangs of each that are worth the same, together; most valuable first.
        rows: (n,) nodes that take work.
        places: what is free on them.
        fit: (W, n) workers of each kind that fit each of them, every kind alone.
    """

    snapshot: Snapshot
    gangs: Sequence[Gang]
    kinds: tuple[Worker, ...]
    buckets: tuple[Bucket, ...]
    runs: tuple[Runs, ...]
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
        free = snapshot.columns.free
        useful = table.open
        if options is None and all(kind.milli for kind in kinds):
            useful = useful & (free.milli > 0)  # nodes without GPUs left are most of a full cluster
        rows = np.flatnonzero(useful)
        places = Places.of(free, rows)
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
        runs = tuple(_runs(gangs, bucket) for bucket in cut)
        return cls(snapshot, gangs, kinds, cut, runs, rows, places, most)


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
    runs = [len(runs) for runs in scene.runs if runs]
    used = sorted({bucket.kind for bucket in some})
    number = {kind: at for at, kind in enumerate(used)}
    kinds = tuple(scene.kinds[kind] for kind in used)
    racks = any(bucket.one_rack for bucket in some)
    sites = sites_of(table, kinds)
    groups = groups_of(table, terms, sites, racks=racks, each_node=each_node)
    while (racks or sites) and not each_node and len(groups.key) * len(kinds) > PAIRS_MAX:
        if not racks:
            sites = sites[: len(sites) // 2]
        racks = False
        groups = groups_of(table, terms, sites, racks=False, each_node=False)
    pairs = (
        _fitting_pairs(scene, used, groups) if each_node else _allowed_pairs(table, kinds, groups)
    )
    headroom = tuple(each for each in terms.headroom if each.gpus > 0 and each.blocks > 0)
    dims = Dimensions.of(kinds, [each.gpus for each in headroom])
    quotas = _quota_rows(terms)
    return Outline(
        table,
        kinds,
        dims,
        groups,
        racks,
        tuple((number[b.kind], b.workers, b.workers_max, b.one_rack, b.tenant) for b in some),
        tuple(runs) if each_node else tuple(_padded(count) for count in runs),
        pairs,
        quotas,
        headroom,
        tuple(_zones(table, groups, headroom, each_node=each_node)),
        options,
        (
            np.ones((len(groups.key), dims.rows), dtype=np.bool_),
            np.ones(len(quotas), dtype=np.bool_),
        ),
    )


def _padded(runs: int) -> int:
    """A little more than `runs`, in steps that grow, so that a bucket's columns rarely change."""
    size = 1
    while size < runs:
        size += max(1, size // 4)
    return size


def _runs(gangs: Sequence[Gang], bucket: Bucket) -> Runs:
    found: list[list[int]] = []
    last = None
    for gang in bucket.gangs:
        if gangs[gang].value == last:
            found[-1].append(gang)
        else:
            found.append([gang])
            last = gangs[gang].value
    return tuple(tuple(run) for run in found)


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
    masks: dict[tuple[object, ...], Ints] = {}
    found = []
    for number, kind in enumerate(kinds):
        has_gpus = bool(kind.milli)
        key = (has_gpus, kind.gpu_models, kind.pool, kind.site)
        if key not in masks:
            right: Bools = np.zeros(len(groups.key), dtype=np.bool_)
            right[groups.of_row[allowed(table, kind)]] = True
            if has_gpus:
                codes = [c for c, name in enumerate(table.models) if accepts(kind, name)]
                right = right & np.isin(model, [*codes, len(table.models)])
            masks[key] = np.flatnonzero(right)
        here = masks[key]
        found.append(np.stack([np.full(here.size, number), here], axis=1))
    return np.concatenate(found) if found else np.empty((0, 2), dtype=np.int64)


def _fitting_pairs(scene: Scene, used: Sequence[int], groups: Groups) -> Ints:
    """(P, 2) every node that holds a worker of the kind now, or when its jobs are gone."""
    kind, at = np.nonzero(scene.fit[used] > 0)
    return np.stack([kind, groups.of_row[scene.rows[at]]], axis=1)


def _zones(
    table: NodeTable, groups: Groups, headroom: Sequence[Headroom], *, each_node: bool
) -> Iterator[tuple[int, tuple[int, ...]]]:
    pools = {name: code for code, name in enumerate(table.pools)}
    for number, each in enumerate(headroom):
        here = table.open
        if each.pool is not None:
            here = here & (table.pool == pools.get(str(each.pool), NO_GPU))
        found = np.unique(groups.of_row[np.flatnonzero(here)]).tolist()
        if each_node:
            yield from ((number, (group,)) for group in found)
        else:
            yield number, tuple(found)
