"""Random fit: any node that has room, and any of its GPUs. The floor of every comparison."""

from __future__ import annotations

import numpy as np

from scheduler.model.columns import Floats, Free, Ints
from scheduler.model.job import Worker
from scheduler.model.ports import Scoring
from scheduler.model.snapshot import Snapshot


class RandomFit:
    """Nodes and GPUs by lot, drawn anew for each decision from its seed and revision."""

    name = "random"

    def on(self, free: Free, snapshot: Snapshot, seed: int) -> Scoring:
        """The lots of one decision."""
        return _RandomFit(free, np.random.default_rng((seed, snapshot.revision)))


class _RandomFit:
    """A node draws when it is asked for: at first, and again when work was put on it."""

    def __init__(self, free: Free, rng: np.random.Generator) -> None:
        self._free = free
        self._rng = rng

    def rows(self, worker: Worker, rows: Ints) -> Floats:
        """(len(rows),) lots."""
        del worker
        return self._rng.random(rows.size)

    def gpu(self, worker: Worker, row: int) -> int:
        """Any GPU with room."""
        return int(self._rng.choice((self._free.gpu[row] >= worker.gpu_milli).nonzero()[0]))
