"""Keeps plans that failed verification, with all that is needed to decide again."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scheduler.allocation.verify import Violation
from scheduler.model.plan import Plan
from scheduler.model.quantity import UtcSeconds
from scheduler.model.snapshot import Snapshot

KEPT_MAX = 20


@dataclass(frozen=True, slots=True)
class RejectedPlan:
    """A snapshot, the plan made for it, and what was wrong with that plan."""

    snapshot: Snapshot
    plan: Plan
    violations: tuple[Violation, ...]
    now: UtcSeconds


def keep(
    folder: Path, snapshot: Snapshot, plan: Plan, violations: Sequence[Violation], now: UtcSeconds
) -> Path:
    """Write the case to `folder`, oldest first out beyond KEPT_MAX; returns the file.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{int(now * 1000):015d}-r{plan.snapshot_revision}.pickle"
    path.write_bytes(pickle.dumps(RejectedPlan(snapshot, plan, tuple(violations), now)))
    for old in sorted(folder.glob("*.pickle"))[:-KEPT_MAX]:
        old.unlink(missing_ok=True)
    return path


def load(path: Path) -> RejectedPlan:
    """Read a kept case of this daemon's own data folder (pickle: never a stranger's file).

    Raises:
        OSError: no such file.
        TypeError: the file holds something else.
    """
    case = pickle.loads(path.read_bytes())  # noqa: S301 - our own file, mode 0600 folder
    if not isinstance(case, RejectedPlan):
        raise TypeError(f"{path} does not hold a rejected plan")
    return case
