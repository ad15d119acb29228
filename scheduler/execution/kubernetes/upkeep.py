"""Looks after pods of our own making, which have no controller: that is our part.

A gang of which one pod has failed, or was deleted, is ended as a whole: its other ranks would wait
for that one until their limits. So is one of which a pod does not start, for want of its image for
instance. And pods that are over and whose end is stored are deleted after a while, together with
their logs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import structlog

from scheduler.clock import Clock
from scheduler.errors import HaversackError
from scheduler.execution.kubernetes import labels
from scheduler.execution.kubernetes.cluster import Cluster
from scheduler.execution.kubernetes.evict import Evictor
from scheduler.execution.kubernetes.pods import Phase, Pod
from scheduler.execution.kubernetes.raw import count_in, mapping, mappings, text
from scheduler.execution.kubernetes.server import ApiServer
from scheduler.model.quantity import AttemptId

log = structlog.get_logger(__name__)

_GATHER_S = 0.02
_LOOK_S = 15.0
"""All own pods are looked at so often: what failed is tried again, what is old is deleted."""


class Upkeep:
    """Ends broken gangs of our own, and clears away. Make it in the event loop.

    Args:
        server: the cluster.
        cluster: the picture; its `told` must call `wake`.
        evictor: deletes.
        clock: says how old pods are.
        keep_s: how long pods stay whose end is stored.
        start_s: how long a pod may take to start.
        given_up: told which attempt, and why, before the first of its pods is deleted for that.
        sleep: waits.
    """

    def __init__(
        self,
        server: ApiServer,
        cluster: Cluster,
        evictor: Evictor,
        clock: Clock,
        *,
        keep_s: float,
        start_s: float,
        given_up: Callable[[AttemptId, str], None],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._server = server
        self._cluster = cluster
        self._evictor = evictor
        self._clock = clock
        self._keep_s = keep_s
        self._start_s = start_s
        self._given_up = given_up
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
        everything_at = self._loop.time() + _LOOK_S
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(everything_at):
                    await self._wake.wait()
            await self._sleep(_GATHER_S)
            self._woken = False
            self._wake.clear()
            attempts = self._cluster.take_own_changed()
            if self._loop.time() >= everything_at:
                everything_at = self._loop.time() + _LOOK_S
                attempts = self._cluster.own_attempts()
            await self.look(attempts)

    async def look(self, attempt_ids: Sequence[AttemptId]) -> None:
        """Do what is due for these attempts. What fails is logged, and due again.

        Cost: O(pods of them), and a request for each that is deleted.
        """
        now = self._clock.now()
        for attempt_id in attempt_ids:
            pods = self._cluster.own(attempt_id)
            late = next((pod for pod in pods if self._is_late(pod, now)), None)
            due = [pod for pod in pods if _may_act(pod)] if late else _left_behind(pods)
            due += [pod for pod in pods if self._is_old(pod, now)]
            if not due:
                continue
            try:
                if late:
                    self._given_up(attempt_id, await self._why(late))
                log.info("deleting pods", attempt=attempt_id, pods=[pod.ref.name for pod in due])
                await asyncio.gather(*(self._evictor.delete(pod.ref) for pod in due))
            except HaversackError as error:
                log.warning("pods are not deleted yet", attempt=attempt_id, why=str(error))

    def _is_late(self, pod: Pod, now: float) -> bool:
        starting = bool(pod.node_name) and pod.phase is Phase.PENDING and _may_act(pod)
        return starting and now - pod.created_at >= self._start_s

    async def _why(self, pod: Pod) -> str:
        """Why a pod does not start, as its node tells it. Raises what requests raise."""
        path = f"/api/v1/namespaces/{pod.ref.namespace}/pods/{pod.ref.name}"
        status = mapping((await self._server.get(path)).get("status"))
        for _, container in mappings(status.get("containerStatuses")):
            waiting = mapping(mapping(container.get("state")).get("waiting"))
            told = ": ".join(
                filter(None, (text(waiting.get(key)) for key in ("reason", "message")))
            )
            if told:
                return f"pod {pod.ref.name} did not start within {self._start_s:g} s: {told}"
        return f"pod {pod.ref.name} did not start within {self._start_s:g} s"

    def _is_old(self, pod: Pod, now: float) -> bool:
        if not pod.over or pod.kept or pod.deleting:
            return False
        ended_at = pod.ending.finished_at if pod.ending is not None else 0.0
        return now - (ended_at or pod.created_at) >= self._keep_s


def _left_behind(pods: Sequence[Pod]) -> list[Pod]:
    """Those of a gang that may still do something although one of them is lost to it.

    All are made before the first is bound. So if one is bound, those that are missing are gone.
    """
    bound = any(pod.node_name for pod in pods)
    gone = bound and len(pods) < max(count_in(pod.annotation(labels.TASKS)) or 1 for pod in pods)
    if not gone and not any(pod.phase is Phase.FAILED or pod.dropped for pod in pods):
        return []
    return [pod for pod in pods if _may_act(pod)]


def _may_act(pod: Pod) -> bool:
    """Whether it does something, or will, and nobody has deleted it."""
    return not pod.over and not pod.deleting
