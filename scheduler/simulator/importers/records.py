"""What all importers share: located errors, typed CSV cells, and a count of what was left out."""

from __future__ import annotations

import csv
import difflib
import gzip
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from scheduler.errors import InvalidRequestError, NotFoundError
from scheduler.simulator.workload import Arrivals, SimJob, Skipped, Workload, by_arrival, gang_of

NO_RUN_TIME = "no run time"
NEVER_RAN = "never ran"
ASKS_NOTHING = "asks for no GPU, CPU or memory"


@dataclass(frozen=True, slots=True)
class Reading:
    """How a file is to be read.

    Attributes:
        columns: our column name -> the file's, for plain CSV.
        node_gpus: GPUs of the cluster's largest node: how gangs of unknown split are cut.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    node_gpus: int = 8


@contextmanager
def opened(path: Path) -> Iterator[TextIO]:
    """The file as text, unpacked if its name ends in `.gz`.

    Raises:
        NotFoundError: there is no such file.
        InvalidRequestError: it cannot be read, or is no UTF-8 text.
    """
    try:
        if path.suffix == ".gz":
            with gzip.open(path, "rt", encoding="utf-8-sig", newline="") as stream:
                yield stream
        else:
            with path.open(encoding="utf-8-sig", newline="") as stream:
                yield stream
    except FileNotFoundError as error:
        raise NotFoundError(f"{path}: there is no such file") from error
    except UnicodeDecodeError as error:
        raise InvalidRequestError(
            f"{path}: not UTF-8 text ({error.reason} at byte {error.start})",
            hint="save the file as UTF-8; compressed files must end in .gz",
        ) from error
    except (OSError, EOFError) as error:
        raise InvalidRequestError(f"{path}: cannot be read: {error}") from error


@dataclass(frozen=True, slots=True)
class Row:
    """One record of a file, with its place for error messages.

    Attributes:
        path: the file.
        line: 1-based line on which the record ends.
        cells: value by the file's column name, stripped.
        names: our column name -> the file's, where they differ.
    """

    path: Path
    line: int
    cells: Mapping[str, str]
    names: Mapping[str, str] = field(default_factory=dict)

    def optional(self, column: str) -> str:
        """The cell, or "" when the column is absent or empty."""
        return self.cells.get(self.names.get(column, column), "")

    def text(self, column: str) -> str:
        """The cell.

        Raises:
            InvalidRequestError: it is empty.
        """
        value = self.optional(column)
        if not value:
            raise self.wrong(column, "is empty", "every record needs one")
        return value

    def number(self, column: str, *, least: float = 0.0) -> float:
        """The cell as a finite number of at least `least`.

        Raises:
            InvalidRequestError: it is not one.
        """
        text = self.text(column)
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise self.wrong(column, f"{text!r} is not a number", "write seconds as 12 or 12.5")
        if value < least:
            raise self.wrong(column, f"{text!r} is below {least:g}", "correct or remove the record")
        return value

    def whole(self, column: str, *, least: int = 0) -> int:
        """The cell as a whole number of at least `least`; `8.0` is whole.

        Raises:
            InvalidRequestError: it is not one.
        """
        value = self.number(column, least=least)
        if not value.is_integer():
            raise self.wrong(
                column, f"{self.optional(column)!r} is not whole", "use a whole number"
            )
        return int(value)

    def instant(self, column: str) -> float:
        """The cell as a time, in seconds since the epoch; without an offset it counts as UTC.

        Raises:
            InvalidRequestError: it is no time.
        """
        text = self.text(column)
        try:
            read = datetime.fromisoformat(text)
        except ValueError as error:
            raise self.wrong(
                column, f"{text!r} is not a time", "write it as 2020-06-09 18:41:01"
            ) from error
        return (read if read.tzinfo else read.replace(tzinfo=UTC)).timestamp()

    def wrong(self, column: str, what: str, hint: str) -> InvalidRequestError:
        """The error that says where `what` is."""
        name = self.names.get(column, column)
        return InvalidRequestError(
            f"{self.path}, line {self.line}, column {name!r}: {what}", hint=hint
        )


def csv_rows(
    path: Path, required: tuple[str, ...], names: Mapping[str, str] | None = None
) -> Iterator[Row]:
    """The records of a CSV file with a header.

    Args:
        path: the file.
        required: our names of the columns that must be there.
        names: our column name -> the file's, where they differ.

    Raises:
        NotFoundError: there is no such file.
        InvalidRequestError: unreadable, a column is missing, a record has too many or few cells.
    """
    names = names or {}
    with opened(path) as stream:
        reader = csv.reader(stream)
        header = [name.strip() for name in next(reader, [])]
        for column in required:
            _require(path, header, names.get(column, column), column)
        for column, name in names.items():
            _require(path, header, name, column)
        try:
            for cells in filter(None, reader):
                if len(cells) != len(header):
                    raise _ragged(path, reader.line_num, len(cells), len(header))
                stripped = (cell.strip() for cell in cells)
                yield Row(path, reader.line_num, dict(zip(header, stripped, strict=True)), names)
        except csv.Error as error:
            raise InvalidRequestError(f"{path}, line {reader.line_num}: {error}") from error


def _ragged(path: Path, line: int, cells: int, columns: int) -> InvalidRequestError:
    return InvalidRequestError(
        f"{path}, line {line}, column {min(cells, columns) + 1}:"
        f" {cells} cells under a header of {columns}",
        hint='quote cells that hold commas: "a, b"',
    )


def _require(path: Path, header: list[str], name: str, column: str) -> None:
    if name in header:
        return
    near = difflib.get_close_matches(name, header, n=1)
    meant = f"did you mean {near[0]!r}? " if near else ""
    raise InvalidRequestError(
        f"{path}, line 1: no column {name!r}; there are {', '.join(header) or 'none'}",
        hint=f"{meant}say which column it is: --columns {column}=NAME",
    )


class Collector:
    """Gathers the jobs of a file, and counts the records that make no job.

    Args:
        path: the file, for messages; its name names the workload.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._jobs: list[SimJob] = []
        self._ids: set[str] = set()
        self._skipped: Counter[str] = Counter()

    def skip(self, reason: str) -> None:
        """Leave a record out, for a reason that the report will give."""
        self._skipped[reason] += 1

    def add(self, job: SimJob, where: Row) -> None:
        """Keep `job`, unless it asks for nothing.

        Raises:
            InvalidRequestError: another job of the file has its id.
        """
        if job.id in self._ids:
            raise InvalidRequestError(
                f"{where.path}, line {where.line}: a second job {job.id!r}",
                hint="job ids must be unique in a workload",
            )
        self._ids.add(job.id)
        if not (job.total_milli or job.cpu_milli or job.memory_mib):
            self.skip(ASKS_NOTHING)
        else:
            self._jobs.append(job)

    def add_timed(self, job: SimJob, where: Row) -> None:
        """Keep `job`, unless it asks for nothing or never ran.

        Raises:
            InvalidRequestError: another job of the file has its id.
        """
        if job.duration_s <= 0:
            self.skip(NO_RUN_TIME)
        else:
            self.add(job, where)

    def workload(self, arrivals: Arrivals = Arrivals.TIMED) -> Workload:
        """All that was gathered; times count from the first arrival.

        Raises:
            InvalidRequestError: nothing was.
        """
        skipped = tuple(
            Skipped(reason, records) for reason, records in sorted(self._skipped.items())
        )
        if not self._jobs:
            left_out = "; ".join(f"{part.records} left out: {part.reason}" for part in skipped)
            raise InvalidRequestError(
                f"{self._path}: there is no job to run" + (f" ({left_out})" if left_out else ""),
                hint="is --format the format of this file?",
            )
        jobs = by_arrival(self._jobs)
        first = jobs[0].submit_s
        if first:
            jobs = tuple(replace(job, submit_s=job.submit_s - first) for job in jobs)
        return Workload(_stem(self._path), jobs, arrivals, skipped)


def split(gpus: int, nodes: int, node_gpus: int) -> tuple[int, int]:
    """(tasks, GPUs per task): one task a node if the trace says how many nodes, else `gang_of`."""
    if nodes > 0 and gpus % nodes == 0 and 0 < gpus // nodes <= node_gpus:
        return nodes, gpus // nodes
    return gang_of(gpus, node_gpus)


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").rpartition(".")[0] or path.name
