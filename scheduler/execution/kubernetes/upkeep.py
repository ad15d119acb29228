"""Looks after pods of our own making, which have no controller: that is our part.

A gang of which one pod has failed, or was deleted, is ended as a whole: its other ranks would wait
for that one until their limits. And pods that are over and whose end is stored are deleted after a
while, together with their logs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import structlog

from scheduler.clock import Clock
from scheduler.errors import HaversackError
from scheduler.execution.kubernetes.cluster import Cluster
from scheduler.execution.kubernetes.evict import Evictor
from scheduler.execution.kubernetes.pods import Phase, Pod
from scheduler.model.quantity import AttemptId

log = structlog.get_logger(__name__)

_GATHER_S = 0.02
_LOOK_S = 15.0
"""All own pods are looked at so often: what failed is tried again, what is old is deleted."""


class Upkeep:
    """Ends broken gangs of our own, and clears away. Make it in the event loop.

    Args:
        cluster: the picture; its `told` must call `wake`.
        evictor: deletes.
        clock: says how old pods are.
        keep_s: how long pods stay whose end is stored.
        sleep: waits.
    """

    def __init__(
        self,
        cluster: Cluster,
        evictor: Evictor,
        clock: Clock,
        *,
        keep_s: float,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._cluster = cluster
        self._evictor = evictor
        self._clock = clock
        self._keep_s = keep_s
        self._sleep = sleep
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._woken = False

    def wake(self) -> None:
        """There is news. Call it from any thread."""
        if not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self._wake.set)

    async def run(self) -> None:
        """Look after what changes, and now and then after everything, until cancelled."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(min(_LOOK_S, max(1.0, self._keep_s))):
                    await self._wake.wait()
            everything = not self._wake.is_set()
            await self._sleep(_GATHER_S)
            self._woken = False
            self._wake.clear()
            changed = self._cluster.take_own_changed()
            await self.look(self._cluster.own_attempts() if everything else changed)

    async def look(self, attempt_ids: Sequence[AttemptId]) -> None:
        """Do what is due for these attempts. What fails is logged, and due again.

        Cost: O(pods of them), and a request for each that is deleted.
        """
        now = self._clock.now()
        for attempt_id in attempt_ids:
            pods = self._cluster.own(attempt_id)
            due = [*_left_behind(pods), *(pod for pod in pods if self._is_old(pod, now))]
            if not due:
                continue
            log.info("deleting pods", attempt=attempt_id, pods=[pod.ref.name for pod in due])
            try:
                await asyncio.gather(*(self._evictor.delete(pod.ref) for pod in due))
            except HaversackError as error:
                log.warning("pods are not deleted yet", attempt=attempt_id, why=str(error))

    def _is_old(self, pod: Pod, now: float) -> bool:
        if not pod.over or pod.kept or pod.deleting:
            return False
        ended_at = pod.ending.finished_at if pod.ending is not None else 0.0
        return now - (ended_at or pod.created_at) >= self._keep_s


def _left_behind(pods: Sequence[Pod]) -> list[Pod]:
    """Those of a gang that may still do something although one of them is lost to it."""
    if not any(pod.phase is Phase.FAILED or pod.dropped for pod in pods):
        return []
    return [pod for pod in pods if not pod.over and not pod.deleting]
