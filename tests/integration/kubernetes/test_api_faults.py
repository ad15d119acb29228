"""The daemon on an API server that goes wrong; `tests/benchmarks/bench_api_faults.py` has more."""

from __future__ import annotations

from pathlib import Path

from support.kubernetes.fault_run import Size, fault_run


def test_nothing_is_bound_twice_or_lost_whatever_goes_wrong(tmp_path: Path) -> None:
    size = Size(faults=150, each=0, open_gangs=8, relist_s=2.0)
    report = fault_run(1, size, tmp_path)
    assert not report.violations
    assert report.gangs
    assert sum(report.counts.values()) >= size.faults
