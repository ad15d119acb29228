"""Least attained service: who has had little of the cluster comes first; needs no run times.

Source: two-dimensional, discretised least attained service of J. Gu et al., "Tiresias", NSDI 2019:
service is run time times GPUs, levels are few, and inside a level the oldest comes first.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from policies.line import in_line, size_of
from scheduler.model.job import WaitingJob
from scheduler.model.ports import OrderedJob
from scheduler.model.quantity import UtcSeconds

LEVELS_GPU_S = (3_600.0, 28_800.0)
"""A job leaves the first level with 1 GPU hour, the second with 8."""


class LeastAttained:
    """The lowest level first; ties by submission, then id."""

    name = "least-attained"

    def __init__(self, levels_gpu_s: Sequence[float] = LEVELS_GPU_S) -> None:
        """Set where levels end, GPU seconds, ascending."""
        self._levels_gpu_s = tuple(levels_gpu_s)

    def order(self, waiting: Sequence[WaitingJob], now: UtcSeconds) -> Sequence[OrderedJob]:
        """Jobs whose backoff is over, those of the lowest level first."""
        sizes: dict[str, float] = {}

        def key(job: WaitingJob) -> tuple[int, float, str]:
            size = sizes.get(job.class_key)
            if size is None:
                size = sizes[job.class_key] = size_of(job.shape)
            return (
                bisect_right(self._levels_gpu_s, job.attained_s * size),
                job.submitted_at,
                job.id,
            )

        return in_line(waiting, now, key)
