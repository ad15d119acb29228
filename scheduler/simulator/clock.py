"""A clock that stands still until it is moved."""

from __future__ import annotations

import time

from scheduler.model.quantity import UtcSeconds


class SimulatedClock:
    """Simulated wall time; durations are measured in real time, for figures alone."""

    def __init__(self, now: float = 0.0) -> None:
        self._now = UtcSeconds(now)

    def now(self) -> UtcSeconds:
        """The simulated instant."""
        return self._now

    def monotonic_s(self) -> float:
        """Real seconds: how long deciding took. Nothing that is decided may depend on it."""
        return time.perf_counter()

    def move_to(self, instant: float) -> None:
        """Let time pass until `instant`.

        Raises:
            ValueError: that lies in the past.
        """
        if instant < self._now:
            raise ValueError(f"the clock stands at {self._now}, it cannot go back to {instant}")
        self._now = UtcSeconds(instant)
