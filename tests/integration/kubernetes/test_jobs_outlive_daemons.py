"""Jobs of our own whose daemon is killed: in a module of its own, as only one leads a cluster."""

from __future__ import annotations

import contextlib
from pathlib import Path

import httpx
import pytest
from support.kubernetes.ground import Ground
from support.kubernetes.job_site import job, site


@pytest.mark.parametrize("point", ["create-after-send@3", "exit-seen"])
def test_every_task_runs_once_wherever_the_daemon_dies(
    ground: Ground, tmp_path: Path, point: str
) -> None:
    name, _, nth = point.partition("@")
    runs = tmp_path / "runs"
    armed = f"{name}=kill" + (f"@{nth}" if nth else "")
    with site(ground, tmp_path, failpoints=armed) as here:
        with contextlib.suppress(httpx.TransportError):  # it may die before it has answered
            here.submit(job("once", f"echo $HAVERSACK_TASK_INDEX >> {runs}", tasks=3))
        assert here.on.daemon.wait_dead(), "the failpoint was not met"
        here.on.daemon.start()
        with here.on.daemon.http() as client:
            (job_id,) = [each["id"] for each in client.get("/api/v1/jobs").json()["items"]]
        here.until_state(job_id, "SUCCEEDED")
        here.until_let_go()
        assert sorted(runs.read_text().split()) == ["0", "1", "2"]
        assert len(here.pods(job_id)) == 3
