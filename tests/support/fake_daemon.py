"""A daemon made of canned answers, behind httpx's own transport port: no socket, no time."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import typer
from typer.testing import CliRunner, Result

from api.schemas import AttemptOut, JobDetailOut, JobOut
from scheduler.cli.context import Session
from scheduler.cli.main import app
from scheduler.model.quantity import UtcSeconds

JOB_ID = "j-0000000000000001"
NOW = UtcSeconds(1_800_000_000.0)
SUBMITTED = "2027-01-15T07:55:00.000Z"

Answer = httpx.Response | Exception | Callable[[httpx.Request], httpx.Response]


def ok(document: object, status: int = 200) -> httpx.Response:
    """A JSON answer."""
    return httpx.Response(status, json=document)


def items(*records: object) -> httpx.Response:
    """A listing in one page."""
    return ok({"items": list(records), "next_cursor": None})


def problem(status: int, code: str, detail: str, **more: object) -> httpx.Response:
    """A refusal as the daemon words it."""
    return httpx.Response(status, json={"code": code, "detail": detail, "hint": "", **more})


def ndjson(*records: Mapping[str, object]) -> httpx.Response:
    """A stream of records that ends after the last."""
    return httpx.Response(200, text="".join(json.dumps(record) + "\n" for record in records))


@dataclass
class FakeClock:
    """Stands still but for `sleep`."""

    passed_s: float = 0.0

    def now(self) -> UtcSeconds:
        """Wall time."""
        return UtcSeconds(NOW + self.passed_s)

    def monotonic_s(self) -> float:
        """Seconds slept so far."""
        return self.passed_s

    def sleep(self, seconds: float) -> None:
        """Let `seconds` pass."""
        self.passed_s += seconds


@dataclass
class FakeDaemon:
    """Answers by (method, path): each in turn, the last for ever.

    Attributes:
        program: what is run against it.
    """

    answers: dict[tuple[str, str], list[Answer]] = field(default_factory=dict)
    requests: list[httpx.Request] = field(default_factory=list)
    program: typer.Typer = app

    def on(self, method: str, path: str, *answers: Answer) -> FakeDaemon:
        """Answer requests for `path` under /api/v1 (or an absolute probe path)."""
        full = path if path in ("/healthz", "/readyz") else f"/api/v1/{path}"
        self.answers[method, full] = list(answers)
        return self

    def handle(self, request: httpx.Request) -> httpx.Response:
        """What the daemon answers to `request`."""
        self.requests.append(request)
        waiting = self.answers.get((request.method, request.url.path))
        if waiting is None:
            return problem(404, "not-found", f"nothing at {request.url.path}")
        answer = waiting[0] if len(waiting) == 1 else waiting.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, httpx.Response):
            # A response object can be read once only.
            return httpx.Response(
                answer.status_code, headers=dict(answer.headers), content=answer.content
            )
        return answer(request)

    def run(
        self, *arguments: str, stdin: str | bytes | None = None, cwd: Path | None = None
    ) -> Result:
        """Run one command against this daemon with a token in the environment."""
        return self.run_with({"HAVERSACK_TOKEN": "hvs_test"}, *arguments, stdin=stdin, cwd=cwd)

    def run_with(
        self,
        environ: Mapping[str, str],
        *arguments: str,
        stdin: str | bytes | None = None,
        cwd: Path | None = None,
    ) -> Result:
        """Run one command with exactly this environment, from `cwd`."""
        clock = FakeClock()
        session = Session(
            environ=environ,
            directory=cwd or Path("/nonexistent"),
            transport=httpx.MockTransport(self.handle),
            sleep=clock.sleep,
            clock=clock,
            idle_s=0.05,
        )
        return CliRunner().invoke(self.program, list(arguments), obj=session, input=stdin)

    def bodies(self) -> list[object]:
        """Documents of all requests that carried one."""
        return [json.loads(request.content) for request in self.requests if request.content]


def job(state: str = "PENDING", **changes: object) -> JobOut:
    """A job as the API tells it."""
    record: JobOut = {
        "id": JOB_ID,
        "tenant": "default",
        "queue": "default",
        "name": "ddp-hello",
        "origin": "api",
        "principal": "p-1",
        "state": state,
        "desired": "run",
        "priority": 50,
        "tasks": 2,
        "gpus": 2,
        "gpus_per_task": 1,
        "cpu_milli_per_task": 1500,
        "memory_mib_per_task": 512,
        "gpu_models": [],
        "topology": "any",
        "pool": None,
        "class_key": "k",
        "submitted_at": SUBMITTED,
        "eligible_at": SUBMITTED,
        "started_at": None,
        "finished_at": None,
        "attempt_count": 0,
        "retries_used": 0,
        "end_cause": None,
        "exit_code": None,
        "message": "",
        "simulated": False,
        "version": 1,
        "revision": 1,
    }
    record.update(changes)  # type: ignore[typeddict-item]  # tests name fields of JobOut
    return record


def attempt(number: int = 1, **changes: object) -> AttemptOut:
    """An attempt as the API tells it; live unless told otherwise."""
    record: AttemptOut = {
        "id": f"a-{number}",
        "number": number,
        "live": True,
        "decision_id": "d-1",
        "tasks": [
            {
                "task_index": 0,
                "node_id": "n-1",
                "gpu_ids": ["GPU-a"],
                "cpu_milli": 1500,
                "memory_mib": 512,
            }
        ],
        "why": "best fit",
        "created_at": SUBMITTED,
        "started_at": SUBMITTED,
        "ended_at": None,
        "end_cause": None,
        "exit": None,
        "message": "",
    }
    record.update(changes)  # type: ignore[typeddict-item]  # tests name fields of AttemptOut
    return record


def detail(state: str = "RUNNING", *attempts: AttemptOut, **changes: object) -> JobDetailOut:
    """A job with its attempts, as the API tells it."""
    document: dict[str, object] = {"spec": {"task": {"command": ["python", "t.py"]}}}
    return {**job(state, **changes), "attempts": list(attempts), "document": document}


def node(**changes: object) -> dict[str, object]:
    """A cordoned node as the API tells it."""
    return {
        "id": "n-1",
        "name": "gpu-7",
        "pool": "default",
        "price_class": "reserved",
        "rack": "",
        "zone": "",
        "health": "healthy",
        "cordoned": True,
        "simulated": False,
        "gpus": 8,
        "gpus_used": 3,
        "gpu_models": ["H100"],
        "cpu_milli": 64_000,
        "cpu_milli_used": 3_500,
        "memory_mib": 524_288,
        "memory_mib_used": 0,
        "seen_at": "2027-01-15T07:59:50.000Z",
        "version": 1,
        **changes,
    }


def gpu(index: int, **changes: object) -> dict[str, object]:
    """A GPU of that node, held by a job, as the API tells it."""
    return {
        "id": f"GPU-{index}",
        "node_id": "n-1",
        "node_name": "gpu-7",
        "index": index,
        "model": "H100",
        "memory_mib": 81_920,
        "health": "healthy",
        "cordoned": False,
        "simulated": False,
        "in_use": True,
        "job_id": JOB_ID,
        "job_name": "llama",
        "version": 1,
        **changes,
    }
