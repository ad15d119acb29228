"""A multi-tenant mix on one board, first in first out, to compare ways of choosing GPUs.

The mix of MAPA's evaluation: jobs of 2-5 GPUs, 300 of them, durations exponential, one queue; the
head waits until enough GPUs are free. No policy sees durations.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterator
from itertools import combinations, pairwise, permutations
from statistics import fmean

from scheduler.allocation.topology import best_subset, mean_pair_bandwidth, ring_bottleneck
from scheduler.model.node import Links

Choice = Callable[[Links, frozenset[int], int], tuple[int, ...]]


def choices(seed: int) -> dict[str, Choice]:
    """The ways of choosing, by name; `random` is seeded."""
    rng = random.Random(seed)
    return {
        "random": lambda _board, free, size: tuple(rng.sample(sorted(free), size)),
        "lowest-index": lambda _board, free, size: tuple(sorted(free)[:size]),
        "haversack": best_subset,
    }


def play(
    board: Links, choose: Choice, seed: int, jobs: int = 300, sizes: tuple[int, int] = (2, 5)
) -> tuple[float, float]:
    """(mean pair GB/s, mean ring bottleneck GB/s) over all jobs of one run."""
    chosen = list(_run(board, choose, seed, jobs, sizes))
    return (
        fmean(mean_pair_bandwidth(board, gpus) for gpus in chosen),
        fmean(ring_bottleneck(board, frozenset(gpus)) for gpus in chosen),
    )


def _run(
    board: Links, choose: Choice, seed: int, jobs: int, sizes: tuple[int, int]
) -> Iterator[tuple[int, ...]]:
    rng = random.Random(f"mix-{seed}")
    largest = min(sizes[1], len(board.nvlinks))
    free = set(range(len(board.nvlinks)))
    ends: list[tuple[float, int, tuple[int, ...]]] = []
    now = 0.0
    for number in range(jobs):
        size = rng.randint(min(sizes[0], largest), largest)
        duration = rng.expovariate(1.0)
        while len(free) < size:
            now, _, done = heapq.heappop(ends)
            free.update(done)
        gpus = choose(board, frozenset(free), size)
        free.difference_update(gpus)
        heapq.heappush(ends, (now + duration, number, gpus))
        yield gpus


def brute_force(board: Links, free: frozenset[int], size: int) -> tuple[int, ...]:
    """The subset that acceptance E asks for, the slow and plain way; sorted indexes."""

    def mean(gpus: frozenset[int]) -> float:
        pairs = [board.bandwidth_gbps[a][b] for a, b in combinations(sorted(gpus), 2)]
        return sum(pairs) / len(pairs) if pairs else 0.0

    def ring(gpus: frozenset[int]) -> float:
        if len(gpus) < 2:
            return 0.0
        first, *others = sorted(gpus)
        best = 0.0
        for tail in permutations(others):
            loop = (first, *tail, first)
            best = max(
                best,
                min(board.bandwidth_gbps[a][b] for a, b in pairwise(loop)),
            )
        return best

    def key(subset: tuple[int, ...]) -> tuple[float, float, float, tuple[int, ...]]:
        gpus = frozenset(subset)
        return (-mean(gpus), -ring(gpus), -mean(free - gpus), subset)

    return min(combinations(sorted(free), size), key=key)
