"""Plays schedules: one with its trace, or many with a table of the faults that fired."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence

from scheduler.simulator.faults.bugs import BUGS, planted
from scheduler.simulator.faults.chance import Fault
from scheduler.simulator.faults.schedule import Result, Rig


def main(arguments: Sequence[str] | None = None) -> int:
    """Play the schedules that the command line names; 1 when an invariant broke."""
    parser = argparse.ArgumentParser(prog="scheduler.simulator.faults", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="the first schedule's seed")
    parser.add_argument("--count", type=int, default=1, help="how many seeds, one after the other")
    parser.add_argument("--steps", type=int, default=200, help="least steps of a schedule")
    parser.add_argument("--bug", choices=sorted(BUGS), help="plant this bug first")
    options = parser.parse_args(arguments)
    fired: Counter[Fault] = Counter()
    broken = 0
    with Rig() as rig, planted(options.bug, rig.disk):
        for seed in range(options.seed, options.seed + options.count):
            result = rig.play(seed, options.steps)
            fired.update(result.fired)
            if options.count == 1:
                sys.stdout.writelines(f"{line}\n" for line in result.trace)
            if result.invariant or options.count == 1:
                sys.stdout.write(f"{told(result, options.bug)}\n")
            broken += bool(result.invariant)
    if options.count > 1:
        sys.stdout.writelines(f"{fired[fault]:7d}  {fault}\n" for fault in Fault)
        sys.stdout.write(f"{options.count} schedules, {broken} with a broken invariant\n")
    return 1 if broken else 0


def told(result: Result, bug: str | None = None) -> str:
    """A result in a line, with the command that replays it when something broke.

    The line names the version of Python: a seed tells one story under 3.11 and another under 3.12,
    whose asyncio differ.
    """
    line = (
        f"seed {result.seed}: {result.steps} steps, {result.fired.total()} faults, settled after"
        f" {result.settled_s:.0f} s, trace {result.digest[:16]},"
        f" Python {sys.version_info.major}.{sys.version_info.minor}"
    )
    if not result.invariant:
        return line
    return f"{line}\n{result.invariant}: {result.message}\n  {result.replay(bug)}"


if __name__ == "__main__":
    sys.exit(main())
