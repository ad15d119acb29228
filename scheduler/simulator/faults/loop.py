"""An event loop whose time is made up: it jumps to the next timer as soon as nothing is ready."""

from __future__ import annotations

import asyncio
import selectors

from typing_extensions import override

from scheduler.model.quantity import UtcSeconds

WALL_START_S = 1_800_000_000.0


class StalledError(Exception):
    """Nothing is ready and no timer is set: whoever still waits would wait for ever."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """Runs callbacks in the order of their virtual times; no file descriptor is ever ready."""

    def __init__(self) -> None:
        self._now_s = 0.0
        super().__init__(_Jump(self))

    @override
    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._now_s

    def jump(self, seconds: float) -> None:
        """Let virtual time pass."""
        self._now_s += seconds


class _Jump(selectors.SelectSelector):
    """Waits in virtual time: asyncio asks it to sleep until the next timer is due."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    @override
    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Jump ahead by `timeout` seconds.

        Raises:
            StalledError: there is no timer to jump to.
        """
        if timeout is None:
            raise StalledError("nothing is ready and no timer is set")
        self._loop.jump(max(0.0, timeout))
        return []


class VirtualClock:
    """The loop's time; its wall clock can be set wrong."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self.wall_error_s = 0.0
        """What the wall clock is ahead of the truth."""

    def now(self) -> UtcSeconds:
        """Wall time as this host sees it."""
        return UtcSeconds(WALL_START_S + self._loop.time() + self.wall_error_s)

    def monotonic_s(self) -> float:
        """Virtual seconds since the start."""
        return self._loop.time()


class CountingIds:
    """Ids that count up: equal runs give equal ids, and ids sort by age."""

    def __init__(self) -> None:
        self._last = 0

    def new(self, prefix: str) -> str:
        """The next id, for example `j-000012`."""
        self._last += 1
        return f"{prefix}-{self._last:06d}"
