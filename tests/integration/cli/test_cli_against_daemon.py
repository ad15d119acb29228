"""The real command against a real daemon: codes, streams, Ctrl-C, a restart while following."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest
from support.daemon import HAVERSACK, DaemonProcess, job_document

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    running = DaemonProcess(tmp_path_factory.mktemp("cli") / "data", virtual="2x8:H100")
    running.start()
    yield running
    running.stop()


def environ(daemon: DaemonProcess) -> dict[str, str]:
    kept = {name: text for name, text in os.environ.items() if not name.startswith("HAVERSACK_")}
    return {**kept, "HAVERSACK_DATA": str(daemon.data_dir)}


def haversack(
    daemon: DaemonProcess, *arguments: str, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [HAVERSACK, *arguments],
        env=environ(daemon),
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@contextmanager
def started(daemon: DaemonProcess, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A command in the background, dead at the end whatever happens."""
    with subprocess.Popen(
        [HAVERSACK, *arguments],
        env=environ(daemon),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def next_line(stream: IO[str] | None) -> str:
    assert stream is not None
    line = stream.readline()
    assert line, "the command ended too early"
    return line


def rest_of(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What is left of stdout and stderr; `communicate` would miss what readline has buffered."""
    assert process.stdout is not None
    assert process.stderr is not None
    rest = process.stdout.read(), process.stderr.read()
    process.wait()
    return rest


def submitted(
    daemon: DaemonProcess, name: str, command: Sequence[str], *options: str, gpus: int = 1
) -> subprocess.CompletedProcess[str]:
    document = json.dumps(job_document(name, command, gpus=gpus))
    return haversack(daemon, "submit", "-f", "-", *options, stdin=document)


def test_waiting_mirrors_success_and_failure(daemon: DaemonProcess) -> None:
    good = submitted(daemon, "good", ["sh", "-c", "echo hello"], "--wait")
    assert (good.returncode, good.stderr.splitlines()[-1].split(" (")[0]) == (0, "good")
    bad = submitted(daemon, "bad", ["sh", "-c", "exit 3"], "--wait", "--json")
    assert bad.returncode == 100
    assert json.loads(bad.stdout)["exit_code"] == 3
    assert haversack(daemon, "logs", "good").stdout == "hello\n"
    assert "rank 0 exited 3" in haversack(daemon, "describe", "bad").stdout
    assert "FAILED" in haversack(daemon, "explain", "bad").stdout


def test_a_timeout_and_a_cancel_while_following(daemon: DaemonProcess) -> None:
    slow = submitted(daemon, "slow", ["sleep", "60"], "--wait", "--timeout", "1")
    assert slow.returncode == 101
    with started(daemon, "logs", "-f", "slow") as following:
        assert haversack(daemon, "cancel", "slow").returncode == 0
        _, told = rest_of(following)
    assert following.returncode == 102
    assert "CANCELLED" in told


def test_ctrl_c_detaches_and_the_job_goes_on(daemon: DaemonProcess, tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    path.write_text(json.dumps(job_document("kept", ["sleep", "60"], gpus=1)))
    with started(daemon, "submit", "-f", str(path), "--wait") as waiting:
        job_id = next_line(waiting.stdout).strip()
        while "running" not in next_line(waiting.stderr):
            pass
        waiting.send_signal(signal.SIGINT)
        _, told = rest_of(waiting)
    assert waiting.returncode == 101
    assert f"haversack logs -f {job_id}" in told
    described = json.loads(haversack(daemon, "describe", job_id, "--json").stdout)
    assert described["state"] == "RUNNING"
    assert haversack(daemon, "cancel", job_id).returncode == 0


def test_a_job_that_must_wait_is_explained(daemon: DaemonProcess) -> None:
    held = [submitted(daemon, "full", ["sleep", "60"], gpus=8).stdout.strip() for _ in range(2)]
    waiting = submitted(daemon, "next", ["true"], gpus=8).stdout.strip()
    deadline = time.monotonic() + 30
    while True:
        told = haversack(daemon, "explain", waiting, "--json")
        codes = [reason["code"] for reason in json.loads(told.stdout)["reasons"]]
        if codes and codes[0] != "pending-evaluation":
            break
        assert time.monotonic() < deadline, told.stdout
        time.sleep(0.1)
    assert "gpus" in haversack(daemon, "explain", waiting).stdout
    assert haversack(daemon, "hold", waiting).stdout == f"{waiting} HELD\n"
    assert haversack(daemon, "release", waiting).stdout == f"{waiting} PENDING\n"
    assert haversack(daemon, "cancel", waiting, *held).returncode == 0


def test_following_goes_on_across_a_kill_of_the_daemon(tmp_path: Path) -> None:
    running = DaemonProcess(tmp_path / "data", virtual="1x1:H100")
    running.start()
    port = running.url.rsplit(":", 1)[1]
    script = "for i in 1 2 3 4 5 6 7 8; do echo line $i; sleep 0.5; done"
    job_id = submitted(running, "steady", ["sh", "-c", script]).stdout.strip()
    with started(running, "logs", "-f", job_id) as following:
        first = next_line(following.stdout)
        running.kill()
        # The follower knows one address: the daemon comes back there, as a service would.
        with started(running, "serve", "--data", str(running.data_dir), "--port", port,
                     "--virtual", "1x1:H100"):  # fmt: skip
            rest, told = rest_of(following)
    assert first + rest == "".join(f"line {i}\n" for i in range(1, 9))
    assert following.returncode == 0
    assert "SUCCEEDED" in told


def test_self_check_and_lists(daemon: DaemonProcess) -> None:
    doctor = haversack(daemon, "doctor", "--json")
    grades = {check["check"]: check["grade"] for check in json.loads(doctor.stdout)["items"]}
    assert doctor.returncode == 0, doctor.stdout
    assert grades["authorisation"] == "ok"
    assert len(haversack(daemon, "gpus", "-o", "name").stdout.splitlines()) == 16
    assert "simulated" in haversack(daemon, "nodes").stdout
    assert "jobs.submit" in haversack(daemon, "audit").stdout
    assert '"state"' in haversack(daemon, "events", "--since", "0", "-o", "jsonl").stdout
    decision = haversack(daemon, "decisions", "-o", "name").stdout.split()[0]
    assert haversack(daemon, "decisions", decision).returncode == 0


def test_without_a_daemon_the_code_is_7_and_the_remedy_is_named(tmp_path: Path) -> None:
    nobody = DaemonProcess(tmp_path)
    (tmp_path / "token").write_text("hvs_x")
    (tmp_path / "token").chmod(0o600)
    result = haversack(nobody, "--server", "http://127.0.0.1:9", "jobs")
    assert result.returncode == 7
    assert "haversack up" in result.stderr
