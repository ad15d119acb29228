"""Values to JSON text and back: what the store keeps whole and never queries inside.

The text of a value holds every field by its name, so a field added later needs a default here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import orjson

from scheduler.model.execution import LaunchOrder, LaunchTask, StopOrder
from scheduler.model.job import LauncherKind
from scheduler.model.lifecycle import EndCause
from scheduler.model.node import Links, shared_label
from scheduler.model.plan import FunnelStep, Reason, ReasonCode, TaskPlacement, Waiting
from scheduler.model.quantity import (
    WHOLE_GPU_MILLI,
    AttemptId,
    GpuId,
    JobId,
    NodeId,
    TenantId,
)
from scheduler.model.site import (
    ANYWHERE,
    Amounts,
    Effect,
    Operator,
    Requirement,
    Site,
    Taint,
    Term,
    Toleration,
    TolerationOperator,
)

_KEPT = 16_384
"""Texts of nodes and jobs whose values are remembered: most are those of many others."""


def text(value: object) -> str:
    """JSON text of a dataclass, mapping or sequence; equal values give equal text."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()


def placement_tasks(document: str) -> tuple[TaskPlacement, ...]:
    """The task placements that `text` wrote."""
    return tuple(
        TaskPlacement(
            task_index=task["task_index"],
            node_id=NodeId(task["node_id"]),
            gpu_ids=tuple(GpuId(gpu) for gpu in task["gpu_ids"]),
            cpu_milli=task["cpu_milli"],
            memory_mib=task["memory_mib"],
            gpu_milli=task.get("gpu_milli", WHOLE_GPU_MILLI),
            extras=_pairs(task.get("extras", ())),
        )
        for task in orjson.loads(document)
    )


def launch_order(document: str) -> LaunchOrder:
    """The launch order that `text` wrote."""
    found: Mapping[str, Any] = orjson.loads(document)
    return LaunchOrder(
        attempt_id=AttemptId(found["attempt_id"]),
        job_id=JobId(found["job_id"]),
        tenant=TenantId(found["tenant"]),
        job_name=found["job_name"],
        number=found["number"],
        epoch=found["epoch"],
        tasks=tuple(
            LaunchTask(
                task_index=task["task_index"],
                node_id=NodeId(task["node_id"]),
                node_name=task["node_name"],
                gpu_ids=tuple(GpuId(gpu) for gpu in task["gpu_ids"]),
                simulated=task["simulated"],
                cpu_milli=task.get("cpu_milli", 0),
                member=task.get("member", ""),
                memory_mib=task.get("memory_mib", 0),
            )
            for task in found["tasks"]
        ),
        processes=found["processes"],
        command=tuple(found["command"]),
        env=tuple((name, value) for name, value in found["env"]),
        launcher=LauncherKind(found["launcher"]),
        stop_signal=found["stop_signal"],
        grace_s=found["grace_s"],
        max_runtime_s=found["max_runtime_s"],
        workdir=found["workdir"],
        image=found.get("image"),
    )


def stop_order(document: str) -> StopOrder:
    """The stop order that `text` wrote."""
    found: Mapping[str, Any] = orjson.loads(document)
    return StopOrder(
        attempt_id=AttemptId(found["attempt_id"]),
        epoch=found["epoch"],
        cause=EndCause(found["cause"]),
        grace_s=found["grace_s"],
    )


@lru_cache(maxsize=1_024)
def links(document: str) -> Links:
    """The link matrices that `text` wrote; nodes of one kind share one value."""
    found: Mapping[str, Sequence[Sequence[float]]] = orjson.loads(document)
    return Links(
        nvlinks=tuple(tuple(int(count) for count in row) for row in found["nvlinks"]),
        bandwidth_gbps=tuple(tuple(float(rate) for rate in row) for row in found["bandwidth_gbps"]),
    )


def gpu_models(document: str) -> tuple[str, ...]:
    """The accepted GPU models of a job row, best first."""
    return tuple(orjson.loads(document))


def labels(document: str) -> tuple[tuple[str, str], ...]:
    """The labels of a node row; not remembered, for every node has one that is its own."""
    return tuple(shared_label(key, value) for key, value in orjson.loads(document))


@lru_cache(maxsize=_KEPT)
def taints(document: str) -> tuple[Taint, ...]:
    """The taints of a node row."""
    return tuple(
        Taint(found["key"], found["value"], Effect(found["effect"]))
        for found in orjson.loads(document)
    )


@lru_cache(maxsize=_KEPT)
def extras(document: str) -> Amounts:
    """The further resources of a node or job row."""
    return _pairs(orjson.loads(document))


def _pairs(found: Sequence[Sequence[Any]]) -> Amounts:
    return tuple((name, amount) for name, amount in found)


def site_text(value: Site) -> str:
    """The text of a job row's site; "" for anywhere."""
    return "" if value == ANYWHERE else text(value)


@lru_cache(maxsize=_KEPT)
def site(document: str) -> Site:
    """The site that `site_text` wrote."""
    if not document:
        return ANYWHERE
    found: Mapping[str, Any] = orjson.loads(document)
    terms = found["terms"]
    return Site(
        selector=tuple((key, value) for key, value in found["selector"]),
        terms=None if terms is None else tuple(_term(term) for term in terms),
        tolerations=tuple(
            Toleration(
                each["key"], TolerationOperator(each["operator"]), each["value"], each["effect"]
            )
            for each in found["tolerations"]
        ),
        node_name=found["node_name"],
    )


def _term(found: Mapping[str, Any]) -> Term:
    return Term(_requirements(found["labels"]), _requirements(found["fields"]))


def _requirements(found: Sequence[Mapping[str, Any]]) -> tuple[Requirement, ...]:
    return tuple(
        Requirement(each["key"], Operator(each["operator"]), tuple(each["values"]))
        for each in found
    )


def waiting(document: str) -> Waiting:
    """The reason record that `text` wrote."""
    found: Mapping[str, Any] = orjson.loads(document)
    return Waiting(
        class_key=found["class_key"],
        reasons=tuple(
            Reason(
                code=ReasonCode(reason["code"]),
                message=reason["message"],
                dimension=reason["dimension"],
                need=reason["need"],
                free=reason["free"],
                largest_block=reason["largest_block"],
            )
            for reason in found["reasons"]
        ),
        funnel=tuple(FunnelStep(step["filter"], step["nodes_left"]) for step in found["funnel"]),
    )
