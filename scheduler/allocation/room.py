"""A working copy of what is free, on which a packer places gangs one by one.

A room answers two questions fast, for thousands of gangs on thousands of nodes: how many workers
of a kind does each node hold, and which node is best for one. For every kind of worker it keeps
one column of counts and one of scores, and asks again only for the rows that changed since. Gangs
like one that failed cost nothing while nothing is given back.

Exact GPUs are chosen as soon as something is taken, because what remains decides what fits next.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scheduler.allocation.gangs import Gang
from scheduler.allocation.kinds import NEVER, Kind, Kinds
from scheduler.allocation.limits import Quotas, Reserves
from scheduler.allocation.spread import Spread, fewest_rows
from scheduler.allocation.stock import Draw, Stock
from scheduler.allocation.topology import board_of, mean_pair_bandwidth, whole_gpus
from scheduler.model.columns import Bools, Floats, Ints
from scheduler.model.job import Topology, Worker
from scheduler.model.plan import TaskPlacement
from scheduler.model.ports import NodeScore
from scheduler.model.quantity import WHOLE_GPU_MILLI, TenantId
from scheduler.model.site import scaled
from scheduler.model.snapshot import LiveAttempt, Snapshot

TIES_MAX = 16
"""How many rows of equal score are compared by their links."""


@dataclass(frozen=True, slots=True)
class Load:
    """Workers of one gang on one node.

    Attributes:
        row: row of the node table.
        gpus: their GPU indexes, worker after worker, in ring order; for workers that share a GPU
            one index each.
    """

    row: int
    workers: int
    gpus: tuple[int, ...]


Loads = tuple[Load, ...]


class Room:
    """What is free, less what was taken of it.

    Limits of `snapshot.terms` hold as well: tenants' quotas and hard headroom.

    Attributes:
        free: the working copy; changes with every call that takes or gives.
        table: what the nodes are.
        quotas: what tenants may still take.
    """

    def __init__(self, snapshot: Snapshot, score: NodeScore, seed: int) -> None:
        self.quotas = Quotas(snapshot)
        self._stock = Stock(snapshot.columns, self.quotas)
        self.free = self._stock.free
        self.table = self._stock.table
        self._reserves = Reserves(snapshot)
        self._scoring = score.on(self.free, snapshot, seed)
        self._boards = [board_of(links) for links in self.table.boards]
        self._uneven = any(not board.uniform for board in self._boards)
        self._kinds = Kinds(self._stock, self._scoring)
        self._version = 0

    # --- What fits -------------------------------------------------------------------------------

    def fits(self, worker: Worker) -> Ints:
        """(N,) how many such workers each node holds now. Read-only; true until the next change.

        Cost: O(rows changed since the last question about this worker).
        """
        return self._kinds.refreshed(self._kinds.of(worker)).fits

    def scores(self, worker: Worker) -> Floats:
        """(N,) how bad each node is for one such worker; infinite where none fits. As `fits`."""
        return self._kinds.refreshed(self._kinds.of(worker)).score

    def eligible(self, worker: Worker) -> Bools:
        """(N,) nodes that such workers may use at all, however full they are. Read-only."""
        return self._kinds.of(worker).eligible

    def place(
        self, gang: Gang, *, among: Bools | None = None, models_first: bool = True
    ) -> Loads | None:
        """Take room for the gang in its smallest size, all of it or nothing.

        One node for all workers is best, the one with the lowest score; else as few nodes as
        possible: those that hold most first, then the lowest score. A gang bound to a rack takes
        the rack with the least room that is enough.

        Args:
            gang: what to place.
            among: (N,) rows that may be used; all when None.
            models_first: the models that a gang likes better count before score and compactness;
                otherwise all models it accepts are alike.

        Returns:
            what was taken, by row; None when it does not fit.
        """
        kind = self._kinds.of_gang(gang)
        if among is None and self._known_to_fail(kind, gang):
            return None
        milli = gang.worker.milli * gang.workers
        if not self.quotas.admits(gang.job.tenant, milli):
            return None
        spread = self._choose(
            self._kinds.refreshed(kind), gang, among, None, models_first=models_first
        )
        if spread is None:
            if among is None:
                kind.fails(gang.workers, one_rack=gang.one_rack, at=self.mark())
            return None
        before = self.mark()
        loads: Loads | None = self._draw(kind, spread, gang.job.tenant)
        if milli and not self.reserves_kept:
            self._restore(before)
            loads = self._beside_reserves(kind, gang, among, models_first=models_first)
            if loads is None and among is None and not gang.one_rack:
                kind.held_back = (self._version, gang.workers)
        if loads is not None:
            self._version += 1
        return loads

    def _known_to_fail(self, kind: Kind, gang: Gang) -> bool:
        """Whether a gang like this one failed, and nothing came back since."""
        if gang.workers >= (kind.failed_rack if gang.one_rack else kind.failed):
            return True
        version, workers = kind.held_back
        return version == self._version and gang.workers >= workers

    def _beside_reserves(
        self, kind: Kind, gang: Gang, among: Bools | None, *, models_first: bool
    ) -> Loads | None:
        """Place a gang without touching a reserved block."""
        before = self.mark()
        spread = self._choose(
            self._kinds.refreshed(kind), gang, among, self._spare(kind), models_first=models_first
        )
        if spread is None:
            return None
        loads = self._draw(kind, spread, gang.job.tenant)
        if self.reserves_kept:
            return loads
        self._restore(before)
        return None

    def grow(self, gang: Gang, loads: Loads, workers_max: int | None = None) -> Loads:
        """Add workers to a placed elastic gang, as many as are useful and fit.

        Nodes that it uses already come first. A gang bound to a node, an NVLink domain or a rack
        stays there.

        Args:
            gang: the gang.
            loads: what it holds of this room.
            workers_max: stop at so many workers; `gang.workers_max` when None.

        Returns:
            what it holds now: `loads` itself when nothing could be added.
        """
        most = gang.workers_max if workers_max is None else min(workers_max, gang.workers_max)
        have = sum(load.workers for load in loads)
        if have >= most:
            return loads
        kind = self._kinds.of_gang(gang)
        tenant = gang.job.tenant
        each = gang.worker.milli
        left = self.quotas.left(tenant)
        if left is not None and each:
            most = min(most, have + left // each)
        before = self.mark()
        self.give(gang, loads)
        # From the largest size down: what is given back and taken again is cheap, and sizes few.
        for workers in range(most, have, -1):
            spread = self._extended(kind, gang, loads, workers)
            if spread is None:
                continue
            mark = self.mark()
            grown = self._draw(kind, spread, tenant)
            if self.reserves_kept:
                return grown
            self.undo(mark)
        self.undo(before)
        return loads

    # --- Taking and giving -----------------------------------------------------------------------

    def take(self, gang: Gang, loads: Loads) -> bool:
        """Take exactly these loads; False, and nothing taken, when they are not free."""
        self._version += 1
        return self._stock.take_all(self._draws(gang, loads))

    def draw(self, gang: Gang, spread: Spread) -> Loads | None:
        """Take exact GPUs for so many workers on these rows; None, and nothing taken, if not free.

        Limits hold as in `place`.
        """
        kind = self._kinds.of_gang(gang)
        workers = sum(count for _, count in spread)
        if not self.quotas.admits(gang.job.tenant, gang.worker.milli * workers):
            return None
        before = self.mark()
        loads = []
        for row, count in spread:
            holds = self._kinds.refreshed(kind).fits[row] >= count
            if holds and count > 1 and kind.worker.one_domain:
                holds = self._in_one_domain(kind, row, count)
            if not holds:
                self.undo(before)
                return None
            loads.append(self._draw_row(kind, row, count, gang.job.tenant))
        if self._reserves and not self._reserves.kept(self.free):
            self.undo(before)
            return None
        return tuple(loads)

    def give(self, gang: Gang, loads: Loads) -> None:
        """Give back what `place`, `grow` or `take` took for this gang."""
        for draw in self._draws(gang, loads):
            self._stock.give(draw)
        self._came_back()

    def release(self, attempt: LiveAttempt) -> None:
        """The exact place of a running attempt becomes free, as if it had ended."""
        for task in attempt.tasks:
            draw = self._held(task, attempt.tenant)
            if draw is not None:
                self._stock.give(draw)
        self._came_back()

    def _came_back(self) -> None:
        """What failed may fit now."""
        self._kinds.forget_failures()
        self._version += 1

    def hold(self, attempt: LiveAttempt) -> bool:
        """Take a released attempt's exact place again; False, and nothing taken, if it is gone."""
        draws = [self._held(task, attempt.tenant) for task in attempt.tasks]
        known = [draw for draw in draws if draw is not None]
        asked = sum(len(task.gpu_ids) for task in attempt.tasks)
        if len(known) < len(draws) or sum(len(draw.gpus) for draw in known) < asked:
            return False
        self._version += 1
        return self._stock.take_all(known)

    @property
    def reserves_kept(self) -> bool:
        """Whether every block that must stay free is."""
        return not self._reserves or self._reserves.kept(self.free)

    def mark(self) -> int:
        """A point that `undo` can return to."""
        return self._stock.mark()

    def undo(self, mark: int) -> None:
        """Back to how things were at `mark`. O(changes since)."""
        if self._stock.mark() > mark:
            self._restore(mark)
            self._version += 1

    def _restore(self, mark: int) -> None:
        self._stock.undo(mark)
        self._kinds.forget_failures(since=mark)

    def _draws(self, gang: Gang, loads: Loads) -> list[Draw]:
        worker, tenant = gang.worker, gang.job.tenant
        return [_draw(worker, load.row, load.workers, load.gpus, tenant) for load in loads]

    def _held(self, task: TaskPlacement, tenant: TenantId) -> Draw | None:
        """What a running task draws; None when its node is gone."""
        row = self.table.row_of.get(task.node_id)
        if row is None:
            return None
        here = (self.table.gpu_at.get(gpu_id) for gpu_id in task.gpu_ids)
        gpus = tuple(where[1] for where in here if where is not None)
        return Draw(row, gpus, task.gpu_milli, task.cpu_milli, task.memory_mib, tenant, task.extras)

    def _spare(self, kind: Kind) -> Ints:
        """(N,) workers that each row holds without touching reserved blocks."""
        spare = self._reserves.spare(self.free)
        each = max(1, kind.worker.needs.gpus)
        found: Ints = sum(
            (spare[code] // each for code in kind.codes),
            start=np.zeros(len(self.table.nodes), dtype=np.int64),
        )
        return found

    # --- Choosing rows ---------------------------------------------------------------------------

    def _choose(
        self,
        kind: Kind,
        gang: Gang,
        among: Bools | None,
        cap: Ints | None,
        *,
        models_first: bool,
    ) -> Spread | None:
        """Rows for the gang's workers; None when they do not fit.

        Args:
            kind: the gang's kind, refreshed.
            gang: what to place.
            among: rows that may be used, or None for all.
            cap: workers that each row may take at most, or None.
            models_first: as in `place`.
        """
        if gang.workers == 1 and among is None and cap is None and not kind.ranked:
            row = int(kind.score.argmin()) if kind.score.size else 0
            if not kind.score.size or not kind.fits[row]:
                return None
            if self._uneven and kind.worker.needs.gpus > 1:
                row = self._best_linked(kind, np.flatnonzero(kind.score == kind.score[row]), 1)
            return [(row, 1)]
        if kind.ranked and models_first:
            for narrow in self._kinds.by_model(kind):
                self._kinds.refreshed(narrow)
                fits = _limited(narrow.fits, among, cap)
                spread = self._spread(narrow, fits, gang)
                if spread is not None:
                    return spread
        return self._spread(kind, _limited(kind.fits, among, cap), gang)

    def _spread(self, kind: Kind, fits: Ints, gang: Gang) -> Spread | None:
        """All workers onto as few of the rows as possible, in one rack if it must be."""
        workers, score = gang.workers, kind.score
        rows = np.flatnonzero(fits >= workers)
        if rows.size:
            row = int(rows[np.argmin(score[rows])])
            if self._uneven and kind.worker.needs.gpus * workers > 1:
                row = self._best_linked(kind, rows[score[rows] == score[row]], workers)
            return [(row, workers)]
        if workers == 1:
            return None
        bound = gang.one_rack
        if bound or gang.shape.topology is Topology.PREFER_SAME_RACK:
            rack = self._rack_for(fits, workers)
            if rack is None and bound:
                return None
            if rack is not None:
                fits = np.where(self.table.rack == rack, fits, 0)
        return fewest_rows(fits, score, workers)

    def _best_linked(self, kind: Kind, rows: Ints, workers: int) -> int:
        """Of rows with the same score the one whose free GPUs are linked best, the first of equals.

        A few are compared; where all pairs of GPUs are alike there is nothing to compare.
        """
        best, reached = int(rows[0]), -1.0
        for row in rows[:TIES_MAX].tolist():
            board = self._boards[self.table.board[row]]
            gpus = self._whole_gpus(kind, row, workers) or ()
            bandwidth = mean_pair_bandwidth(board.links, gpus)
            if bandwidth > reached:
                best, reached = row, bandwidth
        return best

    def _rack_for(self, fits: Ints, workers: int) -> int | None:
        """The rack with the least room that is enough; the first of equals."""
        room = np.bincount(self.table.rack, weights=fits, minlength=len(self.table.racks))
        enough = np.flatnonzero(room >= workers)
        return int(enough[np.argmin(room[enough])]) if enough.size else None

    def _extended(self, kind: Kind, gang: Gang, loads: Loads, workers: int) -> Spread | None:
        """Rows for `workers` workers: on each row of `loads` at least as many as there."""
        self._kinds.refreshed(kind)
        if gang.shape.topology.one_node:
            row = loads[0].row
            holds = kind.fits[row] >= workers
            if holds and kind.worker.one_domain:
                holds = self._in_one_domain(kind, row, workers)
            return [(row, workers)] if holds else None
        fits = kind.fits
        if gang.one_rack:
            fits = np.where(self.table.rack == self.table.rack[loads[0].row], fits, 0)
        if int(fits.sum()) < workers:
            return None
        missing = workers - sum(load.workers for load in loads)
        spread = []
        for load in loads:
            extra = min(missing, int(fits[load.row]) - load.workers)
            spread.append((load.row, load.workers + extra))
            missing -= extra
        if missing:
            others = fits.copy()
            others[[load.row for load in loads]] = 0
            more = fewest_rows(others, kind.score, missing)
            assert more is not None, "the sum was checked above"
            spread += more
        return sorted(spread)

    # --- Drawing exact GPUs ----------------------------------------------------------------------

    def _draw(self, kind: Kind, spread: Spread, tenant: TenantId) -> Loads:
        return tuple(self._draw_row(kind, row, workers, tenant) for row, workers in spread)

    def _draw_row(self, kind: Kind, row: int, workers: int, tenant: TenantId) -> Load:
        worker = kind.worker
        if worker.gpu_milli:
            return self._draw_parts(kind, row, workers, tenant)
        gpus: tuple[int, ...] | None = ()
        if worker.needs.gpus:
            gpus = self._whole_gpus(kind, row, workers)
        assert gpus is not None, "the column of the kind said that they fit"
        self._stock.take(_draw(worker, row, workers, gpus, tenant))
        return Load(row, workers, gpus)

    def _whole_gpus(self, kind: Kind, row: int, workers: int) -> tuple[int, ...] | None:
        return whole_gpus(
            self.free,
            row,
            self._boards[self.table.board[row]],
            (workers, kind.worker.needs.gpus),
            kind.codes,
            ranked=kind.ranked,
            one_domain=kind.worker.one_domain,
        )

    def _in_one_domain(self, kind: Kind, row: int, workers: int) -> bool:
        """Whether several workers bound to an NVLink domain find room in the same one."""
        if kind.worker.gpu_milli:
            return self._accepted(kind, row, workers * kind.worker.parts) is not None
        return self._whole_gpus(kind, row, workers) is not None

    def _draw_parts(self, kind: Kind, row: int, workers: int, tenant: TenantId) -> Load:
        """Shares of GPUs, one after the other, because each changes what is best for the next."""
        worker = kind.worker
        self._stock.take(_draw(worker, row, workers, (), tenant))
        inside = self._accepted(kind, row, workers * worker.parts)
        assert inside is not None, "the column of the kind said that they fit"
        gpus = []
        for _ in range(workers * worker.parts):
            gpu = self._scoring.gpu(worker, row)
            if not (inside[gpu] and self.free.gpu[row, gpu] >= worker.gpu_milli):
                # Scores know neither models nor NVLink domains.
                room = np.where(inside, self.free.gpu[row], 0)
                gpu = int(np.argmin(np.where(room >= worker.gpu_milli, room, NEVER)))
            gpus.append(gpu)
            self._stock.take(Draw(row, (gpu,), worker.gpu_milli, 0, 0, tenant))
        return Load(row, workers, tuple(gpus))

    def _accepted(self, kind: Kind, row: int, parts: int) -> Bools | None:
        """(G,) the GPUs of one node that so many parts may share; None when none may.

        They are of accepted models, and where parts must share an NVLink domain, of the one with
        the least room that is enough.
        """
        table, worker = self.table, kind.worker
        right = np.isin(table.gpu_model[row], kind.codes)
        if not worker.one_domain:
            return right
        domain = table.gpu_domain[row]
        room = np.where(right, self.free.gpu[row] // worker.gpu_milli, 0)
        by_domain = [int(room[domain == number].sum()) for number in range(int(domain.max()) + 1)]
        enough = [(have, number) for number, have in enumerate(by_domain) if have >= parts]
        return right & (domain == min(enough)[1]) if enough else None


def _draw(worker: Worker, row: int, workers: int, gpus: tuple[int, ...], tenant: TenantId) -> Draw:
    """What `workers` workers with these GPUs draw."""
    return Draw(
        row,
        gpus,
        worker.gpu_milli or WHOLE_GPU_MILLI,
        worker.needs.cpu_milli * workers,
        worker.needs.memory_mib * workers,
        tenant,
        scaled(worker.extras, workers),
    )


def _limited(fits: Ints, among: Bools | None, cap: Ints | None) -> Ints:
    """`fits` where it may be used, and as far."""
    if among is not None:
        fits = np.where(among, fits, 0)
    if cap is not None:
        fits = np.minimum(fits, cap)
    return fits
