"""How many seeds it takes to find each known bug, and which invariant finds it.

Each bug is a wrong version of one or two production functions (`scheduler.simulator.faults.bugs`);
rows are those of the failure catalogue whose required behaviour it breaks. Exits 1 on a miss.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Sequence

from scheduler.simulator.faults.bugs import BUGS, planted
from scheduler.simulator.faults.schedule import Result, Rig

STEPS = 200
SEEDS_MAX = 1_000


def search(name: str) -> tuple[str, Result | None]:
    """The first seed that finds the bug."""
    with Rig() as rig, planted(name, rig.disk):
        for seed in range(1, SEEDS_MAX + 1):
            result = rig.play(seed, STEPS)
            if result.invariant:
                return name, result
    return name, None


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("names", nargs="*", default=list(BUGS))
    options = parser.parse_args(arguments)
    names = options.names
    missed = []
    started_s = time.perf_counter()
    _say(f"{'bug':28} {'row':7} {'seeds':>6}  found by")
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        for name, found in pool.imap(search, names):
            row = BUGS[name].row
            if found is None:
                missed.append(name)
                _say(f"{name:28} {row:7} {'missed':>6}")
            else:
                told = f"{found.invariant}: {found.message}"
                _say(f"{name:28} {row:7} {found.seed:6d}  {told[:100]}")
    rows = sum(bool(BUGS[name].row) for name in names)
    _say(f"{len(names) - len(missed)} of {len(names)} bugs found within {SEEDS_MAX} seeds")
    _say(f"{rows} of them break rows of the catalogue; {time.perf_counter() - started_s:.0f} s")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
