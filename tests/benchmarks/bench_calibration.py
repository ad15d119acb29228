"""Does the simulator tell the truth? Baselines against published tables and reference runs.

- Philly week (Microsoft, 2017-10-09..15) on 80 and 58 nodes of 8 GPUs, best-fit consolidation,
  exact durations, no restart cost: mean wait against an independent simulator, within 5 % or one
  minute, whichever is more. EASY's limits are the durations.
- Muri trace 3 (SIGCOMM'22) on 8 nodes of 8 GPUs, ideal SRTF: mean JCT against the published one,
  which has a restart overhead at every event, so ours must lie within -8..0 % of it.

The placement part, openb, is a bench of its own. Needs HAVERSACK_TRACES; exits 1 when a figure is
off.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from policies.registry import profile_named
from scheduler.simulator.bounds import default_window
from scheduler.simulator.engine import simulate
from scheduler.simulator.importers import plain_csv
from scheduler.simulator.importers.records import Reading
from scheduler.simulator.metrics import Metrics, metrics_of
from scheduler.simulator.workload import Workload
from scheduler.virtual import parse_virtual

PHILLY = "philly_week/philly_2017-10-09_week.csv"
MURI = "muri/trace3.csv"
MURI_PUBLISHED = "muri/published_sim.csv"
REFERENCE_WAIT_MIN = {
    "fifo": {80: 13.5, 58: 388.0},
    "fifo-skip": {80: 10.5, 58: 146.0},
    "easy": {80: 9.8, 58: 191.0},
    "sjf-oracle": {80: 7.7, 58: 48.2},
    "las": {80: 1.2, 58: 11.9},
}
"""Mean wait, minutes, by policy and nodes of 8 GPUs: a reference simulator of the same rules."""
WAIT_TOLERANCE = 0.05
WAIT_TOLERANCE_MIN = 1.0
JCT_LOWEST, JCT_HIGHEST = -0.08, 0.0


@dataclass(frozen=True)
class Row:
    """One figure against its reference; `low` and `high` say where it may lie."""

    what: str
    unit: str
    found: float
    reference: float
    low: float
    high: float
    seconds: float

    @property
    def holds(self) -> bool:
        return self.low <= self.found <= self.high


def philly(folder: Path, nodes: int) -> Iterator[Row]:
    workload = plain_csv.read(folder / PHILLY, Reading(node_gpus=8))
    for policy, cells in REFERENCE_WAIT_MIN.items():
        started = time.perf_counter()
        found = _run(workload, nodes, policy).wait_s_mean
        assert found is not None, "every job completed"
        reference = cells[nodes]
        slack = max(WAIT_TOLERANCE * reference, WAIT_TOLERANCE_MIN)
        yield Row(
            f"philly week, {8 * nodes} GPUs, {policy}: mean wait",
            "min",
            found / 60,
            reference,
            reference - slack,
            reference + slack,
            time.perf_counter() - started,
        )


def muri(folder: Path) -> Row:
    started = time.perf_counter()
    workload = plain_csv.read(folder / MURI, Reading(node_gpus=8))
    found = _run(workload, 8, "srtf-oracle").jct_s_mean
    assert found is not None, "every job completed"
    with (folder / MURI_PUBLISHED).open(newline="") as table:
        published = next(
            float(row["trace3"])
            for row in csv.DictReader(table)
            if (row["policy"], row["metric"]) == ("SRTF", "JCT")
        )
    return Row(
        "Muri trace 3, 64 GPUs, ideal SRTF: mean JCT",
        "s",
        found,
        published,
        published * (1 + JCT_LOWEST),
        published * (1 + JCT_HIGHEST),
        time.perf_counter() - started,
    )


def _run(workload: Workload, nodes: int, policy: str) -> Metrics:
    cluster = parse_virtual(f"{nodes}x8:H100")
    result = simulate(workload, cluster, profile_named(policy))
    return metrics_of(result, default_window(workload.jobs))


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the lightly loaded cluster only")
    quick = parser.parse_args(arguments).quick
    folder = os.environ.get("HAVERSACK_TRACES")
    if not folder:
        _say("SKIPPED: no public traces; set HAVERSACK_TRACES")
        return 0
    _say(f"{'':52}{'found':>12}{'reference':>12}{'allowed':>28}{'seconds':>9}")
    missed = 0
    for row in _rows(Path(folder), quick=quick):
        allowed = f"{row.low:.5g} .. {row.high:.5g} {row.unit}"
        _say(
            f"{row.what:52}{row.found:12.5g}{row.reference:12.5g}{allowed:>28}{row.seconds:9.1f}"
            + ("" if row.holds else "  MISSED")
        )
        missed += not row.holds
    return 1 if missed else 0


def _rows(folder: Path, *, quick: bool) -> Iterator[Row]:
    yield muri(folder)
    yield from philly(folder, 80)
    if not quick:
        yield from philly(folder, 58)


if __name__ == "__main__":
    sys.exit(main())
