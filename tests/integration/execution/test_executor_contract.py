"""What every executor promises; the fake must keep it to be of any use in other tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.execution import (
    attempt,
    launch_order,
    local_executor,
    stop_order,
    wait_for,
    wait_until,
)
from support.fake_executor import FakeExecutor

from scheduler.model.execution import Outcome, Phase
from scheduler.model.lifecycle import EndCause
from scheduler.model.ports import BlockingExecutor
from scheduler.model.quantity import AttemptId

RUNNING = frozenset({Phase.RUNNING})


@pytest.fixture(params=["local", "fake"])
def any_executor(request: pytest.FixtureRequest, data_dir: Path) -> Iterator[BlockingExecutor]:
    if request.param == "fake":
        yield FakeExecutor()
        return
    local = local_executor(data_dir)
    yield local
    local.close()


def test_nothing_is_known_of_an_attempt_nobody_launched(any_executor: BlockingExecutor) -> None:
    assert any_executor.observe(attempt()).phase is Phase.UNCLAIMED
    assert list(any_executor.known()) == []


@pytest.mark.parametrize(
    ("command", "cause"), [("true", EndCause.COMPLETED), ("false", EndCause.USER)]
)
def test_an_attempt_runs_and_ends(
    any_executor: BlockingExecutor, command: str, cause: EndCause
) -> None:
    assert any_executor.launch(launch_order(command)).outcome is Outcome.DONE
    seen = wait_for(any_executor, attempt())
    assert (seen.phase, seen.cause) == (Phase.EXITED, cause)
    assert (seen.first_failure is None) == (cause is EndCause.COMPLETED)
    assert seen.started_at is not None
    assert seen.ended_at is not None


def test_launching_twice_is_launching_once(any_executor: BlockingExecutor) -> None:
    for _ in range(2):
        assert any_executor.launch(launch_order("sleep", "600")).outcome is Outcome.DONE
    wait_for(any_executor, attempt(), RUNNING)
    any_executor.stop(stop_order(grace_s=0))
    wait_for(any_executor, attempt())
    assert any_executor.launch(launch_order("sleep", "600")).outcome is Outcome.DONE
    assert any_executor.observe(attempt()).phase is Phase.EXITED


def test_a_stop_ends_it_with_its_cause(any_executor: BlockingExecutor) -> None:
    any_executor.launch(launch_order("sleep", "600"))
    wait_for(any_executor, attempt(), RUNNING)
    assert any_executor.stop(stop_order(cause=EndCause.PREEMPTED)).outcome is Outcome.DONE
    assert wait_for(any_executor, attempt()).cause is EndCause.PREEMPTED
    assert any_executor.stop(stop_order(cause=EndCause.CANCELLED)).outcome is Outcome.DONE
    assert any_executor.observe(attempt()).cause is EndCause.PREEMPTED


def test_a_stop_before_the_launch_forbids_it(any_executor: BlockingExecutor) -> None:
    assert any_executor.stop(stop_order()).outcome is Outcome.DONE
    assert any_executor.observe(attempt()).phase is Phase.ABSENT
    assert any_executor.launch(launch_order("true")).outcome is Outcome.REFUSED
    assert any_executor.observe(attempt()).phase is Phase.ABSENT


def test_lower_epochs_are_refused(any_executor: BlockingExecutor) -> None:
    any_executor.launch(launch_order("sleep", "600", epoch=2))
    wait_for(any_executor, attempt(), RUNNING)
    assert any_executor.stop(stop_order(epoch=1)).outcome is Outcome.REFUSED
    other = launch_order("true", attempt_id=attempt(2), epoch=1)
    assert any_executor.launch(other).outcome is Outcome.REFUSED
    assert any_executor.observe(attempt()).phase is Phase.RUNNING


def test_the_watcher_hears_of_the_end(any_executor: BlockingExecutor) -> None:
    heard: list[AttemptId] = []
    any_executor.launch(launch_order("sleep", "600"))
    any_executor.watch(attempt(), heard.append)
    wait_for(any_executor, attempt(), RUNNING)
    heard.clear()
    any_executor.stop(stop_order(grace_s=0))
    wait_until(lambda: bool(heard), "the end is heard of")
    assert set(heard) == {attempt()}


def test_the_watcher_hears_of_an_end_it_missed(any_executor: BlockingExecutor) -> None:
    any_executor.launch(launch_order("true"))
    wait_for(any_executor, attempt())
    heard: list[AttemptId] = []
    any_executor.watch(attempt(), heard.append)
    wait_until(lambda: bool(heard), "the past end is heard of")


def test_attempts_are_known_until_forgotten(any_executor: BlockingExecutor) -> None:
    any_executor.launch(launch_order("true"))
    any_executor.stop(stop_order(attempt(2)))
    assert list(any_executor.known()) == [attempt(1), attempt(2)]
    wait_for(any_executor, attempt(1))
    any_executor.forget(attempt(1))
    assert list(any_executor.known()) == [attempt(2)]
    assert any_executor.observe(attempt(1)).phase is Phase.EXITED
