"""How fast is the simulator? A recorded week through the daemon's own cycle.

Philly week (12,751 jobs) on 80 nodes of 8 GPUs: FIFO in less than 20 s, the knapsack policy in
less than 5 minutes, less than 1 GB of memory, and equal results for equal seeds. Each run has a
process of its own, so that its peak of memory is its own. Needs HAVERSACK_TRACES; exits 1 when a
threshold is missed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from policies.registry import profile_named
from scheduler.simulator.engine import Options, simulate
from scheduler.simulator.importers import plain_csv
from scheduler.simulator.importers.records import Reading
from scheduler.simulator.metrics import metrics_of, timing_of
from scheduler.simulator.result import RunResult
from scheduler.virtual import parse_virtual

PHILLY = "philly_week/philly_2017-10-09_week.csv"
SECONDS_MAX = {"fifo": 20.0, "knapsack": 300.0}
MEMORY_MAX_MIB = 1_000.0


@dataclass(frozen=True)
class Measured:
    """One run. `seconds` is CPU time: what the wall shows on a machine that does nothing else."""

    policy: str
    seconds: float
    wall_s: float
    memory_mib: float
    wait_min: float
    cycles: int
    decide_ms_p50: float
    decide_ms_p99: float
    digest: str


def measure(policy: str, nodes: int, seed: int) -> str:
    """Run in this process; the figures as one line."""
    folder = Path(os.environ["HAVERSACK_TRACES"])
    workload = plain_csv.read(folder / PHILLY, Reading(node_gpus=8))
    cluster = parse_virtual(f"{nodes}x8:H100")
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    result = simulate(workload, cluster, profile_named(policy), Options(seed=seed))
    cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    metrics, timing = metrics_of(result), timing_of(result)
    figures = (
        policy,
        cpu_s,
        wall_s,
        peak_mib,
        (metrics.wait_s_mean or 0.0) / 60,
        metrics.cycles,
        timing.decision_ms_p50 or 0.0,
        timing.decision_ms_p99 or 0.0,
        digest(result),
    )
    return " ".join(str(figure) for figure in figures)


def digest(result: RunResult) -> str:
    """Of everything in a result that must not differ between equal runs."""
    cycles = tuple(replace(cycle, decide_ms=0.0) for cycle in result.cycles)
    return hashlib.sha256(repr(replace(result, cycles=cycles)).encode()).hexdigest()


def in_own_process(policy: str, nodes: int, seed: int) -> Measured:
    command = [sys.executable, __file__, "--one", policy, str(nodes), str(seed)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    name, *numbers, found = answer.stdout.split()
    cpu_s, wall_s, memory, wait, cycles, p50, p99 = map(float, numbers)
    return Measured(name, cpu_s, wall_s, memory, wait, int(cycles), p50, p99, found)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs=3, metavar=("POLICY", "NODES", "SEED"))
    parser.add_argument("--nodes", type=int, default=80)
    parser.add_argument("--policies", nargs="*", default=list(SECONDS_MAX))
    given = parser.parse_args(arguments)
    if not os.environ.get("HAVERSACK_TRACES"):
        _say("SKIPPED: no public traces; set HAVERSACK_TRACES")
        return 0
    if given.one:
        policy, nodes, seed = given.one
        _say(measure(policy, int(nodes), int(seed)))
        return 0
    _say(
        f"{'policy':12}{'CPU s':>8}{'at most':>9}{'wall s':>8}{'MiB':>7}{'wait min':>10}"
        f"{'cycles':>8}{'decide p50/p99 ms':>20}  same twice"
    )
    missed = False
    for policy in given.policies:
        first, again = (in_own_process(policy, given.nodes, seed=7) for _ in range(2))
        same = first.digest == again.digest
        limit = SECONDS_MAX.get(policy, float("inf"))
        seconds = min(first.seconds, again.seconds)
        memory = max(first.memory_mib, again.memory_mib)
        bad = not same or seconds > limit or memory > MEMORY_MAX_MIB
        _say(
            f"{policy:12}{seconds:8.1f}{limit:9.0f}{first.wall_s:8.1f}{memory:7.0f}"
            f"{first.wait_min:10.2f}{first.cycles:8}"
            f"{first.decide_ms_p50:12.2f} /{first.decide_ms_p99:6.2f}  {'yes' if same else 'NO'}"
            + ("  MISSED" if bad else "")
        )
        missed |= bad
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
