"""PostgreSQL goes away for longer than the lease and comes back: nothing is half done."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psycopg
import pytest
from psycopg import sql
from sqlalchemy import make_url
from support import witness
from support.daemon import DaemonProcess, job_document, wait_for_states
from support.postgres import PostgresServer, libpq_url

pytestmark = pytest.mark.postgres

LEASE_TTL_S = 1.0


@contextmanager
def _outage(server: PostgresServer, url: str) -> Iterator[None]:
    """Cut every connection to the database, and refuse new ones while the context lasts."""
    name = make_url(url).database
    assert name is not None
    allow = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
    with psycopg.connect(libpq_url(server.url), autocommit=True) as connection:
        connection.execute(allow.format(sql.Identifier(name), sql.Literal(False)))
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name]
        )
        try:
            yield
        finally:
            connection.execute(allow.format(sql.Identifier(name), sql.Literal(True)))


def _submit(client: httpx.Client, document: dict[str, object], key: str) -> httpx.Response:
    return client.post("/api/v1/jobs", json=document, headers={"Idempotency-Key": key})


def test_an_outage_refuses_and_is_survived_without_a_restart(
    tmp_path: Path, postgres: PostgresServer, postgres_url: str
) -> None:
    daemon = DaemonProcess(
        tmp_path / "data",
        virtual="1x2:H100",
        database=postgres_url,
        settings={"STORE__LEASE_TTL_S": str(LEASE_TTL_S)},
    )
    daemon.start()
    try:
        with daemon.http() as client:
            running = _submit(client, job_document("a", witness.command(tmp_path, 4), gpus=1), "a")
            jobs = [str(running.json()["id"])]
            wait_for_states(client, jobs, {"RUNNING"})
            document = job_document("b", witness.command(tmp_path, 0), gpus=1)
            with _outage(postgres, postgres_url):
                deadline = time.monotonic() + 3 * LEASE_TTL_S
                while time.monotonic() < deadline:
                    refused = _submit(client, document, "b")
                    assert refused.status_code == 503
                    assert refused.json()["code"] == "storage-unavailable"
                    assert "Retry-After" in refused.headers
                    time.sleep(0.2)
                assert client.get("/readyz").status_code == 503
            deadline = time.monotonic() + 60
            while (answer := _submit(client, document, "b")).status_code == 503:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            jobs.append(str(answer.json()["id"]))
            assert set(wait_for_states(client, jobs).values()) == {"SUCCEEDED"}
            assert len(client.get("/api/v1/jobs").json()["items"]) == 2
            assert client.get("/readyz").status_code == 200
        assert daemon.stop() == 0
    finally:
        daemon.kill()
    assert sorted(witness.read(tmp_path).starts.values()) == [1, 1]
