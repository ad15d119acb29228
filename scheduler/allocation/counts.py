"""The cluster as counts: how many nodes are in which state, for deciding who may run at all.

To repack, everything that runs or waits is packed anew at every event. Exact GPUs do not matter
for that, and equal nodes need not be told apart, so best fit is a walk over a handful of states.
NVLink domains and racks are not counted, nor sites beyond the first `SITES_MAX`: whoever packs for
real may find that a gang does not fit.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter

import numpy as np

from scheduler.allocation.site_classes import site_classes, sites_of
from scheduler.model.columns import NO_GPU, Bools, Ints, NodeTable
from scheduler.model.counting import in_pool
from scheduler.model.job import JobShape, Worker
from scheduler.model.plan import TaskPlacement
from scheduler.model.ports import OrderedJob
from scheduler.model.quantity import WHOLE_GPU_MILLI

_UNBOUNDED = 2**31


@dataclass(frozen=True, slots=True, order=True)
class State:
    """What a node has left. The order is that of best fit: the least first.

    Attributes:
        milli: free GPU thousandths.
        cpu: free milli-CPU.
        memory: free MiB.
        whole: entirely free GPUs.
        parts: what is left of GPUs in use, ascending.
        place: its class of nodes that are alike to all who compete, as `site_classes` has it.
        model: code of its GPU model, `NO_GPU` for none or several.
        extras: what is left of each further resource that anybody competes for, by name.
    """

    milli: int
    cpu: int
    memory: int
    whole: int
    parts: tuple[int, ...]
    place: int
    model: int
    extras: tuple[int, ...] = ()


@dataclass(slots=True, eq=False)
class _Slot:
    """All nodes in one state.

    Attributes:
        fits: workers of each kind that such a node holds, by number of the kind.
        after: the slot of a node after (kind, workers) more.
    """

    state: State
    nodes: int = 0
    fits: dict[int, int] = field(default_factory=dict)
    after: dict[tuple[int, int], _Slot] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class _Kind:
    """Gangs of one kind.

    Attributes:
        places: whether it may use nodes of each class.
        extras: what a worker takes of each further resource that anybody competes for.
    """

    number: int
    worker: Worker
    workers: int
    places: Bools
    extras: tuple[int, ...]


class Counts:
    """Open nodes by state; draws on them by best fit."""

    def __init__(
        self, table: NodeTable, held: Iterable[TaskPlacement], shapes: Collection[JobShape]
    ) -> None:
        """Count nodes. O(GPUs + held tasks).

        Args:
            table: what the nodes are.
            held: what keeps its place whatever happens.
            shapes: of all who compete.
        """
        self._table = table
        self._place = site_classes(table, sites_of(table, (shape.worker for shape in shapes)))
        self._names = tuple(sorted({name for shape in shapes for name, _ in shape.extras}))
        self._slot_of: dict[State, _Slot] = {}
        self._filled: list[_Slot] = []
        self._kinds: dict[tuple[Worker, int], _Kind] = {}
        self._kind_of: dict[str, _Kind] = {}
        self.milli = 0
        """Free GPU thousandths of all nodes."""
        for state, nodes in _states(table, held, self._place, self._names):
            self._fill(self._slot(state), nodes)
            self.milli += state.milli * nodes

    def admitted(self, line: Sequence[OrderedJob]) -> list[OrderedJob]:
        """Those of `line` that fit, drawn one after the other; who does not fit is passed over.

        A gang is drawn whole or not at all. One node for all its workers is best, the fullest that
        holds them; else the nodes that hold most, until the rest fits one. Cost: O(jobs), and
        O(states) for each node that is used: alike jobs in a row fill a node at once, which is what
        best fit comes to, because a node that was chosen only becomes fuller.
        """
        found: list[OrderedJob] = []
        for kind, alike in groupby(line, self._kind):
            jobs = list(alike)
            if kind.workers == 1:
                found += jobs[: self._draw_singly(kind, len(jobs))]
            else:
                found += [entry for entry in jobs if self._draw_gang(kind)]
        return found

    def _kind(self, entry: OrderedJob) -> _Kind:
        class_key = entry.job.class_key
        kind = self._kind_of.get(class_key)
        if kind is None:
            shape = entry.job.shape
            worker, workers = shape.worker, shape.tasks // shape.tasks_per_worker
            kind = self._kinds.get((worker, workers))
            if kind is None:
                kind = self._kinds[worker, workers] = self._described(worker, workers)
            self._kind_of[class_key] = kind
        return kind

    def _described(self, worker: Worker, workers: int) -> _Kind:
        places = np.zeros(int(self._place.max(initial=-1)) + 1, dtype=np.bool_)
        places[self._place[in_pool(self._table, worker)]] = True
        amounts = dict(worker.extras)
        extras = tuple(amounts.get(name, 0) for name in self._names)
        return _Kind(len(self._kinds), worker, workers, places, extras)

    def _draw_singly(self, kind: _Kind, jobs: int) -> int:
        """Draw up to so many gangs of one worker each; how many fitted."""
        missing = jobs
        while missing and kind.worker.milli <= self.milli:
            slot, fits = self._best(kind, 1)
            if slot is None:
                break
            count = min(fits, missing)
            self._move(slot, self._after(kind, slot, count))
            missing -= count
        return jobs - missing

    def _draw_gang(self, kind: _Kind) -> bool:
        missing = kind.workers
        if kind.worker.milli * missing > self.milli:
            return False
        drawn: list[tuple[_Slot, _Slot]] = []
        while missing:
            slot, fits = self._best(kind, missing)
            if slot is None:
                for before, after in reversed(drawn):
                    self._move(after, before)
                return False
            count = min(fits, missing)
            after = self._after(kind, slot, count)
            self._move(slot, after)
            drawn.append((slot, after))
            missing -= count
        return True

    def _best(self, kind: _Kind, missing: int) -> tuple[_Slot | None, int]:
        """The fullest slot that holds `missing` workers, else one that holds most; and how many."""
        chosen, most = None, 0
        for slot in self._filled:
            fits = slot.fits.get(kind.number)
            if fits is None:
                fits = slot.fits[kind.number] = _fits(kind, slot.state, self._table)
            if fits >= missing:
                return slot, fits
            if fits > most:
                chosen, most = slot, fits
        return chosen, most

    def _after(self, kind: _Kind, slot: _Slot, workers: int) -> _Slot:
        key = (kind.number, workers)
        after = slot.after.get(key)
        if after is None:
            after = slot.after[key] = self._slot(_drawn(kind, slot.state, workers))
        return after

    def _slot(self, state: State) -> _Slot:
        slot = self._slot_of.get(state)
        if slot is None:
            slot = self._slot_of[state] = _Slot(state)
        return slot

    def _fill(self, slot: _Slot, nodes: int) -> None:
        if not slot.nodes:
            insort(self._filled, slot, key=_state)
        slot.nodes += nodes

    def _move(self, before: _Slot, after: _Slot) -> None:
        """One node changes its state."""
        self.milli += after.state.milli - before.state.milli
        before.nodes -= 1
        if not before.nodes:
            self._filled.remove(before)
        self._fill(after, 1)


_state = attrgetter("state")


def _states(
    table: NodeTable, held: Iterable[TaskPlacement], place: Ints, names: Sequence[str]
) -> list[tuple[State, int]]:
    """(state, open nodes in it), ascending by GPUs, CPU, memory."""
    gpu = np.where(table.gpu_open, WHOLE_GPU_MILLI, 0)
    cpu, memory = table.cpu.copy(), table.memory.copy()
    extras = {name: table.capacity_of(name).copy() for name in names}
    for task in held:
        row = table.row_of.get(task.node_id)
        if row is None:
            continue
        cpu[row] -= task.cpu_milli
        memory[row] -= task.memory_mib
        for name, amount in task.extras:
            if name in extras:
                extras[name][row] -= amount
        for gpu_id in task.gpu_ids:
            where = table.gpu_at.get(gpu_id)
            if where is not None:
                gpu[where] -= task.gpu_milli
    gpu.sort(axis=1)
    free = [np.maximum(amounts, 0) for amounts in (gpu, cpu, memory, *extras.values())]
    what = [*free[:3], place, table.model, *free[3:]]
    rows = np.column_stack(what)[table.open]
    different, nodes = np.unique(rows, axis=0, return_counts=True)
    return [
        (_state_of(row, table.gpu_open.shape[1]), count)
        for row, count in zip(different.tolist(), nodes.tolist(), strict=True)
    ]


def _state_of(row: list[int], width: int) -> State:
    gpus, (cpu, memory, place, model, *extras) = row[:width], row[width:]
    whole = gpus.count(WHOLE_GPU_MILLI)
    parts = tuple(milli for milli in gpus if 0 < milli < WHOLE_GPU_MILLI)
    milli = whole * WHOLE_GPU_MILLI + sum(parts)
    return State(milli, cpu, memory, whole, parts, place, model, tuple(extras))


def _fits(kind: _Kind, state: State, table: NodeTable) -> int:
    """Workers that a node in `state` holds."""
    worker = kind.worker
    if not kind.places[state.place]:
        return 0
    known = worker.gpu_models and state.model != NO_GPU
    if known and table.models[state.model] not in worker.gpu_models:
        return 0
    fits = _UNBOUNDED
    if worker.needs.gpus:
        fits = state.whole // worker.needs.gpus
    if worker.gpu_milli:
        shares = state.whole * (WHOLE_GPU_MILLI // worker.gpu_milli)
        shares += sum(part // worker.gpu_milli for part in state.parts)
        fits = shares // worker.parts
    if worker.needs.cpu_milli:
        fits = min(fits, state.cpu // worker.needs.cpu_milli)
    if worker.needs.memory_mib:
        fits = min(fits, state.memory // worker.needs.memory_mib)
    for left, each in zip(state.extras, kind.extras, strict=True):
        if each:
            fits = min(fits, left // each)
    return fits


def _drawn(kind: _Kind, state: State, workers: int) -> State:
    """What a node in `state` has left after `workers` of them."""
    worker = kind.worker
    whole, parts = state.whole - worker.needs.gpus * workers, list(state.parts)
    for _ in range(worker.parts * workers if worker.gpu_milli else 0):
        tight = next((part for part in parts if part >= worker.gpu_milli), None)
        if tight is None:
            whole -= 1
            tight = WHOLE_GPU_MILLI
        else:
            parts.remove(tight)
        if tight > worker.gpu_milli:
            insort(parts, tight - worker.gpu_milli)
    return State(
        milli=whole * WHOLE_GPU_MILLI + sum(parts),
        cpu=state.cpu - worker.needs.cpu_milli * workers,
        memory=state.memory - worker.needs.memory_mib * workers,
        whole=whole,
        parts=tuple(parts),
        place=state.place,
        model=state.model,
        extras=tuple(
            left - each * workers for left, each in zip(state.extras, kind.extras, strict=True)
        ),
    )
