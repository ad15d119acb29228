"""Lowest index: the first node by name that has room, and its first GPU with room."""

from __future__ import annotations

import numpy as np

from scheduler.model.columns import Floats, Free, Ints
from scheduler.model.job import Worker
from scheduler.model.ports import Scoring
from scheduler.model.snapshot import Snapshot


class LowestIndex:
    """All nodes are alike, and ties go to the first."""

    name = "lowest-index"

    def on(self, free: Free, snapshot: Snapshot, seed: int) -> Scoring:
        """The score; neither the snapshot's mix nor the seed matters."""
        del snapshot, seed
        return _LowestIndex(free)


class _LowestIndex:
    def __init__(self, free: Free) -> None:
        self._free = free

    def rows(self, worker: Worker, rows: Ints) -> Floats:
        """(len(rows),) zeros."""
        del worker
        return np.zeros(rows.size)

    def gpu(self, worker: Worker, row: int) -> int:
        """The first GPU with room."""
        return int(np.argmax(self._free.gpu[row] >= worker.gpu_milli))
