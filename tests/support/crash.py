"""One crash story: jobs are submitted, the daemon is killed at a named point, then started again.

The story is the same for every failpoint, so that a new failpoint needs no new test.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import sqlalchemy as sa
from support import ledger, witness
from support.daemon import DaemonProcess, job_document, wait_for_states

SETTLE_S = 60.0


@dataclass(frozen=True)
class Story:
    """What was asked for: key -> document, and how each job must end."""

    documents: dict[str, dict[str, object]]
    endings: dict[str, set[str]]
    cancel: str


def story(folder: Path) -> Story:
    """Five jobs that between them pass every failpoint: gangs, a failure, a retry, a cancel."""

    def run(seconds: float, code: int = 0) -> list[str]:
        return witness.command(folder, seconds, code)

    return Story(
        documents={
            "pair": job_document("pair", run(0.3), tasks=2, gpus=1),
            "wide": job_document("wide", run(0.3), tasks=2, gpus=4, priority=80),
            "fails": job_document("fails", run(0.1, 3), gpus=1),
            "retries": job_document(
                "retries", run(0.1, 4), gpus=1, retry={"max": 1, "backoff_s": 0.1}
            ),
            "endless": job_document("endless", run(600), gpus=1),
        },
        endings={
            "pair": {"SUCCEEDED"},
            "wide": {"SUCCEEDED"},
            "fails": {"FAILED"},
            "retries": {"FAILED"},
            "endless": {"CANCELLED"},
        },
        cancel="endless",
    )


def tell(daemon: DaemonProcess, database_url: str, folder: Path, failpoint: str) -> list[str]:
    """Play the story with one crash and return everything that went wrong; empty is good.

    Every request may meet the crash: the client then waits for the restart and repeats it with the
    same idempotency key, as a careful user would.
    """
    tale = story(folder)
    daemon.start(failpoints=f"{failpoint}=kill", wait=False)
    crashed = _wait_ready_or_dead(daemon)
    jobs: dict[str, str] = {}
    for key, document in tale.documents.items():
        jobs[key] = _insist(daemon, "/api/v1/jobs", document, key)
    _wait_started(daemon, jobs[tale.cancel])
    _insist(daemon, f"/api/v1/jobs/{jobs[tale.cancel]}:cancel", {}, None)
    states = _settle(daemon, list(jobs.values()))
    crashed = crashed or daemon.starts > 1
    problems = [] if crashed else [f"the failpoint {failpoint} never fired: this proves nothing"]
    problems += [
        f"{key} ended {states[job]}, expected {tale.endings[key]}"
        for key, job in jobs.items()
        if states[job] not in tale.endings[key]
    ]
    with daemon.http() as client:
        listed = client.get("/api/v1/jobs?limit=100").json()["items"]
        if len(listed) != len(jobs):
            problems.append(f"{len(jobs)} jobs were submitted, {len(listed)} exist")
        held = [gpu for gpu in client.get("/api/v1/gpus").json()["items"] if gpu["job_id"]]
        problems += [f"leaked GPU: {gpu['id']} held by {gpu['job_id']}" for gpu in held]
    daemon.stop()
    return problems + _testimony(folder) + _books(database_url)


def _wait_ready_or_dead(daemon: DaemonProcess) -> bool:
    """True if the daemon died on its way up (a start-up failpoint); it is then started again."""
    try:
        daemon.wait_ready()
    except RuntimeError:
        if daemon.alive:
            raise
        daemon.start()
        return True
    return False


def _revive(daemon: DaemonProcess) -> None:
    if not daemon.wait_dead(20):
        raise RuntimeError(f"the daemon refuses requests but lives:\n{daemon.log_tail()}")
    daemon.start()


def _insist(daemon: DaemonProcess, path: str, body: dict[str, object], key: str | None) -> str:
    """POST until it is answered; returns the job's id."""
    headers = {"Idempotency-Key": key} if key else {}
    for _ in range(4):
        try:
            with daemon.http() as client:
                answer = client.post(path, json=body, headers=headers)
        except (httpx.TransportError, FileNotFoundError):
            _revive(daemon)
            continue
        if answer.status_code >= 300:
            raise RuntimeError(f"{path}: {answer.status_code} {answer.text}")
        return str(answer.json()["id"])
    raise RuntimeError(f"{path}: never answered")


def _wait_started(daemon: DaemonProcess, job: str) -> None:
    """Wait until the job to be cancelled runs, through any crash."""
    deadline = time.monotonic() + SETTLE_S
    while time.monotonic() < deadline:
        try:
            with daemon.http() as client:
                wait_for_states(client, [job], {"RUNNING"}, timeout_s=5)
        except (httpx.TransportError, FileNotFoundError):
            _revive(daemon)
        except TimeoutError:
            continue
        else:
            return
    raise TimeoutError(f"{job} never ran:\n{daemon.log_tail()}")


def _settle(daemon: DaemonProcess, jobs: list[str]) -> dict[str, str]:
    for _ in range(3):
        try:
            with daemon.http() as client:
                return wait_for_states(client, jobs, timeout_s=SETTLE_S)
        except (httpx.TransportError, FileNotFoundError):
            _revive(daemon)
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{daemon.log_tail()}") from error
    raise RuntimeError("the daemon died three times after one failpoint")


def _testimony(folder: Path) -> list[str]:
    seen = witness.read(folder)
    return [
        *(f"double: {line}" for line in seen.doubles),
        *(f"started {n} times: {who}" for who, n in seen.starts.items() if n > 1),
    ]


def _books(database_url: str) -> list[str]:
    engine = sa.create_engine(database_url)
    try:
        with engine.connect() as connection:
            return ledger.violations(connection) + ledger.leaks(connection)
    finally:
        engine.dispose()
