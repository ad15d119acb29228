"""What preemption by priority costs on a full cluster, and that it stops nobody in vain.

Every GPU is held by jobs of priorities 0 to 9, of 1 to 8 GPUs; 200 gangs of priority 100 wait, of
1 to 32 GPUs, behind them 1,000 of priority 5. Prints processor time of the whole decision, from
snapshot to verified plan. Exits 1 if the first plan takes longer than the daemon's hard limit, if
somebody is stopped who is not outranked, or if much more is stopped than those who profit need.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.clusters import NOW, make_job, make_node, occupy, shape, snapshot_of

from policies.registry import profile_named
from scheduler.decide import decide
from scheduler.model.node import Node
from scheduler.model.ports import Effort
from scheduler.model.snapshot import LiveAttempt, Snapshot

NODES = (150, 1_000, 5_000)
HARD_LIMIT_S = 5.0
WASTE_MAX = 1.5
"""GPUs that are cleared for each GPU that is needed, at most."""
EFFORT = Effort(placements_max=400)


@dataclass(frozen=True)
class Measured:
    """One decision.

    Attributes:
        first: seconds to the plan that stops nobody.
        seconds: to the one that does.
        cleared: GPUs of those who are stopped.
        needed: GPUs of those who take their places.
        wrong: victims that are not outranked by who profits.
    """

    nodes: int
    first: float
    seconds: float
    stopped: int
    cleared: int
    needed: int
    wrong: int


def running(rng: random.Random, node: Node) -> Iterator[LiveAttempt]:
    """Jobs that fill the node."""
    at = 0
    while at < len(node.gpus):
        size = min(rng.choice((1, 1, 2, 4, 8)), len(node.gpus) - at)
        found = occupy(node, range(at, at + size))
        yield replace(found, job=replace(found.job, priority=rng.randrange(10)))
        at += size


def full(count: int) -> Snapshot:
    """A full cluster, and who waits."""
    rng = random.Random(count)
    nodes = [make_node(f"{index:05d}") for index in range(count)]
    live = [attempt for node in nodes for attempt in running(rng, node)]
    gangs = (shape(1), shape(4), shape(8), shape(8, tasks=2), shape(8, tasks=4), shape(1, tasks=8))
    first = [make_job(f"x{n}", rng.choice(gangs), priority=100) for n in range(200)]
    behind = [make_job(f"y{n}", rng.choice(gangs), priority=5) for n in range(1_000)]
    return snapshot_of(nodes, [*first, *behind], live)


def measure(count: int) -> Measured:
    snapshot = full(count)
    started = time.process_time()
    plans = decide(snapshot, profile_named("priority-preempt"), EFFORT, NOW, 0)
    next(plans)
    first = time.process_time() - started
    (plan,) = plans
    seconds = time.process_time() - started
    victims = [(snapshot.live[each.attempt_id], each) for each in plan.evictions]
    waiting = snapshot.waiting
    return Measured(
        count,
        first,
        seconds,
        len(victims),
        sum(len(task.gpu_ids) for victim, _ in victims for task in victim.tasks),
        sum(waiting[each.job_id].shape.total.gpus for each in plan.reservations),
        sum(v.job.priority >= waiting[each.for_job].priority for v, each in victims),
    )


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - a report to whoever runs it


def main() -> int:
    """Measure all sizes; 1 if a threshold is missed."""
    _say("| nodes | first plan, s | CPU s | jobs stopped | GPUs cleared | needed | not outranked |")
    _say("| --- | --- | --- | --- | --- | --- | --- |")
    failed = False
    for count in NODES:
        found = measure(count)
        _say(
            f"| {found.nodes:,} | {found.first:.2f} | {found.seconds:.2f} | {found.stopped} |"
            f" {found.cleared} | {found.needed} | {found.wrong} |"
        )
        wasteful = found.cleared > WASTE_MAX * found.needed
        failed |= found.first > HARD_LIMIT_S or found.wrong > 0 or wasteful
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
