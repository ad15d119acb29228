"""A real daemon in a process of its own, as a user would start it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

HAVERSACK = Path(sys.executable).with_name("haversack")
START_S = 60.0
TERMINAL = {"SUCCEEDED", "FAILED", "CANCELLED"}


@dataclass
class DaemonProcess:
    """Starts, kills and restarts `haversack serve` on one data directory."""

    data_dir: Path
    virtual: str = ""
    database: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    arguments: Sequence[str] = ()
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0

    @property
    def log_file(self) -> Path:
        return self.data_dir.parent / f"{self.data_dir.name}-{self.starts}.log"

    def start(self, *, failpoints: str = "", wait: bool = True) -> None:
        """Start it; with `wait`, until the API answers."""
        (self.data_dir / "endpoint.json").unlink(missing_ok=True)
        self.starts += 1
        environment = {
            **os.environ,
            "HAVERSACK_FAILPOINTS": failpoints,
            **{f"HAVERSACK_{name}": value for name, value in self.settings.items()},
        }
        command = [str(HAVERSACK), "serve", "--data", str(self.data_dir), "--port", "0"]
        if self.virtual:
            command += ["--virtual", self.virtual]
        if self.database:
            command += ["--database", self.database]
        command += self.arguments
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        """Wait until the API answers.

        Raises:
            RuntimeError: the daemon ended first, with the end of its log.
        """
        deadline = time.monotonic() + START_S
        while not (self.data_dir / "endpoint.json").exists():
            if not self.alive or time.monotonic() > deadline:
                raise RuntimeError(f"daemon did not start:\n{self.log_tail()}")
            time.sleep(0.02)

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def log_tail(self) -> str:
        return self.log_file.read_text(errors="replace")[-4000:]

    def wait_dead(self, timeout_s: float = 30.0) -> bool:
        """Whether the daemon ended within the time."""
        assert self.process is not None
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        """kill -9."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def stop(self) -> int:
        """SIGTERM, then wait; returns the exit status."""
        assert self.process is not None
        self.process.terminate()
        try:
            return self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    @property
    def url(self) -> str:
        return str(json.loads((self.data_dir / "endpoint.json").read_text())["url"])

    @property
    def token(self) -> str:
        return (self.data_dir / "token").read_text().strip()

    @contextmanager
    def http(self, timeout_s: float = 30.0) -> Iterator[httpx.Client]:
        """A client that carries the administrator's token."""
        with httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {self.token}"},
            timeout=timeout_s,
            trust_env=False,
        ) as client:
            yield client


def job_document(
    name: str,
    command: Sequence[str],
    *,
    tasks: int = 1,
    gpus: int = 0,
    priority: int = 50,
    **spec: object,
) -> dict[str, object]:
    """A job of plain processes, small enough to fit anywhere."""
    task: dict[str, object] = {
        "gpus": gpus,
        "cpus": 0.01,
        "memory_mib": 1,
        "command": list(command),
    }
    return {
        "apiVersion": "haversack.dev/v1alpha1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {
            "priority": priority,
            "tasks": tasks,
            "task": task,
            "launcher": "none",
            **spec,
        },
    }


def wait_for_states(
    client: httpx.Client,
    wanted: Sequence[str],
    states: frozenset[str] | set[str] = frozenset(TERMINAL),
    timeout_s: float = 60.0,
) -> dict[str, str]:
    """Wait until every job of `wanted` is in one of `states`; returns the states by id."""
    deadline = time.monotonic() + timeout_s
    seen: dict[str, str] = {}
    while True:
        seen = {job: client.get(f"/api/v1/jobs/{job}").json()["state"] for job in wanted}
        if all(state in states for state in seen.values()):
            return seen
        if time.monotonic() > deadline:
            raise TimeoutError(f"still waiting: {seen}")
        time.sleep(0.05)


UNFINISHED = ("PENDING", "ASSIGNED", "LAUNCHING", "RUNNING", "SUSPECT", "LOST", "STOPPING")


def all_states(client: httpx.Client, *, timeout_s: float) -> dict[str, str]:
    """Wait until no job is on its way, then the state of every job by id, page by page.

    Raises:
        TimeoutError: jobs were still on their way.
    """
    deadline = time.monotonic() + timeout_s
    query = {"limit": "1", "state": list(UNFINISHED)}
    while client.get("/api/v1/jobs", params=query).json()["items"]:
        if time.monotonic() > deadline:
            raise TimeoutError(client.get("/api/v1/queues").text)
        time.sleep(0.2)
    states: dict[str, str] = {}
    cursor: str | None = None
    while True:
        page = client.get(
            "/api/v1/jobs", params={"limit": "500", **({"cursor": cursor} if cursor else {})}
        ).json()
        states |= {job["id"]: job["state"] for job in page["items"]}
        cursor = page["next_cursor"]
        if cursor is None:
            return states
