"""One crash story: jobs are submitted, something fails at a named point, a supervisor mends it.

The story is the same for every failpoint, so that a new failpoint needs no new test.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import httpx
import sqlalchemy as sa
from support import ledger, witness
from support.daemon import DaemonProcess, job_document, wait_for_states
from support.supervisor import Supervisor

T = TypeVar("T")
SETTLE_S = 60.0
_ANSWER_S = 5.0


@dataclass(frozen=True)
class Story:
    """What was asked for: key -> document, and how each job must end."""

    documents: dict[str, dict[str, object]]
    endings: dict[str, str]
    cancel: str


@dataclass
class Findings:
    """Everything that went wrong; all empty is good.

    Attributes:
        lost: jobs that do not exist, or did not end as they must.
        duplicated: tasks that started twice, or while another start of theirs still ran.
        leaked: GPUs and attempts still held though every job is over.
        other: contradictions in the books, dead parts, a failpoint that never fired.
    """

    lost: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    leaked: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        return [*self.lost, *self.duplicated, *self.leaked, *self.other]


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
            "pair": "SUCCEEDED",
            "wide": "SUCCEEDED",
            "fails": "FAILED",
            "retries": "FAILED",
            "endless": "CANCELLED",
        },
        cancel="endless",
    )


def tell(
    daemon: DaemonProcess, database_url: str, folder: Path, failpoint: str, kind: str = "kill"
) -> Findings:
    """Play the story with one failure and return everything that went wrong.

    Every request may meet the failure: the client then repeats it with the same idempotency key, as
    a careful user would, while the supervisor starts the daemon again or kills what hangs.

    Args:
        daemon: not started yet; stopped afterwards.
        database_url: of the daemon's store.
        folder: for the tasks' testimony.
        failpoint: where it fails.
        kind: how: `kill`, `raise` or `hang`.
    """
    tale = story(folder)
    found = Findings()
    with Supervisor(daemon, folder / "fired", f"{failpoint}={kind}") as supervisor:
        jobs = {
            key: _post(daemon, "/api/v1/jobs", document, key)
            for key, document in tale.documents.items()
        }
        _wait(daemon, [jobs[tale.cancel]], {"RUNNING"})
        _post(daemon, f"/api/v1/jobs/{jobs[tale.cancel]}:cancel", {}, None)
        states = _wait(daemon, list(jobs.values()), set(tale.endings.values()))
        _insist(daemon, lambda client: client.get("/readyz").raise_for_status())
        listed = _items(daemon, "/api/v1/jobs?limit=100")
        gpus = _items(daemon, "/api/v1/gpus")
    if f"{failpoint} {kind}" not in supervisor.fired:
        found.other.append(f"{failpoint} never fired: this proves nothing")
    found.other += [
        f"the daemon ended with status {status}: {words}"
        for status, words in supervisor.endings
        if status != (-9 if kind != "raise" else 1)
    ]
    found.lost += [
        f"{key} ended {states[job]}, expected {tale.endings[key]}"
        for key, job in jobs.items()
        if states[job] != tale.endings[key]
    ]
    if len(listed) != len(jobs):
        found.lost.append(f"{len(jobs)} jobs were submitted, {len(listed)} exist")
    found.leaked += [f"{gpu['id']} held by {gpu['job_id']}" for gpu in gpus if gpu["job_id"]]
    if (status := daemon.stop()) != 0:
        found.other.append(f"the last daemon stopped with status {status}")
    _hear(folder, found)
    _audit(database_url, found)
    return found


def _insist(daemon: DaemonProcess, ask: Callable[[httpx.Client], T]) -> T:
    """Ask until there is an answer; failures of the daemon (5xx) are no answer."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        try:
            with daemon.http(_ANSWER_S) as client:
                return ask(client)
        except (httpx.TransportError, FileNotFoundError, httpx.HTTPStatusError) as error:
            refused = (
                isinstance(error, httpx.HTTPStatusError) and not error.response.is_server_error
            )
            if refused or time.monotonic() > deadline:
                raise RuntimeError(f"{error}\n{daemon.log_tail()}") from error
        time.sleep(0.05)


def _post(daemon: DaemonProcess, path: str, body: dict[str, object], key: str | None) -> str:
    headers = {"Idempotency-Key": key} if key else {}

    def ask(client: httpx.Client) -> str:
        answer = client.post(path, json=body, headers=headers).raise_for_status()
        return str(answer.json()["id"])

    return _insist(daemon, ask)


def _items(daemon: DaemonProcess, path: str) -> list[dict[str, object]]:
    return _insist(daemon, lambda client: list(client.get(path).raise_for_status().json()["items"]))


def _wait(daemon: DaemonProcess, jobs: list[str], states: set[str]) -> dict[str, str]:
    """Wait until every job is in one of the states, through any failure."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        try:
            return _insist(daemon, lambda client: wait_for_states(client, jobs, states, 5.0))
        except TimeoutError as error:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{error}\n{daemon.log_tail()}") from error


def _hear(folder: Path, found: Findings) -> None:
    seen = witness.read(folder)
    found.duplicated += seen.doubles
    found.duplicated += [f"{who} started {n} times" for who, n in seen.starts.items() if n > 1]


def _audit(database_url: str, found: Findings) -> None:
    engine = sa.create_engine(database_url)
    try:
        with engine.connect() as connection:
            found.other += ledger.violations(connection)
            found.leaked += ledger.leaks(connection)
    finally:
        engine.dispose()
