"""The cluster as arrays, one row a node: what is there, what is held, what is free.

A cycle must not walk over every GPU again because one job ended. So a snapshot carries these
columns, and a delta makes new ones by copying a few arrays and changing the rows it names. All
arrays are read-only by contract; `Free.copy` makes a working copy that an allocator may draw on.

Shapes: N nodes by (name, id), G the largest number of GPU positions of a node, M GPU models.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from scheduler.model.node import Links, Node, PriceClass
from scheduler.model.plan import TaskPlacement
from scheduler.model.quantity import WHOLE_GPU_MILLI, GpuId, NodeId

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
        )

    def with_states(self, changed: Iterable[Node]) -> NodeTable | None:
        """The table after nodes changed their health, cordons or capacity.

        Cost: O(nodes) to copy what changes.

        Returns:
            None when more than that changed, or a node is new: the table must be built anew.
        """
        nodes = list(self.nodes)
        gpu_open, is_open = self.gpu_open.copy(), self.open.copy()
        cpu, memory = self.cpu.copy(), self.memory.copy()
        for node in changed:
            row = self.row_of.get(node.id)
            if row is None or not _alike(nodes[row], node):
                return None
            nodes[row] = node
            is_open[row] = node.schedulable
            cpu[row], memory[row] = node.capacity.cpu_milli, node.capacity.memory_mib
            for gpu in node.gpus:
                gpu_open[row, gpu.index] = node.schedulable and gpu.schedulable
        return replace(
            self, nodes=tuple(nodes), gpu_open=gpu_open, open=is_open, cpu=cpu, memory=memory
        )


def _alike(a: Node, b: Node) -> bool:
    """Whether two descriptions of a node differ at most in health, cordons and capacity."""
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
    """

    table: NodeTable
    gpu: Ints
    milli: Ints
    whole: Ints
    entire: Ints
    cpu: Ints
    memory: Ints

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
        )


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """A cluster's table, what live attempts hold of it, and what that leaves.

    Attributes:
        gpu_held: (N, G) thousandths held of each GPU.
        cpu_held, memory_held: (N,) held milli-CPU and MiB.
        free: derived from the above.
    """

    table: NodeTable
    gpu_held: Ints
    cpu_held: Ints
    memory_held: Ints
    free: Free

    @classmethod
    def of(cls, nodes: Iterable[Node], held: Iterable[TaskPlacement]) -> Columns:
        """Describe `nodes` with `held` on them; tasks on other nodes are passed over.

        Cost: O(GPUs + tasks).
        """
        table = NodeTable.of(nodes)
        rows, width = table.gpu_model.shape
        gpu = np.zeros((rows, width), dtype=np.int64)
        cpu = np.zeros(rows, dtype=np.int64)
        memory = np.zeros(rows, dtype=np.int64)
        _hold(table, held, 1, gpu, cpu, memory)
        none = Free(
            table,
            np.zeros_like(gpu),
            np.zeros_like(cpu),
            np.zeros((len(table.models), rows), dtype=np.int64),
            np.zeros_like(cpu),
            np.zeros_like(cpu),
            np.zeros_like(cpu),
        )
        everywhere = np.arange(rows)
        return cls(table, gpu, cpu, memory, _derived(none, gpu, cpu, memory, everywhere))

    def changed(self, freed: Iterable[TaskPlacement], taken: Iterable[TaskPlacement]) -> Columns:
        """The columns after tasks ended and others began, on the same nodes.

        Cost: O(changed tasks) and a copy of the arrays.
        """
        gpu, cpu, memory = self.gpu_held.copy(), self.cpu_held.copy(), self.memory_held.copy()
        rows = _hold(self.table, freed, -1, gpu, cpu, memory)
        rows |= _hold(self.table, taken, 1, gpu, cpu, memory)
        touched = np.array(sorted(rows), dtype=np.int64)
        free = _derived(self.free.copy(), gpu, cpu, memory, touched)
        return Columns(self.table, gpu, cpu, memory, free)

    def with_states(self, nodes: Sequence[Node]) -> Columns | None:
        """The columns after nodes changed their health, cordons or capacity.

        Returns:
            None when more than that changed: the columns must be built anew.

        Cost: O(changed nodes) and a copy of the arrays.
        """
        table = self.table.with_states(nodes)
        if table is None:
            return None
        touched = np.array(sorted({table.row_of[node.id] for node in nodes}), dtype=np.int64)
        free = replace(self.free.copy(), table=table)
        free = _derived(free, self.gpu_held, self.cpu_held, self.memory_held, touched)
        return Columns(table, self.gpu_held, self.cpu_held, self.memory_held, free)


def _hold(
    table: NodeTable,
    tasks: Iterable[TaskPlacement],
    sign: int,
    gpu: Ints,
    cpu: Ints,
    memory: Ints,
) -> set[int]:
    """Add what tasks hold, or take it away; returns the rows that this touched."""
    rows = set()
    for task in tasks:
        row = table.row_of.get(task.node_id)
        if row is None:
            continue
        rows.add(row)
        cpu[row] += sign * task.cpu_milli
        memory[row] += sign * task.memory_mib
        for gpu_id in task.gpu_ids:
            where = table.gpu_at.get(gpu_id)
            if where is not None:  # a GPU that left its node is held by whoever had it
                gpu[where] += sign * task.gpu_milli
                rows.add(where[0])
    return rows


def _derived(free: Free, gpu: Ints, cpu: Ints, memory: Ints, rows: Ints) -> Free:
    """`free` with these rows worked out anew, in place, from what is held."""
    table = free.table
    left = np.where(table.gpu_open[rows], np.maximum(WHOLE_GPU_MILLI - gpu[rows], 0), 0)
    entire = left == WHOLE_GPU_MILLI
    model = table.gpu_model[rows]
    free.gpu[rows] = left
    free.milli[rows] = left.sum(axis=1)
    free.entire[rows] = entire.sum(axis=1)
    for code in range(len(table.models)):
        free.whole[code, rows] = (entire & (model == code)).sum(axis=1)
    is_open = table.open[rows]
    free.cpu[rows] = np.where(is_open, np.maximum(table.cpu[rows] - cpu[rows], 0), 0)
    free.memory[rows] = np.where(is_open, np.maximum(table.memory[rows] - memory[rows], 0), 0)
    return free
