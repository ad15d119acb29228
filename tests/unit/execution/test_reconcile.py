from __future__ import annotations

import asyncio
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.clock import ManualClock
from support.execution import attempt, launch_order, stop_order
from support.fake_execution_store import FakeExecutionStore
from support.fake_executor import FakeExecutor

from scheduler.errors import FencedError, StorageError
from scheduler.execution.apply import Applier
from scheduler.execution.blocking import OnThreads
from scheduler.execution.reconcile import (
    DESTRUCTIVE,
    Action,
    ActionKind,
    Reconciler,
    guard,
    reconcile,
)
from scheduler.execution.watch import FINAL, Watcher
from scheduler.model.execution import AttemptObservation, ExpectedAttempt, Phase
from scheduler.model.lifecycle import LIVE, EndCause, JobState
from scheduler.model.quantity import AttemptId, JobId

K = ActionKind


def expected(
    state: JobState, *, claimed: bool = True, stop: EndCause | None = None
) -> ExpectedAttempt:
    return ExpectedAttempt(attempt(), JobId("j-1"), state, 1, claimed, stop)


def seen(phase: Phase) -> dict[AttemptId, AttemptObservation]:
    return {attempt(): AttemptObservation(attempt(), phase)}


def kinds(
    store: ExpectedAttempt | None, phase: Phase, busy: frozenset[AttemptId] = frozenset()
) -> list[ActionKind]:
    return [a.kind for a in reconcile([store] if store else [], seen(phase), busy)]


@pytest.mark.parametrize(
    ("store", "phase", "action"),
    [
        (expected(JobState.RUNNING), Phase.EXITED, K.RECORD),
        (expected(JobState.RUNNING), Phase.VANISHED, K.RECORD),
        (expected(JobState.STOPPING), Phase.ABSENT, K.RECORD),
        (expected(JobState.RUNNING), Phase.UNKNOWN, K.RECORD),
        (expected(JobState.STOPPING, stop=EndCause.CANCELLED), Phase.RUNNING, K.STOP_AGAIN),
        (expected(JobState.STOPPING, stop=EndCause.CANCELLED), Phase.STARTING, K.STOP_AGAIN),
        (expected(JobState.LAUNCHING), Phase.RUNNING, K.RECORD),
        (expected(JobState.SUSPECT), Phase.RUNNING, K.RECORD),
        (expected(JobState.LAUNCHING), Phase.UNCLAIMED, K.ABANDON),
        (None, Phase.RUNNING, K.KILL_STRAY),
        (None, Phase.STARTING, K.KILL_STRAY),
        (None, Phase.UNCLAIMED, K.KILL_STRAY),
        (None, Phase.EXITED, K.FORGET),
        (None, Phase.VANISHED, K.FORGET),
        (None, Phase.ABSENT, K.FORGET),
    ],
)
def test_each_difference_has_its_action(
    store: ExpectedAttempt | None, phase: Phase, action: ActionKind
) -> None:
    assert kinds(store, phase) == [action]


@pytest.mark.parametrize(
    ("store", "phase"),
    [
        (expected(JobState.RUNNING), Phase.RUNNING),
        (expected(JobState.LAUNCHING), Phase.STARTING),
        (expected(JobState.ASSIGNED, claimed=False), Phase.UNCLAIMED),
        (None, Phase.UNKNOWN),
    ],
)
def test_agreement_needs_no_action(store: ExpectedAttempt | None, phase: Phase) -> None:
    assert kinds(store, phase) == []


def test_nothing_is_killed_while_its_order_is_carried_out() -> None:
    busy = frozenset({attempt()})
    for state, phase in product(LIVE, Phase):
        told = kinds(expected(state, stop=EndCause.CANCELLED), phase, busy)
        assert set(told) <= {K.RECORD}
    for phase in Phase:
        assert K.KILL_STRAY not in kinds(None, phase, busy)


def test_an_end_is_never_missed_and_uncertainty_never_frees() -> None:
    for state, claimed, stop, phase in product(
        LIVE, (True, False), (None, EndCause.CANCELLED), Phase
    ):
        told = kinds(expected(state, claimed=claimed, stop=stop), phase)
        if phase in FINAL:
            assert told == [K.RECORD]
        if phase is Phase.UNKNOWN:
            assert told == [K.RECORD]
        if K.ABANDON in told:
            assert phase is Phase.UNCLAIMED


def stray(number: int) -> Action:
    return Action(K.KILL_STRAY, attempt(number))


def test_destructive_actions_need_two_agreeing_passes() -> None:
    actions = (stray(1), Action(K.RECORD, attempt(2)))
    first = guard(actions, frozenset(), live=5)
    assert first.perform == (Action(K.RECORD, attempt(2)),)
    second = guard(actions, first.suspected, live=5)
    assert second.perform == actions
    assert second.alarm == ""
    assert guard((), first.suspected, live=5).suspected == frozenset()


