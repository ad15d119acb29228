"""How far from optimal plans are, on random clusters small enough to know.

For each instance (4-16 nodes, 70-95 % full, demand 1.5-3 times the free GPUs, 20-200 gangs; three
mixes) the decision is compared with the bound of the exact model solved to a gap of 1e-6. Exits 1
when the median is below 99.5 % of that bound, or any plan is worth less than the greedy one.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.clusters import MIXES, NOW, random_instance

from policies.registry import profile_named
from scheduler.decide import decide
from scheduler.model.ports import Effort

MEDIAN_MIN = 0.995
EFFORT = Effort()
REFERENCE = Effort(milp_nodes_max=50_000, columns_max=50_000, gap_target=1e-6)


@dataclass(frozen=True)
class Measured:
    """One instance: plan and greedy value over the reference bound, and seconds."""

    mix: str
    gangs: int
    quality: float
    greedy: float
    closed: bool
    seconds: float
    reference_closed: bool


def measure(seed: int, mix: str) -> Measured:
    snapshot = random_instance(seed, mix)
    profile = profile_named("priority-age")
    started = time.perf_counter()
    plans = list(decide(snapshot, profile, EFFORT, NOW, 0))
    seconds = time.perf_counter() - started
    last = list(decide(snapshot, profile, REFERENCE, NOW, 0))[-1]
    value = plans[-1].value
    return Measured(
        mix,
        len(snapshot.waiting),
        value / last.bound if last.bound else 1.0,
        plans[0].value / last.bound if last.bound else 1.0,
        plans[-1].gap <= EFFORT.gap_target,
        seconds,
        last.gap <= 2 * REFERENCE.gap_target,
    )


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--instances", type=int, default=200)
    count = parser.parse_args(arguments).instances
    mixes = list(MIXES)
    found = [measure(seed, mixes[seed % len(mixes)]) for seed in range(count)]
    _say(
        f"{'mix':8}{'n':>5}{'gangs':>12}{'median %':>10}{'worst %':>9}{'greedy median/worst %':>24}"
        f"{'gap closed %':>14}{'p50 ms':>8}{'p99 ms':>8}"
    )
    for mix in [*mixes, "all"]:
        _say(_line(mix, [entry for entry in found if mix in (entry.mix, "all")]))
    _say(
        f"reference bound reached by the exact model on "
        f"{sum(entry.reference_closed for entry in found)} of {count}"
    )
    median = statistics.median(entry.quality for entry in found)
    below = [entry for entry in found if entry.quality < entry.greedy * (1 - 1e-9)]
    _say(
        f"median {median:.4%} of the exact bound (at least {MEDIAN_MIN:.1%}), "
        f"worst {min(entry.quality for entry in found):.4%}, below greedy {len(below)} times"
    )
    return 0 if median >= MEDIAN_MIN and not below else 1


def _line(mix: str, found: Sequence[Measured]) -> str:
    quality = [entry.quality for entry in found]
    greedy = [entry.greedy for entry in found]
    times = sorted(entry.seconds * 1000 for entry in found)
    gangs = [entry.gangs for entry in found]
    return (
        f"{mix:8}{len(found):5}{f'{min(gangs)}-{max(gangs)}':>12}{statistics.median(quality):10.3%}"
        f"{min(quality):9.3%}{statistics.median(greedy):15.3%} /{min(greedy):7.2%}"
        f"{sum(entry.closed for entry in found) / len(found):14.1%}"
        f"{times[len(times) // 2]:8.1f}{times[int(len(times) * 0.99)]:8.1f}"
    )


if __name__ == "__main__":
    sys.exit(main())
