"""The best GPUs of one node for a job, by its link matrix.

Exact for nodes of up to `EXACT_GPUS_MAX` GPUs: of all subsets of the free GPUs,

1. the best mean pair bandwidth,
2. then the best ring bottleneck (the largest possible smallest edge of a ring through them all:
   what a ring all-reduce runs at),
3. then what remains: the best mean pair bandwidth of the GPUs left free,
4. then the lowest indexes.

Answers are kept per (link matrix, free set, size), so that a node type pays for each question once.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from itertools import combinations
from math import fsum

from scheduler.model.node import Links

EXACT_GPUS_MAX = 12


def mean_pair_bandwidth(links: Links, gpus: Iterable[int]) -> float:
    """Mean one-way GB/s over all pairs; 0 for fewer than two GPUs or without a matrix."""
    chosen = sorted(gpus)
    pairs = [_bandwidth(links, a, b) for a, b in combinations(chosen, 2)]
    return fsum(pairs) / len(pairs) if pairs else 0.0


def best_subset(links: Links, free: frozenset[int], size: int) -> tuple[int, ...]:
    """The best `size` of the `free` GPUs, in the order of their best ring.

    Raises:
        ValueError: fewer than `size` GPUs are free.
    """
    if size > len(free):
        raise ValueError(f"{size} GPUs asked of {len(free)} free ones")
    if size == 0:
        return ()
    if _uniform(links, free):
        return tuple(sorted(free)[:size])
    if len(free) > EXACT_GPUS_MAX:
        return ring_order(links, _grown(links, free, size))
    return ring_order(links, _exact(links, free, size))


@lru_cache(maxsize=4096)
def _uniform(links: Links, free: frozenset[int]) -> bool:
    """Whether all pairs are alike, as behind a switch: then the lowest indexes are as good."""
    return len({_bandwidth(links, a, b) for a, b in combinations(sorted(free), 2)}) <= 1


def _bandwidth(links: Links, a: int, b: int) -> float:
    return links.bandwidth_gbps[a][b] if links.bandwidth_gbps else 0.0


@lru_cache(maxsize=65_536)
def _exact(links: Links, free: frozenset[int], size: int) -> frozenset[int]:
    """Full search over C(free, size) subsets; ring and remainder only for the best of them."""
    subsets = [frozenset(subset) for subset in combinations(sorted(free), size)]
    means = [mean_pair_bandwidth(links, subset) for subset in subsets]
    best = max(means)
    ties = [subset for subset, mean in zip(subsets, means, strict=True) if mean == best]
    if len(ties) == 1:
        return ties[0]
    return min(
        ties,
        key=lambda subset: (
            -ring_bottleneck(links, subset),
            -mean_pair_bandwidth(links, free - subset),
            sorted(subset),
        ),
    )


@lru_cache(maxsize=4096)
def _grown(links: Links, free: frozenset[int], size: int) -> frozenset[int]:
    """Grow a subset from every seed by the GPU that adds most bandwidth; O(free**2 * size)."""
    best: tuple[float, tuple[int, ...]] | None = None
    for seed in sorted(free):
        chosen = [seed]
        while len(chosen) < size:
            chosen.append(
                max(
                    sorted(free.difference(chosen)),
                    key=lambda gpu: (fsum(_bandwidth(links, gpu, c) for c in chosen), -gpu),
                )
            )
        found = (-mean_pair_bandwidth(links, chosen), tuple(sorted(chosen)))
        best = found if best is None else min(best, found)
    assert best is not None
    return frozenset(best[1])


def ring_bottleneck(links: Links, gpus: frozenset[int]) -> float:
    """GB/s of the smallest edge of the best ring; the pair itself for two GPUs, 0 for one.

    Exact up to `EXACT_GPUS_MAX` GPUs; beyond, of the ring that `ring_order` finds.
    """
    order = ring_order(links, gpus)
    if len(order) < 2:  # noqa: PLR2004 - a single GPU has no edge
        return 0.0
    return min(_bandwidth(links, a, b) for a, b in zip(order, (*order[1:], order[0]), strict=True))


@lru_cache(maxsize=65_536)
def ring_order(links: Links, gpus: frozenset[int]) -> tuple[int, ...]:
    """The GPUs along a ring whose smallest edge is as large as possible, lowest index first.

    Cost O(2**n * n**2) per bandwidth level for n GPUs up to `EXACT_GPUS_MAX`; beyond, the nearest
    neighbour.
    """
    order = sorted(gpus)
    if len(order) <= 3 or _uniform(links, gpus):  # noqa: PLR2004 - one ring only
        return tuple(order)
    if len(order) > EXACT_GPUS_MAX:
        return _nearest_neighbour(links, order)
    levels = sorted({_bandwidth(links, a, b) for a, b in combinations(order, 2)}, reverse=True)
    for level in levels:
        ring = _hamiltonian(links, order, level)
        if ring is not None:
            return ring
    raise AssertionError("a complete graph has a ring at its lowest level")


def _hamiltonian(links: Links, order: list[int], level: float) -> tuple[int, ...] | None:
    """A ring over edges of at least `level` GB/s, by dynamic programming over subsets."""
    n = len(order)
    peers = [
        [b for b in range(n) if b != a and _bandwidth(links, order[a], order[b]) >= level]
        for a in range(n)
    ]
    reached: dict[tuple[int, int], int] = {(1, 0): -1}
    layer = [(1, 0)]
    while layer:
        following = []
        for mask, last in layer:
            for peer in peers[last]:
                state = (mask | 1 << peer, peer)
                if not mask & 1 << peer and state not in reached:
                    reached[state] = last
                    following.append(state)
        layer = following
    full = (1 << n) - 1
    for last in peers[0]:
        if (full, last) in reached:
            path: list[int] = []
            mask, at = full, last
            while at >= 0:
                path.append(order[at])
                mask, at = mask & ~(1 << at), reached[mask, at]
            return tuple(reversed(path))
    return None


def _nearest_neighbour(links: Links, order: list[int]) -> tuple[int, ...]:
    path, left = [order[0]], set(order[1:])
    while left:
        path.append(max(sorted(left), key=lambda gpu: (_bandwidth(links, path[-1], gpu), -gpu)))
        left.remove(path[-1])
    return tuple(path)
