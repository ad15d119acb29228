"""How much of the relaxation survives on real nodes: elastic gangs, racks, evictions.

Each variant changes instances of `solver_instances`: `elastic` lets a third of the gangs grow to
four times their size, `racks` binds gangs of several nodes to one rack, `evict` lets running jobs
be stopped, `spanning` does too, with a third of them on two nodes. Printed are the greedy plan, the
best one without branch and bound, and the last, in per cent of the proven bound. Exits 1 when one
is below the greedy plan, or a median below its threshold.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.clusters import NOW
from support.solver_instances import solver_instance

from policies.best_fit import BestFit
from policies.priority_age import PriorityAge
from scheduler.decide import decide
from scheduler.model.job import Topology, WaitingJob
from scheduler.model.ports import Effort, Preemption, Profile
from scheduler.model.snapshot import LiveAttempt, Snapshot

MEDIAN_MIN = {Preemption.NONE: 0.97, Preemption.EVICT: 0.70}
"""With evictions only a bound that knows no nodes is proved: on few nodes it is loose."""
NODES = (32, 150, 1_000)
SEEDS = 3


def elastic(snapshot: Snapshot) -> Snapshot:
    """Every third gang may grow to four times its size."""

    def grown(number: int, job: WaitingJob) -> WaitingJob:
        if number % 3:
            return job
        shape = replace(job.shape, tasks_max=4 * job.shape.tasks)
        return replace(job, shape=shape, class_key=f"{job.class_key}|elastic")

    return _waiting(snapshot, grown)


def racks(snapshot: Snapshot) -> Snapshot:
    """Gangs of several tasks must share a rack."""

    def bound(_: int, job: WaitingJob) -> WaitingJob:
        if job.shape.tasks == 1:
            return job
        shape = replace(job.shape, topology=Topology.SAME_RACK)
        return replace(job, shape=shape, class_key=f"{job.class_key}|rack")

    return _waiting(snapshot, bound)


def unchanged(snapshot: Snapshot) -> Snapshot:
    """As it is."""
    return snapshot


def spanning(snapshot: Snapshot) -> Snapshot:
    """Every third running job also holds what the next one held."""
    live = list(snapshot.live.values())
    joined: list[LiveAttempt] = []
    while live:
        attempt = live.pop(0)
        if live and len(joined) % 3 == 0:
            other = live.pop(0)
            tasks = (*attempt.tasks, replace(other.tasks[0], task_index=1))
            attempt = replace(attempt, tasks=tasks)
        joined.append(attempt)
    return replace(snapshot, live={attempt.id: attempt for attempt in joined})


def _waiting(snapshot: Snapshot, change: Callable[[int, WaitingJob], WaitingJob]) -> Snapshot:
    jobs = (change(number, job) for number, job in enumerate(snapshot.waiting.values()))
    return replace(snapshot, waiting={job.id: job for job in jobs})


VARIANTS = {
    "plain": (unchanged, Preemption.NONE),
    "elastic": (elastic, Preemption.NONE),
    "racks": (racks, Preemption.NONE),
    "evict": (unchanged, Preemption.EVICT),
    "spanning": (spanning, Preemption.EVICT),
}


@dataclass(frozen=True)
class Measured:
    """One instance, in shares of the proven bound; milliseconds of the processor."""

    greedy: float
    rounded: float
    last: float
    evictions: int
    milliseconds: float


def measure(variant: str, family: str, nodes: int, seed: int) -> Measured:
    """Decide once."""
    change, preemption = VARIANTS[variant]
    snapshot = change(solver_instance(seed, family, nodes))
    snapshot.columns  # noqa: B018 - not a part of the decision
    profile = Profile(variant, PriorityAge(), BestFit(), preemption=preemption)
    started = time.process_time()
    plans = list(decide(snapshot, profile, Effort(), NOW, 0))
    milliseconds = (time.process_time() - started) * 1_000
    bound = plans[-1].bound
    inexact = [plan.value for plan in plans if plan.solver.stage != "milp"]
    return Measured(
        plans[0].value / bound,
        max(inexact) / bound,
        plans[-1].value / bound,
        len(plans[-1].evictions),
        milliseconds,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every variant at every size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, nargs="*", default=NODES)
    parser.add_argument("--variant", nargs="*", default=sorted(VARIANTS))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    options = parser.parse_args(arguments)
    sys.stdout.write(
        "variant   family nodes  greedy %  inexact %   last %  worst %  evicted  cpu ms\n"
    )
    rng = np.random.default_rng(0)
    seeds = sorted(rng.choice(1_000, size=options.seeds, replace=False).tolist())
    missed = 0
    for variant in options.variant:
        for nodes in options.nodes:
            for family in ("philly", "gang"):
                found = [measure(variant, family, nodes, seed) for seed in seeds]
                last = statistics.median(each.last for each in found)
                missed += last < MEDIAN_MIN[VARIANTS[variant][1]]
                missed += any(each.last < each.greedy * (1 - 1e-9) for each in found)
                sys.stdout.write(
                    f"{variant:10}{family:>6}{nodes:6}"
                    f"{100 * statistics.median(each.greedy for each in found):10.2f}"
                    f"{100 * statistics.median(each.rounded for each in found):11.2f}"
                    f"{100 * last:9.3f}{100 * min(each.last for each in found):9.3f}"
                    f"{statistics.median(each.evictions for each in found):9.0f}"
                    f"{statistics.median(each.milliseconds for each in found):8.0f}\n"
                )
                sys.stdout.flush()
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
