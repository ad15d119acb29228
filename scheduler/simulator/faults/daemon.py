"""One daemon in the simulation: the real parts, wired as in `scheduler.daemon`, mortal at any step.

A killed daemon loses all that it holds in memory, wherever it was: its doors to the store and to
the world shut at once, so that whatever its code still does on the way down has no effect.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from policies.registry import profile_named
from scheduler.conductor import Conductor, Pace
from scheduler.cycle import CycleContext, CycleReport
from scheduler.errors import FencedError, HaversackError
from scheduler.execution.apply import Applier
from scheduler.execution.reconcile import Reconciler
from scheduler.execution.watch import LOOKS_MAX, Watcher
from scheduler.failpoints import FailpointError
from scheduler.ids import IdSource
from scheduler.model.execution import (
    AttemptObservation,
    ExpectedAttempt,
    Intent,
    IntentKind,
    LaunchOrder,
    Receipt,
    StopOrder,
)
from scheduler.model.lifecycle import JobState
from scheduler.model.plan import Plan
from scheduler.model.ports import Effort
from scheduler.model.quantity import AttemptId, IntentId, UtcSeconds
from scheduler.model.snapshot import Snapshot
from scheduler.simulator.faults.chance import Chance, Fault
from scheduler.simulator.faults.loop import VirtualClock
from scheduler.simulator.faults.solver import SimulatedSolver
from scheduler.simulator.faults.store import Disk, DiskTrouble, SimulatedStore
from scheduler.simulator.faults.world import HostExecutor, World
from scheduler.store.cycles import DatabaseCycleStore
from scheduler.store.execution import SqlExecutionStore
from scheduler.store.inventory import sync_nodes
from scheduler.store.lease import acquire, require
from scheduler.store.transaction import Transaction

T = TypeVar("T")

HOLDER = "simulated-0"
LEASE_S = 10.0
LAUNCHES_MAX = 3
RECONCILE_S = 5.0
INVENTORY_S = 8.0
FREE_REQUEUES_MAX = 3
HARD_LIMIT_S = 5.0
EFFORT = Effort(gap_target=1.0)
"""Greedy's plan will do: what is simulated here is what becomes of plans, not how good they are."""

CURRENT: contextvars.ContextVar[SimulatedDaemon] = contextvars.ContextVar("daemon")
"""Whose code is running."""


class KilledError(BaseException):
    """The daemon is dead: nothing it still does counts. No `except Exception` may stop it."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What daemons share and what outlives them.

    Attributes:
        step: told all that happens; checks the invariants.
        woken: called after each commit that moved the journal, as the database notifies replicas.
        decided: called with a plan and what it was made from: the world moves on before it is
            answered.
        finished: called after each cycle that decided, with the leader's epoch, the revision that
            it decided on, and its report.
        rejected_plans: folder for plans that failed verification.
    """

    disk: Disk
    trouble: DiskTrouble
    world: World
    chance: Chance
    clock: VirtualClock
    ids: IdSource
    step: Callable[[str], None]
    woken: Callable[[], None]
    decided: Callable[[Plan, Snapshot], None]
    finished: Callable[[int, int, CycleReport], None]
    rejected_plans: Path


