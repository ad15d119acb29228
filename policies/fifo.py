"""First in, first out: the oldest job first, whatever its priority."""

from __future__ import annotations

from collections.abc import Sequence

from policies.line import in_line
from scheduler.model.job import WaitingJob
from scheduler.model.ports import OrderedJob
from scheduler.model.quantity import UtcSeconds


class Fifo:
    """Submission order; ties by id."""

    name = "fifo"

    def order(self, waiting: Sequence[WaitingJob], now: UtcSeconds) -> Sequence[OrderedJob]:
        """Jobs whose backoff is over, oldest first."""
        return in_line(waiting, now, lambda job: (job.submitted_at, job.id))
