"""The life of a job: one table of legal moves that code, docs and tests all read.

A move is (state, event) -> (state, instructions). What is not in the table is illegal. Terminal
states have no way out. Side effects are values; the store performs them in the transaction that
makes the move.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class JobState(StrEnum):
    """Where a job stands. Every accepted job is in exactly one state."""

    PENDING = "PENDING"
    HELD = "HELD"
    QUARANTINED = "QUARANTINED"
    ASSIGNED = "ASSIGNED"
    LAUNCHING = "LAUNCHING"
    RUNNING = "RUNNING"
    SUSPECT = "SUSPECT"
    LOST = "LOST"
    STOPPING = "STOPPING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def terminal(self) -> bool:
        """Whether the job is over."""
        return self in TERMINAL

    @property
    def holds_allocations(self) -> bool:
        """Whether an attempt of the job is live."""
        return self in LIVE


class JobEvent(StrEnum):
    """What can happen to a job."""

    HOLD = "hold"
    RELEASE = "release"
    CANCEL = "cancel"
    QUARANTINE = "quarantine"
    PLACE = "place"
    REFUSE = "refuse"
    """The executor refused the placement; nothing was started."""
    CLAIM = "claim"
    """The launch intent was claimed: from here on something may be running."""
    START = "start"
    SILENCE = "silence"
    """No news and no proof of death."""
    RETURN = "return"
    PROVE_DEATH = "prove-death"
    REQUEUE = "requeue"
    GIVE_UP = "give-up"
    EXIT_OK = "exit-ok"
    EXIT_FAILED = "exit-failed"
    EXIT_RETRY = "exit-retry"
    PREEMPT = "preempt"
    TIME_OUT = "time-out"
    STOPPED_CANCELLED = "stopped-cancelled"
    STOPPED_PREEMPTED = "stopped-preempted"
    STOPPED_TIMED_OUT = "stopped-timed-out"


class Instruction(StrEnum):
    """What the store does in the same transaction as the move."""

    OPEN_ATTEMPT = "open-attempt"
    """Insert attempt, allocations and launch intent."""
    VOID_LAUNCH = "void-launch"
    """Withdraw the launch intent, which nobody has claimed."""
    REQUEST_STOP = "request-stop"
    """Insert the stop intent for the live attempt."""
    CLOSE_ATTEMPT = "close-attempt"
    """End the attempt with its cause and free its allocations."""


class EndCause(StrEnum):
    """Why an attempt ended. Only infrastructure, preempted and lost requeue for free."""

    COMPLETED = "completed"
    USER = "user"
    INFRASTRUCTURE = "infrastructure"
    PREEMPTED = "preempted"
    LOST = "lost"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"

    @property
    def free_requeue(self) -> bool:
        """Whether the job goes back to the queue without spending one of its retries."""
        return self in (EndCause.INFRASTRUCTURE, EndCause.PREEMPTED, EndCause.LOST)


@dataclass(frozen=True, slots=True)
class Move:
    """Where an event leads, and what has to be done on the way."""

    to: JobState
    instructions: tuple[Instruction, ...] = ()


class IllegalMoveError(Exception):
    """The event is not possible in this state; the message tells the job's story."""


TERMINAL = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})
LIVE = frozenset(
    {
        JobState.ASSIGNED,
        JobState.LAUNCHING,
        JobState.RUNNING,
        JobState.SUSPECT,
        JobState.LOST,
        JobState.STOPPING,
    }
)

_S, _E, _I = JobState, JobEvent, Instruction
_CLOSE = (_I.CLOSE_ATTEMPT,)
_STOP = (_I.REQUEST_STOP,)

