"""Keeps plans that failed verification, with all that is needed to decide again.

`python -m scheduler.rejected_plans FILE` decides a kept case anew and tells what is wrong with it
today, which is how such a bug is worked on.
"""

from __future__ import annotations

import argparse
import pickle
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from policies.registry import PROFILES, profile_named
from scheduler.allocation.verify import Violation, check_safety
from scheduler.model.plan import Plan
from scheduler.model.ports import Effort
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


def replay(case: RejectedPlan, policy: str, seed: int = 0) -> tuple[Plan, tuple[Violation, ...]]:
    """Decide the case again; the new plan, and what is wrong with it."""
    # Whoever keeps a plan does not decide: the daemon starts sooner without the solvers.
    from scheduler.decide import decide  # noqa: PLC0415

    *_, plan = decide(case.snapshot, profile_named(policy), Effort(), case.now, seed)
    return plan, check_safety(plan, case.snapshot, case.now)


def main(arguments: Sequence[str] | None = None) -> int:
    """Replay one kept case; 1 when the plan is still wrong."""
    parser = argparse.ArgumentParser(prog="scheduler.rejected_plans", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--policy", default="priority-age", choices=sorted(PROFILES))
    options = parser.parse_args(arguments)
    case = load(options.file)
    plan, violations = replay(case, options.policy)
    told = [f"then: {v.kind}: {v.message}\n" for v in case.violations]
    told += [f"now:  {v.kind}: {v.message}\n" for v in violations]
    told.append(
        f"now:  {len(plan.placements)} placed, value {plan.value:g}, bound {plan.bound:g},"
        f" {len(violations)} violations\n"
    )
    sys.stdout.writelines(told)
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
