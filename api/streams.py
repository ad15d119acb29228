"""What open streams wait for: commits, announced from the writer thread to the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import structlog

from scheduler.clock import Clock
from scheduler.errors import HaversackError

log = structlog.get_logger(__name__)

RECHECK_S = 5.0
"""The token behind a stream is checked again this often: a revoked one ends its streams."""
HEARTBEAT_S = 15.0
"""A stream without news says so this often, so that proxies and clients keep it open."""


class Commits:
    """Wakes any number of waiting streams after a commit. Holds no queue: streams read the journal.

    One instance belongs to one event loop, the first that waits on it.
    """

    def __init__(self) -> None:
        self._head = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changed = asyncio.Event()
        self.closed = False

    def announce(self, revision: int) -> None:
        """Tell that the journal's head is at `revision` now. From any thread."""
        self._head = max(self._head, revision)
        loop = self._loop
        if loop is None:
            return
        try:
            loop.call_soon_threadsafe(self._wake)
        except RuntimeError:  # the loop has ended: nobody waits any more
            self._loop = None

    def close(self) -> None:
        """End all streams; from the event loop."""
        self.closed = True
        self._wake()

    def _wake(self) -> None:
        woken, self._changed = self._changed, asyncio.Event()
        woken.set()

    async def wait_after(self, revision: int, timeout_s: float) -> bool:
        """Wait until the head is past `revision`, the streams close, or the time is up.

        Returns:
            False if the time was up.
        """
        self._loop = asyncio.get_running_loop()
        if self._head > revision or self.closed:
            return True
        # `_wake` runs in this loop, so none can slip between the check above and this wait.
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            return False
        return True


class Pulse:
    """When an open stream must show that it lives, and whether it may go on.

    Args:
        honoured: tells whether the token behind the stream would still be accepted.
    """

    def __init__(self, clock: Clock, honoured: Callable[[], Awaitable[bool]]) -> None:
        self._clock, self._honoured = clock, honoured
        self._told_at = self._checked_at = clock.monotonic_s()

    def told(self) -> None:
        """Something was sent just now."""
        self._told_at = self._clock.monotonic_s()

    def heartbeat_due(self) -> bool:
        """Whether nothing was sent for long; the answer counts as sent."""
        if self._clock.monotonic_s() - self._told_at < HEARTBEAT_S:
            return False
        self.told()
        return True

    async def may_go_on(self) -> bool:
        """Whether the token is still honoured; asks at most every `RECHECK_S`."""
        now = self._clock.monotonic_s()
        if now - self._checked_at < RECHECK_S:
            return True
        self._checked_at = now
        return await self._honoured()


async def until_trouble(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The pieces of a stream, which ends where the store fails: its client comes back later.

    An answer that has begun cannot turn into a problem any more, so the end says it all.
    """
    try:
        async for piece in pieces:
            yield piece
    except HaversackError as error:
        log.warning("stream ended early", code=error.code, why=str(error))
