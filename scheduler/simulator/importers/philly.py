"""Philly: Microsoft's `cluster_job_log` (msr-fiddle/philly-traces, CC-BY-4.0), a JSON array."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scheduler.errors import InvalidRequestError
from scheduler.model.quantity import TenantId
from scheduler.simulator.importers.records import NEVER_RAN, Collector, Reading, Row, opened
from scheduler.simulator.workload import SimJob, Workload, gang_of

_NO_GPUS = "no GPU is recorded"
_NONE = (None, "", "None")


@dataclass(frozen=True, slots=True)
class _Record:
    """One job of the log, and where it is for error messages."""

    path: Path
    number: int
    fields: Mapping[str, Any]

    def wrong(self, field: str, what: str) -> InvalidRequestError:
        return InvalidRequestError(
            f"{self.path}, record {self.number}, field {field!r}: {what}",
            hint="the format is that of msr-fiddle/philly-traces, cluster_job_log",
        )

    def text(self, field: str) -> str:
        value = self.fields.get(field)
        if not isinstance(value, str) or not value:
            raise self.wrong(field, f"{value!r} is not text")
        return value

    def items(self, holder: Mapping[str, Any], field: str, place: str) -> list[Any]:
        value = holder.get(field)
        if not isinstance(value, list):
            raise self.wrong(place, f"{value!r} is not a list")
        return value

    def instant(self, value: object, field: str) -> float | None:
        """Seconds since the epoch; None for a time that the log does not have."""
        if value in _NONE:
            return None
        try:
            return datetime.fromisoformat(str(value)).replace(tzinfo=UTC).timestamp()
        except ValueError as error:
            raise self.wrong(field, f"{value!r} is not a time") from error


def read(path: Path, reading: Reading) -> Workload:
    """The jobs of the log; a virtual cluster is a tenant, a user the job's name. O(records).

    The run time is that of all attempts together, since a scheduler had to serve them all; the
    GPUs are those of the largest attempt. Local times of the log are taken as they stand: around
    the change of daylight saving time they are an hour off.

    Raises:
        NotFoundError: there is no such file.
        InvalidRequestError: it is malformed; the message names file, record and field.
    """
    with opened(path) as stream:
        try:
            document = json.load(stream)
        except json.JSONDecodeError as error:
            raise InvalidRequestError(
                f"{path}, line {error.lineno}, column {error.colno}: not JSON: {error.msg}",
                hint="unpack cluster_job_log from trace-data.tar.gz first",
            ) from error
    if not isinstance(document, list):
        raise InvalidRequestError(f"{path}, line 1: not a JSON array of jobs")
    found = Collector(path)
    for number, fields in enumerate(document, 1):
        if not isinstance(fields, dict):
            raise InvalidRequestError(f"{path}, record {number}: not an object")
        _take(found, _Record(path, number, fields), reading.node_gpus)
    return found.workload()


def _take(found: Collector, record: _Record, node_gpus: int) -> None:
    submitted = record.instant(record.fields.get("submitted_time"), "submitted_time")
    if submitted is None:
        found.skip("no submission time")
        return
    run_s, gpus = _attempts(record)
    if run_s <= 0:
        found.skip(NEVER_RAN)
    elif not gpus:
        found.skip(_NO_GPUS)
    else:
        tasks, per_task = gang_of(gpus, node_gpus)
        user = record.fields.get("user")
        job = SimJob(
            id=record.text("jobid"),
            submit_s=submitted,
            duration_s=run_s,
            tasks=tasks,
            gpus_per_task=per_task,
            tenant=TenantId(record.text("vc")),
            name=user if isinstance(user, str) else "",
        )
        found.add(job, Row(record.path, record.number, {}))


def _attempts(record: _Record) -> tuple[float, int]:
    """(seconds that all attempts ran, GPUs of the largest one)."""
    run_s, gpus = 0.0, 0
    for place, attempt in enumerate(record.items(record.fields, "attempts", "attempts")):
        at = f"attempts[{place}]"
        if not isinstance(attempt, dict):
            raise record.wrong(at, "is not an object")
        begun = record.instant(attempt.get("start_time"), f"{at}.start_time")
        ended = record.instant(attempt.get("end_time"), f"{at}.end_time")
        if begun is not None and ended is not None:
            run_s += max(0.0, ended - begun)
        held = 0
        for machine in record.items(attempt, "detail", f"{at}.detail"):
            if not isinstance(machine, dict):
                raise record.wrong(f"{at}.detail", "holds something that is not an object")
            held += len(record.items(machine, "gpus", f"{at}.detail.gpus"))
        gpus = max(gpus, held)
    return run_s, gpus