def test_too_many_strays_raise_the_alarm_and_none_is_killed() -> None:
    actions = tuple(stray(number) for number in range(4))
    verdict = guard(actions, frozenset(actions), live=30)
    assert verdict.perform == ()
    assert "4 of 30 live attempts" in verdict.alarm
    assert guard(actions[:3], frozenset(actions), live=30).perform == actions[:3]


@given(
    st.lists(
        st.tuples(st.sampled_from(list(ActionKind)), st.integers(0, 20), st.booleans()), max_size=20
    ),
    st.integers(0, 40),
)
def test_no_pass_kills_what_it_saw_once_or_more_than_its_share(
    drawn: list[tuple[ActionKind, int, bool]], live: int
) -> None:
    actions = tuple(dict.fromkeys(Action(kind, attempt(number)) for kind, number, _ in drawn))
    before = frozenset(Action(kind, attempt(number)) for kind, number, twice in drawn if twice)
    verdict = guard(actions, before, live)
    harm = {action for action in verdict.perform if action.kind in DESTRUCTIVE}
    assert harm <= before
    assert sum(a.kind is K.KILL_STRAY for a in harm) <= max(1, live // 10)
    harmless = [action for action in actions if action.kind not in DESTRUCTIVE]
    assert [action for action in verdict.perform if action not in harm] == harmless
    assert harm | verdict.suspected == {a for a in actions if a.kind in DESTRUCTIVE}


class World:
    def __init__(self) -> None:
        self.store = FakeExecutionStore()
        self.executor = FakeExecutor()
        self.clock = ManualClock()
        on_threads = OnThreads(self.executor, launches_max=2)
        self.watcher = Watcher(self.store, on_threads, self.clock, on_freed=lambda: None)
        self.applier = Applier(self.store, on_threads, self.watcher, self.clock, in_flight_max=2)
        self.reconciler = Reconciler(
            self.store,
            on_threads,
            self.watcher,
            self.applier,
            self.clock,
            every_s=30,
        )

    def passes(self, count: int) -> None:
        async def make() -> None:
            for _ in range(count):
                await self.reconciler.make_pass()

        asyncio.run(make())


@pytest.fixture
def world() -> World:
    return World()


def test_running_attempts_are_adopted(world: World) -> None:
    world.executor.launch(launch_order("sleep", "600"))
    world.store.live[attempt()] = JobState.RUNNING
    asyncio.run(world.reconciler.adopt())
    assert world.watcher.follows(attempt())
    assert world.reconciler.trouble == ""


def test_an_attempt_that_nobody_claimed_is_left_to_its_turn(world: World) -> None:
    world.store.add_launch(launch_order())
    world.passes(3)
    assert not world.watcher.follows(attempt())
    assert world.executor.stops == []


def test_a_stray_is_stopped_in_the_second_pass_and_forgotten_in_the_third(world: World) -> None:
    world.executor.run_stray(attempt())
    world.passes(1)
    assert world.executor.stops == []
    world.passes(1)
    assert [order.attempt_id for order in world.executor.stops] == [attempt()]
    world.passes(1)
    assert world.executor.known() == []


def test_many_strays_are_reported_and_run_on(world: World) -> None:
    for number in range(3):
        world.executor.run_stray(attempt(number))
    world.passes(3)
    assert world.executor.stops == []
    assert "3 of 3 live attempts" in world.reconciler.trouble


def test_a_launch_without_a_trace_is_abandoned_after_two_passes(world: World) -> None:
    world.store.live[attempt()] = JobState.LAUNCHING
    world.passes(1)
    assert world.executor.stops == []
    world.passes(1)
    assert world.executor.observe(attempt()).phase is Phase.ABSENT
    assert world.watcher.follows(attempt())


def test_a_stop_said_again_grants_the_grace_time_it_was_ordered_with(world: World) -> None:
    world.executor.launch(launch_order("sleep", "600"))
    world.store.live[attempt()] = JobState.RUNNING
    world.store.add_stop(stop_order(grace_s=600))
    world.passes(1)
    (told,) = world.executor.stops
    assert (told.cause, told.grace_s) == (EndCause.CANCELLED, 600)


def test_a_failed_pass_kills_nothing(world: World) -> None:
    world.executor.run_stray(attempt())
    world.passes(1)
    world.store.storage_errors = 1
    with pytest.raises(StorageError):
        world.passes(1)
    assert world.executor.stops == []


def test_silence_is_told(world: World) -> None:
    world.passes(1)
    world.clock.advance(91)
    assert "91 s ago" in world.reconciler.trouble


def test_passes_on_demand_survive_trouble_but_not_fencing(world: World) -> None:
    async def play() -> None:
        running = asyncio.create_task(world.reconciler.run())
        world.store.storage_errors = 1
        world.reconciler.wake()
        async with asyncio.timeout(20):
            while "disk full" not in world.reconciler.trouble:  # noqa: ASYNC110 - in threads
                await asyncio.sleep(0.001)
            world.reconciler.wake()
            while world.reconciler.trouble:  # noqa: ASYNC110 - in threads
                await asyncio.sleep(0.001)
            world.store.fenced = True
            world.reconciler.wake()
            with pytest.raises(FencedError):
                await running

    asyncio.run(play())
