"""The dashboard in a real browser: what people see, with hostile text, under the strict policy."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from support.builders import job_spec, node, virtual_node
from support.clock import ManualClock
from support.edge import Edge, edge_over, serving

from scheduler.model.lifecycle import JobEvent, JobState
from scheduler.store.database import Database

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt install chromium")


@pytest.fixture
def edge(sqlite_database: Database, clock: ManualClock) -> Edge:
    return edge_over(sqlite_database, clock)


def seen(url: str, profile: Path) -> tuple[str, str]:
    """The page's document once it is quiet, and what the browser complained of."""
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            f"--user-data-dir={profile}",
            "--enable-logging=stderr",
            "--virtual-time-budget=5000",
            "--dump-dom",
            url,
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


def test_a_login_link_shows_jobs_gpus_and_queues(edge: Edge, tmp_path: Path) -> None:
    office, box = edge.office, node("n0", 4)
    office.nodes(box, virtual_node("v0", 2))
    running = office.submit(spec=job_spec("busy", gpus=2))
    office.bring_to(running.id, JobState.RUNNING, box, gpus=(0, 1))
    office.submit(spec=job_spec("waits", gpus=1))
    root = edge.root
    edge.call("POST", "/api/v1/gpus/GPU-n0-3:cordon", root)

    with serving(edge) as address, edge.client(root) as client:
        link = client.session()["login_url"].partition("/login")[2]
        page, complaints = seen(f"{address}/login{link}", tmp_path / "profile")

    assert complaints == ""
    for text in ("busy", "waits", "SIMULATED GPUs", "GPU 0, H100: in use by busy", "live"):
        assert text in page, text
    assert "GPU 3, H100: free, cordoned" in page
    assert '<div id="board">' in page


def test_hostile_text_stays_text(edge: Edge, tmp_path: Path) -> None:
    office, box = edge.office, node("n0", 4)
    office.nodes(box)
    job = office.submit(spec=job_spec("crashed", gpus=1))
    office.bring_to(job.id, JobState.RUNNING, box)
    office.events(job.id, JobEvent.SILENCE)
    office.write(
        lambda tx: tx.connection.exec_driver_sql("UPDATE jobs SET message = ?", (HOSTILE,))
    )

    with serving(edge) as address, edge.client(edge.token()) as client:
        link = client.session()["login_url"].partition("/login")[2]
        page, complaints = seen(f"{address}/login{link}", tmp_path / "profile")

    assert complaints == ""
    assert "&lt;img src=x" in page
    assert "<title>Haversack</title>" in page


def test_without_a_session_it_asks_for_a_token(edge: Edge, tmp_path: Path) -> None:
    with serving(edge) as address:
        page, _ = seen(address, tmp_path / "profile")

    assert "Open the dashboard" in page
    assert '<div id="board" hidden="">' in page
