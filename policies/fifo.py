"""First in, first out: the oldest job first, whatever its priority.

The value halves every `HALVING_RANKS` places in line, down to a floor, and is proportional to the
gang's GPUs: the knapsack then strongly prefers the front of the line, yet still fills what the
front cannot use.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from policies.priority_age import VALUE_MAX, VALUE_MIN, gpu_equivalents
from scheduler.model.job import WaitingJob
from scheduler.model.ports import OrderedJob
from scheduler.model.quantity import UtcSeconds

HALVING_RANKS = 16.0
FRONT_VALUE = 100.0


class Fifo:
    """Submission order; ties by id."""

    name = "fifo"

    def order(self, waiting: Sequence[WaitingJob], now: UtcSeconds) -> Sequence[OrderedJob]:
        """Jobs whose backoff is over, oldest first."""
        eligible = [job for job in waiting if job.eligible_at <= now]
        eligible.sort(key=lambda job: (job.submitted_at, job.id))
        return [OrderedJob(job, rank, _value(job, rank)) for rank, job in enumerate(eligible)]


def _value(job: WaitingJob, rank: int) -> float:
    worth = FRONT_VALUE * gpu_equivalents(job.shape.total) * math.exp2(-rank / HALVING_RANKS)
    return min(max(worth, VALUE_MIN), VALUE_MAX)
