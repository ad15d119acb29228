"""Two daemons, one PostgreSQL: one leads, and a leader that was away too long has no effect."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa
from support import ledger, witness
from support.daemon import DaemonProcess, job_document, wait_for_states

from scheduler.store import tables

pytestmark = pytest.mark.postgres

LEASE_TTL_S = 1.5
SETTINGS = {"STORE__LEASE_TTL_S": str(LEASE_TTL_S), "EXECUTION__RECONCILE_EVERY_S": "1"}
LIMIT_S = 60.0

MOMENTS = (
    "plan-before-commit",
    "plan-after-commit",
    "intent-claimed",
    "launch-before-spawn",
    "start-stored",
    "exit-seen",
)
"""Where the leader is frozen: deciding, about to launch, watching."""


@pytest.fixture
def pair(tmp_path: Path, postgres_url: str) -> Iterator[tuple[DaemonProcess, DaemonProcess]]:
    first, second = (
        DaemonProcess(tmp_path / name, virtual="1x2:H100", database=postgres_url, settings=SETTINGS)
        for name in ("first", "second")
    )
    yield first, second
    first.kill()
    second.kill()


def _identity(daemon: DaemonProcess) -> str:
    return (daemon.data_dir / "identity").read_text().strip()


def _head(url: str) -> int:
    engine = sa.create_engine(url)
    try:
        with engine.connect() as connection:
            return int(connection.execute(sa.select(tables.head.c.revision)).scalar_one())
    finally:
        engine.dispose()


def _books(url: str) -> list[str]:
    engine = sa.create_engine(url)
    try:
        with engine.connect() as connection:
            return ledger.violations(connection) + ledger.leaks(connection)
    finally:
        engine.dispose()


def _frozen(daemon: DaemonProcess, log: Path) -> None:
    """Wait until the daemon has stopped itself at its failpoint."""
    assert daemon.process is not None
    stat = Path(f"/proc/{daemon.process.pid}/stat")
    deadline = time.monotonic() + LIMIT_S
    while not (log.exists() and stat.read_text().rpartition(")")[2].split()[0] == "T"):
        assert time.monotonic() < deadline, daemon.log_tail()
        time.sleep(0.02)


def _take_over(daemon: DaemonProcess) -> None:
    """Start the daemon again and again until the lease is free."""
    deadline = time.monotonic() + LIMIT_S
    while True:
        try:
            daemon.start()
        except RuntimeError:
            assert time.monotonic() < deadline, daemon.log_tail()
        else:
            return


def test_a_second_leader_is_refused_by_name(pair: tuple[DaemonProcess, DaemonProcess]) -> None:
    first, second = pair
    first.start()
    second.start(wait=False)
    assert second.wait_dead()
    assert second.process is not None
    assert second.process.returncode == 5
    assert f"{_identity(first)} leads this database (epoch 1)" in second.log_tail()
    assert first.stop() == 0
    second.start()  # the lease was given back: no waiting
    assert second.stop() == 0


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_leader_that_was_away_too_long_has_no_effect(
    pair: tuple[DaemonProcess, DaemonProcess], tmp_path: Path, postgres_url: str, moment: str
) -> None:
    first, second = pair
    log = tmp_path / "fired"
    first.settings = {**first.settings, "FAILPOINTS_LOG": str(log)}
    first.start(failpoints=f"{moment}=freeze")
    document = job_document("job", witness.command(tmp_path, 0.5), gpus=1)
    with contextlib.suppress(httpx.ReadTimeout), first.http(LIMIT_S / 6) as client:
        job = str(client.post("/api/v1/jobs", json=document).raise_for_status().json()["id"])
    _frozen(first, log)
    _take_over(second)
    with second.http() as client:
        assert wait_for_states(client, [job], timeout_s=LIMIT_S) == {job: "SUCCEEDED"}
    head = _head(postgres_url)

    assert first.process is not None
    first.process.send_signal(signal.SIGCONT)
    assert first.wait_dead()
    assert first.process.returncode == 1
    assert "error: epoch 1 no longer leads" in first.log_tail()
    time.sleep(1.0)  # a launcher of it would be up by now
    assert _head(postgres_url) == head
    assert second.stop() == 0
    seen = witness.read(tmp_path)
    assert seen.doubles == ()
    assert [n for n in seen.starts.values() if n > 1] == []
    assert len(seen.starts) <= 2  # attempts that could not be seen to their end are made again
    assert _books(postgres_url) == []
