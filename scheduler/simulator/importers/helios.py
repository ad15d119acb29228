"""Helios: SenseTime's `cluster_log.csv` (S-Lab-System-Group/HeliosData, CC-BY-4.0)."""

from __future__ import annotations

from pathlib import Path

from scheduler.model.quantity import TenantId
from scheduler.simulator.importers.records import Collector, Reading, Row, csv_rows, split
from scheduler.simulator.workload import SimJob, Workload

_COLUMNS = ("job_id", "vc", "gpu_num", "cpu_num", "node_num", "submit_time", "duration")


def read(path: Path, reading: Reading) -> Workload:
    """The jobs of a Slurm log; a virtual cluster is a tenant. O(records).

    Raises:
        NotFoundError: there is no such file.
        InvalidRequestError: it is malformed; the message names file, line and column.
    """
    found = Collector(path)
    for row in csv_rows(path, _COLUMNS):
        found.add_timed(_job(row, reading.node_gpus), row)
    return found.workload()


def _job(row: Row, node_gpus: int) -> SimJob:
    tasks, per_task = split(row.whole("gpu_num"), row.whole("node_num"), node_gpus)
    return SimJob(
        id=row.text("job_id"),
        submit_s=row.instant("submit_time"),
        duration_s=row.number("duration"),
        tasks=tasks,
        gpus_per_task=per_task,
        cpu_milli=1000 * row.whole("cpu_num") // tasks,
        tenant=TenantId(row.text("vc")),
        name=row.optional("user"),
    )
