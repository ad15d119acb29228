"""A Solver without a process that can be told to misbehave."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from scheduler.decide import decide
from scheduler.model.plan import Plan
from scheduler.model.ports import Effort, Profile
from scheduler.model.quantity import UtcSeconds
from scheduler.model.snapshot import Snapshot
from scheduler.simulator.inline_solver import InlineSolver


class LocalSolver(InlineSolver):
    """Decides at once.

    Attributes:
        spoil: changes the plan before it is answered; None answers no plan at all.
    """

    spoil: Callable[[Plan], Plan | None]

    def __init__(self, profile: Profile) -> None:
        super().__init__(profile, self._spoilt)
        self.spoil = lambda plan: plan

    def _spoilt(
        self, snapshot: Snapshot, profile: Profile, effort: Effort, now: UtcSeconds, seed: int
    ) -> Iterator[Plan]:
        *_, plan = decide(snapshot, profile, effort, now, seed)
        spoilt = self.spoil(plan)
        if spoilt is not None:
            yield spoilt
