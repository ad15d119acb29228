"""What the knapsack weighs: a GPU is worth most in the hands of who has had least service.

    value = SCALE * size * 2 ** -level * (1 + AGE_SHARE * wait / (wait + AGE_S))

The level rises by one each time that the service a job has had (run time times GPUs) doubles,
beginning with `FIRST_LEVEL_GPU_S`. Run times of training jobs are heavy-tailed: most end within
minutes, and whoever has run for long will run for as long again. So the expected rest of a job
grows with the service it has had, and its value per GPU falls with it. No run time need be known.

Within a level the older job is worth a little more, by less than the bonus that keeps running jobs
where they are (`EvictionCost.keep_bonus`): equals do not take turns.

Sources: least attained service for unknown sizes, L. E. Schrage, 1967; levels as in J. Gu et al.,
"Tiresias", NSDI 2019. That levels which double beat two levels was found on the Philly week.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from policies.line import size_of
from policies.priority_age import VALUE_MAX, VALUE_MIN, doublings
from scheduler.model.job import WaitingJob
from scheduler.model.ports import OrderedJob
from scheduler.model.quantity import UtcSeconds

FIRST_LEVEL_GPU_S = 450.0
LEVELS_MAX = 14
SCALE = 64.0
AGE_SHARE = 0.1
AGE_S = 3_600.0
PRIORITY_NEUTRAL = 50
VALUE_PER_GPU_S = 4e-5
"""What a second of a GPU is worth that a restart wastes. It is taken from whoever is last among
those that run: jobs of more than 100 GPU hours, worth some 0.02 a GPU, over the 450 s for which a
newcomer is in its first level. With more, large jobs that were stopped cannot take their place back
from long ones, and wait for hours (docs/adr/0008 has the figures)."""


class ServiceValue:
    """The most valuable first; ties by submission, then id."""

    name = "service-value"

    def order(self, waiting: Sequence[WaitingJob], now: UtcSeconds) -> Sequence[OrderedJob]:
        """Jobs whose backoff is over, by value. O(n log n)."""
        sizes: dict[str, float] = {}
        valued = []
        for job in waiting:
            if job.eligible_at > now:
                continue
            size = sizes.get(job.class_key)
            if size is None:
                size = sizes[job.class_key] = size_of(job.shape)
            valued.append((-value_of(job, size, now), job.submitted_at, job.id, job))
        valued.sort(key=lambda entry: entry[:3])
        return [
            OrderedJob(job, rank, -negative) for rank, (negative, _, _, job) in enumerate(valued)
        ]


def value_of(job: WaitingJob, size: float, now: UtcSeconds) -> float:
    """What starting `job` is worth; `size` in GPUs. It doubles with priority (see `doublings`)."""
    halvings = level_of(job.attained_s * size) + doublings(PRIORITY_NEUTRAL)
    weight = math.exp2(doublings(job.priority) - halvings)
    waited_s = max(0.0, now - job.submitted_at)
    age = 1.0 + AGE_SHARE * waited_s / (waited_s + AGE_S)
    return min(max(SCALE * size * weight * age, VALUE_MIN), VALUE_MAX)


def level_of(service_gpu_s: float) -> int:
    """0 until the first level is used up, then one more for each doubling."""
    if service_gpu_s < FIRST_LEVEL_GPU_S:
        return 0
    return min(LEVELS_MAX, 1 + int(math.log2(service_gpu_s / FIRST_LEVEL_GPU_S)))
