"""States of nodes as arrays, and the states they would be in after taking one more worker."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scheduler.model.columns import Floats, Free, Ints
from scheduler.model.job import Worker
from scheduler.model.quantity import WHOLE_GPU_MILLI


@dataclass(frozen=True, slots=True, eq=False)
class NodeStates:
    """R states of nodes.

    Attributes:
        row: (R,) rows of the node table.
        cpu, memory: (R,) free milli-CPU and MiB.
        gpu: (R, G) free thousandths of each GPU.
    """

    row: Ints
    cpu: Ints
    memory: Ints
    gpu: Ints

    @classmethod
    def now(cls, free: Free, rows: Ints) -> NodeStates:
        """The states of `rows` as they are."""
        return cls(rows, free.cpu[rows], free.memory[rows], free.gpu[rows])

    def without(self, cpu_milli: int, memory_mib: int) -> NodeStates:
        """The states with less CPU and memory; with more for negative amounts."""
        return NodeStates(self.row, self.cpu - cpu_milli, self.memory - memory_mib, self.gpu)

    def at(self, indexes: Ints) -> NodeStates:
        """The states at `indexes`."""
        return NodeStates(
            self.row[indexes], self.cpu[indexes], self.memory[indexes], self.gpu[indexes]
        )

    def after_whole(self, worker: Worker) -> NodeStates:
        """The states after a worker with whole GPUs, or none, which fits everywhere.

        The first entirely free GPUs stand for those it would take: states do not tell equal GPUs
        apart. O(R G).
        """
        needs = worker.needs
        gpu = self.gpu
        if needs.gpus:
            entire = gpu == WHOLE_GPU_MILLI
            gpu = np.where(entire & (entire.cumsum(axis=1) <= needs.gpus), 0, gpu)
        return NodeStates(self.row, self.cpu - needs.cpu_milli, self.memory - needs.memory_mib, gpu)

    def after_part(self, gpu_milli: int) -> tuple[NodeStates, Ints, Ints]:
        """The states after `gpu_milli` of one GPU are taken, for each GPU that holds so much.

        CPU and memory stay. Of GPUs of a node that are equally free only the first is tried.

        Returns:
            S states, the (S,) index of the state here that each came from, ascending, and the (S,)
            GPU index. O(R G^2 + S G).
        """
        good = self.gpu >= gpu_milli
        for later in range(1, self.gpu.shape[1]):
            seen = (self.gpu[:, :later] == self.gpu[:, later, None]).any(axis=1)
            good[:, later] &= ~seen
        source, which = good.nonzero()
        gpu = self.gpu[source]
        gpu[np.arange(source.size), which] -= gpu_milli
        return (
            NodeStates(self.row[source], self.cpu[source], self.memory[source], gpu),
            source,
            which,
        )


def lowest_of_each(loss: Floats, source: Ints, states: int) -> tuple[Floats, Ints]:
    """The lowest loss among those of equal `source`, and where it stands; the first of equals.

    Args:
        loss: (S,) of each option.
        source: (S,) ascending, each of 0..states-1 at least once.
        states: number of states.

    Returns:
        (states,) losses, and (states,) indexes into `loss`.
    """
    first = np.searchsorted(source, np.arange(states))
    lowest: Floats = np.minimum.reduceat(loss, first) if loss.size else loss
    at = np.where(loss == lowest[source], np.arange(loss.size), loss.size)
    return lowest, np.minimum.reduceat(at, first) if loss.size else at
