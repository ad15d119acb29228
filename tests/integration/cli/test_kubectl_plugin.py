"""`kubectl haversack`, as installed, against a real daemon on virtual nodes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator

import pytest
import yaml
from support.daemon import DaemonProcess, job_document
from support.kubernetes.real_server import NoControlPlaneError, program
from support.plugin import BIN, PLUGIN, command, environ, kubectl_haversack

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    running = DaemonProcess(tmp_path_factory.mktemp("plugin") / "data", virtual="2x8:H100")
    running.start()
    yield running
    assert running.stop() == 0


def submitted(daemon: DaemonProcess, name: str, *words: str, gpus: int = 0) -> str:
    document = json.dumps(job_document(name, words, gpus=gpus))
    made = kubectl_haversack(daemon, "submit", "-f", "-", "-o", "name", stdin=document)
    assert made.returncode == 0, made.stderr
    return made.stdout.strip()


def table(daemon: DaemonProcess, *arguments: str) -> list[dict[str, str]]:
    """Rows by header; every cell must start where its header does."""
    result = kubectl_haversack(daemon, "get", *arguments)
    assert result.returncode == 0, result.stderr
    head, *lines = result.stdout.splitlines()
    headers = head.split()
    starts = [found.start() for found in re.finditer(r"\S+", head)]
    ends = [*starts[1:], None]
    for line in lines:
        assert all(line[start] != " " and line[start - 1] == " " for start in starts[1:]), line
    return [
        {
            header: line[start:end].strip()
            for header, start, end in zip(headers, starts, ends, strict=True)
        }
        for line in lines
    ]


def test_kubectl_sees_the_plugin_and_has_nothing_to_warn_of(daemon: DaemonProcess) -> None:
    try:
        kubectl = program("kubectl")
    except NoControlPlaneError as error:
        pytest.skip(f"kubectl itself does not list the plugin: {error}")
    listed = subprocess.run(
        [kubectl, "plugin", "list"],
        env=environ(daemon),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert listed.returncode == 0, listed.stderr
    assert str(PLUGIN) in listed.stdout.splitlines()
    assert "warning" not in (listed.stdout + listed.stderr).lower()


def test_it_is_installed_beside_the_command(daemon: DaemonProcess) -> None:
    assert os.access(BIN / "kubectl-haversack", os.X_OK)
    assert "Available Commands:" in kubectl_haversack(daemon).stdout


def test_a_job_is_submitted_listed_described_followed_and_explained(daemon: DaemonProcess) -> None:
    name = submitted(daemon, "greets", "sh", "-c", "echo hello")
    job_id = name.removeprefix("job.haversack.dev/")
    followed = kubectl_haversack(daemon, "logs", "-f", name)
    assert (followed.returncode, followed.stdout) == (0, "hello\n")
    (row,) = [row for row in table(daemon, "jobs", "-n", "default") if row["NAME"] == "greets"]
    assert (row["ID"], row["STATUS"], row["TASKS"]) == (job_id, "SUCCEEDED", "1")
    assert table(daemon, "jobs", "-A")[0]["NAMESPACE"] == "default"
    text = kubectl_haversack(daemon, "describe", "job", "greets").stdout
    assert "rank 0 exited 0" in text
    assert "It succeeded" in kubectl_haversack(daemon, "explain", "greets").stdout
    shown = kubectl_haversack(daemon, "get", name, "-o", "yaml").stdout
    assert yaml.safe_load(shown)["id"] == job_id


def test_what_waits_is_explained_with_what_helps_and_cancelled(daemon: DaemonProcess) -> None:
    names = [submitted(daemon, "full", "sleep", "60", gpus=8) for _ in range(2)]
    waiting = submitted(daemon, "next", "true", gpus=8)
    deadline = time.monotonic() + 30
    while "waiting-capacity" not in (told := kubectl_haversack(daemon, "explain", waiting).stdout):
        assert time.monotonic() < deadline, told
        time.sleep(0.1)
    assert "wait, or free some" in told
    assert {row["GPUS"] for row in table(daemon, "nodes")} == {"8/8"}
    assert {row["JOB"] for row in table(daemon, "gpus")} == {"full"}
    (queue,) = table(daemon, "queue")
    assert (queue["PENDING"], queue["RUNNING"]) == ("1", "2")
    done = kubectl_haversack(daemon, "cancel", waiting, *names)
    assert done.returncode == 0
    assert done.stdout.splitlines()[0] == "job.haversack.dev/next cancelled"


def test_watching_shows_a_change_when_it_is_committed(daemon: DaemonProcess) -> None:
    name = submitted(daemon, "watched", "sleep", "60")
    with subprocess.Popen(
        [*command(), "get", name, "-w", "--no-headers"],
        env=environ(daemon),
        stdout=subprocess.PIPE,
        text=True,
    ) as watching:
        try:
            assert watching.stdout is not None
            assert watching.stdout.readline().startswith("watched")
            assert kubectl_haversack(daemon, "cancel", name).returncode == 0
            states = (line.split()[2] for line in watching.stdout)
            assert any(state == "CANCELLED" for state in states)
        finally:
            watching.kill()


def test_errors_are_one_and_told_as_kubectl_tells_them(daemon: DaemonProcess) -> None:
    missing = kubectl_haversack(daemon, "get", "job", "nobody")
    assert (missing.returncode, missing.stdout) == (1, "")
    assert missing.stderr.startswith(
        'Error from server (NotFound): jobs.haversack.dev "nobody" not found'
    )
    empty = kubectl_haversack(daemon, "get", "jobs", "-n", "empty")
    assert (empty.returncode, empty.stderr) == (0, "No resources found in empty namespace.\n")
    away = kubectl_haversack(daemon, "get", "jobs", "--server", "http://127.0.0.1:9")
    assert away.returncode == 1
    assert away.stderr.startswith("Unable to connect to the server: ")
