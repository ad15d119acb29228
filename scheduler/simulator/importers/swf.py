"""SWF, the Standard Workload Format of the Parallel Workloads Archive (Feitelson, version 2.2).

Eighteen numbers a line, -1 for unknown, comments after `;`. Processors become GPUs.
"""

from __future__ import annotations

from pathlib import Path

from scheduler.errors import InvalidRequestError
from scheduler.model.quantity import DEFAULT_TENANT, TenantId
from scheduler.simulator.importers.records import NO_RUN_TIME, Collector, Reading, Row, opened
from scheduler.simulator.workload import SimJob, Workload, gang_of

_COLUMNS = (
    *("job number", "submit time", "wait time", "run time", "allocated processors"),
    *("average cpu time", "used memory", "requested processors", "requested time"),
    *("requested memory", "status", "user", "group", "executable", "queue", "partition"),
    *("preceding job", "think time"),
)
_UNKNOWN = -1.0
_NO_PROCESSORS = "asks for no processors"


def read(path: Path, reading: Reading) -> Workload:
    """The jobs of an SWF log; a group is a tenant, or else a user. O(records).

    Raises:
        NotFoundError: there is no such file.
        InvalidRequestError: it is malformed; the message names file, line and column.
    """
    found = Collector(path)
    with opened(path) as stream:
        for line, text in enumerate(stream, 1):
            cells = text.partition(";")[0].split()
            if not cells:
                continue
            if len(cells) != len(_COLUMNS):
                raise InvalidRequestError(
                    f"{path}, line {line}, column {min(len(cells), len(_COLUMNS)) + 1}:"
                    f" {len(cells)} numbers; SWF has {len(_COLUMNS)}",
                    hint="comments start with ';'",
                )
            row = Row(path, line, dict(zip(_COLUMNS, cells, strict=True)))
            _take(found, row, reading.node_gpus)
    return found.workload()


def _take(found: Collector, row: Row, node_gpus: int) -> None:
    run_s = row.number("run time", least=_UNKNOWN)
    asked = row.whole("requested processors", least=-1)
    processors = asked if asked > 0 else row.whole("allocated processors", least=-1)
    if run_s <= 0:
        found.skip(NO_RUN_TIME)
    elif processors <= 0:
        found.skip(_NO_PROCESSORS)
    else:
        tasks, per_task = gang_of(processors, node_gpus)
        limit_s = row.number("requested time", least=_UNKNOWN)
        job = SimJob(
            id=row.text("job number"),
            submit_s=row.number("submit time"),
            duration_s=run_s,
            tasks=tasks,
            gpus_per_task=per_task,
            limit_s=limit_s if limit_s > 0 else None,
            tenant=_tenant(row),
            name=_known(row, "executable"),
        )
        found.add(job, row)


def _tenant(row: Row) -> TenantId:
    group, user = _known(row, "group"), _known(row, "user")
    return TenantId(f"group-{group}" if group else f"user-{user}" if user else DEFAULT_TENANT)


def _known(row: Row, column: str) -> str:
    value = row.whole(column, least=-1)
    return "" if value < 0 else str(value)
