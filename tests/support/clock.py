"""A clock that moves only when told to."""

from __future__ import annotations

from scheduler.model.quantity import UtcSeconds


class ManualClock:
    """Wall and monotonic time in step; `advance` moves both."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self._now = now
        self._monotonic = 1_000.0

    def now(self) -> UtcSeconds:
        return UtcSeconds(self._now)

    def monotonic_s(self) -> float:
        return self._monotonic

    def advance(self, seconds: float) -> UtcSeconds:
        self._now += seconds
        self._monotonic += seconds
        return self.now()

    def jump(self, seconds: float) -> UtcSeconds:
        """Moves the wall clock alone, as an operator or NTP does."""
        self._now += seconds
        return self.now()
