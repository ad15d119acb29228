"""Reads what the tasks themselves wrote down: the oracle that is not our own book-keeping."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

SCRIPT = Path(__file__).with_name("witness.sh")


@dataclass(frozen=True)
class Testimony:
    """What the tasks saw.

    Attributes:
        starts: how often each (job, attempt, task) started.
        stops: how often each came to its own end.
        doubles: lines of tasks that found their GPU held by another.
    """

    starts: Counter[tuple[str, int, int]]
    stops: Counter[tuple[str, int, int]]
    doubles: tuple[str, ...]

    def starts_of(self, job: str) -> list[tuple[int, int]]:
        """(attempt, task) pairs that started for one job."""
        return sorted((attempt, task) for (name, attempt, task) in self.starts if name == job)


def command(folder: Path, seconds: float, exit_code: int = 0) -> list[str]:
    """The argument vector of a witness task."""
    return ["bash", str(SCRIPT), str(folder), str(seconds), str(exit_code)]


def read(folder: Path) -> Testimony:
    """Everything written so far."""
    starts: Counter[tuple[str, int, int]] = Counter()
    stops: Counter[tuple[str, int, int]] = Counter()
    doubles = []
    path = folder / "witness"
    for line in path.read_text().splitlines() if path.exists() else ():
        kind, job, attempt, task, *_ = line.split()
        if kind == "DOUBLE":
            doubles.append(line)
        else:
            (starts if kind == "start" else stops)[job, int(attempt), int(task)] += 1
    return Testimony(starts, stops, tuple(doubles))
