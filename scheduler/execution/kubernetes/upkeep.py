"""Looks after pods of our own making, which have no controller: that is our part.

A gang of which one pod has failed, or was deleted, is ended as a whole: its other ranks would wait
for that one until their limits. So is one of which a pod does not start, for want of its image for
instance. And pods that are over and whose end is stored are deleted after a while, together with
their logs.

That a pod does not start is believed of no picture, which may be old: after a pause, ours or the
connection's, it still shows as Pending what has run for long. Only the pod itself tells, and only
as it was read is it deleted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import structlog

from scheduler.clock import Clock
from scheduler.errors import HaversackError
from scheduler.execution.kubernetes import labels
from scheduler.execution.kubernetes.binder import Binder
from scheduler.execution.kubernetes.cluster import Cluster
from scheduler.execution.kubernetes.evict import Evictor, EvictOutcome
from scheduler.execution.kubernetes.pods import Phase, Pod, pod_of
from scheduler.execution.kubernetes.raw import Json, count_in, instant, mapping, mappings, text
from scheduler.execution.kubernetes.server import OutcomeUnknownError
from scheduler.model.quantity import AttemptId, UtcSeconds

log = structlog.get_logger(__name__)

_GATHER_S = 0.02
_LOOK_S = 15.0
"""All own pods are looked at so often: what failed is tried again, what is old is deleted."""


class Upkeep:
    """Ends broken gangs of our own, and clears away. Make it in the event loop.

    Args:
        binder: reads pods, and whether we still lead.
        cluster: the picture; its `told` must call `wake`.
        evictor: deletes.
        clock: says how old pods are.
        epoch: ours.
        keep_s: how long pods stay whose end is stored.
        start_s: how long a pod may take to start once it is bound.
        given_up: told which attempt ends because a pod does not start, and why.
        sleep: waits.
    """

    def __init__(
        self,
        binder: Binder,
        cluster: Cluster,
        evictor: Evictor,
        clock: Clock,
        *,
        epoch: int,
        keep_s: float,
        start_s: float,
        given_up: Callable[[AttemptId, str], None],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._binder = binder
        self._cluster = cluster
        self._evictor = evictor
        self._clock = clock
        self._epoch = epoch
        self._keep_s = keep_s
        self._start_s = start_s
        self._given_up = given_up
        self._sleep = sleep
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._woken = False
        self._ask_at: dict[AttemptId, float] = {}

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

        Cost: O(pods of them), a request for each that is deleted, and one for each attempt of
        which some are. Those that seem not to start are read besides, seldom.
        """
        for attempt_id in attempt_ids:
            try:
                await self._look_after(attempt_id, self._clock.now())
            except HaversackError as error:
                log.warning("pods are not deleted yet", attempt=attempt_id, why=str(error))

    async def _look_after(self, attempt_id: AttemptId, now: float) -> None:
        """Do what is due for one attempt, if we still lead. Raises what requests raise."""
        pods = self._cluster.own(attempt_id)
        due = _left_behind(pods)
        late = None if due else await self._late(attempt_id, pods, now)
        due += [pod for pod in pods if self._is_old(pod, now)]
        if late is None and not due:
            return
        if not await self._binder.leads(self._epoch):
            log.warning("pods are left to another leader", attempt=attempt_id)
            return
        if late is not None and await self._end_late(attempt_id, late):
            due += [pod for pod in pods if _may_act(pod) and pod.ref != late.pod.ref]
        if due:
            log.info("deleting pods", attempt=attempt_id, pods=[pod.ref.name for pod in due])
        await asyncio.gather(*(self._evictor.delete(pod.ref) for pod in due))

    async def _late(
        self, attempt_id: AttemptId, pods: Sequence[Pod], now: float
    ) -> _Unstarted | None:
        """A pod that does not start; the picture only says which ones to read.

        They are read again when the first of them may be late: O(pods) requests each time.
        """
        doubtful = [pod for pod in pods if _starts(pod) and now - pod.created_at >= self._start_s]
        if not doubtful:
            self._ask_at.pop(attempt_id, None)
            return None
        if now < self._ask_at.get(attempt_id, 0.0):
            return None
        read = await asyncio.gather(*(self._binder.read(pod.ref) for pod in doubtful))
        found = [each for each in map(_unstarted, filter(None, read)) if each is not None]
        first = min(found, key=lambda each: each.bound_at, default=None)
        if first is not None and now - first.bound_at >= self._start_s:
            return first
        self._ask_at[attempt_id] = first.bound_at + self._start_s if first else now + _LOOK_S
        return None

    async def _end_late(self, attempt_id: AttemptId, late: _Unstarted) -> bool:
        """Delete a pod that does not start, just as it was read; whether its gang goes too."""
        why = f"pod {late.pod.ref.name} did not start within {self._start_s:g} s{late.told}"
        log.info("a pod does not start", attempt=attempt_id, why=why)
        try:
            done = await self._evictor.delete(late.pod.ref, version=late.pod.version)
        except OutcomeUnknownError:
            self._given_up(attempt_id, why)  # for it may be going
            raise
        if done.outcome is EvictOutcome.CHANGED:
            return False  # perhaps it starts now: it is read again
        self._given_up(attempt_id, why)
        return True

    def _is_old(self, pod: Pod, now: float) -> bool:
        if not pod.over or pod.kept or pod.deleting:
            return False
        ended_at = pod.ending.finished_at if pod.ending is not None else 0.0
        return now - (ended_at or pod.created_at) >= self._keep_s


@dataclass(frozen=True, slots=True)
class _Unstarted:
    """A pod that is bound and has not started, as the server has it.

    Attributes:
        bound_at: by the API server's clock.
        told: what its node says, after a colon; or "".
    """

    pod: Pod
    bound_at: UtcSeconds
    told: str


def _unstarted(raw: Json) -> _Unstarted | None:
    """None for one that has started, or has no node, or does not say when it got it."""
    pod, status = pod_of(raw), mapping(raw.get("status"))
    bound_at = max(
        (
            instant(condition.get("lastTransitionTime"))
            for _, condition in mappings(status.get("conditions"))
            if condition.get("type") == "PodScheduled" and condition.get("status") == "True"
        ),
        default=UtcSeconds(0.0),
    )
    return _Unstarted(pod, bound_at, _told(status)) if bound_at and _starts(pod) else None


def _told(status: Json) -> str:
    """Why a container waits, as its node tells it."""
    for _, container in mappings(status.get("containerStatuses")):
        waiting = mapping(mapping(container.get("state")).get("waiting"))
        told = [text(waiting.get(key)) for key in ("reason", "message")]
        if any(told):
            return "".join(f": {each}" for each in told if each)
    return ""


def _left_behind(pods: Sequence[Pod]) -> list[Pod]:
    """Those of a gang that may still do something although one of them is lost to it.

    All are made before the first is bound. So if one is bound, those that are missing are gone.
    """
    bound = any(pod.node_name for pod in pods)
    gone = bound and len(pods) < max(count_in(pod.annotation(labels.TASKS)) or 1 for pod in pods)
    if not gone and not any(pod.phase is Phase.FAILED or pod.dropped for pod in pods):
        return []
    return [pod for pod in pods if _may_act(pod)]


def _starts(pod: Pod) -> bool:
    """Whether it has a node and does not run there yet."""
    return bool(pod.node_name) and pod.phase is Phase.PENDING and _may_act(pod)


def _may_act(pod: Pod) -> bool:
    """Whether it does something, or will, and nobody has deleted it."""
    return not pod.over and not pod.deleting
