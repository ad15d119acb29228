"""Takes pods away: says why on the pod, then deletes it, and never another one of its name."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from scheduler.clock import Clock, iso
from scheduler.execution.kubernetes.conditions import set_condition
from scheduler.execution.kubernetes.pods import PodRef
from scheduler.execution.kubernetes.server import ApiServer, Document, Lane, RejectedError

_MESSAGE_MAX = 4096


class EvictOutcome(StrEnum):
    """What became of an order to take a pod away."""

    GOING = "going"
    """It is being deleted; its room is free only when it is gone or has ended."""
    GONE = "gone"
    """There is no such pod any more."""
    CHANGED = "changed"
    """It is no longer as it was when this was decided (resource version)."""


@dataclass(frozen=True, slots=True)
class Eviction:
    """What became of one pod; `message` says why when it stays."""

    outcome: EvictOutcome
    message: str = ""


class Evictor:
    """Deletes pods under preconditions. All methods raise what requests raise (`server.py`).

    After OutcomeUnknownError repeat the call: deleting twice is the same as once.

    Args:
        server: the cluster.
        clock: for the time of conditions.
    """

    def __init__(self, server: ApiServer, clock: Clock) -> None:
        self._server = server
        self._clock = clock

    async def preempt(
        self,
        pod: PodRef,
        message: str,
        *,
        grace_s: float | None = None,
    ) -> Eviction:
        """Mark the pod as disrupted by us, then delete it, as kube-scheduler does.

        The mark (`DisruptionTarget`) comes first: a Job's `podFailurePolicy` reads it, so that a
        preemption does not count as a failure of the user's program. Budgets are looked at when
        victims are chosen (`budgets`): the eviction API would honour them pod by pod, and leave
        half a gang behind.

        Args:
            pod: the victim.
            message: who needs its room, for people.
            grace_s: seconds between SIGTERM and SIGKILL; None leaves the pod's own.
        """
        # Whether the pod is gone is for the deletion to tell.
        await self.mark(pod, message)
        return await self.delete(pod, grace_s=grace_s)

    async def mark(self, pod: PodRef, message: str, *, version: str = "") -> str:
        """Say on the pod that its end is our doing, not its own.

        Args:
            pod: which one.
            message: why, for people.
            version: only if its resource version is still this one.

        Returns:
            Its new resource version; "" if it is gone or has changed.
        """
        condition = {
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "PreemptionByScheduler",
            "message": message[:_MESSAGE_MAX],
            "lastTransitionTime": iso(self._clock.now()),
        }
        return await set_condition(self._server, pod, condition, Lane.WRITE, version=version)

    async def delete(
        self, pod: PodRef, *, grace_s: float | None = None, version: str = ""
    ) -> Eviction:
        """Delete the pod, if it is still this one and, where `version` is given, unchanged."""
        path = f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}"
        try:
            await self._server.delete(path, delete_options(pod, grace_s, version))
        except RejectedError as error:
            return await self._refused(pod, error)
        return Eviction(EvictOutcome.GOING)

    async def _refused(self, pod: PodRef, error: RejectedError) -> Eviction:
        """What a refusal means; a conflict is told apart by reading the pod."""
        if error.missing:
            return Eviction(EvictOutcome.GONE)
        if not error.conflict:
            raise error
        try:
            found = await self._server.get(f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}")
        except RejectedError as again:
            if again.missing:
                return Eviction(EvictOutcome.GONE)
            raise
        if found["metadata"]["uid"] != pod.uid:
            return Eviction(EvictOutcome.GONE)
        return Eviction(EvictOutcome.CHANGED, error.message)


def delete_options(pod: PodRef, grace_s: float | None = None, version: str = "") -> Document:
    """DeleteOptions that spare every other pod of the same name.

    The grace is at least a second: 0 would take the pod off the books while its processes may
    still run on the node.
    """
    preconditions = {"uid": pod.uid}
    if version:
        preconditions["resourceVersion"] = version
    options: Document = {
        "apiVersion": "v1",
        "kind": "DeleteOptions",
        "preconditions": preconditions,
    }
    if grace_s is not None:
        options["gracePeriodSeconds"] = max(1, math.ceil(grace_s))
    return options
