"""From views to wire types: one small function each, so that a response is one dictionary.

All are O(size of the view) and raise nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import orjson

from api.schemas import (
    AttemptOut,
    AuditOut,
    DecisionDetailOut,
    DecisionOut,
    EventOut,
    ExplanationOut,
    GpuOut,
    HistoryOut,
    JobDetailOut,
    JobOut,
    NodeOut,
    PageOut,
    QueueOut,
    ReasonOut,
    TaskOut,
    TenantOut,
    TokenOut,
)
from scheduler.clock import iso
from scheduler.model.plan import REMEDIES, Reason, TaskPlacement
from scheduler.model.quantity import UtcSeconds
from scheduler.model.view import (
    AttemptView,
    AuditEntry,
    DecisionView,
    Explanation,
    GpuView,
    HistoryEntry,
    JobView,
    JournalEntry,
    NodeView,
    Page,
    QueueView,
    TenantView,
    TokenView,
)

V = TypeVar("V")
W = TypeVar("W")


def _instant(at: UtcSeconds) -> str:
    shown = iso(at)
    assert shown is not None
    return shown


def page_out(page: Page[V], render: Callable[[V], W]) -> PageOut[W]:
    """Render a page. O(items)."""
    return {"items": [render(item) for item in page.items], "next_cursor": page.next_cursor}


def task_out(task: TaskPlacement) -> TaskOut:
    """Render a task's place."""
    return {
        "task_index": task.task_index,
        "node_id": task.node_id,
        "gpu_ids": list(task.gpu_ids),
        "cpu_milli": task.cpu_milli,
        "memory_mib": task.memory_mib,
    }


def attempt_out(view: AttemptView) -> AttemptOut:
    """Render an attempt."""
    ended = view.exit
    return {
        "id": view.id,
        "number": view.number,
        "live": view.live,
        "decision_id": view.decision_id,
        "tasks": [task_out(task) for task in view.tasks],
        "why": view.why,
        "created_at": _instant(view.created_at),
        "started_at": iso(view.started_at),
        "ended_at": iso(view.ended_at),
        "end_cause": view.end_cause,
        "exit": None
        if ended is None
        else {"rank": ended.rank, "exit_code": ended.exit_code, "signal": ended.signal},
        "message": view.message,
    }


def job_out(view: JobView) -> JobOut:
    """Render a job without its document."""
    shape = view.shape
    return {
        "id": view.id,
        "tenant": view.tenant,
        "queue": view.queue,
        "name": view.name,
        "origin": view.origin,
        "principal": view.principal,
        "state": view.state,
        "desired": view.desired,
        "priority": view.priority,
        "tasks": shape.tasks,
        "gpus": shape.total.gpus,
        "gpus_per_task": shape.per_task.gpus,
        "cpu_milli_per_task": shape.per_task.cpu_milli,
        "memory_mib_per_task": shape.per_task.memory_mib,
        "gpu_models": list(shape.gpu_models),
        "topology": shape.topology,
        "pool": shape.pool,
        "class_key": view.class_key,
        "submitted_at": _instant(view.submitted_at),
        "eligible_at": _instant(view.eligible_at),
        "started_at": iso(view.started_at),
        "finished_at": iso(view.finished_at),
        "attempt_count": view.attempts,
        "retries_used": view.retries_used,
        "end_cause": view.end_cause,
        "exit_code": view.exit_code,
        "message": view.message,
        "simulated": view.simulated,
        "version": view.version,
        "revision": view.revision,
    }


def job_detail_out(view: JobView, attempts: tuple[AttemptView, ...]) -> JobDetailOut:
    """Render a job whole. The stored document goes out as it is, without being parsed."""
    return {
        **job_out(view),
        "attempts": [attempt_out(attempt) for attempt in attempts],
        "document": orjson.Fragment(view.document),  # type: ignore[typeddict-item]
    }


def history_out(entry: HistoryEntry) -> HistoryOut:
    """Render one move."""
    return {
        "seq": entry.seq,
        "at": _instant(entry.at),
        "from_state": entry.from_state,
        "to_state": entry.to_state,
        "event": entry.event,
        "attempt_id": entry.attempt_id,
        "detail": dict(entry.detail),
    }


