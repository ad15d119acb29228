"""The guide's demo works, twice in a row, and leaves nothing running however it ends."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.tree import ROOT

DEMO = ROOT / "docs" / "guide" / "demo.py"
PATIENCE_S = 60.0
SLEEPER = """\
apiVersion: haversack.dev/v1alpha1
kind: Job
metadata: {{name: sleeper}}
spec:
  task:
    cpus: 0.1
    memory_mib: 16
    command: [sh, -c, {script!r}]
  launcher: none
"""


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """The demo, with all that it starts marked by `TMPDIR` in its environment."""
    return subprocess.Popen(
        [sys.executable, str(DEMO), *arguments],
        env={**os.environ, "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def left_running(folder: Path) -> list[str]:
    """Command lines of processes that carry the mark."""
    mark = f"TMPDIR={folder}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (process / "environ").read_bytes().split(b"\0"):
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue  # it has just ended, or is another user's
    return found


def sleeper(folder: Path, script: str) -> Path:
    path = folder / "sleeper.yaml"
    path.write_text(SLEEPER.format(script=script))
    return path


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_the_demo_works_twice(tmp_path: Path) -> None:
    for _ in range(2):
        demo = start(tmp_path)
        output, _ = demo.communicate(timeout=240)
        assert demo.returncode == 0, output
        assert "world size 2" in output
        assert "all-reduce of ranks: 1, expected 1" in output
        assert "PARAMETERS AGREE on 2 ranks" in output
        assert "proven bound" in output
        assert "task 1 ran on" in output
        assert left_running(tmp_path) == []
        assert list(tmp_path.glob("haversack-demo-*")) == []


def test_interrupted_it_cancels_its_job_first(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    demo = start(tmp_path, str(sleeper(tmp_path, f"echo $$ > {witness}; exec sleep 600")))
    deadline = time.monotonic() + PATIENCE_S
    while not witness.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "sleep 600 " in left_running(tmp_path)
    demo.send_signal(signal.SIGINT)
    output, _ = demo.communicate(timeout=PATIENCE_S)
    assert demo.returncode == 130, output
    assert "$ haversack cancel j-" in output
    assert left_running(tmp_path) == []


def test_a_job_that_fails_is_told(tmp_path: Path) -> None:
    demo = start(tmp_path, str(sleeper(tmp_path, "echo going wrong; exit 3")))
    output, _ = demo.communicate(timeout=PATIENCE_S)
    assert demo.returncode == 1
    assert "going wrong" in output
    assert "demo: the job did not succeed (exit 100)" in output
    assert "demo: logs are kept in" in output
    assert left_running(tmp_path) == []
