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
from scheduler.allocation import knapsack
from scheduler.allocation.feasibility import Problem, problem_of
from scheduler.allocation.bins import best_greedy
from scheduler.allocation.highs import Limits
from scheduler.decide import decide
from scheduler.model.ports import Effort

MEDIAN_MIN = 0.995
REFERENCE = Limits(nodes_max=50_000, gap=1e-6, seed=0)


@dataclass(frozen=True)
class Measured:
    """One instance: plan and greedy value over the reference bound, and seconds."""

    mix: str
    gangs: int
    quality: float
    greedy: float
    closed: bool
    seconds: float
    pulp_seconds: float
    reference_closed: bool


def measure(seed: int, mix: str) -> Measured:
    snapshot = random_instance(seed, mix)
    profile = profile_named("priority-age")
    started = time.perf_counter()
    plans = list(decide(snapshot, profile, Effort(), NOW, 0))
    seconds = time.perf_counter() - started
    problem = problem_of(snapshot, profile.order.order(tuple(snapshot.waiting.values()), NOW))
    pulp_seconds, bound, proved = _reference(problem)
    value = plans[-1].value
    return Measured(
        mix,
        len(snapshot.waiting),
        value / bound if bound else 1.0,
        plans[0].value / bound if bound else 1.0,
        plans[-1].gap <= Effort().gap_target,
        seconds,
        pulp_seconds if len(plans) > 1 else 0.0,
        proved,
    )


def _reference(problem: Problem) -> tuple[float, float, bool]:
    """Seconds PuLP took around one solve, the exact bound, and whether it was reached."""
    started = time.perf_counter()
    model = knapsack.build(problem)
    relaxed = knapsack.relax(model, REFERENCE)
    around = time.perf_counter() - started - model.pulp.problem.solverModel.getRunTime()
    solved = knapsack.optimise(model, best_greedy(problem), REFERENCE)
    bound = min(relaxed.bound, solved.bound)
    reached = (
        0.0 if solved.packing is None else sum(problem.gangs[gang].value for gang in solved.packing)
    )
    return around, bound, reached >= bound * (1 - 2e-6)


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
        f"{'gap closed %':>14}{'p50 ms':>8}{'p99 ms':>8}{'PuLP share %':>14}"
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
    solved = [entry for entry in found if entry.pulp_seconds]
    share = sum(entry.pulp_seconds for entry in solved) / max(
        1e-9, sum(entry.seconds for entry in solved)
    )
    gangs = [entry.gangs for entry in found]
    return (
        f"{mix:8}{len(found):5}{f'{min(gangs)}-{max(gangs)}':>12}{statistics.median(quality):10.3%}"
        f"{min(quality):9.3%}{statistics.median(greedy):15.3%} /{min(greedy):7.2%}"
        f"{sum(entry.closed for entry in found) / len(found):14.1%}"
        f"{times[len(times) // 2]:8.1f}{times[int(len(times) * 0.99)]:8.1f}{share:14.1%}"
    )


if __name__ == "__main__":
    sys.exit(main())
