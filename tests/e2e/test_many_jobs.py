"""A thousand gangs on 128 simulated GPUs: all reach the right end, no GPU ever held twice."""

from __future__ import annotations

import random
from pathlib import Path

import sqlalchemy as sa
from support import ledger, witness
from support.daemon import DaemonProcess, all_states, job_document

JOBS = 1000
GANGS = ((1, 1), (1, 2), (2, 1), (1, 4), (4, 1), (1, 8), (2, 4), (8, 1))
"""(tasks, GPUs per task): gangs of 1, 2, 4 and 8 GPUs in several cuts."""


def test_a_thousand_jobs_reach_the_right_end(tmp_path: Path) -> None:
    draw = random.Random(20261122)
    daemon = DaemonProcess(tmp_path / "data", virtual="16x8:H100")
    daemon.start()
    expected: dict[str, str] = {}
    tasks_of: dict[str, int] = {}
    try:
        with daemon.http() as client:
            for number in range(JOBS):
                tasks, gpus = draw.choices(GANGS, weights=(8, 4, 2, 2, 1, 1, 1, 1))[0]
                code = 7 if draw.random() < 0.1 else 0
                document = job_document(
                    f"job-{number}",
                    witness.command(tmp_path, 0.02, code),
                    tasks=tasks,
                    gpus=gpus,
                    priority=draw.randrange(101),
                )
                answer = client.post("/api/v1/jobs", json=document)
                assert answer.status_code == 201, answer.text
                job = answer.json()["id"]
                expected[job] = "FAILED" if code else "SUCCEEDED"
                tasks_of[job] = tasks
            states = all_states(client, timeout_s=240)
        daemon.stop()
    finally:
        daemon.kill()

    assert states == expected
    seen = witness.read(tmp_path)
    assert seen.doubles == ()
    assert {who for who, n in seen.starts.items() if n > 1} == set()
    # Every task of every gang started in the job's one attempt (a failing rank ends its gang, but
    # only after all ranks were started).
    assert {job: seen.starts_of(job) for job in expected if expected[job] == "SUCCEEDED"} == {
        job: [(1, task) for task in range(tasks_of[job])]
        for job in expected
        if expected[job] == "SUCCEEDED"
    }
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'data' / 'haversack.db'}")
    with engine.connect() as connection:
        assert ledger.violations(connection) == []
        assert ledger.leaks(connection) == []
    engine.dispose()
