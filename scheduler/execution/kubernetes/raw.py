"""Reading parsed JSON whose shape nobody guarantees: a wrong type reads as absent.

The API server validates what it stores, but objects of custom kinds, of other versions or written
before a rule existed may still miss a field or hold null. A reader must not stop for one of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Final

from scheduler.model.quantity import UtcSeconds

Json = Mapping[str, Any]
"""An object as `orjson` parses it."""

NOTHING: Final[Json] = {}
_INT64_MAX = 2**63 - 1


def mapping(value: object) -> Json:
    """The object, or an empty one."""
    return value if isinstance(value, dict) else NOTHING


def mappings(value: object) -> Iterator[tuple[int, Json]]:
    """The objects of a list with their positions; other elements are left out."""
    if isinstance(value, list):
        for position, each in enumerate(value):
            if isinstance(each, dict):
                yield position, each


def text(value: object) -> str:
    """The string, or ""."""
    return value if isinstance(value, str) else ""


def texts(value: object) -> tuple[str, ...]:
    """The strings of a list."""
    return tuple(each for each in value if isinstance(each, str)) if isinstance(value, list) else ()


def pairs(value: object) -> tuple[tuple[str, str], ...]:
    """An object's string values with their keys, sorted."""
    return tuple(sorted((key, each) for key, each in mapping(value).items() if type(each) is str))


def whole(value: object, default: int = 0) -> int:
    """The whole number, or `default`. JSON's true and false are no numbers."""
    fits = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _INT64_MAX
    return value if fits and isinstance(value, int) else default


def count_in(value: object) -> int | None:
    """A positive number of things written as text, as annotations hold it, or None."""
    digits = text(value).strip()
    if not digits.isascii() or not digits.isdigit() or len(digits) > 9:  # noqa: PLR2004 - < 10**9
        return None
    return int(digits) or None


def instant(value: object) -> UtcSeconds:
    """An RFC 3339 time as seconds since the epoch; 0 if it is none."""
    try:
        found = datetime.fromisoformat(text(value))
        return UtcSeconds(found.timestamp() if found.tzinfo else 0.0)
    except (ValueError, OverflowError):
        return UtcSeconds(0.0)
