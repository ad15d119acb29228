"""For every kind of worker: how many each node holds now, and how bad each node is for one.

These are two columns of numbers, kept up to date lazily: only for the rows that changed since the
kind was last asked about.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from scheduler.allocation.gangs import Gang
from scheduler.allocation.stock import Stock
from scheduler.model.columns import Bools, Floats, Ints
from scheduler.model.counting import counts, in_pool, model_codes, offering
from scheduler.model.job import Worker
from scheduler.model.ports import Scoring

NEVER = 2**62


@dataclass(slots=True, eq=False)
class Kind:
    """Workers of one kind and what is known of them.

    Attributes:
        codes: model codes it accepts, best first.
        ranked: whether the order of `codes` is the job's wish.
        eligible: (N,) rows that take new work, that it may use, with a GPU of its models.
        fits: (N,) workers that each row holds now.
        score: (N,) how bad each row is; infinite where none fits.
        seen: the stock's count of changes when the columns were last true.
        by_model: the kind narrowed to each of `codes`; filled when asked for.
        failed, failed_rack: the smallest gang known not to fit, anywhere and inside one rack.
        failed_at: the stock's mark when that was last found.
        held_back: (version of the room, workers) of the latest gang that only reserves kept out.
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
    failed_at: int = 0
    held_back: tuple[int, int] = (-1, 0)
    by_model: tuple[Kind, ...] = ()

    def fails(self, workers: int, *, one_rack: bool, at: int) -> None:
        """Note that so many workers do not fit, as things stand at the stock's mark `at`."""
        if not one_rack:
            self.failed = min(self.failed, workers)
        self.failed_rack = min(self.failed_rack, workers)
        self.failed_at = at


class Kinds:
    """The kinds that were asked about, bound to one stock."""

    def __init__(self, stock: Stock, scoring: Scoring) -> None:
        self._stock = stock
        self._table = stock.table
        self._scoring = scoring
        self._kinds: dict[Worker, Kind] = {}
        self._of_class: dict[str, Kind] = {}

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

    def forget_failures(self, since: int = -1) -> None:
        """Something came back: what failed after the stock's mark `since` may fit.

        What failed before it failed with at least as much room as there is at that mark.
        """
        for kind in self._kinds.values():
            if kind.failed_at > since:
                kind.failed = kind.failed_rack = NEVER

    def _described(self, worker: Worker) -> Kind:
        table = self._table
        codes = model_codes(table, worker)
        rows = len(table.nodes)
        return Kind(
            worker,
            codes,
            ranked=bool(worker.gpu_models) and len(codes) > 1,
            eligible=table.open & in_pool(table, worker) & offering(table, worker, codes),
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
        fits = counts(self._stock.free, kind.worker, kind.codes, rows)
        kind.fits[rows] = fits
        kind.score[rows] = np.inf
        good = rows[fits > 0]
        if good.size:
            kind.score[good] = self._scoring.rows(kind.worker, good)
        return kind
