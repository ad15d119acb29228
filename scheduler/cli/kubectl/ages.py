"""How long ago something was, counted as kubectl counts it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from scheduler.cli.text import DAY, HOUR, MINUTE, parse_instant
from scheduler.model.quantity import UtcSeconds

UNKNOWN: Final = "<unknown>"
_YEAR: Final = 365 * DAY

_STEPS: Final[tuple[tuple[int, Callable[[int], str]], ...]] = (
    (2 * MINUTE, lambda s: f"{s}s"),
    (10 * MINUTE, lambda s: _two(s, MINUTE, "m", 1, "s")),
    (3 * HOUR, lambda s: f"{s // MINUTE}m"),
    (8 * HOUR, lambda s: _two(s, HOUR, "h", MINUTE, "m")),
    (2 * DAY, lambda s: f"{s // HOUR}h"),
    (8 * DAY, lambda s: _two(s, DAY, "d", HOUR, "h")),
    (2 * _YEAR, lambda s: f"{s // DAY}d"),
    (8 * _YEAR, lambda s: _two(s, _YEAR, "y", DAY, "d")),
)
"""Up to how many seconds a form is used: the unit below shows while it still says something."""


def human_duration(seconds: float) -> str:
    """`seconds` as kubectl's AGE column has it: `90s`, `5m10s`, `45m`, `3h20m`, `30h`, `2d3h`.

    Less than zero, by clocks that differ, counts as zero.
    """
    whole = max(0, int(seconds))
    return next((form(whole) for limit, form in _STEPS if whole < limit), f"{whole // _YEAR}y")


def age(since: str | None, now: UtcSeconds) -> str:
    """How long before `now` the RFC 3339 instant `since` was."""
    instant = parse_instant(since)
    return UNKNOWN if instant is None else human_duration(now - instant)


def _two(seconds: int, unit: int, name: str, lesser: int, lesser_name: str) -> str:
    count, rest = divmod(seconds, unit)
    rest //= lesser
    return f"{count}{name}{rest}{lesser_name}" if rest else f"{count}{name}"
