"""Nodes, GPUs and queues for people: what there is, who holds it, and cordons."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sqlalchemy import ColumnElement, Row, Table, func, or_, select, update

from scheduler.errors import ConflictError
from scheduler.model.access import Actor
from scheduler.model.lifecycle import JobState
from scheduler.model.node import Health, Node
from scheduler.model.quantity import SYSTEM_TENANT, GpuId, NodeId, UtcSeconds
from scheduler.model.view import GpuView, NodeView, QueueView
from scheduler.store.scoping import storable, visible
from scheduler.store.snapshot import load_nodes
from scheduler.store.tables import allocations, attempts, gpus, jobs, nodes, queues
from scheduler.store.transaction import Transaction

_PRESENT = select(nodes).where(nodes.c.present.is_(True))
_HELD_GPUS = (
    select(gpus.c.node_id, func.count(allocations.c.gpu_id.distinct()).label("held"))
    .join(allocations, allocations.c.gpu_id == gpus.c.id)
    .where(allocations.c.live.is_(True))
    .group_by(gpus.c.node_id)
    .subquery()
)
_NODES = select(nodes, func.coalesce(_HELD_GPUS.c.held, 0).label("gpus_used")).outerjoin(
    _HELD_GPUS, _HELD_GPUS.c.node_id == nodes.c.id
)
# A node that is gone is still shown while something holds it: that is what an operator looks for.
_NODE_SHOWN = or_(
    nodes.c.present.is_(True),
    nodes.c.cpu_milli_used > 0,
    nodes.c.memory_mib_used > 0,
    _HELD_GPUS.c.held > 0,
)
_GPUS = (
    select(
        gpus,
        nodes.c.name.label("node_name"),
        nodes.c.present.label("node_present"),
        nodes.c.simulated,
        jobs.c.id.label("job_id"),
        jobs.c.name.label("job_name"),
        jobs.c.tenant_id.label("job_tenant"),
    )
    .join(nodes, nodes.c.id == gpus.c.node_id)
    .outerjoin(allocations, (allocations.c.gpu_id == gpus.c.id) & allocations.c.live.is_(True))
    .outerjoin(attempts, attempts.c.id == allocations.c.attempt_id)
    .outerjoin(jobs, jobs.c.id == attempts.c.job_id)
)
_GPU_SHOWN = or_(gpus.c.present.is_(True) & nodes.c.present.is_(True), jobs.c.id.is_not(None))


def present_nodes(tx: Transaction) -> tuple[Node, ...]:
    """Every present node, whatever its health. Two statements, O(GPUs)."""
    return load_nodes(tx, list(tx.connection.execute(_PRESENT)))


def node_list(tx: Transaction) -> tuple[NodeView, ...]:
    """Nodes that are present or still in use, by name. Two statements, O(GPUs)."""
    statement = _NODES.where(_NODE_SHOWN).order_by(nodes.c.name)
    return _node_views(tx, list(tx.connection.execute(statement)))


def node(tx: Transaction, id_or_name: str) -> NodeView | None:
    """One node by its id, else by its name; gone ones too."""
    if not storable(id_or_name):
        return None
    wanted = or_(nodes.c.id == id_or_name, nodes.c.name == id_or_name)
    rows = list(tx.connection.execute(_NODES.where(wanted)))
    rows.sort(key=lambda row: row.id != id_or_name)
    return _node_views(tx, rows[:1])[0] if rows else None


def _node_views(tx: Transaction, rows: list[Row[Any]]) -> tuple[NodeView, ...]:
    return tuple(
        NodeView(
            node=value if row.present else replace(value, health=Health.UNKNOWN),
            cpu_milli_used=row.cpu_milli_used,
            memory_mib_used=row.memory_mib_used,
            gpus_used=row.gpus_used,
            seen_at=row.seen_at,
            version=row.version,
        )
        for row, value in zip(rows, load_nodes(tx, rows), strict=True)
    )


def gpu_list(tx: Transaction, actor: Actor) -> tuple[GpuView, ...]:
    """GPUs that are present or still held, by node and index. One statement, O(GPUs).

    Every tenant sees that a GPU is in use; only the holder's own tenant sees by which job.
    """
    statement = _GPUS.where(_GPU_SHOWN).order_by(nodes.c.name, gpus.c.position, gpus.c.id)
    return tuple(_gpu_view(row, actor) for row in tx.connection.execute(statement))


def gpu(tx: Transaction, actor: Actor, gpu_id: GpuId) -> GpuView | None:
    """One GPU; gone ones too."""
    if not storable(gpu_id):
        return None
    row = tx.connection.execute(_GPUS.where(gpus.c.id == gpu_id)).first()
    return None if row is None else _gpu_view(row, actor)


def _gpu_view(row: Row[Any], actor: Actor) -> GpuView:
    shown = row.job_id is not None and (actor.cluster_wide or row.job_tenant == actor.tenant)
    here = row.present and row.node_present
    return GpuView(
        id=row.id,
        node_id=row.node_id,
        node_name=row.node_name,
        index=row.position,
        model=row.model,
        memory_mib=row.memory_mib,
        health=row.health if here else Health.UNKNOWN.value,
        cordoned=row.cordoned,
        simulated=row.simulated,
        job_id=row.job_id if shown else None,
        job_name=row.job_name if shown else None,
        version=row.version,
        in_use=row.job_id is not None,
    )


def set_node_cordon(tx: Transaction, found: NodeView, *, cordoned: bool, now: UtcSeconds) -> None:
    """Cordon or uncordon a node as it was read in this transaction.

    Raises:
        ConflictError: it changed since.
    """
    revision = tx.next_revision(
        tenant=SYSTEM_TENANT,
        kind="node",
        object_id=found.node.id,
        payload={"event": _verb(cordoned), "name": found.node.name},
        at=now,
    )
    guard = (nodes.c.id == found.node.id) & (nodes.c.version == found.version)
    _bump(tx, nodes, guard, revision, cordoned=cordoned)


def set_gpu_cordon(tx: Transaction, found: GpuView, *, cordoned: bool, now: UtcSeconds) -> None:
    """Cordon or uncordon a GPU as it was read in this transaction; its node's version rises too.

    Raises:
        ConflictError: it changed since.
    """
    revision = tx.next_revision(
        tenant=SYSTEM_TENANT,
        kind="gpu",
        object_id=found.id,
        payload={"event": _verb(cordoned), "node": found.node_name, "index": found.index},
        at=now,
    )
    guard = (gpus.c.id == found.id) & (gpus.c.version == found.version)
    _bump(tx, gpus, guard, revision, cordoned=cordoned)
    _bump(tx, nodes, nodes.c.id == found.node_id, revision)


def _verb(cordoned: bool) -> str:  # noqa: FBT001 - names one of two words
    return "cordon" if cordoned else "uncordon"


def _bump(
    tx: Transaction, table: Table, which: ColumnElement[bool], revision: int, **changes: object
) -> None:
    """Set columns of exactly one row, with its version and revision."""
    statement = (
        update(table).where(which).values(version=table.c.version + 1, revision=revision, **changes)
    )
    if tx.connection.execute(statement).rowcount != 1:
        raise ConflictError(f"the {table.name} row changed meanwhile", hint="read it and retry")


def queue_list(tx: Transaction, actor: Actor) -> tuple[QueueView, ...]:
    """The actor's queues with their counts of jobs that are not over. O(such jobs)."""
    states = [state.value for state in JobState if not state.terminal]
    counted = tx.connection.execute(
        select(jobs.c.tenant_id, jobs.c.queue, jobs.c.state, func.count().label("jobs"))
        .where(jobs.c.state.in_(states), visible(actor, jobs.c.tenant_id))
        .group_by(jobs.c.tenant_id, jobs.c.queue, jobs.c.state)
    )
    by_queue: dict[tuple[str, str], dict[JobState, int]] = {}
    for row in counted:
        by_queue.setdefault((row.tenant_id, row.queue), {})[JobState(row.state)] = row.jobs
    found = tx.connection.execute(
        select(queues)
        .where(visible(actor, queues.c.tenant_id))
        .order_by(queues.c.tenant_id, queues.c.name)
    )
    return tuple(_queue_view(row, by_queue.get((row.tenant_id, row.name), {})) for row in found)


def _queue_view(row: Row[Any], states: dict[JobState, int]) -> QueueView:
    return QueueView(
        name=row.name,
        tenant=row.tenant_id,
        weight=row.weight,
        waiting=states.get(JobState.PENDING, 0),
        running=sum(count for state, count in states.items() if state.holds_allocations),
        held=states.get(JobState.HELD, 0) + states.get(JobState.QUARANTINED, 0),
    )


def node_names(tx: Transaction, node_ids: frozenset[NodeId]) -> dict[str, str]:
    """Names of these nodes, gone ones too."""
    statement = select(nodes.c.id, nodes.c.name).where(nodes.c.id.in_(sorted(node_ids)))
    return {row.id: row.name for row in tx.connection.execute(statement)}
