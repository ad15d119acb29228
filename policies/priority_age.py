"""Priority then age: the highest priority first, the oldest first among equals.

The line and the worth say different things on purpose. The *rank* is strict. The *value* is what
the knapsack maximises, and there a large urgent gang may be outweighed by several others:

    value = SCALE * size ** 0.95 * weight(priority) * (1 + wait / TIME_CONSTANT_S)

- `size` is the gang in GPU equivalents: its GPUs, or what its CPU or memory would make of a node
  with `CPU_MILLI_PER_GPU` and `MEMORY_MIB_PER_GPU` per GPU, whichever is most. The exponent is a
  little below 1, so that of two ways to fill the same GPUs the one that starts more jobs wins.
- `weight` doubles every 10 points of priority: priority 100 weighs 1024 times priority 0. Beyond
  100, where the priorities of a cluster's own classes lie, it doubles with each power of ten.
- every `TIME_CONSTANT_S` of waiting adds the job's value once more, up to `AGE_FACTOR_MAX` times,
  so that nothing starves behind a stream of newer equals.

Values stay within `VALUE_MIN`..`VALUE_MAX`: solvers work with absolute tolerances around 1e-6, so
coefficients of one model must not spread wider.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from scheduler.model.job import WaitingJob
from scheduler.model.ports import OrderedJob
from scheduler.model.quantity import Resources, UtcSeconds

SIZE_EXPONENT = 0.95
CPU_MILLI_PER_GPU = 16_000
MEMORY_MIB_PER_GPU = 131_072
PRIORITY_DOUBLES_EVERY = 10.0
PRIORITY_OWN_MAX = 100
"""The highest that a job file can name; Kubernetes has them up to 2,000,001,000."""
TIME_CONSTANT_S = 3_600.0
AGE_FACTOR_MAX = 25.0
SCALE = 0.1
VALUE_MIN = 1e-2
VALUE_MAX = 1e5


def gpu_equivalents(total: Resources) -> float:
    """A gang's size in GPUs, by its dominant resource; at least 0.1."""
    return max(
        float(total.gpus),
        total.cpu_milli / CPU_MILLI_PER_GPU,
        total.memory_mib / MEMORY_MIB_PER_GPU,
        0.1,
    )


def doublings(priority: int) -> float:
    """How often a job's weight doubles for its priority; it rises strictly, and never overflows."""
    if priority <= PRIORITY_OWN_MAX:
        return priority / PRIORITY_DOUBLES_EVERY
    most = PRIORITY_OWN_MAX / PRIORITY_DOUBLES_EVERY
    return most + math.log10(priority / PRIORITY_OWN_MAX)


def base_value(job: WaitingJob) -> float:
    """What starting `job` is worth before its age counts; equal for a class at one priority."""
    weight = math.exp2(doublings(job.priority))
    return SCALE * math.pow(gpu_equivalents(job.shape.total), SIZE_EXPONENT) * weight


def aged(base: float, job: WaitingJob, now: UtcSeconds) -> float:
    """`base` times the age factor, within `VALUE_MIN`..`VALUE_MAX`."""
    waited_s = max(0.0, now - job.submitted_at)
    value = base * min(1.0 + waited_s / TIME_CONSTANT_S, AGE_FACTOR_MAX)
    return min(max(value, VALUE_MIN), VALUE_MAX)


class PriorityAge:
    """The default queue order."""

    name = "priority-age"

    def order(self, waiting: Sequence[WaitingJob], now: UtcSeconds) -> Sequence[OrderedJob]:
        """Jobs whose backoff is over, best first: priority, then submission, then id."""
        eligible = [job for job in waiting if job.eligible_at <= now]
        eligible.sort(key=lambda job: (-job.priority, job.submitted_at, job.id))
        # A long queue holds few classes: what does not depend on the job's age is worked out once.
        base: dict[tuple[str, int], float] = {}
        ordered = []
        for rank, job in enumerate(eligible):
            key = (job.class_key, job.priority)
            if key not in base:
                base[key] = base_value(job)
            ordered.append(OrderedJob(job, rank, aged(base[key], job, now)))
        return ordered
