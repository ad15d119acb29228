from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from support.clock import ManualClock
from support.execution import attempt, launch_order, stop_order
from support.fake_execution_store import FakeExecutionStore
from support.fake_executor import FakeExecutor

from scheduler.errors import FencedError
from scheduler.execution.apply import Applier
from scheduler.execution.blocking import OnThreads
from scheduler.execution.watch import Watcher
from scheduler.model.execution import Outcome, Phase, Receipt
from scheduler.model.lifecycle import EndCause, JobState


class World:
    """An applier and a watcher over fakes; retries do not wait."""

    def __init__(self, in_flight_max: int = 4) -> None:
        self.store = FakeExecutionStore()
        self.executor = FakeExecutor()
        self.freed = 0
        self.slept_s: list[float] = []
        self.clock = ManualClock()
        on_threads = OnThreads(self.executor, launches_max=in_flight_max)
        self.watcher = Watcher(
            self.store,
            on_threads,
            self.clock,
            on_freed=self._count,
            sleep=self._sleep,
        )
        self.applier = Applier(
            self.store,
            on_threads,
            self.watcher,
            self.clock,
            in_flight_max=in_flight_max,
            sleep=self._sleep,
        )

    def _count(self) -> None:
        self.freed += 1

    async def _sleep(self, delay_s: float) -> None:
        self.slept_s.append(delay_s)
        await asyncio.sleep(0)

    def run(self, play: Callable[[], Awaitable[None]]) -> None:
        """Run both parts while `play` goes on.

        Raises:
            FencedError: a part ended with it.
        """

        async def everything() -> None:
            parts = [
                asyncio.create_task(self.applier.run()),
                asyncio.create_task(self.watcher.run()),
            ]
            playing = asyncio.ensure_future(play())
            try:
                await asyncio.wait([playing, *parts], return_when=asyncio.FIRST_COMPLETED)
                for part in parts:
                    if part.done():
                        part.result()
                await playing
            finally:
                for task in (playing, *parts):
                    task.cancel()
                await asyncio.gather(playing, *parts, return_exceptions=True)

        asyncio.run(everything())

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not true():  # noqa: ASYNC110 - what it waits for happens in threads
                await asyncio.sleep(0.001)


@pytest.fixture
def world() -> World:
    return World()


def test_a_launch_is_carried_out_and_seen_to_its_end(world: World) -> None:
    intent = world.store.add_launch(launch_order("sleep", "600"))

    async def play() -> None:
        await world.until(lambda: world.store.live.get(attempt()) is JobState.RUNNING)
        assert world.store.settled == {intent: Receipt(Outcome.DONE)}
        world.executor.end(attempt(), EndCause.COMPLETED)
        await world.until(lambda: world.freed == 1)

    world.run(play)
    assert world.store.live == {}
    assert world.store.phases(attempt())[-1] is Phase.EXITED
    assert world.executor.known() == []
    assert not world.watcher.follows(attempt())


def test_intents_that_come_later_need_a_wake(world: World) -> None:
    async def play() -> None:
        await world.until(lambda: True)
        world.store.add_launch(launch_order("true"))
        world.applier.wake()
        await world.until(lambda: world.freed == 1)

    world.run(play)
    assert world.executor.starts == [attempt()]


def test_many_launches_pass_through_few_slots() -> None:
    world = World(in_flight_max=2)
    for number in range(25):
        world.store.add_launch(launch_order("true", attempt_id=attempt(number)))

    async def play() -> None:
        await world.until(lambda: not world.store.live)

    world.run(play)
    assert sorted(world.executor.starts) == [attempt(number) for number in range(25)]


def test_many_launches_are_claimed_by_few_transactions() -> None:
    world = World(in_flight_max=64)
    for number in range(400):
        world.store.add_launch(launch_order("true", attempt_id=attempt(number)))

    async def play() -> None:
        await world.until(lambda: len(world.executor.starts) == 400)

    world.run(play)
    # Ends come one by one; were each a reason to claim, there would be hundreds.
    assert sum(count > 0 for count in world.store.claims) <= 1 + 2 * (400 - 64) // (64 // 8)


