"""Writes what we know of a pod into its status, where users and autoscalers look."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from scheduler.clock import Clock, iso
from scheduler.execution.kubernetes.pods import PodRef, Scheduled
from scheduler.execution.kubernetes.server import (
    STRATEGIC_MERGE_PATCH,
    ApiServer,
    Document,
    Lane,
    RejectedError,
)

UNSCHEDULABLE: Final = "Unschedulable"
"""No node will do now; cluster autoscalers act on it, so it is never written idly."""
SCHEDULER_ERROR: Final = "SchedulerError"
"""The fault is ours or the cluster's, not the pod's."""

SCHEDULING_GATED: Final = "SchedulingGated"
"""A gate holds the pod; kube-scheduler's word is still to come."""

_MESSAGE_MAX = 4096
_REMEMBERED_MAX = 50_000


async def set_condition(
    server: ApiServer, pod: PodRef, condition: Document, lane: Lane, *, version: str = ""
) -> str:
    """Set one condition of a pod; the others stay. Raises what requests raise (`server.py`).

    Args:
        server: the cluster.
        pod: which one; another pod of the same name is left alone.
        condition: as it goes into `status.conditions`.
        lane: what it may be held up by.
        version: only if the pod's resource version is still this one.

    Returns:
        The pod's new resource version; "" if the pod is gone or has changed.
    """
    metadata = {"uid": pod.uid} | ({"resourceVersion": version} if version else {})
    path = f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}/status"
    # Conditions merge by their type in a strategic merge patch.
    body = {"metadata": metadata, "status": {"conditions": [condition]}}
    try:
        changed = await server.patch(path, body, kind=STRATEGIC_MERGE_PATCH, lane=lane)
    except RejectedError as error:
        another = error.invalid and "metadata.uid" in error.message
        if another or error.missing or error.conflict:
            return ""
        raise
    return str(changed["metadata"]["resourceVersion"])


def says(seen: Scheduled | None, message: str, reason: str = UNSCHEDULABLE) -> bool:
    """Whether a pod's PodScheduled condition says this already."""
    return seen == Scheduled("False", reason, message[:_MESSAGE_MAX])


class Conditions:
    """The PodScheduled conditions of pods that wait; each is written only when it changes.

    Args:
        server: the cluster.
        clock: for the time of transitions.
    """

    def __init__(self, server: ApiServer, clock: Clock) -> None:
        self._server = server
        self._clock = clock
        self._written: OrderedDict[str, tuple[str, str]] = OrderedDict()

    async def waits(
        self,
        pod: PodRef,
        message: str,
        *,
        seen: Scheduled | None,
        reason: str = UNSCHEDULABLE,
        version: str = "",
    ) -> bool:
        """Say on the pod why it has no node yet. Raises what requests raise.

        Args:
            pod: which one.
            message: for people; cut at 4,096 characters.
            seen: the condition it has, as far as is known.
            reason: UNSCHEDULABLE, SCHEDULER_ERROR or SCHEDULING_GATED.
            version: only if the pod's resource version is still this one: nobody who was bound
                meanwhile is said to wait.

        Returns:
            Whether anything was written.
        """
        message = message[:_MESSAGE_MAX]
        told = (reason, message)
        before = self._written.get(pod.uid)
        if before is None and seen is not None and seen.status == "False":
            before = (seen.reason, seen.message)
        if before == told:
            return False
        condition = {
            "type": "PodScheduled",
            "status": "False",
            "reason": reason,
            "message": message,
        }
        if seen is None or seen.status != "False":
            condition["lastTransitionTime"] = iso(self._clock.now()) or ""
        if not await set_condition(self._server, pod, condition, Lane.REPORT, version=version):
            self.forget(pod)
            return False
        self._written[pod.uid] = told
        self._written.move_to_end(pod.uid)
        if len(self._written) > _REMEMBERED_MAX:
            self._written.popitem(last=False)
        return True

    def forget(self, pod: PodRef) -> None:
        """The pod is bound or gone."""
        self._written.pop(pod.uid, None)
