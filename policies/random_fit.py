"""Random fit: any node that has room, and any of its GPUs. The floor of every comparison."""

from __future__ import annotations

import numpy as np

from scheduler.model.columns import Floats, Free, Ints
from scheduler.model.job import Worker
from scheduler.model.ports import Scoring
from scheduler.model.snapshot import Snapshot


class RandomFit:
    """Nodes and GPUs by lot, drawn anew for each decision from seed and revision."""

    name = "random"

    def on(self, free: Free, snapshot: Snapshot, seed: int) -> Scoring:
        """The lots of one decision; each node draws once, so nodes with room are equally likely."""
        rng = np.random.default_rng((seed, snapshot.revision))
        return _RandomFit(free, rng.random(free.cpu.size), rng.random(free.gpu.shape))


class _RandomFit:
    def __init__(self, free: Free, node_lots: Floats, gpu_lots: Floats) -> None:
        self._free = free
        self._node_lots = node_lots
        self._gpu_lots = gpu_lots

    def rows(self, worker: Worker, rows: Ints) -> Floats:
        """(len(rows),) lots."""
        del worker
        return self._node_lots[rows]

    def gpu(self, worker: Worker, row: int) -> int:
        """The GPU with the lowest lot among those with room."""
        room = self._free.gpu[row] >= worker.gpu_milli
        return int(np.argmin(np.where(room, self._gpu_lots[row], 1.0)))
