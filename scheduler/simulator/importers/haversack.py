"""Our own format: JSON lines, exact, so that a generated or imported workload can be kept.

The first line describes the workload, every other is a job: the fields of `SimJob`, those with
their default left out. Instead of the resource fields a line may hold a whole job file under `job`:

    {"kind": "Workload", "version": 1, "name": "two", "arrivals": "timed"}
    {"id": "a", "submit_s": 0, "duration_s": 60, "gpus_per_task": 8}
    {"id": "b", "submit_s": 5, "duration_s": 60, "job": {"apiVersion": ..., "spec": {...}}}
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from scheduler.errors import InvalidRequestError
from scheduler.jobspec import parse_job_json
from scheduler.model.job import Topology
from scheduler.model.quantity import DEFAULT_QUEUE, DEFAULT_TENANT, QueueName, TenantId
from scheduler.simulator.importers.records import Collector, Reading, Row, opened
from scheduler.simulator.workload import Arrivals, SimJob, Skipped, Workload

VERSION = 1
_Seconds = Annotated[float, Field(ge=0)]
_Amount = Annotated[int, Field(ge=0)]


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class _Head(_Line):
    kind: str = Field(pattern="^Workload$")
    version: int = Field(ge=1, le=VERSION)
    name: str
    arrivals: Arrivals = Arrivals.TIMED
    skipped: dict[str, int] = Field(default_factory=dict)


class _Job(_Line):
    id: str = Field(min_length=1)
    submit_s: _Seconds
    duration_s: _Seconds
    tasks: int = Field(default=1, ge=1)
    gpus_per_task: _Amount = 0
    gpu_milli: int = Field(default=0, ge=0, le=999)
    cpu_milli: _Amount = 0
    memory_mib: _Amount = 0
    limit_s: _Seconds | None = None
    tenant: str = DEFAULT_TENANT
    queue: str = DEFAULT_QUEUE
    name: str = ""
    priority: int = Field(default=50, ge=0, le=100)
    gpu_models: tuple[str, ...] = ()
    topology: Topology = Topology.ANY
    preemptible: bool = True
    job: dict[str, JsonValue] | None = None


_LineT = TypeVar("_LineT", bound=_Line)
_OF_JOB_FILE = frozenset(
    {"tasks", "gpus_per_task", "gpu_milli", "cpu_milli", "memory_mib", "limit_s", "queue"}
    | {"priority", "gpu_models", "topology", "preemptible"}
)
_DEFAULTS = {field.name: field.default for field in fields(SimJob)}


def read(path: Path, _: Reading) -> Workload:
    """The workload of a file that `write` wrote, or somebody by hand. O(lines).

    Raises:
        NotFoundError: there is no such file.
        InvalidRequestError: it is malformed; the message names file, line and field.
    """
    found = Collector(path)
    with opened(path) as stream:
        lines = ((number, text) for number, text in enumerate(stream, 1) if text.strip())
        head = _checked(_Head, path, *next(lines, (1, "")))
        for number, text in lines:
            line = _checked(_Job, path, number, text)
            where = Row(path, number, {})
            if head.arrivals is Arrivals.REPLAY:
                found.add(_sim_job(line, where), where)
            else:
                found.add_timed(_sim_job(line, where), where)
    read_now = found.workload(head.arrivals)
    before = tuple(Skipped(reason, count) for reason, count in sorted(head.skipped.items()))
    return Workload(head.name, read_now.jobs, head.arrivals, (*before, *read_now.skipped))


def write(workload: Workload, path: Path) -> None:
    """Write `workload` so that `read` gives an equal one back.

    Raises:
        InvalidRequestError: the file cannot be written.
    """
    try:
        with path.open("w", encoding="utf-8") as stream:
            stream.writelines(f"{line}\n" for line in _lines(workload))
    except OSError as error:
        raise InvalidRequestError(f"{path}: cannot be written: {error}") from error


def _lines(workload: Workload) -> Iterator[str]:
    head: dict[str, object] = {
        "kind": "Workload",
        "version": VERSION,
        "name": workload.name,
        "arrivals": workload.arrivals.value,
    }
    if workload.skipped:
        head["skipped"] = {part.reason: part.records for part in workload.skipped}
    yield json.dumps(head)
    for job in workload.jobs:
        said = {name: getattr(job, name) for name in _DEFAULTS}
        yield json.dumps({name: v for name, v in said.items() if v != _DEFAULTS[name]})


def _checked(model: type[_LineT], path: Path, number: int, text: str) -> _LineT:
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InvalidRequestError(
            f"{path}, line {number}, field {field!r}: {first['msg']}",
            hint='line 1 is {"kind": "Workload", "version": 1, "name": ...}, each other a job',
        ) from error


def _sim_job(line: _Job, where: Row) -> SimJob:
    said = line.model_dump(exclude={"job"}, exclude_unset=True)
    if line.job is None:
        if line.gpu_milli and line.gpus_per_task:
            raise where.wrong("gpu_milli", "beside gpus_per_task", "a task has one or the other")
        return SimJob(**said)
    if twice := sorted(_OF_JOB_FILE & said.keys()):
        raise where.wrong(twice[0], "beside 'job'", "the job file says it; leave it out here")
    try:
        spec, _ = parse_job_json(json.dumps(line.job))
    except InvalidRequestError as error:
        problem = error.problems[0]
        raise where.wrong(
            f"job.{problem.path}", problem.message, "`haversack submit` takes the same job files"
        ) from error
    shape = spec.shape
    return SimJob(
        id=line.id,
        submit_s=line.submit_s,
        duration_s=line.duration_s,
        tasks=shape.tasks,
        gpus_per_task=shape.per_task.gpus,
        gpu_milli=shape.gpu_milli,
        cpu_milli=shape.per_task.cpu_milli,
        memory_mib=shape.per_task.memory_mib,
        limit_s=spec.max_runtime_s,
        tenant=TenantId(line.tenant),
        queue=QueueName(spec.queue),
        name=line.name or spec.name,
        priority=spec.priority,
        gpu_models=shape.gpu_models,
        topology=shape.topology,
        preemptible=spec.preemptible,
    )
