"""Ten thousand fault schedules on two processes, with a table of the faults that fired.

Exits 1 when an invariant breaks, a schedule is too short, or a kind of fault fired too rarely.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from scheduler.simulator.faults.__main__ import told
from scheduler.simulator.faults.chance import Fault
from scheduler.simulator.faults.schedule import FAULTS_MIN, Rig

STEPS = 200
FIRED_MIN = 50
FIRST_SEED = 100_000
"""Far from the seeds of the test run."""
CHUNK = 50


@dataclass
class Played:
    """What became of a chunk of schedules."""

    schedules: int = 0
    steps: int = 0
    cpu_s: float = 0.0
    settled_s: float = 0.0
    fired: Counter[Fault] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)

    def add(self, other: Played) -> None:
        self.schedules += other.schedules
        self.steps += other.steps
        self.cpu_s += other.cpu_s
        self.settled_s = max(self.settled_s, other.settled_s)
        self.fired.update(other.fired)
        self.bad += other.bad


def play(seeds: Sequence[int]) -> Played:
    found = Played()
    started_s = time.process_time()
    with Rig() as rig:
        for seed in seeds:
            result = rig.play(seed, STEPS)
            found.schedules += 1
            found.steps += result.steps
            found.settled_s = max(found.settled_s, result.settled_s)
            found.fired.update(result.fired)
            if result.invariant or result.steps < STEPS or result.fired.total() < FAULTS_MIN:
                found.bad.append(told(result))
    found.cpu_s = time.process_time() - started_s
    return found


def chunks(count: int) -> Iterator[range]:
    for start in range(FIRST_SEED, FIRST_SEED + count, CHUNK):
        yield range(start, min(start + CHUNK, FIRST_SEED + count))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args(arguments)
    total = Played()
    started_s = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        for played in pool.imap_unordered(play, chunks(options.count)):
            total.add(played)
    wall_s = time.perf_counter() - started_s
    rare = [fault for fault in Fault if total.fired[fault] < FIRED_MIN]
    lines = [
        f"{'fired':>7}  kind of fault",
        *(f"{total.fired[fault]:7d}  {fault}" for fault in Fault),
        f"{total.schedules} schedules, seeds from {FIRST_SEED}, in {wall_s:.0f} s",
        f"{total.steps} steps, {total.fired.total()} faults",
        f"{1000 * total.cpu_s / max(1, total.schedules):.0f} ms of CPU a schedule",
        f"settled at most {total.settled_s:.0f} virtual s after the last fault",
        *total.bad,
        *(f"{fault} fired less than {FIRED_MIN} times" for fault in rare),
        f"{len(total.bad)} violations",
    ]
    sys.stdout.writelines(f"{line}\n" for line in lines)
    return 1 if total.bad or rare else 0


if __name__ == "__main__":
    sys.exit(main())
