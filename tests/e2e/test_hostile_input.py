"""Hostile or broken input: each gives a clear answer and loses nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from support.daemon import HAVERSACK, DaemonProcess, job_document, wait_for_states


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    running = DaemonProcess(
        tmp_path_factory.mktemp("hostile") / "data",
        virtual="2x8:H100",
        settings={"EXECUTION__LOG_BYTES_MAX": "65536"},
    )
    running.start()
    yield running
    running.stop()


def _submit_file(daemon: DaemonProcess, path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [HAVERSACK, "submit", "-f", str(path)],
        env={**os.environ, "HAVERSACK_DATA": str(daemon.data_dir), "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


JOB_YAML = """\
apiVersion: haversack.dev/v1alpha1
kind: Job
metadata: {name: typo}
spec:
  task:
    gpuss: 1
    command: ["true"]
"""


def test_an_unknown_field_is_named_with_its_place_and_a_suggestion(
    daemon: DaemonProcess, tmp_path: Path
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(JOB_YAML)
    done = _submit_file(daemon, path)
    assert done.returncode == 2
    assert "spec.task.gpuss" in done.stderr
    assert "6:5" in done.stderr
    assert "gpus" in done.stderr.replace("gpuss", "")


def test_yaml_aliases_are_refused_with_their_line(daemon: DaemonProcess, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("a: &a [1, 1]\nb: [*a, *a, *a]\n")
    done = _submit_file(daemon, path)
    assert done.returncode == 2
    assert "alias" in done.stderr or "anchor" in done.stderr
    assert "1:4" in done.stderr or "2:5" in done.stderr


def test_an_impossible_request_names_the_limiting_dimension(daemon: DaemonProcess) -> None:
    with daemon.http() as client:
        answer = client.post("/api/v1/jobs", json=job_document("big", ["true"], gpus=9))
    assert answer.status_code == 422
    problem = answer.json()
    assert problem["code"] == "infeasible"
    assert problem["dimension"] == "gpus"
    assert "9" in problem["detail"]
    assert "8" in problem["detail"]


def test_the_cli_exits_6_for_an_impossible_request(daemon: DaemonProcess, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(JOB_YAML.replace("gpuss: 1", "gpus: 900"))
    done = _submit_file(daemon, path)
    assert done.returncode == 6
    assert "gpus" in done.stderr


def test_a_body_of_two_megabytes_is_refused(daemon: DaemonProcess) -> None:
    with daemon.http() as client:
        answer = client.post("/api/v1/jobs", content=b'{"a": "' + b"x" * 2_000_000 + b'"}')
        assert answer.status_code == 413
        assert answer.json()["code"]
        assert client.get("/healthz").status_code == 200


def test_a_chunked_body_without_a_length_is_capped_too(daemon: DaemonProcess) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(40):
            yield b"x" * 65_536

    with daemon.http() as client:
        try:
            answer = client.post(
                "/api/v1/jobs", content=chunks(), headers={"Content-Type": "application/json"}
            )
        except httpx.WriteError:
            return  # the server hung up on the flood, which is an answer as well
        assert answer.status_code == 413


@pytest.mark.parametrize("token", ["", "hvs_wrong", "hvs_" + "A" * 43 + "000000"])
def test_a_wrong_token_is_refused(daemon: DaemonProcess, token: str) -> None:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    answer = httpx.get(f"{daemon.url}/api/v1/jobs", headers=headers, trust_env=False)
    assert answer.status_code == 401
    assert answer.headers["content-type"].startswith("application/problem+json")
    assert answer.headers["www-authenticate"].startswith("Bearer")


def test_an_idempotency_key_with_another_body_is_refused(daemon: DaemonProcess) -> None:
    with daemon.http() as client:
        headers = {"Idempotency-Key": "twice"}
        first = client.post("/api/v1/jobs", json=job_document("one", ["true"]), headers=headers)
        again = client.post("/api/v1/jobs", json=job_document("one", ["true"]), headers=headers)
        other = client.post("/api/v1/jobs", json=job_document("two", ["true"]), headers=headers)
        assert first.status_code == 201
        assert again.json()["id"] == first.json()["id"]
        assert other.status_code == 422
        assert other.json()["code"] == "idempotency-key-reused"
        assert len(client.get("/api/v1/jobs?name=two").json()["items"]) == 0


@pytest.mark.parametrize("name", ["a\x1b[31mb", "a\x00b", "a\nb", "", "x" * 64, "\u202eevil"])
def test_a_job_name_with_control_characters_is_refused(daemon: DaemonProcess, name: str) -> None:
    with daemon.http() as client:
        answer = client.post("/api/v1/jobs", json=job_document(name, ["true"]))
    assert answer.status_code == 422
    assert answer.json()["problems"][0]["path"] == "metadata.name"
    assert "\x1b" not in answer.text


def test_a_command_that_floods_stdout_keeps_within_its_cap(daemon: DaemonProcess) -> None:
    flood = [
        sys.executable,
        "-c",
        "import sys\nfor _ in range(3000): sys.stdout.write('x'*4095+'\\n')",
    ]
    with daemon.http() as client:
        job = client.post("/api/v1/jobs", json=job_document("flood", flood)).json()["id"]
        assert wait_for_states(client, [job]) == {job: "SUCCEEDED"}
        log = client.get(f"/api/v1/jobs/{job}/logs", params={"limit": 1_000_000}).json()
    assert log["end"] is True
    assert len(log["data"]) < 70_000
    assert "log cap of 65536 bytes reached" in log["data"]


def test_a_command_that_ignores_sigterm_is_killed_after_its_grace(daemon: DaemonProcess) -> None:
    stubborn = ["bash", "-c", "trap '' TERM; echo trapped; while true; do sleep 0.1; done"]
    with daemon.http() as client:
        document = job_document(
            "stubborn", stubborn, checkpoint={"signal": "SIGTERM", "grace_s": 0.5}
        )
        job = client.post("/api/v1/jobs", json=document).json()["id"]
        wait_for_states(client, [job], {"RUNNING"})
        deadline = time.monotonic() + 20
        while "trapped" not in client.get(f"/api/v1/jobs/{job}/logs").json()["data"]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert client.post(f"/api/v1/jobs/{job}:cancel").status_code == 200
        assert wait_for_states(client, [job]) == {job: "CANCELLED"}


def test_a_second_daemon_on_the_same_data_is_refused_and_told_who_has_it(
    daemon: DaemonProcess,
) -> None:
    assert daemon.process is not None
    done = subprocess.run(
        [HAVERSACK, "up", "--data", str(daemon.data_dir), "--port", "0"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 5
    assert str(daemon.process.pid) in done.stderr
    with daemon.http() as client:
        assert client.get("/readyz").status_code == 200


def test_a_public_address_without_tls_is_refused_with_the_remedy(tmp_path: Path) -> None:
    done = subprocess.run(
        [HAVERSACK, "up", "--data", str(tmp_path / "d"), "--host", "0.0.0.0", "--port", "0"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert "TLS_CERTIFICATE" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_full_disk_refuses_submissions_and_recovers_without_a_restart(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a small disk here: {mounted.stderr.decode().strip()}")
    running = DaemonProcess(disk / "data", virtual="1x8:H100")
    try:
        _fill_and_recover(running, disk / "filler")
    finally:
        running.kill()
        subprocess.run(["umount", "-l", str(disk)], check=True)


def _fill_and_recover(running: DaemonProcess, filler: Path) -> None:
    running.start()
    with running.http() as client:
        job = job_document("kept", ["sleep", "2"], gpus=1)
        kept = client.post("/api/v1/jobs", json=job).json()["id"]
        wait_for_states(client, [kept], {"RUNNING"})
        with filler.open("wb") as file:
            try:
                while True:
                    file.write(b"\0" * 65_536)
                    file.flush()
            except OSError:
                pass  # the disk is full now: that is the point
        accepted = [kept]
        refusal = None
        for number in range(400):
            answer = client.post("/api/v1/jobs", json=job_document(f"n-{number}", ["true"]))
            if answer.status_code != 201:
                refusal = answer
                break
            accepted.append(answer.json()["id"])
        assert refusal is not None, "the disk was full and yet 400 jobs were accepted"
        assert refusal.status_code in {503, 507}
        assert refusal.json()["code"] == "storage-unavailable"
        assert client.get("/api/v1/jobs").status_code == 200, "reading still works"
        filler.unlink()
        deadline = time.monotonic() + 30
        while client.post("/api/v1/jobs", json=job_document("after", ["true"])).status_code != 201:
            assert time.monotonic() < deadline, "the daemon did not recover"
            time.sleep(0.2)
        assert set(wait_for_states(client, accepted).values()) == {"SUCCEEDED"}
