"""Answers to stdout: tables for people, JSON, YAML and names for scripts."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

import typer

from scheduler.cli.text import clean, coloured

Record = Mapping[str, Any]


class Format(StrEnum):
    """How an answer is written."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"
    JSONL = "jsonl"
    NAME = "name"


OutputOption = Annotated[
    Format, typer.Option("--output", "-o", help="How to write the answer.", show_choices=True)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Short for -o json.")]

STATE_STYLES = {
    "RUNNING": "green",
    "SUCCEEDED": "green",
    "FAILED": "red",
    "LOST": "red",
    "SUSPECT": "yellow",
    "QUARANTINED": "yellow",
    "HELD": "yellow",
    "CANCELLED": "dim",
    "unhealthy": "red",
    "unknown": "yellow",
}


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table; `wide` ones show with `-o wide` only."""

    header: str
    cell: Callable[[Record], object]
    wide: bool = False


def pick(key: str) -> Callable[[Record], object]:
    """A cell that shows one field; `-` when it is absent."""

    def cell(record: Record) -> object:
        value = record[key]
        return "-" if value is None or value == "" else value

    return cell


def chosen(output: Format, *, as_json: bool) -> Format:
    """The format asked for; `--json` wins."""
    return Format.JSON if as_json else output


def show_list(
    records: Sequence[Record],
    columns: Sequence[Column],
    form: Format,
    *,
    kind: str,
    name: str = "id",
) -> None:
    """Write a listing.

    Args:
        records: as the API gave them.
        columns: of the table.
        form: how to write it.
        kind: `kind` of the JSON and YAML envelope, for example `JobList`.
        name: field that `-o name` prints.
    """
    if form is Format.JSONL:
        for record in records:
            show_line(record)
    elif form is Format.NAME:
        for record in records:
            typer.echo(clean(record[name]))
    elif form in (Format.JSON, Format.YAML):
        _structured({"kind": kind, "items": list(records)}, form)
    else:
        shown = [column for column in columns if form is Format.WIDE or not column.wide]
        typer.echo(table(records, shown), nl=False)


def show_one(
    record: Record, form: Format, plain: Callable[[Record], str], *, name: str = "id"
) -> None:
    """Write one object: `plain` makes its text for people."""
    if form is Format.JSONL:
        show_line(record)
    elif form is Format.NAME:
        typer.echo(clean(record[name]))
    elif form in (Format.JSON, Format.YAML):
        _structured(record, form)
    else:
        typer.echo(plain(record))


def show_line(record: Record) -> None:
    """Write one object as one line of JSON, at once."""
    sys.stdout.write(json.dumps(record) + "\n")
    sys.stdout.flush()


def table(records: Iterable[Record], columns: Sequence[Column]) -> str:
    """A table without lines: upper-case headers, colours only on a terminal."""
    from io import StringIO  # noqa: PLC0415 - with rich below: 60 ms that scripts need not pay

    from rich.console import Console  # noqa: PLC0415 - see above
    from rich.table import Table  # noqa: PLC0415 - see above
    from rich.text import Text  # noqa: PLC0415 - see above

    grid = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), show_edge=False)
    for column in columns:
        grid.add_column(column.header, no_wrap=True, header_style="bold")
    for record in records:
        cells = [clean(column.cell(record)) for column in columns]
        # Text, never markup: a job named "[red]" is just a name.
        grid.add_row(*(Text(cell, STATE_STYLES.get(cell.split(" ")[0], "")) for cell in cells))
    into = StringIO()
    # As wide as it needs: like kubectl, long rows run on instead of losing their end.
    Console(
        file=into,
        width=10_000,
        force_terminal=coloured(sys.stdout),
        no_color=not coloured(sys.stdout),
    ).print(grid)
    return "".join(line.rstrip() + "\n" for line in into.getvalue().splitlines())


def fields(pairs: Iterable[tuple[str, object]]) -> str:
    """`Name:  value` lines, values aligned; pairs whose value is None or "" are left out."""
    present = [(name, clean(value)) for name, value in pairs if value is not None and value != ""]
    width = max((len(name) for name, _ in present), default=0) + 1
    return "\n".join(f"{name + ':':<{width}}  {value}" for name, value in present)


def hint(text: str) -> None:
    """Say something beside the data: progress, advice, the next command."""
    typer.echo(clean(text), err=True)


def _structured(document: object, form: Format) -> None:
    if form is Format.JSON:
        typer.echo(json.dumps(document, indent=2))
        return
    import yaml  # noqa: PLC0415 - only this format needs it

    typer.echo(yaml.safe_dump(document, sort_keys=False, allow_unicode=False), nl=False)
