from __future__ import annotations

import pytest

from scheduler.model.lifecycle import (
    LIVE,
    TABLE,
    TERMINAL,
    EndCause,
    IllegalMoveError,
    Instruction,
    JobEvent,
    JobState,
    move,
)


@pytest.mark.parametrize("state", JobState)
@pytest.mark.parametrize("event", JobEvent)
def test_every_pair_is_legal_by_the_table_or_refused(state: JobState, event: JobEvent) -> None:
    if (state, event) in TABLE:
        assert move(state, event) is TABLE[state, event]
    else:
        with pytest.raises(IllegalMoveError, match=state.value):
            move(state, event)


def test_terminal_states_have_no_way_out() -> None:
    assert not [state for state, _ in TABLE if state in TERMINAL]


def test_every_state_can_reach_an_end_and_be_reached() -> None:
    reaches = {state: {state} for state in JobState}
    for _ in JobState:
        for (state, _event), found in TABLE.items():
            reaches[state] |= reaches[found.to]
    assert all(reaches[state] & TERMINAL for state in JobState)
    assert reaches[JobState.PENDING] == set(JobState)


def test_allocations_live_exactly_from_open_to_close() -> None:
    """Entering the live states opens an attempt, leaving them closes it, and nothing else does."""
    for (state, _event), found in TABLE.items():
        opens = Instruction.OPEN_ATTEMPT in found.instructions
        closes = Instruction.CLOSE_ATTEMPT in found.instructions
        assert opens == (state not in LIVE and found.to in LIVE)
        assert closes == (state in LIVE and found.to not in LIVE)


def test_any_state_on_its_way_can_be_cancelled_and_once_launched_only_through_stopping() -> None:
    launched = {JobState.LAUNCHING, JobState.RUNNING, JobState.SUSPECT}
    for state in set(JobState) - TERMINAL - {JobState.LOST, JobState.STOPPING}:
        to = move(state, JobEvent.CANCEL).to
        assert to is (JobState.STOPPING if state in launched else JobState.CANCELLED)


def test_only_faults_that_are_not_the_users_requeue_for_free() -> None:
    assert {cause for cause in EndCause if cause.free_requeue} == {
        EndCause.INFRASTRUCTURE,
        EndCause.PREEMPTED,
        EndCause.LOST,
    }


def test_an_illegal_move_tells_what_was_possible_and_the_story() -> None:
    with pytest.raises(IllegalMoveError) as refused:
        move(JobState.HELD, JobEvent.PLACE, "job j-1, held by ann")
    assert "cancel, release" in str(refused.value)
    assert "held by ann" in str(refused.value)
