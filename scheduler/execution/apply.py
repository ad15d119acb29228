"""Carries committed intents out: claim, act, settle.

Nothing here remembers what was done: an intent whose outcome is not stored is looked at from
outside first, then decided. Every call of the executor is idempotent, so repeating is safe, and a
trouble that passes never loses an order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from scheduler import failpoints
from scheduler.clock import Clock
from scheduler.errors import FencedError, HaversackError
from scheduler.execution.backoff import delays_s
from scheduler.execution.settle import Settler
from scheduler.execution.watch import Watcher
from scheduler.model.execution import Intent, IntentKind, LaunchOrder, Outcome, Phase, Receipt
from scheduler.model.ports import ExecutionStore, Executor
from scheduler.model.quantity import AttemptId, IntentId

T = TypeVar("T")

log = structlog.get_logger(__name__)

_REFILLS = 8
"""Where many orders wait, a claim takes at least that part of `in_flight_max` if it can."""
_REFILL_S = 0.05


class Applier:
    """Drains intents; at most `in_flight_max` launches, and as many stops, at once."""

    def __init__(
        self,
        store: ExecutionStore,
        executor: Executor,
        watcher: Watcher,
        clock: Clock,
        *,
        in_flight_max: int,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Wire it up.

        Args:
            store: where intents come from and receipts go.
            executor: carries orders out.
            watcher: follows what was launched.
            clock: for the instants of records.
            in_flight_max: launches at once, and as many stops.
            sleep: waits before a retry.
        """
        self._store = store
        self._executor = executor
        self._watcher = watcher
        self._clock = clock
        self._in_flight_max = in_flight_max
        self._sleep = sleep
        self._wake = asyncio.Event()
        self._wake.set()
        self._tasks: dict[IntentId, tuple[Intent, asyncio.Task[None]]] = {}
        self._under_way = dict.fromkeys(IntentKind, 0)
        # Where there was no room for all: how few must be under way before more are claimed.
        self._refill_at = max(0, in_flight_max - max(1, in_flight_max // _REFILLS))
        self._left_over = False
        self._refilling = False
        self._fenced: FencedError | None = None
        # Whether intents may be claimed that no task of ours knows: after a crash, at first.
        self._in_doubt = True
        self._settler = Settler(store, clock)

    def wake(self) -> None:
        """There may be new intents. Call it in the event loop's thread."""
        self._wake.set()

    def busy(self) -> frozenset[AttemptId]:
        """Attempts whose orders are being carried out right now."""
        return frozenset(intent.order.attempt_id for intent, _ in self._tasks.values())

    async def run(self) -> None:
        """Resolve what a crash left open, then carry intents out until cancelled.

        Raises:
            FencedError: another leader has taken over; nothing more is started.
        """
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                if self._fenced is not None:
                    raise self._fenced
                await self._persist(self._claim)
        finally:
            tasks = [task for _, task in self._tasks.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _persist(self, step: Callable[[], Awaitable[T]]) -> T:
        """Repeat a step of the store until it works. Raises only FencedError."""
        for delay_s in delays_s():
            try:
                return await step()
            except FencedError:
                raise
            except HaversackError as error:
                log.warning("the store does not answer; trying again", why=str(error))
            await self._sleep(delay_s)
        raise AssertionError("delays never end")

    async def _claim(self) -> None:
        """Claim as many intents as there is room for. Stops never wait behind launches."""
        if self._in_doubt:
            for intent in await self._store.unsettled():
                self._begin(intent, seen_before=True)
        self._in_doubt = True  # a claim that fails half-way may yet have been committed
        await self._claim_pending()
        self._in_doubt = False

    async def _claim_pending(self) -> None:
        while True:
            room = {kind: self._in_flight_max - count for kind, count in self._under_way.items()}
            kinds = [kind for kind in (IntentKind.STOP, IntentKind.LAUNCH) if room[kind] > 0]
            self._left_over = len(kinds) < len(room)
            if not kinds:
                return
            limit = min(room[kind] for kind in kinds)
            intents = await self._store.claim_intents(kinds, limit, self._clock.now())
            for intent in intents:
                self._begin(intent, seen_before=False)
            if len(intents) < limit:
                return

    def _begin(self, intent: Intent, *, seen_before: bool) -> None:
        if intent.id in self._tasks:
            return
        task = asyncio.create_task(self._carry_out(intent, seen_before=seen_before))
        self._tasks[intent.id] = (intent, task)
        self._under_way[intent.kind] += 1
        task.add_done_callback(lambda _: self._ended(intent))

    def _ended(self, intent: Intent) -> None:
        del self._tasks[intent.id]
        self._under_way[intent.kind] -= 1
        if self._fenced is not None:
            self._wake.set()
        elif self._left_over and self._under_way[intent.kind] <= self._refill_at:
            self._left_over = False
            self._wake.set()
        elif self._left_over and not self._refilling:
            # Not at each end, as every claim is a transaction; but not never, where what is left
            # takes long.
            self._refilling = True
            asyncio.get_running_loop().call_later(_REFILL_S, self._refill)

    def _refill(self) -> None:
        self._refilling = False
        self._wake.set()

    async def _carry_out(self, intent: Intent, *, seen_before: bool) -> None:
        """See one intent through. Ends when its outcome is stored, or when we are fenced."""
        receipt: Receipt | None = None
        passed_claim = False
        for delay_s in delays_s():
            try:
                if not passed_claim:
                    passed_claim = True
                    failpoints.hit("intent-claimed")
                if receipt is None:
                    receipt = await self._act(intent, seen_before=seen_before)
                if receipt is not None:
                    await self._settle(intent, receipt)
                    return
            except FencedError as error:
                self._fenced = error
                return
            except Exception:
                # Whatever it was, the order stands: it is committed, and repeating is safe.
                log.exception("an order was not carried out; trying again", intent=intent.id)
            seen_before = True
            await self._sleep(delay_s)

    async def _act(self, intent: Intent, *, seen_before: bool) -> Receipt | None:
        """Do it; None when nobody can tell yet whether it is done."""
        order = intent.order
        if isinstance(order, LaunchOrder):
            return await self._launch(order, seen_before=seen_before)
        failpoints.hit("stop-before-send")
        receipt = await self._executor.stop(order)
        failpoints.hit("stop-after-send")
        if receipt.outcome is Outcome.DONE:
            return receipt
        log.warning("stop not delivered", attempt=order.attempt_id, why=receipt.message)
        return None

    async def _launch(self, order: LaunchOrder, *, seen_before: bool) -> Receipt | None:
        if seen_before:
            (seen,) = await self._executor.observe([order.attempt_id])
            if seen.phase is Phase.UNKNOWN:
                return None
            if seen.phase is Phase.ABSENT:
                return Receipt(Outcome.REFUSED, seen.message)
            if seen.phase is not Phase.UNCLAIMED:
                return Receipt(Outcome.DONE)
        receipt = await self._executor.launch(order)
        if receipt.outcome is not Outcome.UNKNOWN:
            return receipt
        log.warning("launch outcome unknown", attempt=order.attempt_id, why=receipt.message)
        return None

    async def _settle(self, intent: Intent, receipt: Receipt) -> None:
        await self._settler.settle(intent.id, receipt)
        if intent.kind is IntentKind.LAUNCH:
            failpoints.hit("launch-settled")
        self._watcher.follow(intent.order.attempt_id)