class SimulatedDaemon:
    """Conductor, applier, watcher and reconciler on one store, under one epoch.

    Attributes:
        number: counts the daemons of a schedule.
        epoch: 0 until it leads.
        alive: whether it was neither killed nor has ended.
        calls: blocking calls under way, by part.
        errands: observations that are being told again.
    """

    def __init__(self, number: int, around: Surroundings) -> None:
        self.number = number
        self.epoch = 0
        self.alive = True
        self._around = around
        self._thawed = asyncio.Event()
        self._thawed.set()
        self._died = asyncio.Event()
        self._wakes: list[Callable[[], None]] = []
        self._decided_on = 0
        self.context = contextvars.copy_context()
        self.context.run(CURRENT.set, self)
        self.executor = HostExecutor(around.world, around.chance, number)
        self.store = SimulatedStore(
            around.disk,
            around.trouble,
            gate=self.gate,
            ready=lambda: self.alive and not self.frozen,
            context=self.context,
            served=lambda: around.step(f"daemon {number} stored"),
            committed=lambda _: around.woken(),
            failed=lambda error: self.kill(f"the store stopped: {error}"),
        )
        self.calls = {
            name: InTime(self.executor, self, around.chance, most)
            for name, most in (
                ("apply", 2 * LAUNCHES_MAX),
                ("watch", LOOKS_MAX),
                ("reconcile", 1),
            )
        }
        self.errands: set[asyncio.Task[None]] = set()

    @property
    def frozen(self) -> bool:
        """Whether it stands still, as under SIGSTOP."""
        return not self._thawed.is_set()

    async def gate(self) -> None:
        """Pass while the daemon runs; wait while it is frozen.

        Raises:
            KilledError: it is dead.
        """
        if self.frozen:
            await self._thawed.wait()
        if not self.alive:
            raise KilledError

    def freeze(self) -> None:
        """Stop it in its tracks."""
        self._thawed.clear()

    def thaw(self) -> None:
        """Let it go on as if no time had passed."""
        self._thawed.set()
        if self.alive:
            self.store.serve_soon()

    def kill(self, why: str) -> None:
        """End it as kill -9 does. Idempotent."""
        if self.alive:
            self.alive = False
            self.executor.close()
            self.store.shut()
            self._died.set()
            self._thawed.set()
            self._around.step(f"daemon {self.number} dies: {why}")

    def at_point(self, name: str) -> None:
        """A failpoint is passed by this daemon's code.

        Raises:
            KilledError: it dies right here.
            FailpointError: a defect shows right here.
        """
        chance = self._around.chance
        if not self.alive:
            raise KilledError
        if chance.strikes(Fault.KILL_AT_POINT, 0.01, name):
            self.kill(f"at {name}")
            raise KilledError
        if chance.strikes(Fault.ERROR_AT_POINT, 0.01, name):
            raise FailpointError(name)

    def wake(self) -> None:
        """Something was committed."""
        if self.alive:
            for wake in self._wakes:
                wake()

    async def run(self) -> str:
        """Live until killed, fenced or broken; answers what ended it.

        Raises:
            Exception: a defect: no part may end by itself.
        """
        loop = asyncio.get_running_loop()
        life = loop.create_task(self._life(), context=self.context)
        death = loop.create_task(self._died.wait())
        await asyncio.wait({life, death}, return_when=asyncio.FIRST_COMPLETED)
        try:
            if not self.alive or not life.done():
                return "killed"
            life.result()
        except (KilledError, FailpointError, HaversackError, OSError) as error:
            return f"{type(error).__name__}: {error}"
        finally:
            self.kill("it ended")
            await _end(life, death)
        return "ended"

    async def _life(self) -> None:
        around = self._around
        self.epoch = await self.store.write(
            lambda tx: acquire(tx, HOLDER, LEASE_S, around.clock.now())
        )
        await self._sync_nodes()
        store = Redelivering(
            SqlExecutionStore(
                self.store,
                epoch=self.epoch,
                ids=around.ids,
                free_requeues_max=FREE_REQUEUES_MAX,
                retry_backoff_max_s=4.0,
                requeue_backoff_s=0.5,
                requeue_backoff_max_s=4.0,
            ),
            around,
            self,
        )
        conductor = Conductor(
            CycleContext(
                store=DatabaseCycleStore(self.store, self.epoch, around.ids),
                solver=SimulatedSolver(around.chance, self.gate, self._decided),
                profile=profile_named("priority-age"),
                effort=EFFORT,
                seed=0,
                hard_limit_s=HARD_LIMIT_S,
                clock=around.clock,
                rejected_plans=around.rejected_plans,
            ),
            Pace(batch_window_s=0.05, rest_ratio=1.0),
            finished=lambda report: self._cycle_finished(report, applier),
        )
        watcher = Watcher(
            store,
            self.calls["watch"],
            around.clock,
            on_freed=conductor.wake,
        )
        applier = Applier(
            store,
            self.calls["apply"],
            watcher,
            around.clock,
            in_flight_max=LAUNCHES_MAX,
        )
        reconciler = Reconciler(
            store,
            self.calls["reconcile"],
            watcher,
            applier,
            around.clock,
            every_s=RECONCILE_S,
        )
        self._wakes = [conductor.wake, applier.wake]
        await reconciler.adopt()
        await _together(
            applier.run(), watcher.run(), reconciler.run(), conductor.run(), self._keep_inventory()
        )

    def _decided(self, plan: Plan, snapshot: Snapshot) -> None:
        self._decided_on = snapshot.revision
        self._around.decided(plan, snapshot)

    def _cycle_finished(self, report: CycleReport, applier: Applier) -> None:
        self._around.finished(self.epoch, self._decided_on, report)
        placed = ", ".join(report.placed) or "nobody"
        refused = "".join(f"; refuses {job}: {why}" for job, why in report.refused)
        self._around.step(f"daemon {self.number} places {placed}{refused}")
        applier.wake()

    async def _sync_nodes(self) -> None:
        around = self._around
        found = around.world.inventory()

        def sync(tx: Transaction) -> None:
            require(tx, self.epoch)
            sync_nodes(tx, found, now=around.clock.now())

        await self.store.write(sync)

    async def _keep_inventory(self) -> None:
        while True:
            await asyncio.sleep(INVENTORY_S)
            try:
                await self._sync_nodes()
            except FencedError:
                raise
            except HaversackError as error:
                self._around.step(f"daemon {self.number} cannot store the inventory: {error}")


