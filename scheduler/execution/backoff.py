"""How long to wait before the next try."""

from __future__ import annotations

from collections.abc import Iterator

_FIRST_S, _LONGEST_S = 0.1, 10.0


def delays_s() -> Iterator[float]:
    """0.1 s, doubling, at most 10 s, for ever."""
    delay_s = _FIRST_S
    while True:
        yield delay_s
        delay_s = min(2 * delay_s, _LONGEST_S)
