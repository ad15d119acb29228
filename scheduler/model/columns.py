"""The cluster as arrays, one row a node: what is there, what is held, what is free.

A cycle must not walk over every GPU again because one job ended. So a snapshot carries these
columns, and a delta makes new ones by copying a few arrays and changing the rows it names. All
arrays are read-only by contract; `Free.copy` makes a working copy that an allocator may draw on.

Shapes: N nodes by (name, id), G the largest number of GPU positions of a node, M GPU models.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

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

    @classmethod
    def of(cls, nodes: Iterable[Node]) -> NodeTable:
        """Describe `nodes`. O(GPUs)."""
        rows = tuple(sorted(nodes, key=lambda node: (node.name, node.id)))
        models = tuple(sorted({gpu.model for node in rows for gpu in node.gpus}))
        pools = tuple(sorted({str(node.pool) for node in rows}))
        racks = tuple(sorted({rack_label(node) for node in rows}))
        prices = tuple(sorted({node.price_class for node in rows}))
        boards: dict[Links, int] = {}
        board = [boards.setdefault(node.links, len(boards)) for node in rows]
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
            boards=tuple(boards),
            gpu_model=gpu_model,
            gpu_open=gpu_open,
            gpu_domain=gpu_domain,
            open=np.array([node.schedulable for node in rows], dtype=np.bool_),
            cpu=np.array([node.capacity.cpu_milli for node in rows], dtype=np.int64),
            memory=np.array([node.capacity.memory_mib for node in rows], dtype=np.int64),
            pool=np.array([pool_code[str(node.pool)] for node in rows], dtype=np.int64),
            rack=np.array([rack_code[rack_label(node)] for node in rows], dtype=np.int64),
            price=np.array([prices.index(node.price_class) for node in rows], dtype=np.int64),
            board=np.array(board, dtype=np.int64),
            model=np.where(alike, highest, NO_GPU).astype(np.int64),
            mixed=bool((~alike & (highest != NO_GPU)).any()),
        )


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
        whole: (M, N) entirely free GPUs by model; sum over axis 0 for all models.
        cpu, memory: (N,) free milli-CPU and MiB, never negative.
    """

    table: NodeTable
    gpu: Ints
    milli: Ints
    whole: Ints
    cpu: Ints
    memory: Ints

    def copy(self) -> Free:
        """Arrays that the caller may change."""
        return Free(
            self.table,
            self.gpu.copy(),
            self.milli.copy(),
            self.whole.copy(),
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
        return _derived(table, gpu, cpu, memory)

    def changed(self, freed: Iterable[TaskPlacement], taken: Iterable[TaskPlacement]) -> Columns:
        """The columns after tasks ended and others began, on the same nodes.

        Cost: O(changed tasks) and a copy of the arrays.
        """
        gpu, cpu, memory = self.gpu_held.copy(), self.cpu_held.copy(), self.memory_held.copy()
        _hold(self.table, freed, -1, gpu, cpu, memory)
        _hold(self.table, taken, 1, gpu, cpu, memory)
        return _derived(self.table, gpu, cpu, memory)


def _hold(
    table: NodeTable,
    tasks: Iterable[TaskPlacement],
    sign: int,
    gpu: Ints,
    cpu: Ints,
    memory: Ints,
) -> None:
    for task in tasks:
        row = table.row_of.get(task.node_id)
        if row is None:
            continue
        cpu[row] += sign * task.cpu_milli
        memory[row] += sign * task.memory_mib
        for gpu_id in task.gpu_ids:
            where = table.gpu_at.get(gpu_id)
            if where is not None:  # a GPU that left its node is held by whoever had it
                gpu[where] += sign * task.gpu_milli


def _derived(table: NodeTable, gpu: Ints, cpu: Ints, memory: Ints) -> Columns:
    free_gpu = np.where(table.gpu_open, np.maximum(WHOLE_GPU_MILLI - gpu, 0), 0)
    entire = free_gpu == WHOLE_GPU_MILLI
    whole = np.empty((len(table.models), len(table.nodes)), dtype=np.int64)
    for code in range(len(table.models)):
        whole[code] = (entire & (table.gpu_model == code)).sum(axis=1)
    free = Free(
        table,
        free_gpu,
        free_gpu.sum(axis=1),
        whole,
        np.where(table.open, np.maximum(table.cpu - cpu, 0), 0),
        np.where(table.open, np.maximum(table.memory - memory, 0), 0),
    )
    return Columns(table, gpu, cpu, memory, free)
