"""Text that is safe and readable on a terminal."""

from __future__ import annotations

import os
import re
from datetime import datetime
from typing import TextIO

from scheduler.model.quantity import UtcSeconds

_ESCAPES = re.compile(
    "\x1b\\[[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor movement
    "|\x1b[\\]PX^_].*?(?:\x1b\\\\|\x07|$)"  # OSC and friends: titles, links, clipboard
    "|\x1b[ -/]*[0-~]",  # two-character escapes
    re.DOTALL,
)
_COLOUR = re.compile("\x1b\\[[0-9;:]*m")
_COLOURS = {"red": 31, "green": 32, "yellow": 33, "cyan": 36, "dim": 2}
MINUTE, HOUR, DAY = 60, 3_600, 86_400


def clean(text: object) -> str:
    """`text` without escape sequences and control characters; line ends become spaces.

    What the server says was partly written by other users: it must not steer this terminal.
    """
    plain = _ESCAPES.sub("", str(text)).replace("\n", " ").replace("\t", " ")
    return plain if plain.isprintable() else "".join(c for c in plain if c.isprintable())


def clean_log(text: str) -> str:
    """Log text for a terminal: keeps colours, tabs and line ends; drops all other control."""
    kept: list[str] = []
    last = 0
    for match in _ESCAPES.finditer(text):
        kept.append(_printable(text[last : match.start()]))
        if _COLOUR.fullmatch(match.group()):
            kept.append(match.group())
        last = match.end()
    kept.append(_printable(text[last:]))
    return "".join(kept)


def _printable(text: str) -> str:
    return "".join(c for c in text if c.isprintable() or c in "\n\r\t")


def coloured(stream: TextIO) -> bool:
    """Whether colours are wanted there: a terminal, and NO_COLOR is not set."""
    return stream.isatty() and not os.environ.get("NO_COLOR")


def paint(text: str, colour: str, stream: TextIO) -> str:
    """`text` in `colour` if `stream` shows colours."""
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m" if coloured(stream) else text


def parse_instant(text: str | None) -> UtcSeconds | None:
    """Seconds of an RFC 3339 instant; None stays None.

    Raises:
        ValueError: not an instant.
    """
    return None if text is None else UtcSeconds(datetime.fromisoformat(text).timestamp())


def duration(seconds: float) -> str:
    """`seconds` in at most two units: `42s`, `5m10s`, `3h5m`, `2d4h`."""
    whole = max(0, int(seconds))
    if whole < MINUTE:
        return f"{whole}s"
    for unit, size, lesser, lesser_size in (
        ("m", MINUTE, "s", 1),
        ("h", HOUR, "m", MINUTE),
        ("d", DAY, "h", HOUR),
    ):
        count, rest = divmod(whole, size)
        if unit == "d" or whole < size * (HOUR // MINUTE if unit == "m" else DAY // HOUR):
            rest //= lesser_size
            return f"{count}{unit}{rest}{lesser}" if rest else f"{count}{unit}"
    raise AssertionError("unreachable: days end the loop")


def age(since: str | None, now: UtcSeconds) -> str:
    """How long ago the RFC 3339 instant `since` was; `-` when there is none."""
    instant = parse_instant(since)
    return "-" if instant is None else duration(now - instant)
