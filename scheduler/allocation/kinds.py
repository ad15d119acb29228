"""For every kind of worker: how many each node holds now, and how bad each node is for one.

These are two columns of numbers, kept up to date lazily: only for the rows that changed since the
kind was last asked about.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from scheduler.allocation.gangs import Gang
from scheduler.allocation.stock import Stock
from scheduler.model.columns import NO_GPU, Bools, Floats, Ints
from scheduler.model.job import Worker
from scheduler.model.ports import Scoring
from scheduler.model.quantity import WHOLE_GPU_MILLI

UNBOUNDED = 2**31
"""Workers that a node holds when they need nothing."""
NEVER = 2**62


@dataclass(slots=True, eq=False)
class Kind:
    """Workers of one kind and what is known of them.

    Attributes:
        codes: model codes it accepts, best first.
        ranked: whether the order of `codes` is the job's wish.
        eligible: (N,) rows that take new work, of its pool, with a GPU of its models.
        fits: (N,) workers that each row holds now.
        score: (N,) how bad each row is; infinite where none fits.
        seen: the stock's count of changes when the columns were last true.
        by_model: the kind narrowed to each of `codes`; filled when asked for.
        failed, failed_rack: the smallest gang known not to fit, anywhere and inside one rack.
    """

    worker: Worker
    codes: tuple[int, ...]
    ranked: bool
    eligible: Bools
    fits: Ints
    score: Floats
    seen: int = -1
    failed: int = NEVER
    failed_rack: int = NEVER
    by_model: tuple[Kind, ...] = ()


class Kinds:
    """The kinds that were asked about, bound to one stock."""

    def __init__(self, stock: Stock, scoring: Scoring) -> None:
        self._stock = stock
        self._table = stock.table
        self._scoring = scoring
        self._kinds: dict[Worker, Kind] = {}
        self._of_class: dict[str, Kind] = {}
        models = range(len(self._table.models))
        self._offers = np.zeros((len(models), len(self._table.nodes)), dtype=np.bool_)
        for code in models:
            self._offers[code] = (self._table.gpu_model == code).any(axis=1)

    def of_gang(self, gang: Gang) -> Kind:
        """The kind of a gang's workers; its columns may be out of date."""
        # Jobs of one class have one shape, and a string is found faster than a shape.
        kind = self._of_class.get(gang.job.class_key)
        if kind is None:
            kind = self._of_class[gang.job.class_key] = self.of(gang.worker)
        return kind

    def of(self, worker: Worker) -> Kind:
        """The kind of these workers; its columns may be out of date."""
        kind = self._kinds.get(worker)
        if kind is None:
            kind = self._kinds[worker] = self._described(worker)
        return kind

    def by_model(self, kind: Kind) -> tuple[Kind, ...]:
        """The kind narrowed to each of its models, the one it likes best first."""
        if not kind.by_model:
            names = self._table.models
            kind.by_model = tuple(
                self.of(replace(kind.worker, gpu_models=(names[code],))) for code in kind.codes
            )
        return kind.by_model

    def forget_failures(self) -> None:
        """Something came back: what failed may fit."""
        for kind in self._kinds.values():
            kind.failed = kind.failed_rack = NEVER

    def _described(self, worker: Worker) -> Kind:
        table = self._table
        known = {name: code for code, name in enumerate(table.models)}
        codes = tuple(known[name] for name in worker.gpu_models if name in known)
        eligible = table.open
        if worker.pool is not None:
            pools = {name: code for code, name in enumerate(table.pools)}
            eligible = eligible & (table.pool == pools.get(str(worker.pool), -1))
        rows = len(table.nodes)
        if not worker.gpu_models:
            codes = tuple(range(len(table.models)))
        elif worker.milli:
            eligible = eligible & self._offers[list(codes)].any(axis=0)
        return Kind(
            worker,
            codes,
            ranked=bool(worker.gpu_models) and len(codes) > 1,
            eligible=eligible,
            fits=np.zeros(rows, dtype=np.int64),
            score=np.full(rows, np.inf),
        )

    def refreshed(self, kind: Kind) -> Kind:
        """The kind with columns that are true now."""
        now = self._stock.changes
        if kind.seen == now:
            return kind
        rows = ((self._stock.changed > kind.seen) & kind.eligible).nonzero()[0]
        kind.seen = now
        fits = self._counted(kind, rows)
        kind.fits[rows] = fits
        kind.score[rows] = np.inf
        good = rows[fits > 0]
        if good.size:
            kind.score[good] = self._scoring.rows(kind.worker, good)
        return kind

    def _counted(self, kind: Kind, rows: Ints) -> Ints:
        """(len(rows),) workers that fit each of these rows."""
        worker, free = kind.worker, self._stock.free
        count = self._gpu_counted(kind, rows)
        if worker.needs.cpu_milli:
            count = np.minimum(count, free.cpu[rows] // worker.needs.cpu_milli)
        if worker.needs.memory_mib:
            count = np.minimum(count, free.memory[rows] // worker.needs.memory_mib)
        return count

    def _gpu_counted(self, kind: Kind, rows: Ints) -> Ints:
        """As `_counted`, by GPUs alone."""
        worker, free = kind.worker, self._stock.free
        each = worker.needs.gpus
        if not each and not worker.gpu_milli:
            return np.full(rows.size, UNBOUNDED, dtype=np.int64)
        if worker.one_domain:
            return self._domain_counted(kind, rows)
        if not worker.gpu_milli and not self._table.mixed:
            return self._stock.entire[rows] // each
        count = np.zeros(rows.size, dtype=np.int64)
        if worker.gpu_milli:
            parts = free.gpu[rows] // worker.gpu_milli
            if worker.gpu_models:
                parts = parts * np.isin(self._table.gpu_model[rows], kind.codes)
            count += parts.sum(axis=1)
            return count // worker.parts
        for code in kind.codes:
            count += free.whole[code][rows] // each
        return count

    def _domain_counted(self, kind: Kind, rows: Ints) -> Ints:
        """As `_gpu_counted`, each worker inside one NVLink domain, its whole GPUs of one model."""
        table, worker = self._table, kind.worker
        gpu, domain, model = (
            self._stock.free.gpu[rows],
            table.gpu_domain[rows],
            table.gpu_model[rows],
        )
        groups = [kind.codes] if worker.gpu_milli else [(code,) for code in kind.codes]
        amount = gpu // worker.gpu_milli if worker.gpu_milli else gpu // WHOLE_GPU_MILLI
        each = worker.parts if worker.gpu_milli else worker.needs.gpus
        count = np.zeros(rows.size, dtype=np.int64)
        for number in range(int(domain.max(initial=NO_GPU)) + 1):
            for group in groups:
                inside = (domain == number) & np.isin(model, group)
                count += np.where(inside, amount, 0).sum(axis=1) // each
        return count
