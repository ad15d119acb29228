"""Deciders that misbehave on purpose, for tests of the solver worker's host."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

from scheduler.decide import decide
from scheduler.model.plan import Placement, Plan
from scheduler.model.ports import Effort, Profile
from scheduler.model.quantity import JobId, UtcSeconds
from scheduler.model.snapshot import Snapshot


def hang_after_greedy(
    snapshot: Snapshot, profile: Profile, effort: Effort, now: UtcSeconds, seed: int
) -> Iterator[Plan]:
    """The first plan, then nothing for ever."""
    yield next(decide(snapshot, profile, effort, now, seed))
    threading.Event().wait()


def hang_at_once(
    snapshot: Snapshot, profile: Profile, effort: Effort, now: UtcSeconds, seed: int
) -> Iterator[Plan]:
    """Nothing for ever."""
    threading.Event().wait()
    yield Plan(snapshot.revision)


def crash_after_greedy(
    snapshot: Snapshot, profile: Profile, effort: Effort, now: UtcSeconds, seed: int
) -> Iterator[Plan]:
    """The first plan, then a crash no handler sees."""
    yield next(decide(snapshot, profile, effort, now, seed))
    os.kill(os.getpid(), signal.SIGKILL)


def killed_once_in_the_solver(
    snapshot: Snapshot, profile: Profile, effort: Effort, now: UtcSeconds, seed: int
) -> Iterator[Plan]:
    """As the real one, but killed in the middle of the first solve, which `KILLED_ONCE` recalls."""
    plans = decide(snapshot, profile, effort, now, seed)
    yield next(plans)
    told = Path(os.environ["KILLED_ONCE"])
    if not told.exists():
        told.touch()
        threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGKILL)).start()
    yield from plans


def crash_at_once(
    snapshot: Snapshot, profile: Profile, effort: Effort, now: UtcSeconds, seed: int
) -> Iterator[Plan]:
    """A crash before any plan."""
    os.kill(os.getpid(), signal.SIGKILL)
    yield Plan(snapshot.revision)


def babble(
    snapshot: Snapshot, profile: Profile, effort: Effort, now: UtcSeconds, seed: int
) -> Iterator[Plan]:
    """The first plan, then bytes that are no frame, on the private channel itself."""
    yield next(decide(snapshot, profile, effort, now, seed))
    for descriptor in range(3, 10):
        try:
            os.write(descriptor, b"\xff" * 64)
        except OSError:
            continue
    threading.Event().wait()


def print_a_lot(
    snapshot: Snapshot, profile: Profile, effort: Effort, now: UtcSeconds, seed: int
) -> Iterator[Plan]:
    """Writes to file descriptor 1, as solvers do."""
    os.write(1, b"HiGHS 1.15 says hello\n" * 100)
    yield from decide(snapshot, profile, effort, now, seed)


def raise_after_greedy(
    snapshot: Snapshot, profile: Profile, effort: Effort, now: UtcSeconds, seed: int
) -> Iterator[Plan]:
    """The first plan, then an exception."""
    yield next(decide(snapshot, profile, effort, now, seed))
    raise ZeroDivisionError("by design")


def overcommit(
    snapshot: Snapshot, profile: Profile, effort: Effort, now: UtcSeconds, seed: int
) -> Iterator[Plan]:
    """A plan that gives the first job's GPUs to every job."""
    plan = next(decide(snapshot, profile, effort, now, seed))
    first = plan.placements[0]
    others = [Placement(JobId(job), first.tasks, 1.0, "lie") for job in sorted(snapshot.waiting)]
    yield Plan(snapshot.revision, placements=tuple(others), value=1e6, bound=1e6)
