"""The cluster as arrays, one row a node: what is there, what is held, what is free.

A cycle must not walk over every GPU again because one job ended. So a snapshot carries these
columns, and a delta makes new ones by copying a few arrays and changing the rows it names. All
arrays are read-only by contract; `Free.copy` makes a working copy that an allocator may draw on.

Shapes: N nodes by (name, id), G the largest number of GPU positions of a node, M GPU models.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from scheduler.model.node import Links, Node, PriceClass
from scheduler.model.plan import TaskPlacement
from scheduler.model.quantity import WHOLE_GPU_MILLI, GpuId, NodeId
from scheduler.model.site import implied_capacity
from scheduler.model.siting import Siting

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
NO_GPU = -1


@dataclass(frozen=True, slots=True, eq=False)
class NodeTable:
    """What nodes are, whoever uses them. Codes index the sorted tuple of the same plural name.

    Attributes:
        nodes: by (name, id); the row is the position here.
        row_of: row of each node.
        gpu_at: (row, GPU index) of each GPU.
        models, pools, racks, prices, boards: names by code. An unlabelled rack is a rack of its
            own; a price is a price class, a board the links between a node's GPUs.
        gpu_model: (N, G) model code of each GPU, `NO_GPU` where there is none.
        gpu_open: (N, G) whether new work may use the GPU: node and GPU healthy, not cordoned.
        gpu_domain: (N, G) number of its NVLink domain within the node.
        open: (N,) whether the node takes new work.
        cpu, memory: (N,) capacity for jobs, milli-CPU and MiB.
        pool, rack, price, board: (N,) codes.
        model: (N,) code of the node's GPU model, `NO_GPU` without GPUs or with several models.
        mixed: whether any node has GPUs of several models.
        offers: (M, N) whether the node has a GPU of the model at all.
        extras: (N,) capacity of each further resource that some node names, by name.
        siting: which rows sites select and tolerate.
    """

    nodes: tuple[Node, ...]
    row_of: Mapping[NodeId, int]
    gpu_at: Mapping[GpuId, tuple[int, int]]
    models: tuple[str, ...]
    pools: tuple[str, ...]
    racks: tuple[str, ...]
    prices: tuple[PriceClass, ...]
    boards: tuple[Links, ...]
    gpu_model: Ints
    gpu_open: Bools
    gpu_domain: Ints
    open: Bools
    cpu: Ints
    memory: Ints
    pool: Ints
    rack: Ints
    price: Ints
    board: Ints
    model: Ints
    mixed: bool
    offers: Bools
    extras: Mapping[str, Ints]
    siting: Siting

    @classmethod
    def of(cls, nodes: Iterable[Node]) -> NodeTable:
        """Describe `nodes`. O(GPUs)."""
        rows = tuple(sorted(nodes, key=lambda node: (node.name, node.id)))
        models = tuple(sorted({gpu.model for node in rows for gpu in node.gpus}))
        pools = tuple(sorted({str(node.pool) for node in rows}))
        racks = tuple(sorted({rack_label(node) for node in rows}))
        prices = tuple(sorted({node.price_class for node in rows}))
        boards, board = _boards(rows)
        code = {name: number for number, name in enumerate(models)}
        pool_code = {name: number for number, name in enumerate(pools)}
        rack_code = {name: number for number, name in enumerate(racks)}
        width = max((gpu.index + 1 for node in rows for gpu in node.gpus), default=0)
        gpu_model = np.full((len(rows), width), NO_GPU, dtype=np.int64)
        gpu_open = np.zeros((len(rows), width), dtype=np.bool_)
        gpu_domain = np.full((len(rows), width), NO_GPU, dtype=np.int64)
        gpu_at: dict[GpuId, tuple[int, int]] = {}
        for row, node in enumerate(rows):
            for gpu in node.gpus:
                gpu_at[gpu.id] = (row, gpu.index)
                gpu_model[row, gpu.index] = code[gpu.model]
                gpu_open[row, gpu.index] = node.schedulable and gpu.schedulable
            _write_domains(gpu_domain[row], node)
        highest = gpu_model.max(axis=1, initial=NO_GPU)
        lowest = np.where(gpu_model == NO_GPU, len(models), gpu_model).min(
            axis=1, initial=len(models)
        )
        alike = highest == lowest
        return cls(
            nodes=rows,
            row_of={node.id: row for row, node in enumerate(rows)},
            gpu_at=gpu_at,
            models=models,
            pools=pools,
            racks=racks,
            prices=prices,
            boards=boards,
            gpu_model=gpu_model,
            gpu_open=gpu_open,
            gpu_domain=gpu_domain,
            open=np.array([node.schedulable for node in rows], dtype=np.bool_),
            cpu=np.array([node.capacity.cpu_milli for node in rows], dtype=np.int64),
            memory=np.array([node.capacity.memory_mib for node in rows], dtype=np.int64),
            pool=np.array([pool_code[str(node.pool)] for node in rows], dtype=np.int64),
            rack=np.array([rack_code[rack_label(node)] for node in rows], dtype=np.int64),
            price=np.array([prices.index(node.price_class) for node in rows], dtype=np.int64),
            board=board,
            model=np.where(alike, highest, NO_GPU).astype(np.int64),
            mixed=bool((~alike & (highest != NO_GPU)).any()),
            offers=np.array(
                [(gpu_model == number).any(axis=1) for number in range(len(models))], dtype=np.bool_
            ).reshape(len(models), len(rows)),
            extras=_extras({}, len(rows), dict(enumerate(rows))),
            siting=Siting(rows),
        )

    def capacity_of(self, name: str) -> Ints:
        """(N,) capacity of a further resource."""
        found = self.extras.get(name)
        return _implied(name, len(self.nodes)) if found is None else found

    def with_states(self, changed: Iterable[Node]) -> NodeTable | None:
        """The table after nodes changed their health, cordons, capacity, labels or taints.

        Cost: O(nodes) to copy what changes.

        Returns:
            None when more than that changed, or a node is new: the table must be built anew.
        """
        nodes = list(self.nodes)
        gpu_open, is_open = self.gpu_open.copy(), self.open.copy()
        cpu, memory = self.cpu.copy(), self.memory.copy()
        other_extras: dict[int, Node] = {}
        rows = set()
        for node in changed:
            row = self.row_of.get(node.id)
            if row is None or not _alike(nodes[row], node):
                return None
            if nodes[row].extras != node.extras:
                other_extras[row] = node
            rows.add(row)
            nodes[row] = node
            is_open[row] = node.schedulable
            cpu[row], memory[row] = node.capacity.cpu_milli, node.capacity.memory_mib
            for gpu in node.gpus:
                gpu_open[row, gpu.index] = node.schedulable and gpu.schedulable
        return replace(
            self,
            nodes=tuple(nodes),
            gpu_open=gpu_open,
            open=is_open,
            cpu=cpu,
            memory=memory,
            extras=_extras(self.extras, len(nodes), other_extras),
            siting=self.siting.after(nodes, rows),
        )


def _implied(name: str, nodes: int) -> Ints:
    return np.full(nodes, implied_capacity(name), dtype=np.int64)


def _extras(before: Mapping[str, Ints], nodes: int, changed: Mapping[int, Node]) -> dict[str, Ints]:
    """Capacities of further resources after some of so many rows changed; others are shared."""
    after = dict(before)
    if not changed:
        return after
    after = {name: amounts.copy() for name, amounts in before.items()}
    for row, node in changed.items():
        own = dict(node.extras)
        for name in own:
            if name not in after:
                after[name] = _implied(name, nodes)
        for name, amounts in after.items():
            amounts[row] = own.get(name, implied_capacity(name))
    return after


def _alike(a: Node, b: Node) -> bool:
    """Whether two descriptions of a node are of the same hardware in the same place."""
    return (
        (a.name, a.pool, a.price_class, a.rack) == (b.name, b.pool, b.price_class, b.rack)
        and len(a.gpus) == len(b.gpus)
        and all(
            (x.id, x.index, x.model) == (y.id, y.index, y.model)
            for x, y in zip(a.gpus, b.gpus, strict=True)
        )
        and (a.links is b.links or a.links == b.links)
    )


def _boards(rows: Sequence[Node]) -> tuple[tuple[Links, ...], Ints]:
    """The kinds of board there are, in the order of their first node, and (N,) each node's."""
    codes: dict[Links, int] = {}
    seen: dict[int, int] = {}  # hashing a matrix costs more than the rest: nodes share theirs
    board = np.empty(len(rows), dtype=np.int64)
    for row, node in enumerate(rows):
        code = seen.get(id(node.links))
        if code is None:
            code = seen[id(node.links)] = codes.setdefault(node.links, len(codes))
        board[row] = code
    return tuple(codes), board


