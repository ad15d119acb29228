"""Failures at every named failpoint: nothing lost, nothing started twice, no GPU leaked."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import crash
from support.daemon import DaemonProcess

from scheduler import failpoints

ON_POSTGRES = ("submit-after-commit", "plan-after-commit", "launch-after-spawn", "exit-seen")
"""Points repeated on PostgreSQL in the short form; `make bench` runs all of them on both."""

OTHER_KINDS = (
    ("submit-after-commit", "raise"),
    ("cycle-decided", "raise"),
    ("launch-after-spawn", "raise"),
    ("exit-stored", "raise"),
    ("plan-before-commit", "hang"),
    ("launcher-after-fork", "hang"),
)
"""What else the short form plays: a bug that ends the store, one that ends a part, two that are
repeated; a hung daemon and a hung launcher."""


@pytest.mark.parametrize("failpoint", failpoints.NAMES)
def test_sqlite_survives_a_kill_at_every_failpoint(tmp_path: Path, failpoint: str) -> None:
    daemon = DaemonProcess(tmp_path / "data", virtual="2x8:H100")
    try:
        url = f"sqlite:///{tmp_path / 'data' / 'haversack.db'}"
        assert crash.tell(daemon, url, tmp_path, failpoint).problems == []
    finally:
        daemon.kill()


@pytest.mark.parametrize(("failpoint", "kind"), OTHER_KINDS)
def test_sqlite_survives_bugs_and_hangs(tmp_path: Path, failpoint: str, kind: str) -> None:
    daemon = DaemonProcess(tmp_path / "data", virtual="2x8:H100")
    try:
        url = f"sqlite:///{tmp_path / 'data' / 'haversack.db'}"
        assert crash.tell(daemon, url, tmp_path, failpoint, kind).problems == []
    finally:
        daemon.kill()


@pytest.mark.postgres
@pytest.mark.parametrize("failpoint", ON_POSTGRES)
def test_postgres_survives_a_kill(tmp_path: Path, postgres_url: str, failpoint: str) -> None:
    daemon = DaemonProcess(tmp_path / "data", virtual="2x8:H100", database=postgres_url)
    try:
        assert crash.tell(daemon, postgres_url, tmp_path, failpoint).problems == []
    finally:
        daemon.kill()