def test_what_takes_long_keeps_no_slot_empty() -> None:
    world = World(in_flight_max=64)
    held = [Receipt(Outcome.UNKNOWN, "no answer")] * 60
    world.executor.troubles = [*held]
    for number in range(65):
        world.store.add_launch(launch_order("sleep", "600", attempt_id=attempt(number)))
    hour = asyncio.Event()

    async def play() -> None:
        # 60 wait for their next try, 4 were settled: less than the part that is claimed at once.
        await world.until(lambda: len(world.executor.starts) == 5)

    async def never(_: float) -> None:
        await hour.wait()

    world.applier._sleep = never
    world.run(play)


def test_a_stop_ends_the_attempt(world: World) -> None:
    world.store.add_launch(launch_order("sleep", "600"))

    async def play() -> None:
        await world.until(lambda: world.store.live.get(attempt()) is JobState.RUNNING)
        world.store.add_stop(stop_order())
        world.applier.wake()
        await world.until(lambda: world.freed == 1)

    world.run(play)
    assert world.store.recorded[-1].cause is EndCause.CANCELLED


def test_a_stop_before_the_launch_closes_the_attempt(world: World) -> None:
    world.store.live[attempt()] = JobState.STOPPING
    world.store.add_stop(stop_order())

    async def play() -> None:
        await world.until(lambda: world.freed == 1)

    world.run(play)
    assert world.store.phases(attempt()) == [Phase.ABSENT]
    assert world.executor.starts == []


def test_an_exception_does_not_lose_the_order(world: World) -> None:
    world.executor.troubles = [OSError("no"), RuntimeError("nor this")]
    world.store.add_launch(launch_order("true"))

    async def play() -> None:
        await world.until(lambda: world.freed == 1)

    world.run(play)
    assert world.executor.starts == [attempt()]
    assert world.slept_s[:2] == [0.1, 0.2]


def test_a_lost_answer_does_not_start_it_twice(world: World) -> None:
    world.executor.lost_answers = 1
    intent = world.store.add_launch(launch_order("sleep", "600"))

    async def play() -> None:
        await world.until(lambda: intent in world.store.settled)

    world.run(play)
    assert world.executor.starts == [attempt()]
    assert world.store.settled[intent].outcome is Outcome.DONE


def test_unknown_with_nothing_started_is_tried_again(world: World) -> None:
    world.executor.troubles = [Receipt(Outcome.UNKNOWN, "disk full")] * 3
    intent = world.store.add_launch(launch_order("sleep", "600"))

    async def play() -> None:
        await world.until(lambda: intent in world.store.settled)

    world.run(play)
    assert world.executor.starts == [attempt()]


def test_a_refused_launch_is_told_to_the_store(world: World) -> None:
    world.executor.troubles = [Receipt(Outcome.REFUSED, "no such device")]
    intent = world.store.add_launch(launch_order("true"))

    async def play() -> None:
        await world.until(lambda: intent in world.store.settled)

    world.run(play)
    assert world.store.settled[intent] == Receipt(Outcome.REFUSED, "no such device")
    assert world.store.live == {}


def test_a_stop_that_is_not_delivered_is_sent_again(world: World) -> None:
    world.store.add_launch(launch_order("sleep", "600"))

    async def play() -> None:
        await world.until(lambda: world.store.live.get(attempt()) is JobState.RUNNING)
        world.executor.troubles = [Receipt(Outcome.UNKNOWN, "busy"), OSError("no")]
        world.store.add_stop(stop_order())
        world.applier.wake()
        await world.until(lambda: world.freed == 1)

    world.run(play)
    assert len(world.executor.stops) == 1


def test_a_full_disk_in_the_store_delays_but_loses_nothing(world: World) -> None:
    world.store.storage_errors = 7
    world.store.add_launch(launch_order("true"))

    async def play() -> None:
        await world.until(lambda: world.freed == 1)

    world.run(play)
    assert world.executor.starts == [attempt()]


