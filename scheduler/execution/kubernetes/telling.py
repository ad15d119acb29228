"""Tells pods why they wait: a condition for programs, an event for people.

What is told never holds up what is done: the newest message of each pod waits here until its turn,
and the server's lane for reports bounds how fast turns come.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import structlog

from scheduler.errors import HaversackError
from scheduler.execution.kubernetes.conditions import Conditions
from scheduler.execution.kubernetes.events import Events
from scheduler.execution.kubernetes.pods import Pod

log = structlog.get_logger(__name__)

_AT_ONCE = 4


class Teller:
    """Writes messages onto pods, each only when it is news.

    Args:
        conditions: writes PodScheduled.
        events: writes events.
    """

    def __init__(self, conditions: Conditions, events: Events) -> None:
        self._conditions = conditions
        self._events = events
        self._told: dict[str, str] = {}
        self._next: dict[str, tuple[Pod, str]] = {}
        self._news = asyncio.Event()

    def wait_for(self, messages: Iterable[tuple[Pod, str]]) -> None:
        """These pods wait, for these reasons. Call it in the event loop's thread."""
        for pod, message in messages:
            key = str(pod.ref)
            if self._told.get(key) != message:
                self._next[key] = (pod, message)
                self._news.set()

    def forget(self, key: str) -> None:
        """The pod waits no longer."""
        self._told.pop(key, None)
        self._next.pop(key, None)

    async def run(self) -> None:
        """Tell until cancelled."""
        while True:
            await self._news.wait()
            self._news.clear()
            while self._next:
                keys = list(self._next)[:_AT_ONCE]
                batch = [(key, *self._next.pop(key)) for key in keys]
                await asyncio.gather(*(self._tell(*each) for each in batch))

    async def _tell(self, key: str, pod: Pod, message: str) -> None:
        self._told[key] = message
        try:
            if await self._conditions.waits(pod.ref, message, seen=pod.scheduled):
                await self._events.waits(pod.ref, message)
        except HaversackError as error:
            # The next decision tells it again; a report that fails must not stop anything.
            self._told.pop(key, None)
            log.warning("a pod was not told why it waits", pod=key, why=str(error))
