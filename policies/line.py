"""Plain lines: who comes first is all that such a policy says.

Starting a job is worth its size, so that a plan's value tells how much was put to work, and its
gap how much room the admission left unused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from policies.priority_age import gpu_equivalents
from scheduler.model.job import JobShape, WaitingJob
from scheduler.model.ports import OrderedJob
from scheduler.model.quantity import UtcSeconds


def in_line(
    waiting: Sequence[WaitingJob], now: UtcSeconds, key: Callable[[WaitingJob], Any]
) -> list[OrderedJob]:
    """Jobs whose backoff is over, by `key`, which must tell all jobs apart. O(n log n)."""
    eligible = sorted((job for job in waiting if job.eligible_at <= now), key=key)
    sizes: dict[str, float] = {}
    ordered = []
    for rank, job in enumerate(eligible):
        size = sizes.get(job.class_key)
        if size is None:
            size = sizes[job.class_key] = size_of(job.shape)
        ordered.append(OrderedJob(job, rank, size))
    return ordered


def size_of(shape: JobShape) -> float:
    """The (smallest) gang in GPUs, by its dominant resource; parts of GPUs count as such."""
    shared = shape.gpu_milli_total / 1000
    return max(shared, gpu_equivalents(shape.total))
