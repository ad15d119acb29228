"""Best fit: the node that the work leaves with the least, so that large holes stay large."""

from __future__ import annotations

import numpy as np

from scheduler.model.columns import Floats, Free, Ints
from scheduler.model.job import Worker
from scheduler.model.ports import Scoring
from scheduler.model.quantity import WHOLE_GPU_MILLI
from scheduler.model.snapshot import Snapshot

CPU_WEIGHT = 1e-3
"""A whole node's CPU weighs less than one thousandth of a GPU: it only breaks ties."""


class BestFit:
    """Fewest free GPU thousandths first, then the least free CPU; CPU work avoids GPUs."""

    name = "best-fit"

    def on(self, free: Free, snapshot: Snapshot, seed: int) -> Scoring:
        """The score; neither the snapshot's mix nor the seed matters."""
        del snapshot, seed
        return _BestFit(free)


class _BestFit:
    def __init__(self, free: Free) -> None:
        self._free = free
        self._cpu_most = max(1, int(free.table.cpu.max(initial=1)))

    def rows(self, worker: Worker, rows: Ints) -> Floats:
        """(len(rows),) free GPU thousandths, and the free CPU as a tie-break."""
        del worker
        gpu: Floats = self._free.gpu[rows].sum(axis=1).astype(np.float64)
        cpu: Floats = CPU_WEIGHT * self._free.cpu[rows] / self._cpu_most
        return gpu + cpu

    def gpu(self, worker: Worker, row: int) -> int:
        """The GPU with the least room that still holds the part; the lowest index of equals."""
        room = self._free.gpu[row]
        return int(np.argmin(np.where(room >= worker.gpu_milli, room, WHOLE_GPU_MILLI + 1)))
