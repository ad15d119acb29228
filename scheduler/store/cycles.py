"""The database as a cycle sees it: deltas in, decisions out, under one leader epoch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from scheduler.ids import IdSource
from scheduler.model.plan import Plan
from scheduler.model.ports import CommitReport, DecisionMeta, Sees
from scheduler.model.quantity import UtcSeconds
from scheduler.model.snapshot import SnapshotDelta
from scheduler.model.terms import Terms
from scheduler.store.plans import commit_plan
from scheduler.store.snapshot import load_delta
from scheduler.store.transaction import Transactions


@dataclass(frozen=True, slots=True)
class DatabaseCycleStore:
    """A `CycleStore` on the real store.

    Attributes:
        epoch: the leader epoch this process holds; a commit under another one is refused.
        terms: costs and limits that this daemon was told to keep.
        sees: what decisions may know of run times: nothing, or the limits that job files declare.
    """

    database: Transactions
    epoch: int
    ids: IdSource
    terms: Terms = field(default_factory=Terms)
    sees: Sees = Sees.NOTHING

    async def load_delta(self, base_revision: int) -> SnapshotDelta:
        """What changed after `base_revision`, in one consistent read."""
        delta = await self.database.read(lambda tx: load_delta(tx, base_revision, self.sees))
        return delta if base_revision else replace(delta, terms=self.terms)

    async def commit(self, plan: Plan, meta: DecisionMeta, now: UtcSeconds) -> CommitReport:
        """Commit in one transaction; see `commit_plan`."""
        return await self.database.write(
            lambda tx: commit_plan(
                tx, plan, epoch=self.epoch, decision=meta, now=now, ids=self.ids
            ),
            failpoint="plan",
        )