def rack_label(node: Node) -> str:
    """The node's rack; a node without a label is a rack of its own."""
    return node.rack or f"\0{node.id}"


def _write_domains(row: Ints, node: Node) -> None:
    if not node.links.nvlinks:
        for number, gpu in enumerate(node.gpus):
            row[gpu.index] = number
        return
    here = {gpu.index for gpu in node.gpus}
    for number, domain in enumerate(_domains(node)):
        for index in domain & here:
            row[index] = number


_DOMAINS: dict[object, tuple[frozenset[int], ...]] = {}
"""Domains by link matrix: a cluster has few kinds of board, and many nodes of each."""
_DOMAINS_MAX = 256


def _domains(node: Node) -> tuple[frozenset[int], ...]:
    key = node.links.nvlinks
    if key not in _DOMAINS:
        if len(_DOMAINS) >= _DOMAINS_MAX:
            _DOMAINS.clear()
        _DOMAINS[key] = node.links.domains()
    return _DOMAINS[key]


@dataclass(frozen=True, slots=True, eq=False)
class Free:
    """What new work may take. Zero on nodes and GPUs that take none.

    Attributes:
        table: what the nodes are.
        gpu: (N, G) free thousandths of each GPU.
        milli: (N,) free thousandths of all its GPUs.
        whole: (M, N) entirely free GPUs by model.
        entire: (N,) entirely free GPUs, of all models.
        cpu, memory: (N,) free milli-CPU and MiB, never negative.
        extras: (N,) what is free of further resources that a node or a held task names, by name.
    """

    table: NodeTable
    gpu: Ints
    milli: Ints
    whole: Ints
    entire: Ints
    cpu: Ints
    memory: Ints
    extras: dict[str, Ints] = field(default_factory=dict)

    def amount_of(self, name: str) -> Ints:
        """(N,) what is free of a further resource; of one that nobody names, all that it has."""
        found = self.extras.get(name)
        return self.table.capacity_of(name) if found is None else found

    def copy(self) -> Free:
        """Arrays that the caller may change."""
        return Free(
            self.table,
            self.gpu.copy(),
            self.milli.copy(),
            self.whole.copy(),
            self.entire.copy(),
            self.cpu.copy(),
            self.memory.copy(),
            {name: amounts.copy() for name, amounts in self.extras.items()},
        )


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """A cluster's table, what live attempts hold of it, and what that leaves.

    Attributes:
        gpu_held: (N, G) thousandths held of each GPU.
        cpu_held, memory_held: (N,) held milli-CPU and MiB.
        extras_held: (N,) what is held of each further resource that a task names, by name.
        free: derived from the above.
    """

    table: NodeTable
    gpu_held: Ints
    cpu_held: Ints
    memory_held: Ints
    extras_held: dict[str, Ints]
    free: Free

    @classmethod
    def of(cls, nodes: Iterable[Node], held: Iterable[TaskPlacement]) -> Columns:
        """Describe `nodes` with `held` on them; tasks on other nodes are passed over.

        Cost: O(GPUs + tasks).
        """
        table = NodeTable.of(nodes)
        rows, width = table.gpu_model.shape
        gpu, cpu = np.zeros((rows, width), dtype=np.int64), np.zeros(rows, dtype=np.int64)
        free = Free(
            table,
            np.zeros_like(gpu),
            np.zeros_like(cpu),
            np.zeros((len(table.models), rows), dtype=np.int64),
            np.zeros_like(cpu),
            np.zeros_like(cpu),
            np.zeros_like(cpu),
        )
        found = cls(table, gpu, cpu, np.zeros_like(cpu), {}, free)
        _hold(found, held, 1)
        _derive(found, np.arange(rows))
        return found

    def changed(self, freed: Iterable[TaskPlacement], taken: Iterable[TaskPlacement]) -> Columns:
        """The columns after tasks ended and others began, on the same nodes.

        Cost: O(changed tasks) and a copy of the arrays.
        """
        after = Columns(
            self.table,
            self.gpu_held.copy(),
            self.cpu_held.copy(),
            self.memory_held.copy(),
            {name: amounts.copy() for name, amounts in self.extras_held.items()},
            self.free.copy(),
        )
        rows = _hold(after, freed, -1)
        rows |= _hold(after, taken, 1)
        _forget_unused(after)
        _derive(after, np.array(sorted(rows), dtype=np.int64))
        return after

    def with_states(self, nodes: Sequence[Node]) -> Columns | None:
        """The columns after nodes changed their health, cordons, capacity, labels or taints.

        Returns:
            None when more than that changed: the columns must be built anew.

        Cost: O(changed nodes) and a copy of the arrays.
        """
        table = self.table.with_states(nodes)
        if table is None:
            return None
        after = replace(self, table=table, free=replace(self.free.copy(), table=table))
        _derive(after, np.array(sorted({table.row_of[node.id] for node in nodes}), dtype=np.int64))
        return after


