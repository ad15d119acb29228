"""Plain CSV: a header with job_id, submit_s, gpus and duration_s; more columns say more."""

from __future__ import annotations

from pathlib import Path

from scheduler.model.quantity import DEFAULT_TENANT, WHOLE_GPU_MILLI, TenantId
from scheduler.simulator.importers.records import Collector, Reading, Row, csv_rows
from scheduler.simulator.workload import SimJob, Workload, gang_of

REQUIRED = ("job_id", "submit_s", "gpus", "duration_s")
OPTIONAL = ("tenant", "model", "priority", "gpu_models", "cpu_milli", "memory_mib", "limit_s")
_PRIORITY_MAX = 100


def read(path: Path, reading: Reading) -> Workload:
    """The jobs of a CSV file. O(records).

    `gpus` below 1 asks for that part of one GPU; `gpu_models` are separated by `|`; `cpu_milli`
    and `memory_mib` are for each task.

    Raises:
        NotFoundError: there is no such file.
        InvalidRequestError: it is malformed; the message names file, line and column.
    """
    found = Collector(path)
    for row in csv_rows(path, REQUIRED, reading.columns):
        found.add_timed(_job(row, reading.node_gpus), row)
    return found.workload()


def _job(row: Row, node_gpus: int) -> SimJob:
    tasks, per_task, milli = _size(row, node_gpus)
    priority = row.whole("priority") if row.optional("priority") else 50
    if priority > _PRIORITY_MAX:
        raise row.wrong("priority", f"{priority} is above 100", "priorities are 0 to 100")
    return SimJob(
        id=row.text("job_id"),
        submit_s=row.number("submit_s"),
        duration_s=row.number("duration_s"),
        tasks=tasks,
        gpus_per_task=per_task,
        gpu_milli=milli,
        cpu_milli=row.whole("cpu_milli") if row.optional("cpu_milli") else 0,
        memory_mib=row.whole("memory_mib") if row.optional("memory_mib") else 0,
        limit_s=row.number("limit_s") if row.optional("limit_s") else None,
        tenant=TenantId(row.optional("tenant") or DEFAULT_TENANT),
        name=row.optional("model"),
        priority=priority,
        gpu_models=tuple(model for model in row.optional("gpu_models").split("|") if model),
    )


def _size(row: Row, node_gpus: int) -> tuple[int, int, int]:
    gpus = row.number("gpus")
    if gpus < 1:
        return 1, 0, round(gpus * WHOLE_GPU_MILLI)
    return *gang_of(row.whole("gpus"), node_gpus), 0
