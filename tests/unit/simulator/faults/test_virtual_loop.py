import asyncio
import time
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest

from scheduler.simulator.faults.loop import CountingIds, StalledError, VirtualClock, VirtualLoop


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    made = VirtualLoop()
    yield made
    for task in asyncio.all_tasks(made):
        task.cancel()
    made.close()


def test_a_day_of_sleep_takes_no_time_and_keeps_the_order(loop: VirtualLoop) -> None:
    woke: list[tuple[str, float]] = []

    async def sleeper(name: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        woke.append((name, loop.time()))

    async def everybody() -> None:
        await asyncio.gather(sleeper("late", 86_400.0), sleeper("early", 0.25), sleeper("mid", 60))

    began_s = time.monotonic()
    loop.run_until_complete(everybody())
    assert woke == [("early", 0.25), ("mid", 60.0), ("late", 86_400.0)]
    assert time.monotonic() - began_s < 30


def test_timeouts_are_virtual(loop: VirtualLoop) -> None:
    async def wait_for_nothing() -> None:
        async with asyncio.timeout(3_600):
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        loop.run_until_complete(wait_for_nothing())
    assert loop.time() == 3_600


def test_waiting_for_nobody_is_noticed(loop: VirtualLoop) -> None:
    forever: Coroutine[Any, Any, Any] = asyncio.Event().wait()
    with pytest.raises(StalledError):
        loop.run_until_complete(forever)


def test_the_wall_clock_can_be_wrong_and_the_other_not(loop: VirtualLoop) -> None:
    clock = VirtualClock(loop)
    right = clock.now()
    clock.wall_error_s = -300.0
    loop.jump(10.0)
    assert clock.now() == right - 290.0
    assert clock.monotonic_s() == 10.0


def test_ids_sort_by_age() -> None:
    ids = CountingIds()
    made = [ids.new("j") for _ in range(12)]
    assert made == sorted(made)
    assert len(set(made)) == 12
