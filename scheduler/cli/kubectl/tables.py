"""Tables as kubectl prints them: upper-case headers, columns three spaces apart, nothing drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from scheduler.cli.render import Column, Record
from scheduler.cli.text import clean

NONE: Final = "<none>"
_GAP: Final = "   "


def field(key: str) -> Callable[[Record], object]:
    """A cell that shows one field; `<none>` when it is absent."""

    def cell(record: Record) -> object:
        value = record[key]
        return NONE if value is None or value in ("", []) else value

    return cell


def joined(key: str) -> Callable[[Record], object]:
    """A cell that shows the items of a list, comma between them."""

    def cell(record: Record) -> object:
        return ",".join(map(str, record[key])) or NONE

    return cell


class Table:
    """Lines of a table whose columns are wide enough for all that was printed so far.

    Args:
        columns: from left to right.
        headers: whether the first line names the columns.
    """

    def __init__(self, columns: Sequence[Column], *, headers: bool = True) -> None:
        self._columns = columns
        self._header = [column.header for column in columns] if headers else None
        self._widths = [0] * len(columns)

    def lines(self, records: Iterable[Record]) -> Iterator[str]:
        """A line for each record, after the header if this is the first call. O(cells)."""
        rows = [[clean(column.cell(record)) for column in self._columns] for record in records]
        if self._header is not None:
            rows.insert(0, self._header)
            self._header = None
        for row in rows:
            self._widths = [
                max(width, len(cell)) for width, cell in zip(self._widths, row, strict=True)
            ]
        return (self._line(row) for row in rows)

    def _line(self, row: Sequence[str]) -> str:
        padded = [cell.ljust(width) for cell, width in zip(row, self._widths, strict=True)]
        return _GAP.join([*padded[:-1], row[-1]])


def section(title: str, columns: Sequence[Column], records: Sequence[Record]) -> str:
    """A table under its title, as `describe` shows one; `Title:  <none>` without records."""
    if not records:
        return f"{title}:  {NONE}"
    return "\n".join([f"{title}:", *(f"  {line}" for line in Table(columns).lines(records))])
