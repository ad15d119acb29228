"""Fragmentation gradient descent (FGD): the node whose fragmentation grows least.

Weng et al., USENIX ATC'23. As published, the score is the integer part of 100 sigmoid(x), x being
the fall of F(n) in GPUs, and ties, of which truncation makes many, go to the node with the lowest
name: together they fill one node after the other. A stock Kubernetes scheduler breaks ties at
random, which costs several points; so both variants are here.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from policies.fragmentation import Fragmentation
from policies.node_states import NodeStates, lowest_of_each
from policies.typical_mix import Access, TypicalMix
from scheduler.model.columns import Floats, Free, Ints
from scheduler.model.job import JobShape, Worker
from scheduler.model.ports import Scoring
from scheduler.model.quantity import WHOLE_GPU_MILLI
from scheduler.model.snapshot import Snapshot

COVER = 0.95
"""Typical are the most frequent footprints that make up this share of the work."""
BEST = 100


class Fgd:
    """The published score.

    Args:
        random_ties: break ties at random, anew in each decision, instead of by node name.
        known: the mix of shapes, where it is known beforehand, as the paper assumes; None learns
            it from each snapshot.
    """

    def __init__(
        self, *, random_ties: bool = False, known: Mapping[JobShape, int] | None = None
    ) -> None:
        self._random_ties = random_ties
        self._known = known
        self._latest: tuple[Mapping[JobShape, int], TypicalMix] | None = None

    @property
    def name(self) -> str:
        """A name for people."""
        return "fgd-random-ties" if self._random_ties else "fgd"

    def on(self, free: Free, snapshot: Snapshot, seed: int) -> Scoring:
        """The score for the known mix, or that of `snapshot`."""
        shapes = snapshot.mix if self._known is None else self._known
        if self._latest is None or self._latest[0] is not shapes:
            self._latest = (shapes, TypicalMix.of(shapes, cover=COVER, by_memory=False))
        mix = self._latest[1]
        loss = Fragmentation(mix, Access.of(free.table, mix), free.gpu.shape[1])
        ties = np.zeros(free.cpu.size)
        if self._random_ties:
            ties = np.random.default_rng((seed, snapshot.revision)).random(free.cpu.size)
        return _Fgd(free, loss, ties)


class _Fgd:
    def __init__(self, free: Free, loss: Fragmentation, ties: Floats) -> None:
        self._free = free
        self._loss = loss
        self._ties = ties
        """(N,) below 1, the step between two scores."""

    def rows(self, worker: Worker, rows: Ints) -> Floats:
        """(len(rows),) 100 less the published score, from 0."""
        states = NodeStates.now(self._free, rows)
        before = self._loss.of(states)
        if not worker.gpu_milli:
            after = self._loss.of(states.after_whole(worker))
            return BEST - _published(before - after) + self._ties[rows]
        states = states.without(worker.needs.cpu_milli, worker.needs.memory_mib)
        options, source, _ = states.after_part(worker.gpu_milli)
        scores = BEST - _published(before[source] - self._loss.of(options))
        lowest, _ = lowest_of_each(scores, source, rows.size)
        return lowest + self._ties[rows]

    def gpu(self, worker: Worker, row: int) -> int:
        """The GPU of the best score; the lowest index of equals."""
        # The worker has its CPU and memory already.
        now = NodeStates.now(self._free, np.array([row]))
        before = self._loss.of(now.without(-worker.needs.cpu_milli, -worker.needs.memory_mib))
        options, _, which = now.after_part(worker.gpu_milli)
        return int(which[np.argmax(_published(before - self._loss.of(options)))])


def _published(fall: Floats) -> Floats:
    """(n,) the integer score 0..100 of a fall of F, given in thousandths of a GPU."""
    score: Floats = np.floor(BEST / (1.0 + np.exp(-fall / WHOLE_GPU_MILLI)))
    return score
