"""What a plan gives to its tasks, and what their jobs asked for, as columns.

For whoever checks plans: all tasks are compared at once, so thousands of placements cost
milliseconds. Nothing here judges, and nothing knows how the plan was made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scheduler.model.columns import Bools, Free, Ints, NodeTable
from scheduler.model.job import WaitingJob
from scheduler.model.plan import Placement, TaskPlacement
from scheduler.model.quantity import WHOLE_GPU_MILLI, GpuId
from scheduler.model.snapshot import Snapshot

NOWHERE = (-1, 0)
"""(row, GPU index) of a GPU that no node has."""
ANY_POOL, NO_POOL = -1, -2
"""Codes of a task that may sit in any pool, and of a pool that no node is in."""


@dataclass(frozen=True, slots=True, eq=False)
class Given:
    """What a plan gives to its P placements, T tasks, in U uses of GPUs, as columns.

    Attributes:
        placements: as in the plan.
        jobs: (P) whose they are; None when no such job waits.
        first: (P + 1,) where each placement's tasks begin.
        tasks: (T) of all placements.
        owner: (T,) their placements.
        row: (T,) their nodes; -1 when there is no such node.
        cpu, memory, milli: (T,) what they get: milli-CPU, MiB, thousandths of each GPU.
        gpus: (T,) of so many GPUs.
        gpu_ids: (U) the GPUs.
        user: (U,) their tasks.
        at: (U, 2) row and index of each; `NOWHERE` when no node has it.
    """

    placements: Sequence[Placement]
    jobs: Sequence[WaitingJob | None]
    first: Ints
    tasks: Sequence[TaskPlacement]
    owner: Ints
    row: Ints
    cpu: Ints
    memory: Ints
    milli: Ints
    gpus: Ints
    gpu_ids: Sequence[GpuId]
    user: Ints
    at: Ints

    @classmethod
    def of(cls, placements: Sequence[Placement], snapshot: Snapshot) -> Given:
        """Read a plan's placements. O(placed tasks)."""
        table = snapshot.columns.table
        sizes = ints([len(placement.tasks) for placement in placements])
        tasks = [task for placement in placements for task in placement.tasks]
        row_of, gpu_at = table.row_of, table.gpu_at
        gpus = ints([len(task.gpu_ids) for task in tasks])
        gpu_ids = [gpu_id for task in tasks for gpu_id in task.gpu_ids]
        at = [gpu_at.get(gpu_id, NOWHERE) for gpu_id in gpu_ids]
        return cls(
            placements,
            [snapshot.waiting.get(placement.job_id) for placement in placements],
            np.concatenate([ints([0]), np.cumsum(sizes)]),
            tasks,
            np.repeat(np.arange(len(placements)), sizes),
            ints([row_of.get(task.node_id, -1) for task in tasks]),
            ints([task.cpu_milli for task in tasks]),
            ints([task.memory_mib for task in tasks]),
            ints([task.gpu_milli for task in tasks]),
            gpus,
            gpu_ids,
            np.repeat(np.arange(len(tasks)), gpus),
            np.array(at, dtype=np.int64).reshape(-1, 2),
        )

    @property
    def drawn(self) -> Ints:
        """(P,) GPU thousandths of each placement."""
        total = np.zeros(len(self.placements), dtype=np.int64)
        np.add.at(total, self.owner, self.gpus * self.milli)
        return total

    def left(self, free: Free) -> Free:
        """What of `free` is left. O(tasks) and a copy of the arrays."""
        after, table = free.copy(), free.table
        known = self.row >= 0
        for amounts, given in ((after.cpu, self.cpu), (after.memory, self.memory)):
            np.subtract.at(amounts, self.row[known], given[known])
            np.maximum(amounts, 0, out=amounts)
        for task, row in zip(self.tasks, self.row.tolist(), strict=True):
            for name, amount in task.extras if row >= 0 else ():
                if name not in after.extras:
                    after.extras[name] = after.amount_of(name).copy()
                after.extras[name][row] = max(0, after.extras[name][row] - amount)
        found = self.at[:, 0] >= 0
        row, index = self.at[found].T
        np.subtract.at(after.gpu, (row, index), self.milli[self.user[found]])
        rows = np.unique(row)
        gpu = np.maximum(after.gpu[rows], 0)
        entire, model = gpu == WHOLE_GPU_MILLI, table.gpu_model[rows]
        after.gpu[rows], after.milli[rows] = gpu, gpu.sum(axis=1)
        after.entire[rows] = entire.sum(axis=1)
        for code in range(len(table.models)):
            after.whole[code, rows] = (entire & (model == code)).sum(axis=1)
        return after


def ints(values: Sequence[int]) -> Ints:
    """A column of them, also when there are none."""
    return np.array(values, dtype=np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """What each task's job asked for; T tasks. Tasks of jobs that do not wait asked for nothing.

    Attributes:
        waits: (T,) whether the job waits.
        amounts: (T, 4) GPUs, milli-CPU, MiB, thousandths of each GPU.
        pool: (T,) code of the pool, or one of the above.
        models: (kinds of wish, M + 1) GPU models that are accepted.
        wish: (T,) row in `models`.
    """

    waits: Bools
    amounts: Ints
    pool: Ints
    models: Bools
    wish: Ints

    @classmethod
    def of(cls, given: Given, table: NodeTable) -> Asked:
        """O(placements + tasks)."""
        pools = {name: code for code, name in enumerate(table.pools)}
        wishes: dict[tuple[str, ...], int] = {}
        lines = []
        for job in given.jobs:
            if job is None:
                lines.append((0, 0, 0, 0, 0, ANY_POOL, 0))
                continue
            shape, need = job.shape, job.shape.per_task
            gpus, milli = (1, shape.gpu_milli) if shape.gpu_milli else (need.gpus, WHOLE_GPU_MILLI)
            pool = ANY_POOL if shape.pool is None else pools.get(str(shape.pool), NO_POOL)
            wish = wishes.setdefault(shape.gpu_models, len(wishes))
            lines.append((1, gpus, need.cpu_milli, need.memory_mib, milli, pool, wish))
        asked = np.array(lines, dtype=np.int64).reshape(-1, 7)[given.owner]
        models = [[not wish or name in wish for name in table.models] for wish in wishes]
        accepted = np.array(models, dtype=np.bool_).reshape(len(wishes), len(table.models))
        return cls(asked[:, 0] > 0, asked[:, 1:5], asked[:, 5], accepted, asked[:, 6])
