"""The whole crash matrix: every failpoint, killed, raising and hanging, on both databases.

Each case plays the story of `support.crash` on a fresh store: five jobs, one failure, a supervisor
that starts the daemon again. Prints one line a case and the totals; any lost job, duplicated start,
leaked GPU or other contradiction exits 1. Cases run two at a time: most of a case is waiting.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import override

sys.path.insert(0, str(Path(__file__).parents[1]))

from support import crash
from support.daemon import DaemonProcess
from support.folders import quick_folder
from support.postgres import NoPostgresError, PostgresServer, postgres_server

from scheduler import failpoints

KINDS = ("kill", "raise", "hang")
DATABASES = ("SQLite", "PostgreSQL")


@dataclass(frozen=True)
class Case:
    """One cell of the matrix."""

    failpoint: str
    kind: str
    database: str


@dataclass(frozen=True)
class Result:
    """What became of it."""

    case: Case
    found: crash.Findings
    seconds: float

    @override
    def __str__(self) -> str:
        outcome = "; ".join(self.found.problems) or "ok"
        return (
            f"{self.case.failpoint:28} {self.case.kind:6} {self.case.database:11}"
            f" {self.seconds:6.1f}  {outcome}"
        )


@contextmanager
def _database(case: Case, folder: Path, server: PostgresServer | None) -> Iterator[tuple[str, str]]:
    """The daemon's `--database` and the URL to look into the store with."""
    if case.database == "SQLite":
        yield "", f"sqlite:///{folder / 'data' / 'haversack.db'}"
        return
    assert server is not None
    url = server.create_database()
    try:
        yield url, url
    finally:
        server.drop_database(url)


def play(case: Case, server: PostgresServer | None) -> Result:
    """Play one case; an exception of the story is a finding, too."""
    begun_s = time.monotonic()
    with quick_folder() as folder, _database(case, folder, server) as (option, url):
        daemon = DaemonProcess(folder / "data", virtual="2x8:H100", database=option)
        try:
            found = crash.tell(daemon, url, folder, case.failpoint, case.kind)
        except (RuntimeError, TimeoutError, OSError) as error:
            found = crash.Findings(other=[f"{type(error).__name__}: {error}"])
        finally:
            daemon.kill()
    return Result(case, found, time.monotonic() - begun_s)


def run(cases: list[Case], workers: int, told: Callable[[Result], None]) -> list[Result]:
    """Play all cases, telling each result as it comes."""
    results = []
    with contextlib.ExitStack() as stack:
        server = None
        if any(case.database == "PostgreSQL" for case in cases):
            server = stack.enter_context(postgres_server())
        pool = stack.enter_context(ThreadPoolExecutor(workers))
        for result in pool.map(lambda case: play(case, server), cases):
            told(result)
            results.append(result)
    return results


def _tell(result: Result) -> None:
    sys.stdout.write(f"{result}\n")
    sys.stdout.flush()


def main() -> int:
    """Run the matrix; 0 when nothing went wrong in any case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=1, help="play each case this often")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", default="", help="failpoints whose names contain this")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--databases", nargs="+", choices=DATABASES, default=DATABASES)
    chosen = parser.parse_args()
    cases = [
        Case(name, kind, database)
        for name in failpoints.NAMES
        if chosen.only in name
        for kind in chosen.kinds
        for database in chosen.databases
    ] * chosen.repeat
    sys.stdout.write(f"{'failpoint':28} {'kind':6} {'database':11} {'s':>6}  outcome\n")
    begun_s = time.monotonic()
    try:
        results = run(cases, chosen.workers, _tell)
    except NoPostgresError as error:
        sys.stderr.write(f"bench_crash_matrix: {error}\n")
        return 2
    totals = {
        name: sum(len(getattr(result.found, name)) for result in results)
        for name in ("lost", "duplicated", "leaked", "other")
    }
    sys.stdout.write(
        f"{len(results)} cases in {time.monotonic() - begun_s:.0f} s: {totals['lost']} lost jobs,"
        f" {totals['duplicated']} duplicated starts, {totals['leaked']} leaked GPUs,"
        f" {totals['other']} other problems\n"
    )
    return 1 if any(totals.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
