"""Receipts on their way to the store: who shares a write, and who hears of what."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from support.clock import ManualClock
from support.execution import attempt, launch_order
from support.fake_execution_store import FakeExecutionStore

from scheduler.errors import FencedError, StorageError
from scheduler.execution.settle import Settler
from scheduler.model.execution import Outcome, Receipt
from scheduler.model.quantity import IntentId

DONE = Receipt(Outcome.DONE)


class World:
    """A settler over a store that answers when it is let."""

    def __init__(self, intents: int = 6) -> None:
        self.store = FakeExecutionStore()
        self.settler = Settler(self.store, ManualClock())
        self.intents: list[IntentId] = [
            self.store.add_launch(launch_order("true", attempt_id=attempt(number)), claimed=True)
            for number in range(intents)
        ]
        self.gate = asyncio.Event()

    def hold(self) -> None:
        """From now on the store answers only after `gate` is set."""

        async def wait() -> None:
            await self.gate.wait()

        self.store.answering = wait

    def settle(self, *numbers: int) -> list[asyncio.Task[None]]:
        """Begin to settle these intents."""
        return [
            asyncio.create_task(self.settler.settle(self.intents[number], DONE))
            for number in numbers
        ]

    def named(self) -> list[list[int]]:
        """What each write held, by number."""
        return [[self.intents.index(one) for one in batch] for batch in self.store.settlements]


def play(story: Callable[[World], Awaitable[None]]) -> World:
    async def everything() -> World:
        world = World()
        async with asyncio.timeout(20):
            await story(world)
        return world

    return asyncio.run(everything())


async def _turns() -> None:
    """Let everything that can go on go on."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_a_lone_receipt_is_written_at_once() -> None:
    async def story(world: World) -> None:
        for number in range(3):
            await asyncio.gather(*world.settle(number))

    assert play(story).named() == [[0], [1], [2]]


def test_receipts_that_come_during_a_write_share_the_next_in_order() -> None:
    async def story(world: World) -> None:
        world.hold()
        tasks = world.settle(0)
        await _turns()
        tasks += world.settle(3, 1, 2)
        await _turns()
        assert world.named() == [[0]]
        assert not any(task.done() for task in tasks)
        world.gate.set()
        await asyncio.gather(*tasks)

    world = play(story)
    assert world.named() == [[0], [3, 1, 2]]
    assert set(world.store.settled) == set(world.intents[:4])


def test_a_store_that_does_not_answer_is_everybodys_trouble() -> None:
    async def story(world: World) -> None:
        world.hold()
        first = world.settle(0)
        await _turns()
        world.store.storage_errors = 1
        rest = world.settle(1, 2)
        world.gate.set()
        assert await asyncio.gather(*first) == [None]
        told = await asyncio.gather(*rest, return_exceptions=True)
        assert [type(error) for error in told] == [StorageError, StorageError]
        await asyncio.gather(*world.settle(1, 2))

    assert set(play(story).store.settled) == set(World().intents[:3])


def test_one_that_cannot_be_settled_does_not_keep_the_others() -> None:
    async def story(world: World) -> None:
        world.hold()
        first = world.settle(0)
        await _turns()
        world.store.poisoned = {world.intents[2]}
        rest = world.settle(1, 2, 3)
        world.gate.set()
        await asyncio.gather(*first)
        told = await asyncio.gather(*rest, return_exceptions=True)
        assert [type(error) for error in told] == [type(None), RuntimeError, type(None)]

    world = play(story)
    assert world.named() == [[0], [1, 2, 3], [1], [2], [3]]
    assert world.intents[2] not in world.store.settled


def test_everybody_hears_that_another_leads() -> None:
    async def story(world: World) -> None:
        world.hold()
        first = world.settle(0)
        await _turns()
        rest = world.settle(1, 2)
        await _turns()
        world.store.fenced = True
        world.gate.set()
        await asyncio.gather(*first)
        told = await asyncio.gather(*rest, return_exceptions=True)
        assert [type(error) for error in told] == [FencedError, FencedError]

    play(story)


@pytest.mark.parametrize("leaves", [0, 1])
def test_who_gives_up_takes_nobody_along(leaves: int) -> None:
    async def story(world: World) -> None:
        world.hold()
        tasks = world.settle(0)
        await _turns()
        tasks += world.settle(1, 2)
        await _turns()
        tasks[leaves].cancel()
        await _turns()
        world.gate.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert [task.cancelled() for task in tasks] == [number == leaves for number in range(3)]

    assert set(play(story).store.settled) >= {World().intents[2]}