@pytest.mark.parametrize("had_started", [True, False])
def test_after_a_crash_the_host_is_asked_not_remembered(world: World, had_started: bool) -> None:  # noqa: FBT001
    order = launch_order("sleep", "600")
    if had_started:
        world.executor.launch(order)
    intent = world.store.add_launch(order, claimed=True)

    async def play() -> None:
        await world.until(lambda: intent in world.store.settled)

    world.run(play)
    assert world.executor.starts == [attempt()]
    assert world.store.settled[intent].outcome is Outcome.DONE


def test_a_claim_whose_answer_was_lost_is_found_again(world: World) -> None:
    world.store.lost_claims = 2
    world.store.add_launch(launch_order("true"))

    async def play() -> None:
        await world.until(lambda: world.freed == 1)

    world.run(play)
    assert world.executor.starts == [attempt()]


def test_after_a_crash_a_tombstone_means_refused(world: World) -> None:
    world.executor.stop(stop_order())
    intent = world.store.add_launch(launch_order("true"), claimed=True)

    async def play() -> None:
        await world.until(lambda: intent in world.store.settled)

    world.run(play)
    assert world.store.settled[intent].outcome is Outcome.REFUSED
    assert world.executor.starts == []


def test_who_cannot_be_told_is_asked_until_he_can(world: World) -> None:
    order = launch_order("sleep", "600")
    world.executor.launch(order)
    world.executor.unsure.add(attempt())
    intent = world.store.add_launch(order, claimed=True)

    async def play() -> None:
        await world.until(lambda: len(world.slept_s) > 3)
        assert intent not in world.store.settled
        world.executor.unsure.clear()
        await world.until(lambda: intent in world.store.settled)

    world.run(play)


def test_unknown_is_recorded_and_looked_at_again(world: World) -> None:
    world.store.add_launch(launch_order("sleep", "600"))

    async def play() -> None:
        await world.until(lambda: world.store.live.get(attempt()) is JobState.RUNNING)
        world.executor.unsure.add(attempt())
        world.watcher.follow(attempt())
        await world.until(lambda: world.store.live.get(attempt()) is JobState.SUSPECT)
        world.executor.unsure.clear()
        await world.until(lambda: world.store.live.get(attempt()) is JobState.RUNNING)

    world.run(play)


def test_a_vanished_attempt_frees_what_it_held(world: World) -> None:
    world.store.add_launch(launch_order("sleep", "600"))

    async def play() -> None:
        await world.until(lambda: world.store.live.get(attempt()) is JobState.RUNNING)
        world.executor.vanish(attempt())
        await world.until(lambda: world.freed == 1)

    world.run(play)
    assert world.store.phases(attempt())[-1] is Phase.VANISHED


def test_what_cannot_be_recorded_spoils_nothing_for_others(world: World) -> None:
    for number in range(3):
        world.store.add_launch(launch_order("sleep", "600", attempt_id=attempt(number)))

    async def play() -> None:
        running = [attempt(0), attempt(2)]
        world.store.poisoned.add(attempt(1))
        await world.until(
            lambda: all(world.store.live[each] is JobState.RUNNING for each in running)
        )
        assert world.store.live[attempt(1)] is JobState.LAUNCHING
        world.store.poisoned.clear()
        await world.until(lambda: world.store.live[attempt(1)] is JobState.RUNNING)

    world.run(play)


def test_a_fenced_applier_stops(world: World) -> None:
    world.store.add_launch(launch_order("true"))
    world.store.fenced = True

    async def play() -> None:
        await asyncio.Event().wait()

    with pytest.raises(FencedError):
        world.run(play)
    assert world.executor.starts == []


def test_fenced_while_watching_stops(world: World) -> None:
    world.store.add_launch(launch_order("sleep", "600"))

    async def play() -> None:
        await world.until(lambda: world.store.live.get(attempt()) is JobState.RUNNING)
        world.store.fenced = True
        world.executor.end(attempt(), EndCause.COMPLETED)
        await asyncio.Event().wait()

    with pytest.raises(FencedError):
        world.run(play)
    assert world.freed == 0
