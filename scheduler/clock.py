"""The only place that reads a clock."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol

from scheduler.model.quantity import UtcSeconds


class Clock(Protocol):
    """Wall time for records, monotonic time for timeouts."""

    def now(self) -> UtcSeconds:
        """Wall time, UTC seconds. May jump; never measure durations with it."""
        ...

    def monotonic_s(self) -> float:
        """Seconds that never go backwards."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now(self) -> UtcSeconds:
        """Wall time, UTC seconds."""
        return UtcSeconds(time.time())  # noqa: TID251 - this module is where the clock is read

    def monotonic_s(self) -> float:
        """Seconds since an arbitrary start."""
        return time.monotonic()


def since_boot_s() -> float:
    """Seconds since the host booted, time asleep included: the same for all its processes."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def iso(instant: UtcSeconds | None) -> str | None:
    """RFC 3339 text of an instant, UTC, millisecond precision; None stays None."""
    if instant is None:
        return None
    moment = datetime.fromtimestamp(instant, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