def _hold(columns: Columns, tasks: Iterable[TaskPlacement], sign: int) -> set[int]:
    """Add what tasks hold, or take it away, in place; returns the rows that this touched."""
    table, gpu = columns.table, columns.gpu_held
    cpu, memory, extras = columns.cpu_held, columns.memory_held, columns.extras_held
    rows = set()
    for task in tasks:
        row = table.row_of.get(task.node_id)
        if row is None:
            continue
        rows.add(row)
        cpu[row] += sign * task.cpu_milli
        memory[row] += sign * task.memory_mib
        for name, amount in task.extras:
            if name not in extras:
                extras[name] = np.zeros_like(cpu)
            extras[name][row] += sign * amount
        for gpu_id in task.gpu_ids:
            where = table.gpu_at.get(gpu_id)
            if where is not None:  # a GPU that left its node is held by whoever had it
                gpu[where] += sign * task.gpu_milli
                rows.add(where[0])
    return rows


def _forget_unused(columns: Columns) -> None:
    """Drop resources that nobody names any more, as ports that were held once."""
    for name in [name for name, held in columns.extras_held.items() if not held.any()]:
        del columns.extras_held[name]
        if name not in columns.table.extras:
            columns.free.extras.pop(name, None)


def _derive(columns: Columns, rows: Ints) -> None:
    """Work out anew what is free on these rows, in place, from what is held."""
    table, free = columns.table, columns.free
    held = columns.gpu_held[rows]
    left = np.where(table.gpu_open[rows], np.maximum(WHOLE_GPU_MILLI - held, 0), 0)
    entire = left == WHOLE_GPU_MILLI
    model = table.gpu_model[rows]
    free.gpu[rows] = left
    free.milli[rows] = left.sum(axis=1)
    free.entire[rows] = entire.sum(axis=1)
    for code in range(len(table.models)):
        free.whole[code, rows] = (entire & (model == code)).sum(axis=1)
    is_open = table.open[rows]
    cpu, memory = table.cpu[rows] - columns.cpu_held[rows], table.memory[rows]
    free.cpu[rows] = np.where(is_open, np.maximum(cpu, 0), 0)
    memory = memory - columns.memory_held[rows]
    free.memory[rows] = np.where(is_open, np.maximum(memory, 0), 0)
    for name in {**table.extras, **columns.extras_held}:
        here = rows
        if name not in free.extras:
            free.extras[name] = np.empty_like(free.cpu)
            here = np.arange(len(table.nodes))
        left = table.capacity_of(name)[here]
        if name in columns.extras_held:
            left = left - columns.extras_held[name][here]
        free.extras[name][here] = np.where(table.open[here], np.maximum(left, 0), 0)
