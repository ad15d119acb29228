"""Shortest first: by what is left to run, in seconds or in GPU seconds.

With `Sees.DURATIONS` these are the oracles SJF (nobody is stopped), SRTF and SRSF (running and
waiting jobs compete); with predictions in `runtime_s` the same orders need no oracle. A job of
which nobody knows the run time comes last.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from policies.line import in_line, size_of
from scheduler.model.job import WaitingJob
from scheduler.model.ports import OrderedJob
from scheduler.model.quantity import UtcSeconds


class ShortestFirst:
    """Least remaining run time; ties by submission, then id."""

    name = "shortest-first"

    def order(self, waiting: Sequence[WaitingJob], now: UtcSeconds) -> Sequence[OrderedJob]:
        """Jobs whose backoff is over, the shortest first."""
        return in_line(waiting, now, lambda job: (_left_s(job), job.submitted_at, job.id))


class SmallestFirst:
    """Least remaining service, run time times GPUs; ties by submission, then id."""

    name = "smallest-first"

    def order(self, waiting: Sequence[WaitingJob], now: UtcSeconds) -> Sequence[OrderedJob]:
        """Jobs whose backoff is over, the smallest first."""
        return in_line(
            waiting,
            now,
            lambda job: (_left_s(job) * size_of(job.shape), job.submitted_at, job.id),
        )


def _left_s(job: WaitingJob) -> float:
    return math.inf if job.runtime_s is None else job.runtime_s
