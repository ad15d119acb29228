"""Conducts cycles: wakes on events, lets bursts gather, never polls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from scheduler.cycle import CycleContext, CycleReport, CycleState, run_cycle
from scheduler.errors import BusyError, StorageError

log = structlog.get_logger(__name__)

RETRY_STORAGE_S = 1.0
RETRY_SOLVER_S = (0.5, 1.0, 2.0, 5.0, 15.0, 30.0)
"""Rests after 1, 2, ... cycles in a row without any plan: a broken solver must not spin."""


@dataclass(frozen=True, slots=True)
class Pace:
    """When cycles run.

    Attributes:
        batch_window_s: wait after the first wake-up, so that a burst becomes one cycle.
        rest_ratio: rest this multiple of the last cycle's duration, so that deciding never takes
            more than its share of the host. Where the cycle left jobs to the next that have a place
            already, only the time counts that the daemon itself was busy: its requests keep their
            share, and a backlog does not wait for the solver twice.
    """

    batch_window_s: float
    rest_ratio: float


class Conductor:
    """Runs cycles one after the other, each woken by an event or by the end of a backoff."""

    def __init__(
        self, context: CycleContext, pace: Pace, finished: Callable[[CycleReport], None]
    ) -> None:
        """Wire the conductor.

        Args:
            context: what cycles work with.
            pace: batching and rest.
            finished: called after each cycle that decided.
        """
        self._context = context
        self._pace = pace
        self._finished = finished
        self._woken = asyncio.Event()
        self._state = CycleState()
        self._failures = 0
        self.trouble = "no cycle has run yet"
        """Empty while cycles work; else what is wrong, for readiness."""

    def wake(self) -> None:
        """Ask for a cycle soon. Call from the event loop's thread; cheap and idempotent."""
        self._woken.set()

    async def run(self) -> None:
        """Run cycles until cancelled.

        Raises:
            FencedError: another leader has taken over.
        """
        force = True
        while True:
            try:
                self._state, report = await run_cycle(self._context, self._state, force=force)
                self.trouble = "; ".join(f"plan rejected: {v.message}" for v in report.rejected[:1])
            except (StorageError, BusyError) as error:
                # Nothing was decided; running jobs are not touched, waiting ones keep their place.
                self.trouble = str(error)
                log.warning("cycle postponed", why=str(error))
                force = True
                await asyncio.sleep(RETRY_STORAGE_S)
                continue
            if report.decided:
                self._finished(report)
            force = await self._rest(report)

    async def _rest(self, report: CycleReport) -> bool:
        """Sleep until there is a reason for a cycle; True if it must decide anew regardless."""
        if report.failed:
            rest_s = RETRY_SOLVER_S[min(self._failures, len(RETRY_SOLVER_S) - 1)]
            self._failures += 1
            await asyncio.sleep(rest_s)
            return True
        self._failures = 0
        busy_s = report.duration_s - (report.solver_s if report.deferred else 0.0)
        await asyncio.sleep(self._pace.rest_ratio * busy_s)
        if report.deferred:  # there is more to start: no need to be woken
            self._woken.clear()
            return True
        if report.refused:  # the world had moved on: look again at once
            await asyncio.sleep(self._pace.batch_window_s)
            self._woken.clear()
            return True
        timeout_s = None
        if report.next_eligible_at is not None:
            timeout_s = max(0.0, report.next_eligible_at - self._context.clock.now())
        try:
            await asyncio.wait_for(self._woken.wait(), timeout_s)
        except TimeoutError:
            return True
        await asyncio.sleep(self._pace.batch_window_s)
        self._woken.clear()
        return False
