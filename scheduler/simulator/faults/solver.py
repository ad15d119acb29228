"""The real decision in this process, by a worker that can be slow, crash, or answer nonsense."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from itertools import islice

from policies.registry import profile_named
from scheduler.decide import decide
from scheduler.model.plan import Eviction, Placement, Plan, TaskPlacement
from scheduler.model.ports import DecideResult, Effort
from scheduler.model.quantity import GpuId, UtcSeconds
from scheduler.model.snapshot import Snapshot, SnapshotDelta
from scheduler.simulator.faults.chance import Chance, Fault


class SimulatedSolver:
    """The Solver port.

    Args:
        chance: says when it fails.
        gate: waits while the daemon is frozen; raises when it is dead.
        decided: called with a plan and what it was made from, before it is answered.
    """

    def __init__(
        self,
        chance: Chance,
        gate: Callable[[], Awaitable[None]],
        decided: Callable[[Plan, Snapshot], None],
    ) -> None:
        self._chance = chance
        self._gate = gate
        self._decided = decided
        self._snapshot = Snapshot()
        self._restarts = 0

    async def feed(self, delta: SnapshotDelta, full: Callable[[], SnapshotDelta]) -> None:
        """Bring the snapshot up to date."""
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
        """The real decision, a little later; less or nonsense when a fault strikes."""
        await self.feed(delta, full)
        chance, snapshot = self._chance, self._snapshot
        plans = decide(snapshot, profile_named(policy), effort, now, seed)
        slow = chance.strikes(Fault.SOLVER_SLOW, 0.08)
        crash = not slow and chance.strikes(Fault.SOLVER_CRASH, 0.08)
        if slow or crash:
            sent = list(islice(plans, chance.count(0, 1)))
            await asyncio.sleep(hard_limit_s if slow else chance.between(0.0, hard_limit_s))
            await self._gate()
            self._snapshot = Snapshot()  # a fresh worker, which knows nothing yet
            self._restarts += 1
            return DecideResult(sent[-1] if sent else None, True, self._restarts, "it failed")
        *_, plan = plans
        self._decided(plan, snapshot)
        await asyncio.sleep(chance.between(0.005, 0.2))
        await self._gate()
        if chance.strikes(Fault.SOLVER_GARBAGE, 0.08):
            plan = garbage(plan, snapshot, chance)
        elif victim := self._victim(plan):
            plan = replace(plan, evictions=(victim,))
        return DecideResult(plan, False, self._restarts)

    def _victim(self, plan: Plan) -> Eviction | None:
        """A sound eviction, as a policy that preempts might order."""
        placed = {placement.job_id for placement in plan.placements}
        left = [job for job in self._snapshot.waiting if job not in placed]
        victims = [
            attempt.id
            for attempt in self._snapshot.live.values()
            if attempt.preemptible and not attempt.stopping
        ]
        if not left or not victims or not self._chance.strikes(Fault.EVICTION, 0.4):
            return None
        return Eviction(self._chance.pick(victims), left[0], 1.0)


def garbage(plan: Plan, snapshot: Snapshot, chance: Chance) -> Plan:
    """A plan as a broken solver might send it: over-committed, partial, misplaced or made up.

    Not one that is whole and tells of want of room where there is room: only who decides again
    could tell that from the truth.
    """
    spoil = chance.pick(
        (
            _claims_the_impossible,
            _forgets_a_class,
            _forgets_a_task,
            _gives_no_gpus,
            _takes_what_is_held,
            _repeats,
        )
    )
    placements = tuple(spoil(list(plan.placements), snapshot))
    return replace(
        plan,
        placements=placements,
        value=sum(placement.value for placement in placements),
        bound=max(plan.bound, sum(placement.value for placement in placements)),
    )


def _claims_the_impossible(placements: list[Placement], snapshot: Snapshot) -> list[Placement]:
    """Everything on one node, whatever it has."""
    node = next(iter(snapshot.nodes.values()), None)
    if node is None:
        return placements
    return [
        replace(
            placement,
            tasks=tuple(
                replace(task, node_id=node.id, gpu_ids=_first_gpus(task, snapshot))
                for task in placement.tasks
            ),
        )
        for placement in placements
    ]


def _first_gpus(task: TaskPlacement, snapshot: Snapshot) -> tuple[GpuId, ...]:
    node = next(iter(snapshot.nodes.values()))
    return tuple(gpu.id for gpu in node.gpus[: len(task.gpu_ids)])


def _forgets_a_class(placements: list[Placement], snapshot: Snapshot) -> list[Placement]:
    """Classes that were placed to the last job are not spoken of at all."""
    placed = {placement.job_id for placement in placements}
    told = {job.class_key for job in snapshot.waiting.values() if job.id not in placed}
    return [each for each in placements if snapshot.waiting[each.job_id].class_key in told]


def _forgets_a_task(placements: list[Placement], _: Snapshot) -> list[Placement]:
    return [replace(placement, tasks=placement.tasks[:-1]) for placement in placements]


def _gives_no_gpus(placements: list[Placement], _: Snapshot) -> list[Placement]:
    return [
        replace(placement, tasks=tuple(replace(task, gpu_ids=()) for task in placement.tasks))
        for placement in placements
    ]


def _takes_what_is_held(placements: list[Placement], snapshot: Snapshot) -> list[Placement]:
    """The places of what runs, given once more to who waits, as far as they go."""
    held = [task for attempt in snapshot.live.values() for task in attempt.tasks]
    return [
        replace(
            placement,
            tasks=(
                *(
                    replace(task, node_id=taken.node_id, gpu_ids=taken.gpu_ids)
                    for task, taken in zip(placement.tasks, held, strict=False)
                ),
                *placement.tasks[len(held) :],
            ),
        )
        for placement in placements
    ]


def _repeats(placements: list[Placement], _: Snapshot) -> list[Placement]:
    return [*placements, *placements]
