"""The solver of a simulation: `decide` in the caller's own process, at once."""

from __future__ import annotations

import time
from collections.abc import Callable

from scheduler.decide import decide
from scheduler.model.plan import Plan
from scheduler.model.ports import Decider, DecideResult, Effort, Profile
from scheduler.model.quantity import UtcSeconds
from scheduler.model.snapshot import Snapshot, SnapshotDelta


class InlineSolver:
    """A `Solver` without a process. What it decides depends on its arguments alone.

    Attributes:
        decided_ms: real milliseconds that the last decision took; a figure, part of no result.
        asked: decisions so far.
    """

    def __init__(self, profile: Profile, decider: Decider = decide) -> None:
        """Wire the solver.

        Args:
            profile: what it decides by, whatever policy name it is asked for.
            decider: the decision; another one only in tests.
        """
        self._profile = profile
        self._decider = decider
        self._snapshot = Snapshot()
        self.decided_ms = 0.0
        self.asked = 0

    async def feed(self, delta: SnapshotDelta, full: Callable[[], SnapshotDelta]) -> None:
        """Bring the own snapshot up to date."""
        self._snapshot = self._snapshot.caught_up(delta, full)

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
        """The decider's last plan. `effort` bounds the work; nothing kills it by wall time."""
        del policy, hard_limit_s
        await self.feed(delta, full)
        started_s = time.perf_counter()
        plan: Plan | None = None
        for plan in self._decider(self._snapshot, self._profile, effort, now, seed):  # noqa: B007 - the last one is wanted
            pass
        self.decided_ms = (time.perf_counter() - started_s) * 1000
        self.asked += 1
        return DecideResult(plan, killed=False, restarts=0)