TABLE: dict[tuple[JobState, JobEvent], Move] = {
    (_S.PENDING, _E.HOLD): Move(_S.HELD),
    (_S.PENDING, _E.CANCEL): Move(_S.CANCELLED),
    (_S.PENDING, _E.QUARANTINE): Move(_S.QUARANTINED),
    (_S.PENDING, _E.PLACE): Move(_S.ASSIGNED, (_I.OPEN_ATTEMPT,)),
    (_S.HELD, _E.RELEASE): Move(_S.PENDING),
    (_S.HELD, _E.CANCEL): Move(_S.CANCELLED),
    (_S.QUARANTINED, _E.RELEASE): Move(_S.PENDING),
    (_S.QUARANTINED, _E.REQUEUE): Move(_S.PENDING),
    (_S.QUARANTINED, _E.CANCEL): Move(_S.CANCELLED),
    (_S.ASSIGNED, _E.REFUSE): Move(_S.PENDING, _CLOSE),
    (_S.ASSIGNED, _E.CLAIM): Move(_S.LAUNCHING),
    (_S.ASSIGNED, _E.CANCEL): Move(_S.CANCELLED, (_I.VOID_LAUNCH, _I.CLOSE_ATTEMPT)),
    (_S.ASSIGNED, _E.PREEMPT): Move(_S.PENDING, (_I.VOID_LAUNCH, _I.CLOSE_ATTEMPT)),
    (_S.LAUNCHING, _E.START): Move(_S.RUNNING),
    (_S.LAUNCHING, _E.SILENCE): Move(_S.SUSPECT),
    (_S.LAUNCHING, _E.CANCEL): Move(_S.STOPPING, _STOP),
    (_S.LAUNCHING, _E.PREEMPT): Move(_S.STOPPING, _STOP),
    (_S.RUNNING, _E.SILENCE): Move(_S.SUSPECT),
    (_S.RUNNING, _E.CANCEL): Move(_S.STOPPING, _STOP),
    (_S.RUNNING, _E.PREEMPT): Move(_S.STOPPING, _STOP),
    (_S.RUNNING, _E.TIME_OUT): Move(_S.STOPPING, _STOP),
    (_S.RUNNING, _E.EXIT_OK): Move(_S.SUCCEEDED, _CLOSE),
    (_S.RUNNING, _E.EXIT_FAILED): Move(_S.FAILED, _CLOSE),
    (_S.RUNNING, _E.EXIT_RETRY): Move(_S.PENDING, _CLOSE),
    (_S.SUSPECT, _E.RETURN): Move(_S.RUNNING),
    (_S.SUSPECT, _E.CANCEL): Move(_S.STOPPING, _STOP),
    (_S.SUSPECT, _E.PROVE_DEATH): Move(_S.LOST),
    (_S.LOST, _E.REQUEUE): Move(_S.PENDING, _CLOSE),
    (_S.LOST, _E.GIVE_UP): Move(_S.FAILED, _CLOSE),
    (_S.LOST, _E.QUARANTINE): Move(_S.QUARANTINED, _CLOSE),
    (_S.STOPPING, _E.STOPPED_CANCELLED): Move(_S.CANCELLED, _CLOSE),
    (_S.STOPPING, _E.STOPPED_PREEMPTED): Move(_S.PENDING, _CLOSE),
    (_S.STOPPING, _E.STOPPED_TIMED_OUT): Move(_S.FAILED, _CLOSE),
    (_S.STOPPING, _E.EXIT_OK): Move(_S.SUCCEEDED, _CLOSE),
}


def move(state: JobState, event: JobEvent, story: str = "") -> Move:
    """Where `event` leads from `state`. O(1).

    Args:
        state: the job's state now.
        event: what happened.
        story: what is known of the job, for the error message.

    Raises:
        IllegalMoveError: the table has no such move.
    """
    found = TABLE.get((state, event))
    if found is None:
        legal = ", ".join(sorted(e for s, e in TABLE if s is state)) or "none: the state is final"
        told = f"; {story}" if story else ""
        raise IllegalMoveError(
            f"{event} is not possible in state {state} (possible: {legal}){told}"
        )
    return found
