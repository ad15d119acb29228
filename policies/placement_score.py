"""Haversack's own node score: what the cluster could still do for typical work afterwards.

The main terms are the fragmentation of the FGD paper and balance, both as expectations over the mix
of shapes that run and wait now. Unlike the published FGD it uses the exact difference, every shape
of the mix, and no CPU work in it (which would count the same everywhere); parts of a GPU weigh more
than their number, because it is they that leave gaps. ADR-0006 has the measurements.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from policies.balance import Balance
from policies.fragmentation import Fragmentation
from policies.node_states import NodeStates, lowest_of_each
from policies.typical_mix import Access, TypicalMix
from scheduler.model.columns import Floats, Free, Ints, NodeTable
from scheduler.model.job import JobShape, Worker
from scheduler.model.ports import Scoring
from scheduler.model.quantity import WHOLE_GPU_MILLI
from scheduler.model.snapshot import Snapshot
from scheduler.model.terms import Price, Weights

PART_EXPONENT = -0.5
"""A footprint that takes a share x of each of its GPUs weighs x to this power times its number."""


@dataclass(frozen=True, slots=True, eq=False)
class _Tables:
    """What depends on mix and nodes only."""

    fragmentation: Fragmentation
    balance: Balance

    @classmethod
    def of(cls, mix: Mapping[JobShape, int], free: Free) -> _Tables:
        typical = TypicalMix.of(mix)
        typical = typical.only(typical.gpus > 0)
        typical = typical.weighted((typical.gpu_milli / WHOLE_GPU_MILLI) ** PART_EXPONENT)
        access = Access.of(free.table, typical)
        return cls(Fragmentation(typical, access, free.gpu.shape[1]), Balance(typical, access))


class PlacementScore:
    """Weighs the terms as `snapshot.terms.weights` says."""

    name = "haversack"

    def __init__(self) -> None:
        self._latest: tuple[Mapping[JobShape, int], NodeTable, _Tables] | None = None

    def on(self, free: Free, snapshot: Snapshot, seed: int) -> Scoring:
        """The score for the mix of `snapshot`; nothing is left to chance."""
        del seed
        mix, table = snapshot.mix, free.table
        latest = self._latest
        if latest is None or latest[0] is not mix or latest[1] is not table:
            # Several working copies are made of one snapshot, and none of this changes with them.
            latest = self._latest = (mix, table, _Tables.of(mix, free))
        prices = _prices(table, snapshot.terms.prices)
        return _PlacementScore(free, latest[2], snapshot.terms.weights, prices)


class _PlacementScore:
    """All terms are in GPUs: a weight of 1 makes its term count like so many GPUs lost.

    Args:
        free: the working copy.
        tables: of the mix.
        weights: of the terms.
        prices: (N,) price of a GPU hour as a share of the dearest; None where prices are equal.
    """

    def __init__(
        self, free: Free, tables: _Tables, weights: Weights, prices: Floats | None
    ) -> None:
        self._free = free
        self._tables = tables
        self._weights = weights
        self._prices = prices

    def rows(self, worker: Worker, rows: Ints) -> Floats:
        """(len(rows),) GPUs lost. O(rows G^2) for parts of a GPU, else O(rows G)."""
        states = NodeStates.now(self._free, rows)
        before = self._badness(states)
        if worker.gpu_milli:
            after = states.without(worker.needs.cpu_milli, worker.needs.memory_mib)
            for _ in range(worker.parts):
                options, source, _ = after.after_part(worker.gpu_milli)
                lowest, at = lowest_of_each(self._badness(options), source, rows.size)
                after = options.at(at)
            loss = lowest - before
        else:
            loss = self._badness(states.after_whole(worker)) - before
        return loss + self._of_nodes(worker, states)

    def gpu(self, worker: Worker, row: int) -> int:
        """The GPU whose use loses least; the lowest index of equals."""
        now = NodeStates.now(self._free, np.array([row]))
        options, _, which = now.after_part(worker.gpu_milli)
        return int(which[np.argmin(self._badness(options))])

    def _badness(self, states: NodeStates) -> Floats:
        """(R,) the terms that depend on what would be left: GPUs that typical work cannot use."""
        weights = self._weights
        lost = weights.fragmentation * self._tables.fragmentation.of(states)
        if weights.balance:
            lost = lost - weights.balance * self._tables.balance.of(states)
        return lost / WHOLE_GPU_MILLI

    def _of_nodes(self, worker: Worker, states: NodeStates) -> Floats:
        """(R,) the terms that depend on the node as it is."""
        weights, free = self._weights, self._free
        total = np.zeros(states.row.size)
        if weights.tightness or weights.spread:
            idle = states.gpu.sum(axis=1) / (WHOLE_GPU_MILLI * max(1, states.gpu.shape[1]))
            total += (weights.tightness - weights.spread) * idle
        if weights.topology and worker.needs.gpus > 1:
            total += weights.topology * (_largest_block(free, states) < worker.needs.gpus)
        if weights.price and self._prices is not None:
            total += weights.price * self._prices[states.row] * worker.milli / WHOLE_GPU_MILLI
        return total


def _largest_block(free: Free, states: NodeStates) -> Ints:
    """(R,) the most entirely free GPUs that share an NVLink domain."""
    entire = states.gpu == WHOLE_GPU_MILLI
    domain = free.table.gpu_domain[states.row]
    most = np.zeros(states.row.size, dtype=np.int64)
    for number in range(int(domain.max(initial=-1)) + 1):
        np.maximum(most, (entire & (domain == number)).sum(axis=1), out=most)
    return most


def _prices(table: NodeTable, prices: tuple[Price, ...]) -> Floats | None:
    """(N,) price of each node as a share of the dearest one; None when they do not differ."""
    if not prices:
        return None
    general = {price.price_class: price.per_gpu_hour for price in prices if price.pool is None}
    special = {
        (price.price_class, str(price.pool)): price.per_gpu_hour
        for price in prices
        if price.pool is not None
    }
    each = np.array(
        [
            special.get((price_class, table.pools[pool]), general.get(price_class, 0.0))
            for price_class, pool in (
                (table.prices[price], pool)
                for price, pool in zip(table.price.tolist(), table.pool.tolist(), strict=True)
            )
        ]
    )
    dearest = each.max(initial=0.0)
    if dearest <= 0 or (each == dearest).all():
        return None
    shares: Floats = each / dearest
    return shares
