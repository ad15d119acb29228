from __future__ import annotations

import asyncio
import threading

import pytest
from support.execution import attempt, launch_order, stop_order
from support.fake_executor import FakeExecutor
from typing_extensions import override

from scheduler.execution.blocking import OnThreads
from scheduler.model.execution import LaunchOrder, Outcome, Phase, Receipt, StopOrder


class Held(FakeExecutor):
    """Its launches take until `done`; the names of threads are noted."""

    def __init__(self) -> None:
        super().__init__()
        self.done = threading.Event()
        self.threads: list[str] = []

    @override
    def launch(self, order: LaunchOrder) -> Receipt:
        self.threads.append(threading.current_thread().name)
        assert self.done.wait(30)
        return super().launch(order)

    @override
    def stop(self, order: StopOrder) -> Receipt:
        self.threads.append(threading.current_thread().name)
        return super().stop(order)


def test_slow_launches_hold_up_neither_stops_nor_looks() -> None:
    executor = Held()
    on_threads = OnThreads(executor, launches_max=2)

    async def play() -> None:
        orders = [launch_order("true", attempt_id=attempt(number)) for number in (1, 2)]
        launches = [asyncio.create_task(on_threads.launch(order)) for order in orders]
        assert (await on_threads.stop(stop_order(attempt(3)))).outcome is Outcome.DONE
        first, second = await on_threads.observe([attempt(3), attempt(1)])
        assert (first.phase, second.phase) == (Phase.ABSENT, Phase.UNCLAIMED)
        executor.done.set()
        receipts = await asyncio.gather(*launches)
        assert {receipt.outcome for receipt in receipts} == {Outcome.DONE}
        told: list[str] = []
        await on_threads.watch([attempt(1), attempt(3)], told.append)
        assert told == [attempt(1), attempt(3)]
        await on_threads.forget([attempt(1)])
        assert await on_threads.known() == [attempt(2), attempt(3)]

    asyncio.run(play())
    on_threads.close()
    assert all(name.startswith("orders") for name in executor.threads)


@pytest.mark.parametrize("close", [True, False])
def test_what_a_call_raises_goes_to_its_caller(close: bool) -> None:  # noqa: FBT001
    executor = FakeExecutor()
    executor.troubles = [OSError("no")]
    on_threads = OnThreads(executor, launches_max=1)
    expected: tuple[type[Exception], str] = (OSError, "no")
    if close:
        on_threads.close()
        expected = (RuntimeError, "after shutdown")
    with pytest.raises(expected[0], match=expected[1]):
        asyncio.run(on_threads.launch(launch_order("true")))
    on_threads.close()
