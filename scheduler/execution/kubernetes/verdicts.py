"""What kube-scheduler says of pods that were pinned and released, and what follows from it.

A pin cannot be moved. So a gang of which kube-scheduler will not bind a member where it was pinned
is given up after a while, as a whole: its pods are deleted, their maker makes them anew, and the
new ones are kept off that node for some minutes. A lone pod that nobody would make again stays
where it is, with its room, and its condition says what kube-scheduler waits for.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import structlog

from scheduler.clock import Clock
from scheduler.errors import FencedError, HaversackError
from scheduler.execution.kubernetes import labels
from scheduler.execution.kubernetes.avoiding import Avoided
from scheduler.execution.kubernetes.cluster import Cluster
from scheduler.execution.kubernetes.conditions import SCHEDULER_ERROR, UNSCHEDULABLE
from scheduler.execution.kubernetes.marks import attempt_of, pin_of
from scheduler.execution.kubernetes.pinning import Pinner
from scheduler.execution.kubernetes.pods import Pod
from scheduler.execution.kubernetes.raw import count_in
from scheduler.model.quantity import AttemptId

log = structlog.get_logger(__name__)

LOOK_S: Final = 1.0


class Verdicts:
    """Looks after pods from their release until they are bound.

    Args:
        cluster: the picture.
        pinner: takes pods back.
        avoided: where it is kept which nodes will not do.
        clock: for how long something has been so.
        epoch: ours.
        limit_s: how long kube-scheduler may refuse a pod before its gang is given up.
        given_up: told which attempt, and why, before the first of its pods is deleted.
        reform: told of waiting pods to which a node is open again.
        sleep: waits between looks.
    """

    def __init__(
        self,
        cluster: Cluster,
        pinner: Pinner,
        avoided: Avoided,
        clock: Clock,
        *,
        epoch: int,
        limit_s: float,
        given_up: Callable[[AttemptId, str], None],
        reform: Callable[[Iterable[Pod]], None],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._cluster = cluster
        self._pinner = pinner
        self._avoided = avoided
        self._clock = clock
        self._epoch = epoch
        self._limit_s = limit_s
        self._given_up = given_up
        self._reform = reform
        self._sleep = sleep
        self._since_s: dict[AttemptId, float] = {}
        self._leaving: dict[AttemptId, str] = {}

    async def run(self) -> None:
        """Look again and again until cancelled.

        Raises:
            FencedError: another leader has taken over.
        """
        while True:
            await self._sleep(LOOK_S)
            try:
                await self.look()
            except FencedError:
                raise
            except HaversackError as error:
                log.warning("a gang is not given up yet; trying again", why=str(error))

    async def look(self) -> None:
        """Look once. O(pods that are pinned and not bound).

        Raises:
            FencedError: another leader has taken over.
            HaversackError: the API server does not answer.
        """
        now_s = self._clock.monotonic_s()
        troubles = self._troubles()
        self._since_s = {each: self._since_s.get(each, now_s) for each in troubles}
        for attempt_id, (refused, why) in troubles.items():
            if attempt_id in self._leaving or now_s - self._since_s[attempt_id] < self._limit_s:
                continue
            for pod in refused:
                self._avoided.remember(pod)
            log.warning("a gang is given up", attempt=attempt_id, why=why)
            self._leaving[attempt_id] = why
            self._given_up(attempt_id, why)
        for attempt_id, why in tuple(self._leaving.items()):
            await self._take_back(attempt_id, why)
        again = self._avoided.lapsed(self._cluster.waiting())
        if again:
            self._reform(again)

    def _troubles(self) -> dict[AttemptId, tuple[list[Pod], str]]:
        """Attempts that are not whole: members that were refused, and what is wrong."""
        pinned: defaultdict[AttemptId, list[Pod]] = defaultdict(list)
        for pod in self._cluster.pinned():
            attempt_id = attempt_of(pod)
            if attempt_id is not None and not _is_left_alone(pod):
                pinned[attempt_id].append(pod)
        found = {}
        for attempt_id, pods in sorted(pinned.items()):
            refused = [pod for pod in pods if _is_refused(pod)]
            if refused:
                found[attempt_id] = (refused, _told(refused[0]))
            elif len(self._cluster.members(attempt_id).bound) < _size(pods[0]):
                found[attempt_id] = ([], "some of its pods were gone before all were bound")
        return found

    async def _take_back(self, attempt_id: AttemptId, why: str) -> None:
        found = self._cluster.members(attempt_id)
        left = [
            pod
            for pod in (*found.bound, *found.unbound)
            if attempt_of(pod) == attempt_id and not pod.phase.terminal and not pod.deleting
        ]
        if not left or await self._pinner.take_back(left, why, self._epoch):
            del self._leaving[attempt_id]


def _size(pod: Pod) -> int:
    return count_in(pod.annotation(labels.TASKS)) or 1


def _is_left_alone(pod: Pod) -> bool:
    """Whether it is no gang, and nobody would make it again."""
    return pod.owner is None and _size(pod) == 1


def _is_refused(pod: Pod) -> bool:
    said = pod.scheduled
    return said is not None and said.status == "False" and said.reason in _REFUSALS


_REFUSALS = (UNSCHEDULABLE, SCHEDULER_ERROR)


def _told(pod: Pod) -> str:
    said = pod.scheduled.message if pod.scheduled is not None else ""
    return f"kube-scheduler does not bind pod {pod.ref.name} to {pin_of(pod)}: {said}"
