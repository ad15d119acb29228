"""Stores what became of orders: receipts that come while one write is under way share the next."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from scheduler.clock import Clock
from scheduler.errors import HaversackError
from scheduler.model.execution import Receipt
from scheduler.model.ports import ExecutionStore
from scheduler.model.quantity import IntentId


@dataclass(slots=True, eq=False)
class _Told:
    """A receipt on its way to the store.

    Attributes:
        answered: the store has kept it, or would not.
        trouble: why not.
    """

    intent_id: IntentId
    receipt: Receipt
    answered: bool = False
    trouble: Exception | None = None

    def answer(self, trouble: Exception | None) -> None:
        self.answered, self.trouble = True, trouble


class Settler:
    """Settles intents, one write at a time. A lone receipt is written at once."""

    def __init__(self, store: ExecutionStore, clock: Clock) -> None:
        """Write to `store`, with the instants of `clock`."""
        self._store = store
        self._clock = clock
        self._turn = asyncio.Lock()
        self._waiting: list[_Told] = []

    async def settle(self, intent_id: IntentId, receipt: Receipt) -> None:
        """Answer once the receipt is stored. Whoever's turn it is writes for all that wait.

        Raises:
            FencedError: another leader has taken over.
            HaversackError: the store does not answer; whether it was stored is unknown.
        """
        mine = _Told(intent_id, receipt)
        self._waiting.append(mine)
        async with self._turn:
            if not mine.answered:
                batch, self._waiting = self._waiting, []
                await self._write(batch)
        if mine.trouble is not None:
            raise mine.trouble

    async def _write(self, batch: Sequence[_Told]) -> None:
        """Settle these together, or, where that is impossible for one of them, one by one."""
        try:
            trouble = await self._try(batch)
            if len(batch) > 1 and trouble and not isinstance(trouble, HaversackError):
                for told in batch:
                    told.answer(await self._try([told]))
            else:
                for told in batch:
                    told.answer(trouble)
        finally:
            # Whoever writes may be cancelled meanwhile: then the next one writes for the others.
            self._waiting[:0] = [told for told in batch if not told.answered]

    async def _try(self, batch: Sequence[_Told]) -> Exception | None:
        """Why these could not be stored, or None."""
        receipts = [(told.intent_id, told.receipt) for told in batch]
        try:
            await self._store.settle_many(receipts, self._clock.now())
        except Exception as error:  # noqa: BLE001 - handed to everybody who waits
            return error
        return None