def reason_out(reason: Reason) -> ReasonOut:
    """Render one reason."""
    return {
        "code": reason.code,
        "message": reason.message,
        "dimension": reason.dimension,
        "need": reason.need,
        "free": reason.free,
        "largest_block": reason.largest_block,
        "remedy": REMEDIES[reason.code],
    }


def explanation_out(view: Explanation) -> ExplanationOut:
    """Render an explanation."""
    return {
        "job_id": view.job_id,
        "state": view.state,
        "summary": view.summary,
        "reasons": [reason_out(reason) for reason in view.reasons],
        "funnel": [{"filter": step.filter, "nodes_left": step.nodes_left} for step in view.funnel],
        "ahead": view.ahead,
        "decision_id": view.decision_id,
        "gap": view.gap,
        "evaluated_at": iso(view.evaluated_at),
    }


def gpu_out(view: GpuView) -> GpuOut:
    """Render a GPU."""
    return {
        "id": view.id,
        "node_id": view.node_id,
        "node_name": view.node_name,
        "index": view.index,
        "model": view.model,
        "memory_mib": view.memory_mib,
        "health": view.health,
        "cordoned": view.cordoned,
        "simulated": view.simulated,
        "in_use": view.in_use,
        "job_id": view.job_id,
        "job_name": view.job_name,
        "version": view.version,
    }


def node_out(view: NodeView) -> NodeOut:
    """Render a node."""
    node = view.node
    return {
        "id": node.id,
        "name": node.name,
        "pool": node.pool,
        "price_class": node.price_class,
        "rack": node.rack,
        "zone": node.zone,
        "health": node.health,
        "cordoned": node.cordoned,
        "simulated": node.simulated,
        "gpus": len(node.gpus),
        "gpus_used": view.gpus_used,
        "gpu_models": sorted({gpu.model for gpu in node.gpus}),
        "cpu_milli": node.capacity.cpu_milli,
        "cpu_milli_used": view.cpu_milli_used,
        "memory_mib": node.capacity.memory_mib,
        "memory_mib_used": view.memory_mib_used,
        "seen_at": _instant(view.seen_at),
        "version": view.version,
    }


def queue_out(view: QueueView) -> QueueOut:
    """Render a queue."""
    return {
        "name": view.name,
        "tenant": view.tenant,
        "weight": view.weight,
        "waiting": view.waiting,
        "running": view.running,
        "held": view.held,
    }


def decision_out(view: DecisionView) -> DecisionOut:
    """Render a decision without its document."""
    return {
        "id": view.id,
        "at": _instant(view.at),
        "epoch": view.epoch,
        "snapshot_revision": view.snapshot_revision,
        "value": view.value,
        "bound": view.bound,
        "gap": view.gap,
        "placed": view.placed,
        "refused": view.refused,
        "waiting_classes": view.waiting_classes,
        "policy": view.policy,
        "duration_ms": view.duration_ms,
    }


def decision_detail_out(view: DecisionView) -> DecisionDetailOut:
    """Render a decision whole."""
    return {**decision_out(view), "document": dict(view.document)}


def event_out(entry: JournalEntry) -> EventOut:
    """Render one journal entry."""
    return {
        "revision": entry.revision,
        "tenant": entry.tenant,
        "at": _instant(entry.at),
        "kind": entry.kind,
        "object_id": entry.object_id,
        "payload": dict(entry.payload),
    }


def token_out(view: TokenView) -> TokenOut:
    """Render a token."""
    return {
        "id": view.id,
        "tenant": view.tenant,
        "principal": view.principal,
        "principal_name": view.principal_name,
        "role": view.role,
        "description": view.description,
        "created_at": _instant(view.created_at),
        "expires_at": iso(view.expires_at),
        "revoked_at": iso(view.revoked_at),
    }


def tenant_out(view: TenantView) -> TenantOut:
    """Render a tenant."""
    return {"id": view.id, "name": view.name, "created_at": _instant(view.created_at)}


def audit_out(entry: AuditEntry) -> AuditOut:
    """Render one audit row."""
    return {
        "id": entry.id,
        "at": _instant(entry.at),
        "tenant": entry.tenant,
        "principal": entry.principal,
        "action": entry.action,
        "object_id": entry.object_id,
        "outcome": entry.outcome,
        "detail": dict(entry.detail),
    }
