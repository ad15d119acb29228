"""Tells pods why they wait, or where they are pinned: a condition for programs, events for people.

What is told never holds up what is done: the newest message of each pod waits here until its turn,
and the server's lane for reports bounds how fast turns come.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import structlog

from scheduler.errors import HaversackError
from scheduler.execution.kubernetes import labels
from scheduler.execution.kubernetes.conditions import (
    SCHEDULING_GATED,
    UNSCHEDULABLE,
    Conditions,
    says,
)
from scheduler.execution.kubernetes.events import Events
from scheduler.execution.kubernetes.pods import Pod, PodRef

log = structlog.get_logger(__name__)

_AT_ONCE = 4


class Teller:
    """Writes messages onto pods, each only when the pod does not say it already.

    Args:
        conditions: writes PodScheduled.
        events: writes events.
        current: a pod as it is now, by `str(pod.ref)`; None if it is gone.
    """

    def __init__(
        self, conditions: Conditions, events: Events, current: Callable[[str], Pod | None]
    ) -> None:
        self._conditions = conditions
        self._events = events
        self._current = current
        self._next: dict[str, str] = {}
        self._pinned: dict[PodRef, tuple[str, str]] = {}
        self._news = asyncio.Event()

    def wait_for(self, messages: Iterable[tuple[Pod, str]]) -> None:
        """These pods wait, for these reasons. Call it in the event loop's thread."""
        for pod, message in messages:
            key = str(pod.ref)
            if says(pod.scheduled, message, _reason(pod)):
                self._next.pop(key, None)
            else:
                self._next[key] = message
                self._news.set()

    def pinned(self, pod: PodRef, node: str, path: str) -> None:
        """The pod is pinned to this node; `path` says why it takes that way."""
        self._pinned[pod] = node, path
        self._news.set()

    async def run(self) -> None:
        """Tell until cancelled. No pod and no fault of the server ends it."""
        while True:
            await self._news.wait()
            self._news.clear()
            while self._next or self._pinned:
                waiting = [(key, self._next.pop(key)) for key in list(self._next)[:_AT_ONCE]]
                placed = [(pod, self._pinned.pop(pod)) for pod in list(self._pinned)[:_AT_ONCE]]
                await asyncio.gather(
                    *(self._tell(*each) for each in waiting),
                    *(self._events.pinned(pod, *where) for pod, where in placed),
                )

    async def _tell(self, key: str, message: str) -> None:
        pod = self._current(key)
        if pod is None or not pod.waiting:
            return
        try:
            written = await self._conditions.waits(
                pod.ref, message, seen=pod.scheduled, reason=_reason(pod), version=pod.version
            )
            if written:
                await self._events.waits(pod.ref, message)
        except HaversackError as error:
            # The next decision tells it again; a report that fails must not stop anything.
            log.warning("a pod was not told why it waits", pod=key, why=str(error))
        except Exception:
            log.exception("a pod cannot be told why it waits", pod=key)


def _reason(pod: Pod) -> str:
    """Where kube-scheduler is still to be asked, that no node will do is not for us to say."""
    left = pod.scheduler_name == labels.KUBE_SCHEDULER_NAME
    return SCHEDULING_GATED if left else UNSCHEDULABLE
