"""A daemon on an API server that goes wrong 2,000 times: nothing is bound twice or over-committed.

For each seed a real daemon runs on the fake API server while gangs come, run, end and are deleted,
and nodes come and go. At least 2,000 faults are injected, at least 20 of every kind: answers lost
after the work was done, delays, 409, 429, 500, 503, 504, both kinds of 410, lists of the past,
watches that are cut, end, or fall silent, events left out, repeated, replayed or out of order.

An oracle judges every write that the server accepts: no pod moves, no node is over its allocatable
at any instant, a gang is bound for one attempt only. Once the faults end, within 60 s every gang
that somebody wants has run, what waited for room is bound, and the daemon's ledger is what the
cluster shows. Exits 1 otherwise.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.folders import quick_folder
from support.kubernetes.fault_run import Report, Size, fault_run
from support.kubernetes.faults import Fault


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _table(seeds: Sequence[int], reports: Sequence[Report]) -> None:
    _say(f"{'injected':48}" + "".join(f"{f'seed {seed}':>10}" for seed in seeds))
    for fault in Fault:
        _say(f"{fault:48}" + "".join(f"{each.counts.get(fault, 0):10}" for each in reports))
    _say(f"{'in all':48}" + "".join(f"{sum(each.counts.values()):10}" for each in reports))


def _judge(seed: int, size: Size, report: Report) -> list[str]:
    total = sum(report.counts.values())
    _say(
        f"seed {seed}: {report.bindings} pods bound, {report.gangs} gangs ran, {report.remade} were"
        f" made anew; {total} faults in {report.troubled_s:.0f} s; right {report.settled_s:.1f} s"
        f" after the last ({report.last}); {len(report.violations)} violations"
    )
    rare = [fault.name for fault in Fault if report.counts.get(fault, 0) < size.each]
    failures = [f"seed {seed}: {violation}" for violation in report.violations]
    if total < size.faults or rare:
        failures.append(f"seed {seed}: {total} faults only, too few of {', '.join(rare) or 'all'}")
    return failures


def main() -> int:
    """Run and judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--faults", type=int, default=2000)
    parser.add_argument("--each", type=int, default=20)
    asked = parser.parse_args()
    size = Size(faults=asked.faults, each=asked.each)
    reports, failures = [], []
    for seed in asked.seeds:
        with quick_folder() as folder:
            reports.append(fault_run(seed, size, folder))
        failures += _judge(seed, size, reports[-1])
    _table(asked.seeds, reports)
    for failure in failures:
        _say(f"MISSED: {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
