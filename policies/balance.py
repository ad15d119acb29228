"""Balance: how much GPU a node's free CPU and memory could still feed, for the typical mix.

A node runs out of CPU or memory while GPUs are idle, and they are stranded: F(n) sees it only when
a footprint no longer fits at all, this term from the first worker on. For each footprint the GPU
share that the node's CPU could feed, and the one that its memory could feed, is capped by what is
free on its GPUs; the expectation over the mix is what the node is still good for.

What is free on a GPU counts as far as typical parts could fill it: 190 thousandths that no typical
part fits are worth nothing already, so a rare small part goes there and not onto a whole GPU.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from policies.node_states import NodeStates
from policies.typical_mix import Access, TypicalMix
from scheduler.model.columns import Floats, Ints
from scheduler.model.quantity import WHOLE_GPU_MILLI

PARTS_COVER = 0.9
"""Typical parts are the most frequent sizes that make up this share of all parts."""


class Balance:
    """The GPU share that nodes can feed, for one mix. Cost: O(A K log K) to build."""

    def __init__(self, mix: TypicalMix, access: Access) -> None:
        """Build the tables; `mix` has no CPU work."""
        self._group = access.group
        self.worth = fillable(mix)
        """(1001,) what so many free thousandths of a GPU are worth."""
        value = mix.gpus * self.worth[mix.gpu_milli]
        self._cpu = [_Feed(value, mix.cpu, mix.share * here) for here in access.admits]
        self._memory = [_Feed(value, mix.memory, mix.share * here) for here in access.admits]

    def of(self, states: NodeStates) -> Floats:
        """(R,) thousandths of a GPU that each state can feed. O(R (G + log K))."""
        free: Floats = self.worth.take(states.gpu).sum(axis=1)
        if len(self._cpu) == 1:
            fed = self._cpu[0].of(free, states.cpu) + self._memory[0].of(free, states.memory)
            return fed / 2
        group = self._group[states.row]
        fed = np.zeros(states.row.size)
        for number, (cpu, memory) in enumerate(zip(self._cpu, self._memory, strict=True)):
            here = (group == number).nonzero()[0]
            fed[here] = (
                cpu.of(free[here], states.cpu[here]) + memory.of(free[here], states.memory[here])
            ) / 2
        return fed


class _Feed:
    """Expected min(free, amount x rate) over the mix, from sums over footprints by rate.

    The rate of a footprint is the GPU share that one unit of the resource feeds; infinite for
    footprints that need none of it.
    """

    def __init__(self, value: Floats, needs: Ints, share: Floats) -> None:
        rate = np.full(value.size, np.inf)
        np.divide(value, needs, out=rate, where=needs > 0)
        order = np.argsort(rate, kind="stable")
        self._rate, share = rate[order], share[order]
        fed = np.where(np.isfinite(self._rate), self._rate, 0.0) * share
        # For the k footprints of the lowest rate the amount binds, for the others what is free.
        self._fed = np.concatenate(([0.0], fed.cumsum()))
        self._capped = share.sum() - np.concatenate(([0.0], share.cumsum()))

    def of(self, free: Floats, amount: Ints) -> Floats:
        """(R,) the expectation where `free` is worth so much and `amount` is left."""
        rate = np.full(free.size, np.inf)
        np.divide(free, amount, out=rate, where=amount > 0)
        binding = np.searchsorted(self._rate, rate, side="left")
        fed: Floats = amount * self._fed[binding] + free * self._capped[binding]
        return fed


def fillable(mix: TypicalMix) -> Floats:
    """(1001,) the largest sum of typical parts, with repetition, that each free share can hold.

    A GPU that is entirely free counts in full. The mix has no CPU work.
    """
    part = mix.gpu_milli < WHOLE_GPU_MILLI
    sizes, at = np.unique(mix.gpu_milli[part], return_inverse=True)
    counts = np.bincount(at, weights=mix.share[part], minlength=sizes.size)
    order = np.argsort(-counts, kind="stable")
    enough = np.searchsorted(counts[order].cumsum(), PARTS_COVER * counts.sum()) + 1
    return _sums_of(tuple(sorted(sizes[order[:enough]].tolist())))


@lru_cache(maxsize=64)
def _sums_of(sizes: tuple[int, ...]) -> Floats:
    """As `fillable`, of these sizes, each from 1 to 999. O(1000 sizes / smallest size)."""
    reached = np.zeros(WHOLE_GPU_MILLI + 1, dtype=np.bool_)
    reached[[0, WHOLE_GPU_MILLI]] = True
    for size in sizes:
        # Each block of this length may add one more to what the block before it reached.
        for start in range(0, WHOLE_GPU_MILLI + 1 - size, size):
            after = reached[start + size : start + 2 * size]
            after |= reached[start : start + after.size]
    worth: Floats = np.maximum.accumulate(np.where(reached, np.arange(WHOLE_GPU_MILLI + 1.0), 0.0))
    worth.flags.writeable = False
    return worth
