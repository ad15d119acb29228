"""How many workers each node holds: the one definition, on columns, for whoever packs or explains.

Shapes as in `columns`: N nodes, G GPU positions of a node, M GPU models; R rows asked about.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from scheduler.model.columns import NO_GPU, Bools, Free, Ints, NodeTable
from scheduler.model.job import Worker
from scheduler.model.quantity import WHOLE_GPU_MILLI, PoolName
from scheduler.model.site import ANYWHERE
from scheduler.model.siting import remembered

UNBOUNDED = 2**31
"""Workers that a node holds when they need nothing."""


def model_codes(table: NodeTable, worker: Worker) -> tuple[int, ...]:
    """Codes of the GPU models that the worker accepts and the cluster has, best first."""
    if not worker.gpu_models:
        return tuple(range(len(table.models)))
    known = {name: code for code, name in enumerate(table.models)}
    return tuple(known[name] for name in worker.gpu_models if name in known)


def anywhere(table: NodeTable, worker: Worker) -> bool:
    """Whether all nodes are alike to the worker: it asks for none, and none keeps it off."""
    return worker.pool is None and not table.siting.tainted and worker.site == ANYWHERE


def in_pool(table: NodeTable, worker: Worker) -> Bools:
    """(N,) nodes that the worker may use at all, whatever their state.

    They are of its pool, its site selects them, and none of their taints keeps it off. Read-only;
    worked out once for each pool and site.
    """
    key = (worker.pool, worker.site)
    return remembered(table.siting.known, key, lambda: _usable(table, worker))


def _usable(table: NodeTable, worker: Worker) -> Bools:
    siting = table.siting
    return (
        of_pool(table, worker.pool) & siting.selected(worker.site) & siting.tolerated(worker.site)
    )


def of_pool(table: NodeTable, pool: PoolName | None) -> Bools:
    """(N,) nodes of a pool; all of them when it is None."""
    if pool is None:
        return np.ones(len(table.nodes), dtype=np.bool_)
    pools = {name: code for code, name in enumerate(table.pools)}
    here: Bools = table.pool == pools.get(str(pool), -1)
    return here


def offering(table: NodeTable, worker: Worker, codes: tuple[int, ...]) -> Bools:
    """(N,) nodes that have a GPU of these models at all; all nodes if the worker needs none."""
    if not worker.milli:
        return np.ones(len(table.nodes), dtype=np.bool_)
    here: Bools = np.logical_or.reduce(table.offers[list(codes)], axis=0)
    return here


def counts(free: Free, worker: Worker, codes: tuple[int, ...], rows: Ints) -> Ints:
    """(R,) workers that fit each of `rows`, which are of the worker's pool and offer its models.

    Whole GPUs of one worker are of one model; sharing workers take any of the models. Nodes that
    take no new work offer nothing in `free`, so they count 0 unless the worker needs nothing.
    """
    needs = worker.needs
    if not worker.milli:
        count = np.full(rows.size, UNBOUNDED, dtype=np.int64)
    elif worker.one_domain:
        count = in_domains(free, worker, codes, rows).sum(axis=1)
    elif worker.gpu_milli:
        count = _shares(free, worker, codes, rows) // worker.parts
    elif not free.table.mixed:
        count = free.entire[rows] // needs.gpus
    else:
        count = np.zeros(rows.size, dtype=np.int64)
        for code in codes:
            count += free.whole[code][rows] // needs.gpus
    if needs.cpu_milli:
        count = np.minimum(count, free.cpu[rows] // needs.cpu_milli)
    if needs.memory_mib:
        count = np.minimum(count, free.memory[rows] // needs.memory_mib)
    for name, amount in worker.extras:
        if amount:
            count = np.minimum(count, free.amount_of(name)[rows] // amount)
    return count


def _shares(free: Free, worker: Worker, codes: tuple[int, ...], rows: Ints) -> Ints:
    """(R,) shares of `gpu_milli` that the rows' GPUs of these models hold."""
    shares = free.gpu[rows] // worker.gpu_milli
    if worker.gpu_models and free.table.mixed:
        shares = shares * np.isin(free.table.gpu_model[rows], codes)
    total: Ints = shares.sum(axis=1)
    return total


def in_domains(free: Free, worker: Worker, codes: tuple[int, ...], rows: Ints) -> Ints:
    """(R, domains) workers that fit each NVLink domain of each row, by GPUs alone."""
    table = free.table
    domain, model = table.gpu_domain[rows], table.gpu_model[rows]
    if worker.gpu_milli:
        groups: tuple[tuple[int, ...], ...] = (codes,)
        amount, each = free.gpu[rows] // worker.gpu_milli, worker.parts
    else:
        groups = tuple((code,) for code in codes)
        amount, each = free.gpu[rows] // WHOLE_GPU_MILLI, worker.needs.gpus
    found = np.zeros((rows.size, int(domain.max(initial=NO_GPU)) + 1), dtype=np.int64)
    for group in groups:
        right = np.isin(model, group)
        for number in range(found.shape[1]):
            found[:, number] += np.where((domain == number) & right, amount, 0).sum(axis=1) // each
    return found


@lru_cache(maxsize=2)
def emptied(table: NodeTable) -> Free:
    """What would be free if nothing ran and all were well. O(GPUs), once a table."""
    present = table.gpu_model != NO_GPU
    gpu = np.where(present, WHOLE_GPU_MILLI, 0)
    whole = np.array(
        [(table.gpu_model == code).sum(axis=1) for code in range(len(table.models))],
        dtype=np.int64,
    ).reshape(len(table.models), len(table.nodes))
    return Free(
        table,
        gpu,
        gpu.sum(axis=1),
        whole,
        present.sum(axis=1),
        table.cpu,
        table.memory,
        dict(table.extras),
    )
