"""What is free as a ledger: draws and returns on single rows, each of which can be undone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from scheduler.allocation.limits import Quotas
from scheduler.model.columns import NO_GPU, Columns, Ints
from scheduler.model.quantity import WHOLE_GPU_MILLI, TenantId
from scheduler.model.site import Amounts


@dataclass(frozen=True, slots=True)
class Draw:
    """An amount of one row, to take or to give back.

    Attributes:
        gpus: GPU indexes; one may be named several times.
        milli: thousandths of each GPU named.
        tenant: on whose account.
        extras: amounts of further resources.
    """

    row: int
    gpus: tuple[int, ...]
    milli: int
    cpu_milli: int
    memory_mib: int
    tenant: TenantId
    extras: Amounts = ()


class Stock:
    """A working copy of `Columns.free` with a journal.

    Attributes:
        free: what is free now; the arrays change in place.
        table: what the nodes are.
        changes: how often anything changed, undoing included.
        changed: (N,) the value of `changes` after each row's latest change; 0 for none.
    """

    __slots__ = (
        "_cpu",
        "_extras",
        "_gpu",
        "_journal",
        "_memory",
        "_plain",
        "_quotas",
        "changed",
        "changes",
        "free",
        "table",
    )

    def __init__(self, columns: Columns, quotas: Quotas) -> None:
        self.free = columns.free.copy()
        self.table = columns.table
        self.changes = 0
        self.changed = np.zeros(len(self.table.nodes), dtype=np.int64)
        self._quotas = quotas
        self._journal: list[tuple[Draw, int]] = []
        # Signed amounts: a node may hold more than it has (its capacity fell), and what comes back
        # pays that debt first. Nearly all rows are plain: open and without debt.
        table = self.table
        self._gpu = WHOLE_GPU_MILLI - columns.gpu_held
        self._cpu = table.cpu - columns.cpu_held
        self._memory = table.memory - columns.memory_held
        self._extras: dict[str, Ints] = {
            name: table.capacity_of(name) - columns.extras_held.get(name, 0)
            for name in self.free.extras
        }
        good = (table.gpu_open & (self._gpu >= 0)) | (table.gpu_model == NO_GPU)
        plain = table.open & (self._cpu >= 0) & (self._memory >= 0) & good.all(axis=1)
        for amounts in self._extras.values():
            plain &= amounts >= 0
        self._plain: list[bool] = plain.tolist()

    def has(self, draw: Draw) -> bool:
        """Whether all of it is free."""
        free, row = self.free, draw.row
        if draw.cpu_milli > free.cpu[row] or draw.memory_mib > free.memory[row]:
            return False
        if any(amount > free.amount_of(name)[row] for name, amount in draw.extras):
            return False
        return bool(self.table.open[row]) and all(
            draw.gpus.count(gpu) * draw.milli <= free.gpu[row, gpu] for gpu in set(draw.gpus)
        )

    def take(self, draw: Draw) -> None:
        """Take it; the caller has made sure that it is free."""
        self._journal.append((draw, -1))
        self._write(draw, -1)

    def take_all(self, draws: Iterable[Draw]) -> bool:
        """Take them if all of them are free; else nothing, and False."""
        before = self.mark()
        for draw in draws:
            if not self.has(draw):
                self.undo(before)
                return False
            self.take(draw)
        return True

    def give(self, draw: Draw) -> None:
        """It comes back."""
        self._journal.append((draw, 1))
        self._write(draw, 1)

    def mark(self) -> int:
        """A point that `undo` can return to."""
        return len(self._journal)

    def undo(self, mark: int) -> None:
        """Back to how things were at `mark`. O(draws since)."""
        while len(self._journal) > mark:
            draw, sign = self._journal.pop()
            self._write(draw, -sign)

    def _write(self, draw: Draw, sign: int) -> None:
        row = draw.row
        self.changes += 1
        self.changed[row] = self.changes
        if draw.gpus and self._quotas:
            self._quotas.take(draw.tenant, -sign * draw.milli * len(draw.gpus))
        if not self._plain[row]:
            self._write_signed(draw, sign)
            return
        free = self.free
        if draw.cpu_milli:
            free.cpu[row] += sign * draw.cpu_milli
        if draw.memory_mib:
            free.memory[row] += sign * draw.memory_mib
        for gpu in draw.gpus:
            self._set_gpu(row, gpu, free.gpu[row, gpu] + sign * draw.milli)
        for name, amount in draw.extras:
            self._named(name)
            free.extras[name][row] += sign * amount

    def _write_signed(self, draw: Draw, sign: int) -> None:
        """As `_write` where a part takes no new work or is in debt."""
        row, free, table = draw.row, self.free, self.table
        self._cpu[row] += sign * draw.cpu_milli
        self._memory[row] += sign * draw.memory_mib
        if table.open[row]:
            free.cpu[row] = max(self._cpu[row], 0)
            free.memory[row] = max(self._memory[row], 0)
        for name, amount in draw.extras:
            self._named(name)
            self._extras[name][row] += sign * amount
            if table.open[row]:
                free.extras[name][row] = max(self._extras[name][row], 0)
        for gpu in draw.gpus:
            self._gpu[row, gpu] += sign * draw.milli
            if table.gpu_open[row, gpu]:
                self._set_gpu(row, gpu, max(self._gpu[row, gpu], 0))

    def _named(self, name: str) -> None:
        """Keep account of a further resource, which nobody may have named before."""
        if name not in self._extras:
            self._extras[name] = self.table.capacity_of(name).copy()
            self.free.extras[name] = np.where(self.table.open, self._extras[name], 0)

    def _set_gpu(self, row: int, gpu: int, after: int) -> None:
        free = self.free
        before = free.gpu[row, gpu]
        free.gpu[row, gpu] = after
        free.milli[row] += after - before
        if WHOLE_GPU_MILLI in (before, after):
            entire = int(after == WHOLE_GPU_MILLI) - int(before == WHOLE_GPU_MILLI)
            free.whole[self.table.gpu_model[row, gpu], row] += entire
            free.entire[row] += entire
