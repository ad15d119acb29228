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
from scheduler.allocation.groups import accepts, allowed
from scheduler.allocation.limits import Quotas
from scheduler.allocation.room import Load, Loads
from scheduler.allocation.spread import Spread
from scheduler.allocation.topology import board_of, whole_gpus
from scheduler.allocation.worth import Packing
from scheduler.model.columns import NO_GPU, Free, Ints, NodeTable
from scheduler.model.counting import anywhere
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
    """A worker kind: what it takes, and the sections of the shelves it may use, cheapest first.

    Attributes:
        allows: for each section whether it may use it.
        extras: for each further resource it takes what all nodes have left, and how much it takes.
        here: for each node whether it may use it; None where all of a section are alike in that.
        failed: the smallest gang that did not fit; most: no node holds more workers. Both are true
            until something is given back.
    """

    gpus: int
    cpu: int
    memory: int
    sections: tuple[int, ...]
    allows: Sequence[bool]
    extras: tuple[tuple[list[int], int], ...]
    here: Sequence[bool] | None
    failed: int = 2**62
    most: int = 2**62


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
        self._extras: dict[str, list[int]] = {}
        self.top = int(gpus.max(initial=0))
        self._shelf: list[list[dict[int, None]]] = [
            [{} for _ in price] for _ in range(self.top + 1)
        ]
        self._filled = [0] * len(price)  # a bit for every shelf of a section with a node on it
        for row, section in enumerate(self._section):
            if section >= 0:
                self._shelf[self._gpus[row]][section][row] = None
                self._filled[section] |= 1 << self._gpus[row]
        self._of_row = of_row
        self._models = _models(free.table, of_row, len(price))
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
        missing, most = gang.workers, kind.most
        if prefer:
            meant = [section for section, workers in prefer.items() if workers >= 1.0]
            wanted = [section for section in sorted(meant, key=self._rank) if kind.allows[section]]
            missing = self._fill(kind, missing, wanted, found)
        if missing:
            missing = self._fill(kind, missing, kind.sections, found)
        if missing:
            for row, workers in found:
                self._move(row, kind, -workers)
            kind.failed, kind.most = gang.workers, most
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
            each.failed = each.most = 2**62

    def section(self, row: int) -> int:
        """The section a node stands in."""
        return int(self._section[row])

    def _kind_of(self, gang: Gang) -> _Kind:
        worker = gang.worker
        kind = self._kinds.get(worker)
        if kind is None:
            kind = self._kinds[worker] = self._described(worker)
        self._of_class[gang.job.class_key] = kind
        return kind

    def _described(self, worker: Worker) -> _Kind:
        inside, here = self._reached(worker)
        allows = [
            reached and (not worker.needs.gpus or (model is not None and accepts(worker, model)))
            for reached, model in zip(inside, self._models, strict=True)
        ]
        sections = [section for section, allow in enumerate(allows) if allow]
        return _Kind(
            worker.needs.gpus,
            worker.needs.cpu_milli,
            worker.needs.memory_mib,
            tuple(sorted(sections, key=self._rank)),
            allows,
            tuple((self._left_of(name), amount) for name, amount in worker.extras if amount),
            here,
        )

    def _reached(self, worker: Worker) -> tuple[list[bool], list[bool] | None]:
        """Sections with nodes that the worker may use, and which those are where others differ."""
        sections = len(self._price)
        if anywhere(self._table, worker):
            return [True] * sections, None
        right, present = allowed(self._table, worker), self._of_row >= 0
        nodes = np.bincount(self._of_row[present], minlength=sections)
        inside = np.bincount(self._of_row[present & right], minlength=sections)
        alike = ((inside == 0) | (inside == nodes)).all()
        return (inside > 0).tolist(), None if alike else right.tolist()

    def _left_of(self, name: str) -> list[int]:
        """What each node has left of a further resource; changes as it is drawn on."""
        if name not in self._extras:
            self._extras[name] = self._free.amount_of(name).tolist()
        return self._extras[name]

    def _rank(self, section: int) -> tuple[float, int]:
        """Cheap sections first."""
        return self._price[section], section

    def _fill(self, kind: _Kind, missing: int, sections: Sequence[int], found: Spread) -> int:
        """Place workers as close together as possible; how many are still missing."""
        each = kind.gpus
        workers = min(missing, kind.most, self.top // each if each else missing)
        while workers and missing:
            row = self._row(kind, workers, sections)
            if row is None:
                workers -= 1
                if sections is kind.sections:
                    kind.most = workers
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
        picky = kind.extras or kind.here is not None
        for section in sections:
            filled = self._filled[section] >> least << least
            while filled:
                lowest = filled & -filled
                filled ^= lowest
                for row in self._shelf[lowest.bit_length() - 1][section]:
                    if free_cpu[row] >= cpu and free_memory[row] >= memory:
                        if picky and not _suits(kind, row, workers):
                            continue
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
        for left, amount in kind.extras:
            left[row] -= amount * workers
        if after == before:
            return
        section = self._section[row]
        shelf = self._shelf[before][section]
        del shelf[row]
        if not shelf:
            self._filled[section] ^= 1 << before
        self._shelf[after][section][row] = None
        self._filled[section] |= 1 << after
        self._gpus[row] = after
        for number, keep in enumerate(self._keeps):
            if keep.here[row]:
                self._spare[number] += after // keep.gpus - before // keep.gpus


def _suits(kind: _Kind, row: int, workers: int) -> bool:
    """Whether a node may be used, and has the further resources for so many workers."""
    if kind.here is not None and not kind.here[row]:
        return False
    return all(left[row] >= amount * workers for left, amount in kind.extras)


def _models(table: NodeTable, of_row: Ints, sections: int) -> list[str | None]:
    """GPU model of each section."""
    found: list[str | None] = [None] * sections
    known, first = np.unique(of_row, return_index=True)
    for section, row in zip(known.tolist(), first.tolist(), strict=True):
        if section >= 0:
            model = int(table.model[row])
            found[section] = None if model == NO_GPU else table.models[model]
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
