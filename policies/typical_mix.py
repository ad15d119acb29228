"""What work is typical here: the shapes that run or wait, how often each, as arrays.

Where work should sit depends on what will come next, and the best guess at that is what there is.
The mix is taken from the snapshot, so it is learned as jobs arrive and a decision stays a function
of what it is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from scheduler.model.columns import NO_GPU, Bools, Floats, Ints, NodeTable
from scheduler.model.job import JobShape, Worker
from scheduler.model.quantity import WHOLE_GPU_MILLI

SHAPES_MAX = 256
"""The most frequent shapes that are looked at: the rest of a mix so colourful says little."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """What one worker takes of a node; workers of equal footprint are alike.

    Attributes:
        gpus: GPUs it touches: 0 for CPU work, 1 for a part of one.
        gpu_milli: thousandths of each of them.
        gpu_models: acceptable GPU models, in any order; empty accepts any.
        pool: the only pool allowed; "" for any.
    """

    gpus: int
    gpu_milli: int
    cpu_milli: int
    memory_mib: int
    gpu_models: tuple[str, ...] = ()
    pool: str = ""

    @classmethod
    def of(cls, worker: Worker) -> Footprint:
        """The footprint of `worker`; of several shares of GPUs on one node, each counts as one."""
        parts, needs = worker.parts, worker.needs
        return cls(
            1 if worker.gpu_milli else needs.gpus,
            worker.gpu_milli or (WHOLE_GPU_MILLI if needs.gpus else 0),
            needs.cpu_milli // parts,
            needs.memory_mib // parts,
            tuple(sorted(worker.gpu_models)),
            worker.pool or "",
        )


_Numbers = tuple[int, int, int, int]
_Key = tuple[_Numbers, tuple[str, ...], str]


@dataclass(frozen=True, slots=True, eq=False)
class _Known:
    """What is worked out once for each shape.

    Attributes:
        key: gives footprints an order that does not depend on who came first.
        workers: how many such workers one job has.
    """

    footprint: Footprint
    key: _Key
    workers: int


@lru_cache(maxsize=4_096)
def _known(shape: JobShape, by_memory: bool) -> _Known:  # noqa: FBT001 - a cache takes no keywords
    worker = shape.worker
    what = Footprint.of(worker)
    if not by_memory:
        what = replace(what, memory_mib=0)
    numbers = (what.gpus, what.gpu_milli, what.cpu_milli, what.memory_mib)
    workers = shape.tasks // shape.tasks_per_worker * worker.parts
    return _Known(what, (numbers, what.gpu_models, what.pool), workers)


@dataclass(frozen=True, slots=True, eq=False)
class TypicalMix:
    """K footprints, the most frequent first, and how often each occurs.

    Attributes:
        share: (K,) sums to 1; empty without work.
        gpus, gpu_milli, cpu, memory: (K,) as in `Footprint`.
    """

    footprints: tuple[Footprint, ...]
    share: Floats
    gpus: Ints
    gpu_milli: Ints
    cpu: Ints
    memory: Ints

    @classmethod
    def of(
        cls, mix: Mapping[JobShape, int], *, cover: float = 1.0, by_memory: bool = True
    ) -> TypicalMix:
        """The most frequent footprints that make up `cover` of all workers.

        Args:
            mix: jobs of each shape.
            cover: above 0, up to 1.
            by_memory: whether memory tells footprints apart; else it counts as 0.

        Cost: O(K log K) for K shapes.
        """
        counts: dict[_Key, int] = {}
        footprints: dict[_Key, Footprint] = {}
        for shape, jobs in mix.items():
            known = _known(shape, by_memory)
            counts[known.key] = counts.get(known.key, 0) + jobs * known.workers
            footprints[known.key] = known.footprint
        ranked = sorted((-workers, key) for key, workers in counts.items())[:SHAPES_MAX]
        count = np.array([-workers for workers, _ in ranked], dtype=np.float64)
        enough = int(np.searchsorted(count.cumsum(), cover * count.sum())) + 1
        count = count[:enough]
        keys = [key for _, key in ranked[:enough]]
        table = np.array([key[0] for key in keys], dtype=np.int64).reshape(-1, 4)
        return cls(tuple(footprints[key] for key in keys), count / max(1.0, count.sum()), *table.T)

    def only(self, which: Bools) -> TypicalMix:
        """The (K,) footprints where `which` holds; shares sum to 1 again."""
        share = self.share[which]
        return TypicalMix(
            tuple(what for what, here in zip(self.footprints, which, strict=True) if here),
            share / max(share.sum(), np.finfo(np.float64).tiny),
            self.gpus[which],
            self.gpu_milli[which],
            self.cpu[which],
            self.memory[which],
        )

    def weighted(self, weight: Floats) -> TypicalMix:
        """The mix with each share times its (K,) `weight`; shares sum to 1 again."""
        share = self.share * weight
        share /= max(share.sum(), np.finfo(np.float64).tiny)
        return TypicalMix(self.footprints, share, self.gpus, self.gpu_milli, self.cpu, self.memory)


@dataclass(frozen=True, slots=True, eq=False)
class Access:
    """Which nodes each footprint of a mix may use at all, by model and pool.

    Attributes:
        group: (N,) number of each node's group; nodes of a group admit the same footprints.
        admits: (A, K) whether nodes of a group admit a footprint.
    """

    group: Ints
    admits: Bools

    @classmethod
    def of(cls, table: NodeTable, mix: TypicalMix) -> Access:
        """Group the nodes of `table`. O(N log N) at most, O(N) where nothing is limited.

        A node without GPUs, or with several models, admits whatever its pool admits.
        """
        rows, shapes = len(table.nodes), len(mix.footprints)
        if not any(what.gpu_models or what.pool for what in mix.footprints):
            return cls(np.zeros(rows, dtype=np.int64), np.ones((1, shapes), dtype=np.bool_))
        kinds, kind_of = np.unique(
            np.stack([table.model, table.pool], axis=1), axis=0, return_inverse=True
        )
        admits = np.array(
            [
                [_admits(table, int(model), int(pool), what) for what in mix.footprints]
                for model, pool in kinds
            ],
            dtype=np.bool_,
        )
        groups, group_of = np.unique(admits, axis=0, return_inverse=True)
        return cls(group_of.ravel()[kind_of.ravel()].astype(np.int64), groups)


def _admits(table: NodeTable, model: int, pool: int, what: Footprint) -> bool:
    if what.pool and what.pool != table.pools[pool]:
        return False
    return not what.gpu_models or model == NO_GPU or table.models[model] in what.gpu_models
