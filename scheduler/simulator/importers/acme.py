"""Acme: Shanghai AI Lab's `trace_seren.csv`, `trace_kalos.csv` (InternLM/AcmeTrace, CC-BY-4.0)."""

from __future__ import annotations

from pathlib import Path

from scheduler.model.quantity import TenantId
from scheduler.simulator.importers.records import (
    NEVER_RAN,
    Collector,
    Reading,
    Row,
    csv_rows,
    split,
)
from scheduler.simulator.workload import SimJob, Workload

_COLUMNS = (
    *("job_id", "user", "node_num", "gpu_num", "cpu_num", "type"),
    *("submit_time", "start_time", "end_time"),
)
_MIB_PER_GB = 1024


def read(path: Path, reading: Reading) -> Workload:
    """The jobs of a log; a user is a tenant, the workload type the job's name. O(records).

    Run time is end - start: in the Kalos file the column `duration` includes waiting.

    Raises:
        NotFoundError: there is no such file.
        InvalidRequestError: it is malformed; the message names file, line and column.
    """
    found = Collector(path)
    for row in csv_rows(path, _COLUMNS):
        if not row.optional("start_time") or not row.optional("end_time"):
            found.skip(NEVER_RAN)
        else:
            found.add_timed(_job(row, reading.node_gpus), row)
    return found.workload()


def _job(row: Row, node_gpus: int) -> SimJob:
    tasks, per_task = split(row.whole("gpu_num"), row.whole("node_num"), node_gpus)
    memory = row.number("mem_per_pod_GB") if row.optional("mem_per_pod_GB") else 0.0
    return SimJob(
        id=row.text("job_id"),
        submit_s=row.instant("submit_time"),
        duration_s=max(0.0, row.instant("end_time") - row.instant("start_time")),
        tasks=tasks,
        gpus_per_task=per_task,
        cpu_milli=1000 * row.whole("cpu_num") // tasks,
        memory_mib=int(memory * _MIB_PER_GB),
        tenant=TenantId(row.text("user")),
        name=row.optional("type"),
    )