class InTime:
    """The executor port of one part: a call takes a moment to get there, and one to come back.

    Attributes:
        most: calls at once that are allowed.
        busy: calls under way.
    """

    def __init__(
        self, executor: HostExecutor, daemon: SimulatedDaemon, chance: Chance, most: int
    ) -> None:
        self._executor = executor
        self._daemon = daemon
        self._chance = chance
        self.most = most
        self.busy = 0

    async def launch(self, order: LaunchOrder) -> Receipt:
        """As `HostExecutor.launch`."""
        return await self._made(lambda: self._executor.launch(order))

    async def stop(self, order: StopOrder) -> Receipt:
        """As `HostExecutor.stop`."""
        return await self._made(lambda: self._executor.stop(order))

    async def observe(self, attempt_ids: Sequence[AttemptId]) -> Sequence[AttemptObservation]:
        """As `HostExecutor.observe`, all at one instant."""
        return await self._made(lambda: tuple(map(self._executor.observe, attempt_ids)))

    async def watch(
        self, attempt_ids: Sequence[AttemptId], changed: Callable[[AttemptId], None]
    ) -> None:
        """As `HostExecutor.watch`."""

        def watch() -> None:
            for attempt_id in attempt_ids:
                self._executor.watch(attempt_id, changed)

        await self._made(watch)

    async def known(self) -> Sequence[AttemptId]:
        """As `HostExecutor.known`."""
        return await self._made(self._executor.known)

    async def forget(self, attempt_ids: Sequence[AttemptId]) -> None:
        """As `HostExecutor.forget`."""

        def forget() -> None:
            for attempt_id in attempt_ids:
                self._executor.forget(attempt_id)

        await self._made(forget)

    async def _made(self, call: Callable[[], T]) -> T:
        """What `call` returns, made at one instant between now and the answer."""
        chance, gate = self._chance, self._daemon.gate
        await gate()
        self.busy += 1
        try:
            await asyncio.sleep(chance.between(0.0, 0.05))
            await gate()
            answer = call()
            slow = chance.strikes(Fault.ANSWER_SLOW, 0.03)
            await asyncio.sleep(chance.wait_s(8.0) if slow else chance.between(0.0, 0.02))
            await gate()
        finally:
            self.busy -= 1
        return answer


class Redelivering:
    """An execution store whose observations may arrive a second time, however much later."""

    def __init__(
        self, store: SqlExecutionStore, around: Surroundings, daemon: SimulatedDaemon
    ) -> None:
        self._store = store
        self._around = around
        self._daemon = daemon

    @property
    def epoch(self) -> int:
        """The leader epoch of the store behind."""
        return self._store.epoch

    async def claim_intents(
        self, kinds: Sequence[IntentKind], limit: int, now: UtcSeconds
    ) -> Sequence[Intent]:
        """As the store behind."""
        return await self._store.claim_intents(kinds, limit, now)

    async def unsettled(self) -> Sequence[Intent]:
        """As the store behind."""
        return await self._store.unsettled()

    async def settle_many(
        self, receipts: Sequence[tuple[IntentId, Receipt]], now: UtcSeconds
    ) -> None:
        """As the store behind."""
        await self._store.settle_many(receipts, now)

    async def record_many(
        self, observations: Sequence[AttemptObservation], now: UtcSeconds
    ) -> Sequence[JobState | None]:
        """As the store behind; a fault sends the same observation again later."""
        moved = await self._store.record_many(observations, now)
        chance = self._around.chance
        for observation in observations:
            final = observation.ended_at is not None
            fault = Fault.EXIT_TWICE if final else Fault.NEWS_REPEATED
            if chance.strikes(fault, 0.2, observation.attempt_id):
                delay_s = chance.wait_s(10.0)
                asyncio.get_running_loop().call_later(delay_s, self._again, observation)
        return moved

    async def expected(self) -> Sequence[ExpectedAttempt]:
        """As the store behind."""
        return await self._store.expected()

    def _again(self, observation: AttemptObservation) -> None:
        if self._daemon.alive:
            task = asyncio.get_running_loop().create_task(self._deliver(observation))
            self._daemon.errands.add(task)
            task.add_done_callback(self._daemon.errands.discard)

    async def _deliver(self, observation: AttemptObservation) -> None:
        try:
            await self._store.record_many([observation], self._around.clock.now())
        except (HaversackError, KilledError) as error:
            self._around.step(f"{observation.attempt_id} told again in vain: {error!r}")


async def _together(*parts: Coroutine[object, object, None]) -> None:
    """Run the parts until one ends; the others end with it."""
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await _end(*tasks)
    for task in tasks:
        if task.done() and not task.cancelled():
            task.result()


async def _end(*tasks: asyncio.Task[object]) -> None:
    """Cancel the tasks and wait until they are over, whatever they raise."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # seen: nobody is to be warned of it
