"""A Solver without a process: decides in the caller's own, and can be told to misbehave."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from policies.registry import profile_named
from scheduler.decide import decide
from scheduler.model.plan import Plan
from scheduler.model.ports import DecideResult, Effort
from scheduler.model.quantity import UtcSeconds
from scheduler.model.snapshot import Snapshot, SnapshotDelta


@dataclass
class LocalSolver:
    """Decides at once.

    Attributes:
        spoil: changes the plan before it is answered; None answers no plan at all.
        asked: decisions asked for so far.
    """

    spoil: Callable[[Plan], Plan | None] = field(default=lambda plan: plan)
    asked: int = 0
    _snapshot: Snapshot = field(default_factory=Snapshot)

    async def feed(self, delta: SnapshotDelta, full: Callable[[], SnapshotDelta]) -> None:
        fits = delta.base_revision in (0, self._snapshot.revision)
        self._snapshot = self._snapshot.apply(delta if fits else full())

    async def decide(
        self,
        delta: SnapshotDelta,
        full: Callable[[], SnapshotDelta],
        *,
        policy: str,
        effort: Effort,
        now: UtcSeconds,
        seed: int,
        hard_limit_s: float,
    ) -> DecideResult:
        del hard_limit_s
        self.asked += 1
        await self.feed(delta, full)
        plans = list(decide(self._snapshot, profile_named(policy), effort, now, seed))
        return DecideResult(self.spoil(plans[-1]), killed=False, restarts=0)
