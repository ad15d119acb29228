"""Packing by counts, for thousands of gangs at once: nodes stand on shelves by their free GPUs.

A gang of whole GPUs takes the lowest shelf that holds it, which is best fit without looking at any
other node; only CPU and memory are compared node by node. Which GPUs of a node are taken is dealt
out at the end. Ten times faster than a `Room`, which sees more: shares of GPUs, NVLink domains,
racks and node scores. Gangs that need those are not for shelves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from scheduler.allocation.gangs import Gang
from scheduler.allocation.groups import accepts
from scheduler.allocation.limits import Quotas
from scheduler.allocation.room import Load, Loads
from scheduler.allocation.spread import Spread
from scheduler.allocation.topology import board_of, whole_gpus
from scheduler.allocation.worth import Packing
from scheduler.model.columns import NO_GPU, Free, Ints, NodeTable
from scheduler.model.job import Worker
from scheduler.model.quantity import WHOLE_GPU_MILLI
from scheduler.model.snapshot import LiveAttempt, Snapshot


def shelvable(table: NodeTable, worker: Worker) -> bool:
    """Whether counts of free GPUs say all there is to know about workers of this kind."""
    return not (worker.gpu_milli or worker.one_domain or table.mixed)


@dataclass(frozen=True, slots=True)
class Keep:
    """Blocks of `gpus` free GPUs that must stay: `blocks` of them on the marked nodes."""

    gpus: int
    blocks: int
    here: Sequence[bool]


@dataclass(slots=True)
class _Kind:
    """A worker kind: what it takes, and the sections of the shelves it may use, cheapest first."""

    gpus: int
    cpu: int
    memory: int
    sections: tuple[int, ...]
    failed: int = 2**62


class Shelves:
    """Free nodes by section (nodes that no kind tells apart) and count of free GPUs.

    Args:
        snapshot: whose limits hold.
        free: what may be drawn on; not changed.
        of_row: (N,) section of each node, -1 for nodes that take no work.
        price: (sections,) sections are tried from the lowest up.
        leaving: attempts whose place is in `free` already, and whose quota comes back.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        free: Free,
        of_row: Ints,
        price: Sequence[float],
        leaving: Iterable[LiveAttempt] = (),
    ) -> None:
        self._table = free.table
        self._free = free
        self._section = of_row.tolist()
        self._price = price
        gpus = free.whole.sum(axis=0)
        self._gpus: list[int] = gpus.tolist()
        self._cpu: list[int] = free.cpu.tolist()
        self._memory: list[int] = free.memory.tolist()
        self.top = int(gpus.max(initial=0))
        self._shelf: list[list[dict[int, None]]] = [
            [{} for _ in price] for _ in range(self.top + 1)
        ]
        for row, section in enumerate(self._section):
            if section >= 0:
                self._shelf[self._gpus[row]][section][row] = None
        self._pools = _pool_and_model(free.table, of_row, len(price))
        self._kinds: dict[Worker, _Kind] = {}
        self._of_class: dict[str, _Kind] = {}
        self._quotas = Quotas(snapshot)
        for attempt in leaving:
            milli = sum(len(task.gpu_ids) * task.gpu_milli for task in attempt.tasks)
            self._quotas.take(attempt.tenant, -milli)
        self._keeps = _keeps(snapshot, free)
        self._spare = [
            sum(n // keep.gpus for n, here in zip(self._gpus, keep.here, strict=True) if here)
            - keep.blocks
            for keep in self._keeps
        ]

    def place(self, gang: Gang, prefer: Mapping[int, float] | None = None) -> Loads | None:
        """Draw room for the gang, all of it or nothing.

        Args:
            gang: of a kind that is `shelvable`.
            prefer: sections to try first, with how many workers each is meant to take.

        Returns:
            what was drawn, its GPUs not yet dealt out; None when it does not fit.
        """
        kind = self._of_class.get(gang.job.class_key) or self._kind_of(gang)
        if gang.workers >= kind.failed:
            return None
        milli = gang.worker.milli * gang.workers
        if not self._quotas.admits(gang.job.tenant, milli):
            return None
        found: Spread = []
        missing = gang.workers
        if prefer:
            wanted = [s for s in kind.sections if prefer.get(s, 0.0) >= 1.0]
            missing = self._fill(kind, missing, wanted, found)
        if missing:
            missing = self._fill(kind, missing, kind.sections, found)
        if missing:
            for row, workers in found:
                self._move(row, kind, -workers)
            kind.failed = gang.workers
            return None
        self._quotas.take(gang.job.tenant, milli)
        return tuple(Load(row, workers, ()) for row, workers in found)

    def give(self, gang: Gang, loads: Loads) -> None:
        """Give back what `place` drew."""
        kind = self._of_class[gang.job.class_key]
        for load in loads:
            self._move(load.row, kind, -load.workers)
        self._quotas.take(gang.job.tenant, -gang.worker.milli * gang.workers)
        for each in self._kinds.values():
            each.failed = 2**62

    def section(self, row: int) -> int:
        """The section a node stands in."""
        return int(self._section[row])

    def _kind_of(self, gang: Gang) -> _Kind:
        worker = gang.worker
        kind = self._kinds.get(worker)
        if kind is None:
            allowed = [
                section
                for section, (pool, model) in enumerate(self._pools)
                if (worker.pool is None or worker.pool == pool)
                and (not worker.needs.gpus or (model is not None and accepts(worker, model)))
            ]
            allowed.sort(key=lambda section: (self._price[section], section))
            needs = worker.needs
            kind = _Kind(needs.gpus, needs.cpu_milli, needs.memory_mib, tuple(allowed))
            self._kinds[worker] = kind
        self._of_class[gang.job.class_key] = kind
        return kind

    def _fill(self, kind: _Kind, missing: int, sections: Sequence[int], found: Spread) -> int:
        """Place workers as close together as possible; how many are still missing."""
        each = kind.gpus
        workers = min(missing, self.top // each) if each else missing
        while workers and missing:
            row = self._row(kind, workers, sections)
            if row is None:
                workers -= 1
                continue
            self._move(row, kind, workers)
            found.append((row, workers))
            missing -= workers
            workers = min(workers, missing)
        return missing

    def _row(self, kind: _Kind, workers: int, sections: Sequence[int]) -> int | None:
        """A node for so many workers: the cheapest section, there the lowest shelf."""
        cpu, memory = kind.cpu * workers, kind.memory * workers
        free_cpu, free_memory = self._cpu, self._memory
        least = kind.gpus * workers
        tight = self._keeps and kind.gpus and min(self._spare) <= 0
        for section in sections:
            for count in range(least, self.top + 1):
                for row in self._shelf[count][section]:
                    if free_cpu[row] >= cpu and free_memory[row] >= memory:
                        if tight and self._breaks(row, least):
                            continue
                        return row
        return None

    def _breaks(self, row: int, gpus: int) -> bool:
        """Whether taking these GPUs would break a block that must stay."""
        have = self._gpus[row]
        return any(
            keep.here[row] and have // keep.gpus - (have - gpus) // keep.gpus > spare
            for keep, spare in zip(self._keeps, self._spare, strict=True)
        )

    def _move(self, row: int, kind: _Kind, workers: int) -> None:
        """Take `workers` (give back, when negative) and put the node on its new shelf."""
        before = self._gpus[row]
        after = before - kind.gpus * workers
        self._cpu[row] -= kind.cpu * workers
        self._memory[row] -= kind.memory * workers
        if after == before:
            return
        section = self._section[row]
        del self._shelf[before][section][row]
        self._shelf[after][section][row] = None
        self._gpus[row] = after
        for number, keep in enumerate(self._keeps):
            if keep.here[row]:
                self._spare[number] += after // keep.gpus - before // keep.gpus


def _pool_and_model(
    table: NodeTable, of_row: Ints, sections: int
) -> list[tuple[str | None, str | None]]:
    """Pool and GPU model of each section."""
    found: list[tuple[str | None, str | None]] = [(None, None)] * sections
    known, first = np.unique(of_row, return_index=True)
    for section, row in zip(known.tolist(), first.tolist(), strict=True):
        if section >= 0:
            model = int(table.model[row])
            name = None if model == NO_GPU else table.models[model]
            found[section] = (table.pools[table.pool[row]], name)
    return found


def _keeps(snapshot: Snapshot, free: Free) -> list[Keep]:
    """Hard headroom, as far as it is there."""
    found = []
    for each in snapshot.terms.headroom:
        if each.value is not None or each.gpus <= 0:
            continue
        here = free.table.open.copy()
        if each.pool is not None:
            pools = {str(name): code for code, name in enumerate(free.table.pools)}
            here &= free.table.pool == pools.get(str(each.pool), -1)
        blocks = int((snapshot.columns.free.whole[:, here] // each.gpus).sum())
        found.append(Keep(each.gpus, min(each.blocks, blocks), here.tolist()))
    return found


def dealt(free: Free, gangs: Sequence[Gang], packing: Packing) -> dict[int, Loads]:
    """Exact GPUs for packed gangs: on every node the larger ones choose first.

    Args:
        free: what the packing drew on; changed.
        gangs: all of them.
        packing: what shelves drew, by index into `gangs`.
    """
    boards = [board_of(links) for links in free.table.boards]
    chosen: dict[int, list[Load]] = {}
    order = sorted(packing, key=lambda index: (-gangs[index].worker.needs.gpus, index))
    codes = tuple(range(len(free.table.models)))
    plain: dict[int, list[int]] = {}
    for index in order:
        gpus = gangs[index].worker.needs.gpus
        for load in packing[index]:
            row, workers = load.row, load.workers
            taken: tuple[int, ...] = ()
            if gpus:
                board = boards[free.table.board[row]]
                if board.uniform:
                    left = plain.get(row)
                    if left is None:
                        left = plain[row] = np.flatnonzero(
                            free.gpu[row] == WHOLE_GPU_MILLI
                        ).tolist()
                    taken = tuple(left[: gpus * workers])
                    del left[: gpus * workers]
                else:
                    found = whole_gpus(
                        free, row, board, (workers, gpus), codes, ranked=False, one_domain=False
                    )
                    assert found is not None, "the shelf said that they are free"
                    taken = found
                    for gpu in taken:
                        free.gpu[row, gpu] = 0
                        free.whole[free.table.model[row], row] -= 1
            chosen.setdefault(index, []).append(Load(row, workers, taken))
    return {index: tuple(loads) for index, loads in chosen.items()}
