"""kill -9 of the daemon again and again while jobs hold real GPUs.

After each restart the GPUs that the driver sees in use are exactly those that the ledger says are
held, each by the very job that the ledger names, and no GPU ever has two users.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa
from support import hold_gpu, ledger, nvidia, witness
from support.daemon import TERMINAL, UNFINISHED, DaemonProcess, job_document, wait_for_states

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]

ROUNDS = 20
SEED = 20261122
SETTLE_S = 90.0
FOREVER_S = 100_000.0
KILL_WITHIN_S = 1.5


@dataclass
class Story:
    """Jobs come and go on one daemon; every request is repeated until it is answered."""

    daemon: DaemonProcess
    folder: Path
    gpus: int
    draw: random.Random
    lasting: dict[str, int] = field(default_factory=dict)
    """Jobs that only a cancellation ends -> GPUs they take."""
    passing: dict[str, int] = field(default_factory=dict)
    """Jobs that end by themselves after some seconds."""
    submitted: int = 0

    def act(self) -> None:
        """Submit or cancel one job."""
        if self.lasting and self.draw.random() < len(self.lasting) / (2 * self.gpus + 2):
            job = self.draw.choice(sorted(self.lasting))
            self._post(f"/api/v1/jobs/{job}:cancel", {}, "")
            del self.lasting[job]
            return
        gpus = self.draw.choice((1, 1, 1, self.gpus))
        passing = self.draw.random() < 0.3
        seconds = self.draw.uniform(0.0, 4.0) if passing else FOREVER_S
        self.submitted += 1
        document = job_document(
            f"hold-{self.submitted}",
            ["python", str(hold_gpu.__file__), str(self.folder), str(seconds)],
            gpus=gpus,
        )
        job = self._post("/api/v1/jobs", document, f"hold-{self.submitted}")
        (self.passing if passing else self.lasting)[job] = gpus

    def _post(self, path: str, body: Mapping[str, object], key: str) -> str:
        headers = {"Idempotency-Key": key} if key else {}
        for _ in range(2):
            try:
                with self.daemon.http() as client:
                    answer = client.post(path, json=body, headers=headers)
            except (httpx.TransportError, FileNotFoundError):
                assert self.daemon.wait_dead(), "the daemon refuses requests but lives"
                self.daemon.start()
                continue
            assert answer.status_code < 300, answer.text
            return str(answer.json()["id"])
        raise AssertionError(f"{path}: never answered")

    def round(self) -> bool:
        """Some actions with a kill -9 at a random moment; True when it fell between them."""
        before = self.daemon.starts
        assert self.daemon.process is not None
        killer = threading.Timer(self.draw.uniform(0.0, KILL_WITHIN_S), self.daemon.process.kill)
        killer.start()
        for _ in range(self.draw.randint(1, 4)):
            self.act()
            time.sleep(self.draw.uniform(0.0, 0.6))
        killer.join()
        amid = self.daemon.starts > before
        if not amid:
            assert self.daemon.wait_dead()
            self.daemon.start()
        return amid

    def settled(self) -> tuple[dict[str, str], dict[str, nvidia.Occupancy]]:
        """Holders by GPU as the ledger says, and the driver's view of the same moment.

        Raises:
            TimeoutError: the jobs did not settle.
        """
        deadline = time.monotonic() + SETTLE_S
        with self.daemon.http() as client:
            while time.monotonic() < deadline:
                before = holders(client)
                if self._at_rest(client, before):
                    seen = nvidia.occupancy()
                    if holders(client) == before:
                        return before, seen
                time.sleep(0.1)
            states = client.get("/api/v1/jobs", params={"state": list(UNFINISHED)}).text
        raise TimeoutError(f"not settled: {states}\n{self.daemon.log_tail()}")

    def _at_rest(self, client: httpx.Client, held: Mapping[str, str]) -> bool:
        """Nothing is about to happen by itself, and who holds GPUs has said so."""
        query = {"limit": "500", "state": list(UNFINISHED)}
        jobs = {job["id"]: job for job in client.get("/api/v1/jobs", params=query).json()["items"]}
        running = {job for job, seen in jobs.items() if seen["state"] == "RUNNING"}
        waiting = [seen["gpus"] for seen in jobs.values() if seen["state"] == "PENDING"]
        free = self.gpus - len(held)
        return (
            running <= self.lasting.keys()
            and running == set(held.values())
            and len(running) + len(waiting) == len(jobs)
            and all(gpus > free for gpus in waiting)
            and all(says_it_holds(client, job) == self.lasting[job] for job in running)
        )


def holders(client: httpx.Client) -> dict[str, str]:
    """The ledger: job by GPU held."""
    gpus = client.get("/api/v1/gpus").json()["items"]
    return {gpu["id"]: gpu["job_id"] for gpu in gpus if gpu["job_id"] is not None}


def says_it_holds(client: httpx.Client, job: str) -> int:
    """How many GPUs the job's own log claims."""
    headers = {"Accept": "text/plain"}
    return client.get(f"/api/v1/jobs/{job}/logs", headers=headers).text.count("holding GPU-")


