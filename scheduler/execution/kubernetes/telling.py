"""Tells pods why they wait, or where they are pinned: a condition for programs, events for people.

What is told never holds up what is done: the newest message of each pod waits here until its turn,
and the server's lane for reports bounds how fast turns come. Conditions go first, so that all pods
of a gang know why they wait before the first event about it is written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import islice
from typing import TypeVar

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

_AT_ONCE = 32
"""Taken up together; how many are under way is for the server's lane to bound."""
_SETTLE_S = 0.5
"""A gang comes pod by pod: how many are still missing is told once that stays as it is so long."""
K = TypeVar("K")
V = TypeVar("V")


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
        self._unsettled: dict[str, tuple[str, float]] = {}
        self._pinned: dict[PodRef, tuple[str, str]] = {}
        self._written: dict[PodRef, str] = {}
        self._news = asyncio.Event()

    def wait_for(self, messages: Iterable[tuple[Pod, str]]) -> None:
        """These pods wait, for these reasons. Call it in the event loop's thread."""
        for pod, message in messages:
            key = str(pod.ref)
            self._unsettled.pop(key, None)
            if says(pod.scheduled, message, _reason(pod)):
                self._next.pop(key, None)
            else:
                self._next[key] = message
                self._news.set()

    def gather(self, messages: Iterable[tuple[Pod, str]]) -> None:
        """These pods are in no gang yet, for these reasons, which may change in a moment."""
        due_s = asyncio.get_running_loop().time() + _SETTLE_S
        for pod, message in messages:
            key = str(pod.ref)
            self._next.pop(key, None)
            if self._unsettled.get(key, ("", 0.0))[0] != message:
                self._unsettled.pop(key, None)  # those that are due first stand first
                self._unsettled[key] = message, due_s
                self._news.set()

    def pinned(self, pod: PodRef, node: str, path: str) -> None:
        """The pod is pinned to this node; `path` says why it takes that way."""
        self._pinned[pod] = node, path
        self._news.set()

    async def run(self) -> None:
        """Tell until cancelled. No pod and no fault of the server ends it."""
        while True:
            rest_s = self._settle()
            with suppress(TimeoutError):  # then something has settled
                await asyncio.wait_for(self._news.wait(), rest_s)
            self._news.clear()
            while self._next or self._pinned or self._written:
                waiting, placed = _first(self._next), _first(self._pinned)
                written = [] if waiting else _first(self._written)
                await asyncio.gather(
                    *(self._tell(*each) for each in waiting),
                    *(self._events.pinned(pod, *where) for pod, where in placed),
                    *(self._announce(*each) for each in written),
                )
                self._settle()

    def _settle(self) -> float | None:
        """Line up what has stayed as it is; seconds until more of it may have, or None."""
        now_s = asyncio.get_running_loop().time()
        while self._unsettled:
            key, (message, due_s) = next(iter(self._unsettled.items()))
            if due_s > now_s:
                return due_s - now_s
            del self._unsettled[key]
            pod = self._current(key)
            if pod is not None and not says(pod.scheduled, message, _reason(pod)):
                self._next[key] = message
                self._news.set()
        return None

    async def _tell(self, key: str, message: str) -> None:
        pod = self._current(key)
        if pod is None or not pod.waiting:
            return
        try:
            written = await self._conditions.waits(
                pod.ref, message, seen=pod.scheduled, reason=_reason(pod), version=pod.version
            )
            if written:
                self._written[pod.ref] = message
        except HaversackError as error:
            # The next decision tells it again; a report that fails must not stop anything.
            log.warning("a pod was not told why it waits", pod=key, why=str(error))
        except Exception:
            log.exception("a pod cannot be told why it waits", pod=key)

    async def _announce(self, pod: PodRef, message: str) -> None:
        try:
            await self._events.waits(pod, message)
        except HaversackError as error:
            log.warning("no event tells why a pod waits", pod=str(pod), why=str(error))
        except Exception:
            log.exception("no event can tell why a pod waits", pod=str(pod))


def _first(queue: dict[K, V]) -> list[tuple[K, V]]:
    """Take the first few out of it."""
    return [(key, queue.pop(key)) for key in list(islice(queue, _AT_ONCE))]


def _reason(pod: Pod) -> str:
    """Where kube-scheduler is still to be asked, that no node will do is not for us to say."""
    left = pod.scheduler_name == labels.KUBE_SCHEDULER_NAME
    return SCHEDULING_GATED if left else UNSCHEDULABLE
