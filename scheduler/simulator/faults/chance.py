"""What can go wrong, and the dice that say when. Every draw of a schedule comes from one seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import TypeVar

import numpy as np

T = TypeVar("T")


class Fault(StrEnum):
    """Kinds of faults."""

    # Work and hardware.
    TASK_DEATH = "task dies"
    LAUNCHER_DEATH = "launcher killed, no exit record"
    EXIT_TWICE = "exit reported twice"
    NODE_DEATH = "node dies, reboots later"
    NODE_NOT_READY = "node NotReady, then back"
    NODE_LEAVES = "node leaves the inventory, then back"
    GPU_FAILURE = "GPU fails"
    # What the executor tells.
    NEWS_LOST = "observation lost"
    NEWS_REPEATED = "observation repeated"
    NEWS_LATE = "observation late, out of order"
    ANSWER_SLOW = "answer slow, world moves on"
    EXECUTOR_ERROR = "executor raises"
    # Orders.
    LAUNCH_REFUSED = "launch refused"
    LAUNCH_UNKNOWN = "launch times out, happened"
    LAUNCH_LOST = "launch times out, did not happen"
    LAUNCH_LATE = "launch times out, happens later"
    STOP_LOST = "stop lost"
    STOP_LATE = "stop arrives late"
    # Deciding.
    SOLVER_SLOW = "solver slow, killed at the limit"
    SOLVER_CRASH = "solver crashes"
    SOLVER_GARBAGE = "solver returns a garbage plan"
    EVICTION = "plan evicts a running job"
    POISON_JOB = "stored job unreadable"
    # The store.
    COMMIT_FAILS = "commit fails"
    COMMIT_UNKNOWN = "commit kept, answer lost"
    DISK_FULL = "disk full for a while"
    DISK_DAMAGED = "fsync fails"
    # The daemon.
    KILL = "daemon killed, restarted"
    KILL_AT_POINT = "daemon killed at a failpoint"
    ERROR_AT_POINT = "failpoint raises"
    STALE_LEADER = "stale leader resumes"
    CLOCK_JUMP = "wall clock jumps"
    # Users.
    CANCEL_RACE = "cancel races with placement"
    TWIN_SUBMIT = "submit repeated with its key"
    CORDON_RACE = "cordon during placement"


class Chance:
    """One schedule's dice: numpy's PCG64, and which kinds of faults are on.

    Each seed turns on a part of the kinds (swarm testing: Groce et al., ISSTA 2012), as a schedule
    with everything on at once hides what needs one thing to go wrong and the rest to go well.

    Args:
        seed: of everything.
        struck: told each fault that fired.
    """

    def __init__(self, seed: int, struck: Callable[[Fault, str], None]) -> None:
        self._generator = np.random.Generator(np.random.PCG64(seed))
        self._struck = struck
        share = self.between(0.25, 0.75)
        self.enabled = frozenset(fault for fault in Fault if self.happens(share))
        self.calm = False
        """Whether the faults have stopped."""
        self.fired: Counter[Fault] = Counter()

    def happens(self, probability: float) -> bool:
        """A coin that shows heads with this probability."""
        return float(self._generator.random()) < probability

    def between(self, low: float, high: float) -> float:
        """A uniform draw."""
        return low + (high - low) * float(self._generator.random())

    def wait_s(self, mean: float) -> float:
        """An exponential draw, cut at ten times its mean."""
        return min(float(self._generator.exponential(mean)), 10.0 * mean)

    def count(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`, both possible."""
        return int(self._generator.integers(low, high + 1))

    def pick(self, choices: Sequence[T]) -> T:
        """One of `choices`, which must not be empty."""
        return choices[self.count(0, len(choices) - 1)]

    def on(self, fault: Fault) -> bool:
        """Whether this schedule has the fault at all, and faults have not stopped."""
        return not self.calm and fault in self.enabled

    def strikes(self, fault: Fault, probability: float, where: str = "") -> bool:
        """Whether the fault happens now; if so it is counted and traced."""
        if not self.on(fault) or not self.happens(probability):
            return False
        self.fire(fault, where)
        return True

    def fire(self, fault: Fault, where: str = "") -> None:
        """Count and trace a fault that happens now."""
        self.fired[fault] += 1
        self._struck(fault, where)