def check_round(
    number: int, story: Story, idle: Mapping[str, nvidia.Occupancy], *, amid: bool
) -> None:
    """Compare the driver with the ledger once, and print it."""
    began = time.monotonic()
    held, seen = story.settled()
    in_use = nvidia.occupied(idle, seen)
    users = {
        gpu: {job for pid in use.pids if (job := nvidia.job_of(pid))} for gpu, use in seen.items()
    }
    shown = " ".join(
        f"{gpu[:12]}={held.get(gpu, 'free')}/{seen[gpu].memory_mib}MiB/pids{list(seen[gpu].pids)}"
        for gpu in sorted(seen)
    )
    print(  # noqa: T201 - the round's line is the evidence
        f"round {number:2d}: killed {'amid requests' if amid else 'after them'}, settled in"
        f" {time.monotonic() - began:.1f} s, {len(story.lasting)} jobs alive or waiting;"
        f" ledger holds {len(held)}, NVML sees {len(in_use)}: {shown}",
        flush=True,
    )
    assert in_use == held.keys()
    for gpu, job in held.items():
        assert users[gpu] in ({job}, set()), f"{gpu}: the ledger says {job}"
    assert witness.read(story.folder).doubles == ()


def test_ledger_and_driver_agree_through_twenty_kills(tmp_path: Path) -> None:
    nvidia.nvidia_smi("-L")  # skips without a GPU
    idle = nvidia.occupancy()
    daemon = DaemonProcess(tmp_path / "data")
    story = Story(daemon, tmp_path, len(idle), random.Random(SEED))
    daemon.start()
    try:
        for number in range(1, ROUNDS + 1):
            amid = story.round()
            check_round(number, story, idle, amid=amid)
        with daemon.http() as client:
            for job in story.lasting:
                client.post(f"/api/v1/jobs/{job}:cancel")
            jobs = client.get("/api/v1/jobs", params={"limit": "500"}).json()["items"]
            everyone = [str(job["id"]) for job in jobs]
            states = wait_for_states(client, everyone, TERMINAL, timeout_s=2 * SETTLE_S)
            assert holders(client) == {}
        assert nvidia.occupied(idle, nvidia.occupancy()) == set()
        daemon.stop()
    finally:
        daemon.kill()
        nvidia.release(daemon.data_dir)
    _check_books(tmp_path, states, story)


def _check_books(folder: Path, states: Mapping[str, str], story: Story) -> None:
    """No job lost or made twice, none started twice, the store sound over all its history."""
    assert len(states) == story.submitted
    assert {states[job] for job in story.passing} <= {"SUCCEEDED"}
    assert set(states.values()) <= {"SUCCEEDED", "CANCELLED"}
    seen = witness.read(folder)
    assert seen.doubles == ()
    assert {who: n for who, n in seen.starts.items() if n > 1} == {}
    engine = sa.create_engine(f"sqlite:///{folder / 'data' / 'haversack.db'}")
    try:
        with engine.connect() as connection:
            assert ledger.violations(connection) == []
            assert ledger.leaks(connection) == []
    finally:
        engine.dispose()
    sys.stdout.write(
        f"{story.submitted} jobs, {sum(seen.starts.values())} starts, 0 doubles,"
        f" {story.daemon.starts} daemon starts\n"
    )
