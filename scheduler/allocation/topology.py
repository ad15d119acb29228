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

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import combinations
from math import fsum

import numpy as np

from scheduler.model.columns import NO_GPU, Bools, Free
from scheduler.model.node import Links
from scheduler.model.quantity import WHOLE_GPU_MILLI

EXACT_GPUS_MAX = 12
ANSWERS_MAX = 65_536


class Board:
    """One kind of board: which of its free GPUs are best, each question answered once.

    Behind a switch all pairs are alike, so the lowest indexes are as good as any.
    """

    __slots__ = ("_answers", "links", "uniform")

    def __init__(self, links: Links) -> None:
        self.links = links
        self.uniform = _uniform(links, frozenset(range(len(links.bandwidth_gbps))))
        self._answers: dict[tuple[tuple[int, ...], int], tuple[int, ...]] = {}

    def best(self, free: tuple[int, ...], size: int) -> tuple[int, ...]:
        """The best `size` of the `free` indexes (ascending), in ring order; see `best_subset`.

        Raises:
            ValueError: fewer than `size` GPUs are free.
        """
        if size > len(free):
            raise ValueError(f"{size} GPUs asked of {len(free)} free ones")
        if self.uniform or size == 0:
            return free[:size]
        key = (free, size)
        answer = self._answers.get(key)
        if answer is None:
            if len(self._answers) >= ANSWERS_MAX:
                self._answers.clear()
            answer = best_subset(self.links, frozenset(free), size)
            self._answers[key] = answer
        return answer


@lru_cache(maxsize=256)
def board_of(links: Links) -> Board:
    """The board with these links."""
    return Board(links)


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


def whole_gpus(
    free: Free,
    row: int,
    board: Board,
    sizes: tuple[int, int],
    codes: Sequence[int],
    *,
    ranked: bool,
    one_domain: bool,
) -> tuple[int, ...] | None:
    """Exact GPUs of one node for workers that take whole GPUs, or None when they do not fit.

    All of them are of one model wherever one has enough, and are chosen as one set in ring order;
    only else several models serve, each for whole workers.

    Args:
        free: what is free.
        row: the node.
        board: its links.
        sizes: (workers, GPUs of each).
        codes: model codes to choose from.
        ranked: whether `codes` come in the job's order of preference; else the model with the least
            room that is enough is taken.
        one_domain: all must share an NVLink domain: the one with the least room, then best links.
    """
    workers, each = sizes
    size = workers * each
    entire = free.gpu[row] == WHOLE_GPU_MILLI
    if not one_domain and free.table.model[row] != NO_GPU:
        gpus = tuple(entire.nonzero()[0].tolist())
        return board.best(gpus, size) if len(gpus) >= size else None
    sets = _sets(free, row, entire, codes, one_domain=one_domain)
    for liked in range(len(codes)) if ranked else (None,):
        enough = [
            (len(gpus), -_reached(board, gpus, size), gpus)
            for code, gpus in sets
            if len(gpus) >= size and (liked is None or code == codes[liked])
        ]
        if enough:
            return board.best(min(enough)[2], size)
    if one_domain or sum(len(gpus) // each for _, gpus in sets) < workers:
        return None
    mixed: list[int] = []
    for _, gpus in sorted(sets, key=lambda each: -len(each[1])):
        mixed += board.best(gpus, min(size - len(mixed), len(gpus) // each * each))
    return tuple(mixed)


def _sets(
    free: Free, row: int, entire: Bools, codes: Sequence[int], *, one_domain: bool
) -> list[tuple[int, tuple[int, ...]]]:
    """(model code, its entirely free GPUs) of one node, for each NVLink domain if that matters."""
    domain, models = free.table.gpu_domain[row], free.table.gpu_model[row]
    numbers = range(int(domain.max(initial=NO_GPU)) + 1) if one_domain else (None,)
    return [
        (code, tuple(np.flatnonzero(inside).tolist()))
        for code in codes
        for number in numbers
        for inside in (entire & (models == code) & (True if number is None else domain == number),)
    ]


def _reached(board: Board, gpus: tuple[int, ...], size: int) -> float:
    return mean_pair_bandwidth(board.links, board.best(gpus, size))
